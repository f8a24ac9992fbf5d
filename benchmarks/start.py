"""How long one command takes from its start to its end, beside what it cannot do without; and then a second question.

The limit of a first question is a bare script that imports torch, transformers and sae-lens and loads SmolLM2. Each is
run in processes of its own, in turn; seconds are of the processor (user + system), since what else runs on a machine
comes and goes, and the median counts.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

REPEATS = 5
FEATURE = "17/2601"
PROMPT = (
    "In exploring the relationship between climate change and urban planning, the research identifies key strategies "
    "for sustainable development. It underscores the urgency of integrating environmental considerations into city "
    "planning."
)
COMMAND = ("depass-sae", "tokens", "--feature", FEATURE, "--prompt", PROMPT)
BARE = (
    "import sys, torch, transformers, sae_lens\n"
    "from transformers import AutoModelForCausalLM\n"
    "AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
)
HELD = "bare script without garbage collection"
"""A command puts it off while it loads (depass_sae/__main__.py), and no other than this is a matched comparison."""
WHERE = "from depass_sae.models.load import load_model; print(load_model('smollm2').model.name_or_path)"
START_LIMIT, SECOND_LIMIT = 1.2, 4
"""A command may take so many times what the bare script takes; a second question so many plain forward passes."""

Run = tuple[float, float, str]
"""Of a process: seconds by the clock, seconds of the processor, and what it printed."""


def start(threads: int) -> Iterator[str]:
    """What is printed, line by line, as it is known."""
    folder = _child(("-c", WHERE), threads)[2].splitlines()[-1]
    runs: dict[str, list[Run]] = {"bare script": [], HELD: [], "depass-sae tokens": []}
    for _ in range(REPEATS):
        runs["bare script"].append(_child(("-c", BARE, folder), threads))
        runs[HELD].append(_child(("-c", f"import gc; gc.disable()\n{BARE}", folder), threads))
        runs["depass-sae tokens"].append(_child(("-m", "depass_sae", *COMMAND[1:]), threads))
    yield from _compared(runs)
    yield from _parts([_child(("-m", "benchmarks.start", "parts"), threads) for _ in range(REPEATS)])
    for name, (seconds, forward) in json.loads(_child(("-m", "benchmarks.start", "second"), threads)[2]).items():
        yield _line(f"second question, {name}", seconds / forward, f"plain forward passes (limit {SECOND_LIMIT})")


def _compared(runs: dict[str, list[Run]]) -> Iterator[str]:
    bare, held, ours = (median(cpu for _, cpu, _ in taken) for taken in runs.values())
    for name, taken in runs.items():
        wall, cpu = (median(run[i] for run in taken) for i in (0, 1))
        yield _line(name, cpu, f"s ({wall:.2f} s by the clock)")
    yield _line("ratio", ours / bare, f"(limit {START_LIMIT})")
    yield _line("ratio, where the script holds it back, too", ours / held, "")


def _parts(runs: list[Run]) -> Iterator[str]:
    """Where a command's time goes; what no part has is the interpreter's start, the printing and the end."""
    laps = [json.loads(printed.splitlines()[-1]) for _, _, printed in runs]
    for name in laps[0]:
        yield _line(f"  {name}", median(lap[name] for lap in laps), "s")
    rest = [cpu - sum(lap.values()) for (_, cpu, _), lap in zip(runs, laps, strict=True)]
    yield _line("  everything else", median(rest), "s")


def _line(name: str, value: float, unit: str) -> str:
    return f"{name:28} {value:6.2f} {unit}"


def _child(arguments: tuple[str, ...], threads: int) -> Run:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


# -------------------------------------------------------------------------------------------- in processes of their own


def parts() -> None:
    """The command, its imports made one by one before it and its steps timed; the last line says what each took."""
    import gc

    gc.disable()  # as the command does
    laps: dict[str, float] = {}

    @contextmanager
    def lap(name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        laps[name] = time.process_time() - began

    def timed(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **settings: Any) -> Any:
            with lap(name):
                return step(*given, **settings)

        return run

    with lap("import torch"):
        import torch  # noqa: F401
    with lap("import transformers"):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    with lap("import sae_lens"):
        import sae_lens  # noqa: F401
    with lap("import depass_sae"):
        from depass_sae import __main__, api, cli, loading  # noqa: F401
    loading.load_model = timed("weights and tokenizer", loading.load_model)
    loading.check = timed("self-check", loading.check)
    loading.load_saes = timed("SAE", loading.load_saes)
    api.LM.attribute_tokens = timed("question", api.LM.attribute_tokens)  # type: ignore[method-assign]
    sys.argv = list(COMMAND)
    try:
        __main__.main()
    finally:
        print(json.dumps(laps))


def second() -> None:
    """Seconds of a second question and of a plain forward pass of its prompt, both in turn, as JSON."""
    import torch

    import depass_sae as ds

    lm = ds.load("smollm2")
    ids = torch.tensor(lm.encode(PROMPT).token_ids)[None]
    questions: dict[str, Callable[[], Any]] = {
        "features": lambda: lm.features(PROMPT),
        "tokens": lambda: lm.attribute_tokens(PROMPT, FEATURE),
        "heads": lambda: lm.attribute_heads(PROMPT, FEATURE),
    }

    def forward() -> None:
        with torch.no_grad():
            lm.model(ids)

    def seconds(run: Callable[[], Any]) -> float:
        began = time.process_time()
        run()
        return time.process_time() - began

    found = {}
    for name, ask in questions.items():
        ask(), forward()
        taken = [(seconds(ask), seconds(forward)) for _ in range(REPEATS)]
        found[name] = tuple(map(median, zip(*taken, strict=True)))
    print(json.dumps(found))


if __name__ == "__main__":
    {"parts": parts, "second": second}[sys.argv[1]]()
