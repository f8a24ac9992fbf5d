"""``python -m depass_sae.evaluation.paper``: the paper's experiments, into docs/paper.md (``make paper``)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...files import write_bytes, write_text
from ..bar import bar
from . import languages, neurons, page, truthfulness

if TYPE_CHECKING:
    from ...api import LM
    from ...passes.forward import Progress

SMOLLM2 = "smollm2"
PROMPTS = 20
"""Facts, and sentences with an indirect object."""
NEURONS_OF = 15
TIMED = ("The capital of France is", "When Mary and John went to the store, John gave a drink to")


def _tokens(lm: LM, out: Path, progress: Progress) -> str:
    methods = ["softmax", "half", "linear", "attnlrp", "ig", "rollout", "nearness", "leave-one-out", "random"]
    return page.tokens({
        name: lm.evaluate(
            name, "tokens", methods=methods, protocols=["delete", "keep"], limit=PROMPTS, progress=progress
        )
        for name in ("facts", "ioi")
    })  # fmt: skip


def _components(lm: LM, out: Path, progress: Progress) -> str:
    methods = ["softmax", "half", "linear", "effect", "norm", "random"]
    protocols = ["mask-top", "mask-bottom", "mask-top-abs", "mask-bottom-abs"]
    return page.components({
        f"{of}, {name}": lm.evaluate(
            name, of, methods=[one for one in methods if of == "heads" or one != "softmax"], protocols=protocols,
            limit=PROMPTS, progress=progress,
        )
        for of in ("heads", "neurons")
        for name in ("facts", "ioi")
    })  # fmt: skip


def _truthfulness(lm: LM, out: Path, progress: Progress) -> str:
    return page.truthfulness(truthfulness.run(lm, progress), truthfulness.separated(lm))


def _languages(lm: LM, out: Path, progress: Progress) -> str:
    found = languages.run(lm, progress)
    write_bytes(out.with_name("paper-languages.png"), languages.picture(found, found.parts[0]))
    return page.languages(found, languages.measured(found), languages.examples(lm, found, 3, 0))


def _neurons(lm: LM, out: Path, progress: Progress) -> str:
    return page.neurons(neurons.run(lm, TIMED, NEURONS_OF, progress), NEURONS_OF)


SECTIONS: dict[str, Callable[[LM, Path, Progress], str]] = {
    "tokens": _tokens, "truthfulness": _truthfulness, "components": _components, "languages": _languages,
    "neurons": _neurons, "saes": lambda lm, out, progress: page.SAES,
}  # fmt: skip


def main() -> None:
    """About half an hour of one core. Sections that were made are kept, and made again where they are named."""
    parser = argparse.ArgumentParser(description="The paper's experiments on SmolLM2.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--model", default=SMOLLM2, help="another model, by name or directory")
    parser.add_argument("--dtype", help="of another model: float32, bfloat16")
    parser.add_argument("--work", type=Path, help="where single sections are kept (default: .demo/paper)")
    parser.add_argument("--out", type=Path, help="default: docs/paper.md; of another model paper.md")
    args = parser.parse_args()
    own = args.model == SMOLLM2
    args.work = args.work or Path(".demo/paper") / ("" if own else Path(args.model).name)
    args.out = args.out or Path("docs/paper.md" if own else "paper.md")
    if unknown := set(args.sections) - SECTIONS.keys():
        parser.error(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")

    import depass_sae as ds

    args.work.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lm = ds.load(args.model, saes=[], dtype=args.dtype)
    with bar() as tell:
        for name, make in SECTIONS.items():
            kept = args.work / f"{name}.md"
            if name in args.sections or not (args.sections or kept.exists()):
                write_text(kept, page.section(name, make(lm, args.out, tell)))
    made = {name: path.read_text(encoding="utf-8") for name in SECTIONS if (path := args.work / f"{name}.md").exists()}
    write_text(
        args.out,
        (page.HEAD if own else page.OTHER.format(model=args.model))
        + page.missing([name for name in SECTIONS if name not in made])
        + "".join(made.values()),
    )


if __name__ == "__main__":
    main()
