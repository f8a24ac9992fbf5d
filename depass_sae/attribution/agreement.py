"""How well two rankings of the same things agree, and how well they could: with an interval and a ceiling.

A rank correlation from a few things says nothing, and one with a noisy measurement cannot be higher than the
measurement's with itself. So none is given for fewer than ten, and beside each stand its 95 % interval (Bonett and
Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations", Psychometrika 2000) and
the measurement's reliability: the rank correlation of its two halves, raised to that of two whole ones (Spearman 1910,
Brown 1910).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

LEAST = 10


@dataclass(frozen=True)
class Agreement:
    """rank: Spearman's rank correlation; low, high: its 95 % interval; n: of how many things.

    reliability: the rank correlation that the measurement would have with a second one like it; None where that is not
    known.
    """

    rank: float
    low: float
    high: float
    n: int
    reliability: float | None = None

    @classmethod
    def of(
        cls,
        said: Sequence[float],
        found: Sequence[float],
        halves: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> Agreement | None:
        """None for fewer than ten things, and where all of one ranking are equal. halves: of what was found."""
        rank = rank_correlation(said, found) if len(said) >= LEAST else None
        if rank is None:
            return None
        low, high = interval(rank, len(said))
        half = None if halves is None else rank_correlation(*halves)
        return cls(rank, low, high, len(said), None if half is None else twice(half))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's; None where one of them does not vary."""
    from scipy.stats import spearmanr

    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(spearmanr(a, b).statistic)


def interval(rank: float, n: int) -> tuple[float, float]:
    """95 %, by Fisher's z with Bonett and Wright's variance for ranks."""
    if abs(rank) >= 1:
        return rank, rank
    z, width = math.atanh(rank), 1.96 * math.sqrt((1 + rank**2 / 2) / (n - 3))
    return math.tanh(z - width), math.tanh(z + width)


def twice(half: float) -> float:
    """What two measurements correlate with that are twice as long as two that correlate with ``half``."""
    return 2 * half / (1 + half) if half > 0 else half
