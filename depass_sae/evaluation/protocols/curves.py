"""The sources that score highest are taken out, or alone are left, more and more of them: areas over how many.

With k the share of the sources, v the target's value (or its tokens' probability) and v(k) what is left of it:

    lost    area over k of (v − v(k)) / |v|     the highest k taken out (paper 4.1.1 comprehensiveness, 4.2 top masking)
    left    area over k of v(k) / |v|           the highest k left alone (4.1.1 sufficiency); the lowest k taken out
                                                (4.2 bottom masking)
    first   area over k of how often the answer stays ahead: the accuracy of 4.2

by the trapezoidal rule, divided by the range of k, so that an area is a mean height. The order is that of the scores,
or of their sizes (the paper's "DePass-Abs").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...attribution.removal import DELETE
from ..figures import Figure
from ..games import Game
from ..question import AHEAD, CHANCE, VALUE
from . import Measured, Numbers

TENTHS = tuple(k / 10 for k in range(11))
"""Of the tokens: all of the curve."""
TOP, BOTTOM = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2), (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Of heads and neurons."""


@dataclass(frozen=True)
class Curve:
    """shares: of the sources, ascending. end: which of them are touched, the "top" or the "bottom"; keeps: whether
    these alone are left, or taken out.
    """

    name: str
    shares: tuple[float, ...]
    end: str = "top"
    keeps: bool = False
    absolute: bool = False
    removal: str | None = None

    @property
    def told(self) -> str:
        """Of the whole, by what the curve is about."""
        return "left" if self.keeps or self.end == "bottom" else "lost"

    @property
    def figures(self) -> tuple[Figure, ...]:
        better = "low" if self.told == "lost" else "high"
        return (
            Figure(f"value {self.told}", ("value",)),
            Figure(f"probability {self.told}", ("chance",)),
            Figure("stays first", ("first",), better),
        )

    def measure(self, game: Game, samples: int, seed: int) -> Measured:
        every = game.outcomes(torch.ones(1, game.players, dtype=torch.bool))[0]
        return {"whole": numbers(every)}

    def score(self, game: Game, measured: Measured, scores: Float[Tensor, "player"]) -> Numbers:
        found = game.outcomes(self.sets(scores))
        whole = torch.tensor([torch.nan if x is None else x for x in measured["whole"]], dtype=torch.float64)
        left = found[:, [VALUE, CHANCE]] / whole[[VALUE, CHANCE]].abs()
        told = left if self.told == "left" else whole[[VALUE, CHANCE]].sign() - left
        value, chance, first = (area(self.shares, x) for x in (*told.T, found[:, AHEAD]))
        return {"value": value, "chance": chance, "first": first, "left": numbers(left[:, 0])}

    def sets(self, scores: Float[Tensor, "player"]) -> Bool[Tensor, "share player"]:
        """What is kept at each share."""
        rank = ranked(scores, self.absolute).argsort()
        n = len(rank)
        rank = rank if self.end == "top" else n - 1 - rank
        touched = torch.stack([rank < round(share * n) for share in self.shares])
        return touched if self.keeps else ~touched


def ranked(scores: Float[Tensor, "player"], absolute: bool) -> Tensor:
    """The players, highest first; of equal ones the earlier."""
    return (scores.abs() if absolute else scores).argsort(descending=True, stable=True)


def area(shares: Sequence[float], heights: Float[Tensor, "share"]) -> float | None:
    """The mean height; None where there is none."""
    found = torch.trapezoid(heights, torch.tensor(shares, dtype=heights.dtype)) / (shares[-1] - shares[0])
    return float(found) if found.isfinite() else None


def numbers(row: Float[Tensor, "number"]) -> list[float | None]:
    """As JSON has them."""
    return [x if x == x else None for x in row.tolist()]


TOKEN_CURVES = (Curve("delete", TENTHS, removal=DELETE), Curve("keep", TENTHS, keeps=True, removal=DELETE))
MASKS = (
    Curve("mask-top", TOP),
    Curve("mask-bottom", BOTTOM, "bottom"),
    Curve("mask-top-abs", TOP, absolute=True),
    Curve("mask-bottom-abs", BOTTOM, "bottom", absolute=True),
)
