"""The tenth of the sources that scores highest, kept alone and taken out, beside random sets that are like it.

A random set has as many sources of every layer (of features, at every position, too). ``kept``: the share of the target
that is left by the set alone, less what random sets leave on average; ``removed``: the share that is lost without it,
less what is lost without random sets. Both are 0 for a method that knows no more than where sources stand.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...graph.masks import matched
from ..figures import Figure
from ..games import Game
from ..question import VALUE
from . import Measured, Numbers
from .curves import ranked

SHARE, DRAWS = 0.1, 10


@dataclass(frozen=True)
class Sets:
    """share: of the sources. draws: random sets."""

    name: str = "sets"
    share: float = SHARE
    draws: int = DRAWS
    figures = (
        Figure("kept over random", ("kept",)),
        Figure("lost over random", ("removed",)),
    )
    removal = None

    def measure(self, game: Game, samples: int, seed: int) -> Measured:
        return {"seed": seed}

    def score(self, game: Game, measured: Measured, scores: Float[Tensor, "player"]) -> Numbers:
        chosen = torch.zeros(game.players, dtype=torch.bool)
        chosen[ranked(scores, absolute=False)[: max(1, round(self.share * game.players))]] = True
        random = matched(chosen, game.cells, self.draws, torch.Generator().manual_seed(measured["seed"]))
        left = game.outcomes(torch.cat([chosen[None], ~chosen[None], random, ~random]))[:, VALUE] / abs(game.whole)
        kept, without = left[2 : 2 + self.draws].mean(), left[2 + self.draws :].mean()
        return {"kept": float(left[0] - kept), "removed": float(without - left[1]), "alone": float(left[0])}


SETS = Sets()
