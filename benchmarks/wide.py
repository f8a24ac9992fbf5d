"""How much memory and disk a scan takes for an SAE of 262,144 features, as the corpus grows: simulated.

What a model would give is drawn: on every token 100 features, Zipf-distributed over the features and tied to the token,
their activations log-normal. All that follows is the scan's own: summaries of units, parts on the disk, their merging.
Peaks are of the whole process, the libraries among them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .measure import peak

WIDTH, ACTIVE, UNITS = 2**18, 100, 17
WINDOW, VOCABULARY, REPORTED = 128, 50_000, (1, 15, 16, 17)


def wide(threads: int) -> Iterator[str]:
    """What is printed, line by line, as it is known."""
    from depass_sae.index.contexts import Choosing
    from depass_sae.index.firings import Firings, Tokens
    from depass_sae.index.parts import Parts
    from depass_sae.index.settings import UNIT
    from depass_sae.index.summary import drawn, summarized
    from depass_sae.index.units import Entry, Window
    from depass_sae.models.place import Place

    hook, choosing, draw = Place(0, "resid_post"), Choosing(), np.random.default_rng(0)
    yield f"before: {peak():.2f} GiB"
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(Path(folder), {hook: WIDTH}, choosing)
        per_unit, began = UNIT // WINDOW, time.process_time()
        for number in range(UNITS):
            ids = np.minimum(draw.zipf(1.3, (per_unit, WINDOW)), VOCABULARY)
            windows = [
                Window(number * per_unit + i, 0, f"document {i}", 0, tuple(row), True)
                for i, row in enumerate(ids.tolist())
            ]
            tokens = Tokens.of(windows)
            firings = _drawn(draw, tokens.token, tokens.counted.nonzero()[0])
            summary = summarized(tokens, Firings.joined([firings]), choosing)
            entry = Entry(number, per_unit, int(tokens.counted.sum()), (number + 1) * per_unit, 0, "")
            parts.write_unit(entry, windows, {hook: summary}, int(drawn(tokens).sum()))
            parts.merge_finished()
            if number + 1 in REPORTED:
                size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 2**20
                seconds = (time.process_time() - began) / (number + 1)
                yield (
                    f"after {(number + 1) * UNIT:9,} tokens: peak {peak():.2f} GiB, {size:7.0f} MiB on the disk, "
                    f"{seconds:.1f} s a unit of {UNIT:,} tokens"
                )
        root = parts.merge(parts.all(), 9, 0)
        yield f"merged to one part of {len(root.entries)} units: peak {peak():.2f} GiB"


def _drawn(draw: np.random.Generator, token: np.ndarray, rows: np.ndarray) -> tuple:
    """Feature, row and activation of what fires."""
    import torch

    feature = draw.zipf(1.2, (len(rows), ACTIVE)) * 7919 + 31 * (token[rows, None] % 2048) * draw.integers(
        0, 2, (len(rows), ACTIVE)
    )
    code = np.unique((feature % WIDTH) << 32 | rows[:, None])
    found = torch.from_numpy(code >> 32), torch.from_numpy(code & 0xFFFFFFFF)
    return (*found, torch.from_numpy(draw.lognormal(1, 1, len(code)).astype(np.float32)))
