"""How faithful circuits of growing size are: MIB's CPR and CMD (Mueller et al. 2025, arXiv 2504.13151).

At each share k of the sources the highest k are kept and all others taken out. With m(C) the mean over prompts of the
target's value where C is kept, ∅ where nothing is and N where all is:

    f(k) = (m(C_k) − m(∅)) / (m(N) − m(∅))
    CPR = ∫ f(k) dk          highest scores first; higher is better: what drives the target
    CMD = ∫ |1 − f(k)| dk    largest scores by size first; 0 is best: what makes the model do what it does

by the trapezoidal rule over MIB's sizes. MIB measures the share of edges, here it is that of the sources.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..figures import Figure, Many
from ..games import Game
from ..question import VALUE
from . import Measured, Numbers
from .curves import Curve

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def faithfulness(numbers: Many) -> Float[Tensor, "*draw size"]:
    """numbers: the value with each size kept, with all, and with none."""
    mean = numbers.mean(-2)
    kept, whole, none = mean[..., :-2], mean[..., -2:-1], mean[..., -1:]
    return (kept - none) / (whole - none)


def cpr(numbers: Many) -> Float[Tensor, "*draw"]:
    return _area(faithfulness(numbers))


def cmd(numbers: Many) -> Float[Tensor, "*draw"]:
    return _area((1 - faithfulness(numbers)).abs())


def _area(heights: Float[Tensor, "*draw size"]) -> Float[Tensor, "*draw"]:
    return torch.trapezoid(heights, torch.tensor(SIZES, dtype=heights.dtype))


@dataclass(frozen=True)
class Circuits:
    """absolute: whether the order is by the scores' sizes."""

    name: str
    figure: Figure
    absolute: bool
    removal = None

    @property
    def figures(self) -> tuple[Figure, ...]:
        return (self.figure,)

    def measure(self, game: Game, samples: int, seed: int) -> Measured:
        ends = torch.stack([torch.ones(game.players), torch.zeros(game.players)]).bool()
        return {"ends": game.outcomes(ends)[:, VALUE].tolist()}

    def score(self, game: Game, measured: Measured, scores: Float[Tensor, "player"]) -> Numbers:
        sets = Curve(self.name, SIZES, keeps=True, absolute=self.absolute).sets(scores)
        return {"kept": game.outcomes(sets)[:, VALUE].tolist(), "ends": measured["ends"]}


KEYS = ("kept", "ends")
CPR = Circuits("cpr", Figure("CPR", KEYS, of=cpr), absolute=False)
CMD = Circuits("cmd", Figure("CMD", KEYS, "low", cmd), absolute=True)
