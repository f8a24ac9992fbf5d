"""Where gradients are on their way back, so that a sweep leaves out what is zero.

A target is read at one position. Until a sublayer looks back its gradient stays there; behind that it may be at every
earlier position, and is never at a later one. All of this is known on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .rows import on

Few = tuple[Int[Tensor, "some"], Int[Tensor, "some"]]
"""Targets, and a position of each: the only ones at which a seed is not zero."""
APART = {"cpu": 2**6}
"""A product of its own is worth it where it saves so many rows times positions; elsewhere these are nearly free."""


def worth(device: torch.device) -> int:
    """What a product of its own has to save, in rows times positions."""
    return APART.get(device.type, 2**20)


@dataclass(frozen=True)
class Part:
    """Some rows of a sweep at some positions: row i at its own position, or each row at all of them."""

    rows: Int[Tensor, "row 1"] | Int[Tensor, "1 pos"]
    positions: Int[Tensor, "pos"]

    def of(self, gradient: Float[Tensor, "target pos *d"]) -> Float[Tensor, "row pos *d"]:
        return gradient[self._index(gradient)]

    def put(self, values: Float[Tensor, "row pos *d"], into: Float[Tensor, "target pos *d"]) -> None:
        into.index_put_(self._index(into), values)

    def _index(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return on(like, self.rows), on(like, self.positions[None])


@dataclass(frozen=True)
class Support:
    """near: all that is not zero until a sublayer looks back. far: behind it (None: everything).

    rows: so many are not zero until a sublayer looks back; those of other ways come behind them.
    """

    near: Part
    far: Sequence[Part] | None
    rows: int

    @classmethod
    def of(cls, few: Few, starts: Sequence[int], shape: tuple[int, int], ways: int, device: torch.device) -> Support:
        """shape: rows and positions of the sweep; each target is as many rows as there are ways."""
        lanes, positions = few
        last: dict[int, int] = {}
        for lane, pos in sorted(zip(lanes.tolist(), positions.tolist(), strict=True)):
            last[lane] = pos
        far = None
        if len(starts) == 1:
            rows = shape[0] // ways
            found = _parts(sorted((pos, lane) for lane, pos in last.items()), shape[1], max(1, worth(device) // ways))
            whole = [(low, high) for low, high, own in found if len(own) == rows] == [(0, shape[1])]
            far = None if whole else [_part(low, high, own, rows, ways) for low, high, own in found]
        return cls(Part(lanes[None], positions), far, shape[0] // ways)


def _part(low: int, high: int, lanes: Sequence[int], rows: int, ways: int) -> Part:
    each = [way * rows + lane for way in range(ways) for lane in lanes]
    return Part(torch.tensor(each)[:, None], torch.arange(low, high))


def _parts(own: Sequence[tuple[int, int]], n: int, least: int) -> list[tuple[int, int, list[int]]]:
    """Positions from one to another, with the lanes that are there; parted where that saves enough.

    own: of each lane its last position, ascending, and its number.
    """

    def parted(low: int, high: int, own: Sequence[tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
        if not own:
            return []
        saved = [i * (high - min(pos + 1, high)) for i, (pos, _) in enumerate(own, start=1)]
        most = max(saved)
        if most < least:
            return [(low, high, [lane for _, lane in own])]
        i = saved.index(most)
        cut = own[i][0] + 1
        return parted(low, cut, own) + parted(cut, high, own[i + 1 :])

    return parted(0, n, own)
