"""How fast a corpus is scanned, beside the bare forward pass of the same windows in the same packs, in turn.

SmolLM2 with its five SAEs, on the texts that come with the package. Bare is transformers' own model, with its logits
and without; seconds are of the processor, since what else runs on a machine comes and goes. What an index costs once,
whatever the corpus (its decoders' votes, its vocabulary), stands apart.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from .measure import peak
from .packs import packs_of, run_bare

REPEATS = 3
TOKENS = 8_192
"""Of the corpus; it is one unit of work."""
GOAL = 0.6
"""Of the bare pass's tokens per second."""


def scan(threads: int) -> Iterator[str]:
    """What is printed, line by line, as it is known."""
    import torch

    import depass_sae as ds
    from depass_sae.attribution.reservoir import written
    from depass_sae.index.corpus import corpus
    from depass_sae.index.parts import Parts
    from depass_sae.index.scan import window_of
    from depass_sae.index.settings import ScanSettings
    from depass_sae.index.units import Cutter
    from depass_sae.index.work import Work

    torch.set_num_threads(threads)
    lm = ds.load("smollm2")
    subject, how = lm._subject, ScanSettings(unit=TOKENS)
    cutter = Cutter(subject.loaded, subject.adapter, window_of(subject, how), how.unit)
    unit = next(iter(cutter.units(corpus(written()), {})))
    rows = [window.token_ids for window in unit.windows]
    packs = [pack for pack, _ in packs_of(unit)]
    padded = sum(pack.numel() for pack in packs) / sum(map(len, rows)) - 1
    widths = {hook: sae.cfg.d_sae for hook, sae in subject.saes.items()}

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            Work(Parts(Path(folder) / "parts", widths, how.choosing)).do(subject, unit)

    runs: dict[str, Callable[[], None]] = {
        "bare forward pass, with logits": lambda: run_bare(lm.model, packs),
        "bare forward pass, without": lambda: run_bare(lm.model.model, packs),
        "scan": ours,
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            taken[name].append(_seconds(run))
    speed = {name: unit.entry.tokens / median(seconds) for name, seconds in taken.items()}
    yield f"{unit.entry.tokens} tokens in {len(rows)} windows, {padded:.1%} of padding"
    yield f"{threads} thread(s), {len(widths)} SAEs"
    for name, value in speed.items():
        yield f"{name:32} {value:8.0f} tokens/s"
    with_logits, without, scanned = speed.values()
    yield f"ratio to the pass with logits    {scanned / with_logits:8.2f}"
    yield f"ratio to the pass without        {scanned / without:8.2f} (goal {GOAL})"
    with tempfile.TemporaryDirectory() as folder:
        once = _seconds(lambda: lm.scan(["Once."], Path(folder) / "ix"))
    yield f"once for an index                {once:8.1f} s"
    yield f"peak memory                      {peak():8.2f} GiB"


def _seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began
