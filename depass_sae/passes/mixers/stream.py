"""The rows that go through an MLP, position by position: laid out, normed in blocks, and what comes of them put back.

Positions with the same number of rows stand in one tensor without gaps, so that a rule works on [pos, comp, d].
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...models.parts import Norm
from ..rows import BIAS, Rows, at, on
from .mixer import Allotment

if TYPE_CHECKING:
    from ..frozen import Frozen


@dataclass(frozen=True)
class Run:
    """Neighbouring positions with the same number of rows, which stand in one tensor without gaps."""

    positions: slice
    rows: slice

    def of(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "pos comp d"]:
        return x[self.rows].unflatten(0, (self.positions.stop - self.positions.start, -1))


@dataclass(frozen=True)
class Block:
    """Some positions' rows, normed. rows: which they are of all; positions: of those that are carried.

    whole: the normed stream. biased, aside: the rows of ``bias``, and those that take no part in the allocation; on the
    host, where a pass is laid out.
    """

    positions: slice
    rows: slice
    x: Float[Tensor, "row d_model"]
    whole: Float[Tensor, "pos d_model"]
    runs: list[Run]
    biased: Int[Tensor, "some"]
    aside: Int[Tensor, "some"]


@dataclass(frozen=True)
class Stream:
    """The rows that go through an MLP, and where what comes of them goes: the same rows, or others.

    before: what is read, laid out as all that take part. found: what is wanted beside.
    """

    frozen: Frozen
    before: Rows
    rows: Rows
    found: dict[str, Rows]
    whole: Float[Tensor, "pos d_model"]
    factor: Float[Tensor, "pos d_model"]
    competing: Bool[Tensor, "row"]
    has_bias: Bool[Tensor, "pos"]

    @classmethod
    def of(cls, frozen: Frozen, before: Rows, rows: Rows, allot: Allotment, wanted: Collection[str]) -> Stream:
        norm, recorded = frozen.norm, at(frozen.resid, rows.positions)
        found = {
            hook: (rows if hook == "mlp_out" else before).with_values(
                rows.values.new_zeros(len((rows if hook == "mlp_out" else before).values), rows.values.shape[1])
            )
            for hook in wanted
        }
        factor = at(frozen.scale, rows.positions) * norm.gain
        present = before.present
        return cls(frozen, before, rows, found, norm(recorded), factor, allot.compete[present], present[:, BIAS])

    @property
    def counts(self) -> list[int]:
        """The rows of each position."""
        return [b - a for a, b in pairwise(self.before.offsets)]

    def block(self, low: int, high: int, every: int) -> Block:
        """The rows of positions low to high. every: how many a rule works on at once."""
        norm, before = self.frozen.norm, self.before
        rows = slice(before.offsets[low], before.offsets[high])
        runs = list(alike(before.offsets[low : high + 1], every))
        x = _scaled(norm, before.values[rows], self.factor[low:high], runs)
        biased = before.number[low:high, BIAS][self.has_bias[low:high]] - rows.start
        if "ln2_normalized" in self.found:
            scale = at(self.frozen.scale, self.rows.positions)[low:high]
            self.found["ln2_normalized"].values[rows] = _scaled(norm, before.values[rows], scale, runs)
        if norm.bias is not None:
            x[on(x, biased)] += norm.bias
        if "mlp_in" in self.found:
            self.found["mlp_in"].values[rows] = x
        aside = (~self.competing[rows]).nonzero()[:, 0]
        return Block(slice(low, high), rows, x, self.whole[low:high], runs, biased, aside)

    def straight_into(self, block: Block) -> Tensor | None:
        """Where a product may be added without a copy of it: nothing is done to it, and nobody else wants it."""
        straight = self.before is self.rows and self.frozen.post is None and "mlp_out" not in self.found
        return self.rows.values[block.rows] if straight else None

    def take(self, block: Block, out: Float[Tensor, "row d_model"]) -> None:
        """Add what comes of a block's rows to the stream."""
        pos, comp = (index[block.rows] for index in self.before.index)
        if self.frozen.post is not None:
            scale = self.frozen.post_scale.index_select(0, on(out, self.before.positions[pos]))
            out = self.frozen.post.frozen(out, scale)
        here = block.rows if self.before is self.rows else on(out, self.rows.number[pos, comp])
        if "mlp_out" in self.found:  # set, not added: this may be done again
            self.found["mlp_out"].values[here] = out
        if isinstance(here, slice):
            self.rows.values[here].add_(out)
        else:
            self.rows.values.index_add_(0, here, out)


def alike(offsets: Sequence[int], most: int) -> Iterator[Run]:
    """Runs of at most so many rows, or one position's."""
    counts = [b - a for a, b in pairwise(offsets)]
    for count, run in groupby(range(len(counts)), counts.__getitem__):
        members = list(run)
        if count:
            step = max(1, most // count)
            for low in range(members[0], members[-1] + 1, step):
                high = min(low + step, members[-1] + 1)
                yield Run(slice(low, high), slice(offsets[low] - offsets[0], offsets[high] - offsets[0]))


def _scaled(
    norm: Norm, values: Float[Tensor, "row d_model"], factor: Float[Tensor, "pos #d_model"], runs: list[Run]
) -> Float[Tensor, "row d_model"]:
    """The rows of each position times its factor, in one go over memory."""
    centred, scaled = norm.centre(values), torch.empty_like(values)
    for run in runs:
        torch.mul(run.of(centred), factor[run.positions, None], out=run.of(scaled))
    return scaled
