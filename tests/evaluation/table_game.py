"""Games by closed forms, for protocols that know nothing of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from depass_sae.evaluation.question import AHEAD, CHANCE, VALUE


@dataclass
class Sums:
    """The target is the sum of what the kept players are worth, plus ``base``, or any ``f`` of the kept players.

    Its probability is half of it, and its answer is ahead where it is above 1.
    """

    worth: Tensor
    base: float = 0.0
    f: Callable[[Tensor], Tensor] | None = None
    chance: bool = False
    cells: Tensor = field(default_factory=lambda: torch.zeros(0))
    room: int = 64
    rows: int = 0

    def __post_init__(self) -> None:
        self.worth = self.worth.double()
        self.cells = self.cells if len(self.cells) else torch.zeros(self.players, dtype=torch.long)

    @property
    def players(self) -> int:
        return len(self.worth)

    @property
    def whole(self) -> float:
        return float(self.of(torch.ones(1, self.players))[0])

    def of(self, kept: Tensor) -> Tensor:
        return kept.double() @ self.worth + self.base if self.f is None else self.f(kept.double())

    def play(self, kept: Tensor, draw: Tensor) -> Tensor:
        self.rows += len(kept)
        noise = torch.randn(len(kept), generator=torch.Generator().manual_seed(int(draw.sum()))) * self.chance
        return self.of(kept) + 0.01 * noise * (kept.sum(1) < self.players)

    def outcomes(self, kept: Tensor) -> Tensor:
        self.rows += len(kept)
        value = self.of(kept)
        found = torch.zeros(len(kept), 3, dtype=torch.float64)
        found[:, VALUE], found[:, CHANCE], found[:, AHEAD] = value, value / 2, (value > 1).double()
        return found
