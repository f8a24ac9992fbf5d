"""Rank correlation of scores with what sources are worth in the live model.

``replace``: what the target loses when one source alone is taken out. ``shapley``: what a source is worth on average
over all orders in which they come in. Spearman's correlation on each prompt over its sources, 3 at least; of more than
64 over as many, drawn at random. The ceiling is the measurement's reliability: the correlation with a second one like
it, from its two halves (Spearman 1910, Brown 1910); no method can be expected above its root.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...attribution.agreement import rank_correlation, twice
from ...attribution.shapley import Game as Worth
from ...attribution.shapley import Limits, Sampled, Within, alone, shapley
from ..figures import Figure
from ..games import Game
from . import CEILING, Measured, Numbers

LEAST = 3
"""Of fewer sources there is no rank correlation to speak of."""
ALL_OF = 6
"""Up to so many sources all sets are played; of more, orders are drawn, which takes fewer runs."""


MOST = 64
"""So many sources are measured at most."""


@dataclass(frozen=True)
class Some(Within):
    """Some players of a game; all others are there throughout."""

    which: Int[Tensor, "some"]

    @property
    def players(self) -> int:
        return len(self.which)

    def play(self, kept: Bool[Tensor, "row some"], draw: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        every = torch.ones(len(kept), self.game.players, dtype=torch.bool)
        every[:, self.which] = kept
        return self.game.play(every, draw)


def replaced(game: Worth, samples: int, seed: int) -> Sampled:
    return alone(game, Limits(samples=samples if game.chance else None))


def ordered(game: Worth, samples: int, seed: int) -> Sampled:
    return shapley(game, Limits(samples=samples), seed, all_of=ALL_OF)


@dataclass(frozen=True)
class Ranks:
    """worth: samples of what every player is worth; a baseline behind them is no player's."""

    name: str
    worth: Callable[[Worth, int, int], Sampled]
    figures = (Figure("rank correlation", ("rank",)),)
    removal = None

    def measure(self, game: Game, samples: int, seed: int) -> Measured:
        n = min(game.players, MOST)
        which = torch.randperm(game.players, generator=torch.Generator().manual_seed(seed))[:n].sort().values
        if n < LEAST:
            return {"players": [], "worth": [], CEILING: {"rank": None}}
        found = self.worth(Some(game, which), samples, seed)
        return {
            "players": which.tolist(),
            "worth": found.mean[:n].tolist(),
            "samples": len(found.samples),
            CEILING: {"rank": _reliability(found, n)},
        }

    def score(self, game: Game, measured: Measured, scores: Float[Tensor, "player"]) -> Numbers:
        worth = measured["worth"]
        return {"rank": rank_correlation(scores[measured["players"]].tolist(), worth) if worth else None}


def _reliability(found: Sampled, n: int) -> float | None:
    if found.stopped == "exact":
        return 1.0
    halves = found.halves()
    half = None if halves is None else rank_correlation(*(one[:n].tolist() for one in halves))
    return None if half is None else twice(half)


REPLACE, SHAPLEY = Ranks("replace", replaced), Ranks("shapley", ordered)
