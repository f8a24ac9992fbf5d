"""What a large scan would cost, on paper: from what was measured here, and what a GPU is said to do.

1,000,000,000 tokens through Llama-3.1-8B with 32 SAEs. Nobody has run it; docs/scale.md says what is measured of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TOKENS, SAES, ACTIVE, D_MODEL = 10**9, 32, 50, 4096
BLOCKS = 6.98e9
"""Parameters of the 32 layers: what a pass that ends above the last hook multiplies by, without the unembedding."""
H100, USED = 989e12, 0.4
"""FLOP/s in bfloat16 as its maker has it, and what share of that large matrix products are usually found to reach."""
PER_ACTIVATION = 10 / (2**15 * 100)
"""Seconds of one core: ``python -m benchmarks wide`` has 10 s a unit of 32,768 tokens, 100 features active on each."""
FULL_BYTES = 3.4
"""Of an activation where every one is kept, measured over 16 million."""
FEATURE_BYTES = (4_300, 18_000)
"""Of a feature in an index: after 260,000 tokens of SmolLM2's text, and where every table is as full as it can be."""


@dataclass(frozen=True)
class Width:
    name: str
    features: int


WIDTHS = (Width("8x, 32,768 features", 2**15), Width("32x, 131,072 features", 2**17))


def scale(threads: int) -> Iterator[str]:
    """What is printed, line by line."""
    yield f"{TOKENS:,} tokens, {SAES} SAEs, {ACTIVE} features active on a token; an H100 at {USED:.0%} of its peak"
    cores = TOKENS * SAES * ACTIVE * PER_ACTIVATION / 3600
    for width in WIDTHS:
        flop = TOKENS * 2 * (BLOCKS + SAES * D_MODEL * width.features)
        hours = flop / (H100 * USED) / 3600
        low, high = (SAES * width.features * size / 1e9 for size in FEATURE_BYTES)
        yield (
            f"{width.name:22} {hours:5.1f} H100-hours, {cores:,.0f} core-hours of counting ({cores / hours:.0f} cores "
            f"beside each GPU), index {low:.1f} to {high:.0f} GB"
        )
    yield f"every activation kept  {TOKENS * SAES * ACTIVE * FULL_BYTES / 1e12:5.1f} TB more"
