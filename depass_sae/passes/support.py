"""Where the gradients of a sweep are, as far as the host knows: elsewhere they are zero, and nothing is computed.

A target is read at one position. Until a sublayer looks back its gradient stays there; then it may be at all earlier
positions of its prompt, and never behind. Sublayers that keep positions apart take these rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .rows import on

WORTH = 0.9
"""Of all rows and positions no more than this share are taken out; more go as they are."""


@dataclass(frozen=True)
class Support:
    """Pairs of a row of the sweep and a position, on the host; a pair that stands there twice counts once.

    rows, n: how many there are of both.
    """

    row: Int[Tensor, "pair"]
    pos: Int[Tensor, "pair"]
    rows: int
    n: int

    @property
    def is_small(self) -> bool:
        """Whether it pays to keep to it."""
        return len(self.row) <= WORTH * self.rows * self.n

    def looked_back(self, starts: Sequence[int], ways: int = 1) -> Support:
        """Where gradients may be once positions have seen earlier ones of their prompts, which begin at ``starts``.

        ways: every target has so many rows, those of the first way, then those of the next, which begin only here.
        """
        begin = torch.tensor(starts)[torch.searchsorted(torch.tensor(starts), self.pos, right=True) - 1]
        length = self.pos - begin + 1
        first = (length.cumsum(0) - length).repeat_interleave(length)
        pos = begin.repeat_interleave(length) + torch.arange(len(first)) - first
        row = self.row.repeat_interleave(length)
        every = torch.cat([row + way * (self.rows // ways) for way in range(ways)])
        return replace(self, row=every, pos=pos.repeat(ways))

    def take(self, gradient: Float[Tensor, "row pos d"]) -> Float[Tensor, "pair d"]:
        return gradient[on(gradient, self.row), on(gradient, self.pos)]

    def spread(self, values: Float[Tensor, "pair *d"]) -> Float[Tensor, "row pos *d"]:
        """All rows and positions, zero where there is nothing."""
        whole = values.new_zeros(self.rows, self.n, *values.shape[1:])
        return whole.index_put_((on(values, self.row), on(values, self.pos)), values)
