"""``python -m depass_sae.evaluation.llama_scope``: the paper's cases on the paper's model, its numbers beside ours.

Loads Llama-3.1-8B with Llama Scope at the layers of the cases, asks what appendix C.5 of the paper asks, under the
paper's rule and under ours, and shows Tables 8 to 10 with both. ``--family`` asks the same of Gemma Scope and of
Qwen-Scope, where the paper has no case. The weights are gated or large, so the command is for whoever has them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..attribution.answer import Asked
from ..attribution.features import find_features
from ..attribution.targets import make_target
from ..attribution.tokens import attribute_tokens_each
from ..errors import DepassWarning, UserError
from ..files import write_files
from ..loading import load_subject
from ..models.load import dtype_named
from ..models.prompt import Prompt, encode, words
from ..passes.forward import FirstToken, Progress
from ..passes.settings import Settings
from ..subject import Subject
from ..texts import make_printable, visible
from ..view.shown import check_out
from .paper_cases import FAMILIES, START, Case, PaperCase
from .side_by_side import CaseFound, SideBySide, Spent

RULES = ("softmax", "half")
"""The paper's, and this package's default."""


def run(
    family: str = "llama",
    *,
    cases: Sequence[str] = (),
    model: Any = None,
    saes: Any = None,
    dtype: str | None = None,
    trace_dtype: str | None = None,
    device: str | None = None,
    first_token: FirstToken = "skip",
    progress: Progress | None = None,
) -> SideBySide:
    """The cases of a family ("llama", "gemma", "qwen"), on its own model and SAEs unless others are named.

    cases: their names (none: all of them); only the layers that they need are loaded. first_token: see
    :class:`.Allocation`; the paper does not say which. The others: see :func:`depass_sae.load`.

    Raises UserError for what cannot be loaded, and for a model whose tokenizer splits a case's prompt otherwise.
    """
    if family not in FAMILIES:
        raise UserError(f"there is no family {family!r}; there are {', '.join(FAMILIES)}")
    known = FAMILIES[family]
    chosen = known.chosen(tuple(cases))
    layers = sorted({case.layer for case in chosen})
    began = time.monotonic()
    subject = load_subject(
        known.model if model is None else model,
        saes=known.saes if saes is None else saes,
        layers=layers if saes is not None else None,
        sae_ids=[known.sae_ids[layer] for layer in layers] if saes is None else None,
        dtype=dtype,
        trace_dtype=trace_dtype,
        device=device,
    )
    loading = _spent(began, subject)
    prompts = [encode(subject.loaded, subject.adapter, case.prompt) for case in chosen]
    for case, prompt in zip(chosen, prompts, strict=True):
        if isinstance(case, PaperCase):
            _check_tokens(case, prompt, subject.loaded.name)
    began = time.monotonic()
    with subject.adapter.lock:
        found = [_ask(subject, *asked, first_token, progress) for asked in zip(chosen, prompts, strict=True)]
    return SideBySide(
        family=known,
        model=subject.loaded.name,
        device=str(subject.adapter.model.device),
        dtype=subject.dtype_name,
        cases=tuple(found),
        loading=loading,
        asking=_spent(began, subject),
    )


def _ask(subject: Subject, case: Case, prompt: Prompt, first_token: FirstToken, progress: Progress | None) -> CaseFound:
    """All targets of a case by one pass per rule; the prompt is traced once."""
    subject = subject.asked()
    index, positions = question(subject, case, prompt)
    target, _ = make_target(subject, feature=f"{case.layer}/{index}")
    asked = [Asked(prompt, target, pos) for pos in positions]

    def told(rule: str) -> Progress | None:
        return progress and (lambda what, done, steps: progress(f"{case.name}, {rule}: {what}", done, steps))

    answers = {
        rule: attribute_tokens_each(
            subject, asked, settings=Settings.of(rule, first_token=first_token, progress=told(rule))
        )
        for rule in RULES
    }
    return CaseFound(case, {rule: tuple(found) for rule, found in answers.items()})


def question(subject: Subject, case: Case, prompt: Prompt) -> tuple[int, list[int]]:
    """The feature's index and the positions at which it is asked about."""
    if isinstance(case, PaperCase):
        return case.index, [target.pos for target in case.targets]
    found = [group for group in words(prompt) if "".join(prompt.tokens[i] for i in group).strip() == case.word]
    if not found:
        raise UserError(f"{subject.loaded.name}'s tokenizer finds no word {case.word!r} in the {case.name} prompt")
    pos = found[0][-1]
    (layer,) = find_features(subject, prompt, case.layer, "specific").layers
    if not layer.positions[pos].indices:
        raise UserError(
            f"no feature of the SAE at {layer.hook} fires at {case.word!r} ({pos}) of the {case.name} prompt"
        )
    return layer.positions[pos].indices[0], [pos]


def _check_tokens(case: PaperCase, prompt: Prompt, model: str) -> None:
    """Raises UserError where a token of the paper's tables is another one here."""
    targets = {at.pos: at.token for at in case.targets}
    for pos, token in (targets | {at.pos: at.token for target in case.targets for at in target.sources}).items():
        here = prompt.tokens[pos].strip() if pos < len(prompt) else ""
        if here != token and token != START:
            raise UserError(
                f"position {pos} of the {case.name} prompt is {here!r} to {model}, and {token!r} in the paper's "
                f"{case.table}: this is another tokenizer than Llama-3.1's, or the start token is missing or doubled"
            )


def _spent(began: float, subject: Subject) -> Spent:
    device = subject.adapter.model.device
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Spent(time.monotonic() - began, _peak_memory(), on_device)


def _peak_memory() -> int | None:
    """Of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# --------------------------------------------------------------------------------------------------------- the command


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m depass_sae.evaluation.llama_scope", description=(__doc__ or "").split("\n\n")[0])
    named = "; ".join(
        f"{name}: {family.model} with {family.saes}, cases {', '.join(case.name for case in family.cases)}"
        for name, family in FAMILIES.items()
    )
    parser.add_argument("--family", default="llama", choices=FAMILIES, help=named)
    parser.add_argument("--cases", nargs="+", default=[], metavar="NAME", help="some of the family's (default: all)")
    parser.add_argument("--model", help="another hub id, or a directory")
    parser.add_argument("--sae", help="another release of sae-lens's, or a directory")
    parser.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    parser.add_argument("--dtype", help="of the model (default: the checkpoint's)")
    parser.add_argument("--trace-dtype", help="float32 takes the rounding of a bfloat16 model away")
    parser.add_argument("--first-token", default="skip", help="skip or compete, under softmax")
    parser.add_argument(
        "--out", "-o", type=Path, action="append", default=[], metavar="FILE",
        help="FILE.html, .md, .json, .csv, ...; may be repeated",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Tables on stdout, progress on a terminal's stderr. A mistake of the user's is status 2 and one line there."""
    make_printable()
    # Libraries read these when they are imported.
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    try:
        _run(_parser().parse_args(arguments))
    except UserError as error:
        return _one_line(error)
    except torch.OutOfMemoryError:
        return _one_line("the device has not enough memory; try --dtype bfloat16, fewer --cases, or --device cpu")
    except KeyboardInterrupt:
        return 130
    return 0


def _run(asked: argparse.Namespace) -> None:
    for path in asked.out:
        check_out(path, SideBySide)
    dtype_named(asked.dtype)
    found = _watched(asked)
    from rich.console import Console

    from ..view.terminal import UNBOUNDED, print_on

    contents = {path: check_out(path, SideBySide).content(found) for path in asked.out}
    console = Console()
    print_on(console if console.is_terminal else Console(width=UNBOUNDED), found.blocks())
    write_files(contents)
    sys.stdout.writelines(f"wrote {visible(str(path))}\n" for path in asked.out)


def _watched(asked: argparse.Namespace) -> SideBySide:
    """The run. A terminal is shown the hub's own bars and then a line of progress; elsewhere nothing is said."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    line = console.status("")

    def progress(what: str, done: int, steps: int) -> None:
        line.update(f"{what} {done}/{steps}")
        line.start()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ExitStack() as aside:
            if console.is_terminal:
                aside.callback(line.stop)
                console.print(
                    f"loading {visible(asked.model or FAMILIES[asked.family].model)} ...", markup=False, highlight=False
                )
            else:
                aside.enter_context(redirect_stdout(StringIO()))
                aside.enter_context(redirect_stderr(StringIO()))
            found = run(
                asked.family, cases=asked.cases, model=asked.model, saes=asked.sae, dtype=asked.dtype,
                trace_dtype=asked.trace_dtype, device=asked.device, first_token=asked.first_token,
                progress=progress if console.is_terminal else None,
            )  # fmt: skip
    on_page = tuple(case.first.fit.warning for case in found.cases if case.first.fit and case.first.fit.warning)
    for message in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, DepassWarning)):
        if not message.endswith(on_page):
            sys.stderr.write(f"warning: {visible(message)}\n")
    return found


def _one_line(message: object) -> int:
    sys.stderr.write(f"llama_scope: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
