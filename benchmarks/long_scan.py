"""A scan of two million tokens from start to end, and the bare forward pass beside it all the while.

SmolLM2 with its five SAEs. The corpus is what comes with the package, its sentences drawn in new orders, so that no two
documents are alike. After every unit the model alone reads every sixteenth of its packs, without logits; seconds are of
the processor, since what else runs on a machine comes and goes. The index is kept in ``--folder``; a scan that was
stopped goes on, and its figures are then of what is left.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .measure import peak
from .packs import packs_of, run_bare

TOKENS = 2_000_000
SENTENCES = (4, 12)
"""Of a document."""
BESIDE = 16
"""One pack in so many is read by the model alone, too."""
LINES = 4
"""One unit in so many is told of while the scan goes on."""


def long_scan(threads: int, folder: Path, tokens: int = TOKENS) -> Iterator[str]:
    """What is printed, line by line, as it is known."""
    import torch

    import depass_sae as ds
    from depass_sae.attribution.reservoir import written
    from depass_sae.index.corpus import corpus
    from depass_sae.index.scan import scan
    from depass_sae.index.settings import ScanSettings
    from depass_sae.passes.settings import Settings

    torch.set_num_threads(threads)
    lm = ds.load("smollm2")
    engine = Beside(lm.model.model)
    began = time.perf_counter()
    wrote = corpus(shuffled(written()))
    scan(lm._subject, wrote, folder, ScanSettings(limit=tokens), Settings(), engine)
    minutes = (time.perf_counter() - began) / 60
    index = ds.open_index(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    yield f"{index.tokens:,} tokens, {len(lm._subject.saes)} SAEs, {threads} thread(s), {minutes:.0f} minutes"
    yield f"scan                             {engine.scanned.speed:8.0f} tokens/s of the processor's time"
    yield f"bare forward pass, without logits{engine.bare.speed:8.0f} tokens/s ({engine.bare.tokens:,} tokens)"
    yield f"ratio                            {engine.scanned.speed / engine.bare.speed:8.2f} (goal 0.6)"
    yield f"peak memory                      {peak():8.2f} GiB"
    yield f"the index                        {size / 2**20:8.1f} MiB"


def shuffled(texts: Iterable[str], seed: int = 0) -> Iterator[str]:
    """Documents without end, each of some sentences from anywhere in the texts."""
    sentences = [one for text in texts for one in re.split(r"(?<=[.!?])\s+", text) if one.strip()]
    draw = random.Random(seed)
    while True:
        yield " ".join(draw.sample(sentences, draw.randint(*SENTENCES)))


@dataclass
class Spent:
    """Tokens, and seconds of the processor that they took."""

    tokens: int = 0
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def add(self, tokens: int, began: float) -> None:
        self.tokens += tokens
        self.seconds += time.process_time() - began


@dataclass
class Beside:
    """An engine: this process, and after every unit the model alone on some of the same packs."""

    model: Any
    scanned: Spent = field(default_factory=Spent)
    bare: Spent = field(default_factory=Spent)

    def run(self, subject: Any, work: Any, units: Iterable[Any], tell: Any) -> Iterator[Any]:
        began = time.process_time()
        for number, unit in enumerate(units):
            work.do(subject, unit)
            yield unit  # merging what is finished is the scan's, and so is cutting the next unit
            self.scanned.add(unit.entry.tokens, began)
            if number % LINES == 0:
                print(f"unit {number + 1}: {self.scanned.speed:.0f} tokens/s, {peak():.2f} GiB", flush=True)
            began = time.process_time()
            some = packs_of(unit)[number % BESIDE :: BESIDE]
            run_bare(self.model, [pack for pack, _ in some])
            self.bare.add(sum(count for _, count in some), began)
            began = time.process_time()
