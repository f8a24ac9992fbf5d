"""Components of a stream as packed rows: one row for each (position, component) that is present, position by position.

A component costs nothing where it is absent: a token before its own position, a bias before the first bias vector.
Presence is a mask carried with the rows, never guessed from zeros. Which rows there are is known on the host, what they
hold lies on the model's device: so the host can lay out a pass ahead of a device that still computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PATTERN, BIAS, REST = -3, -2, -1
"""Where these stand among the components: ``pattern`` only under a rule that has it."""


@dataclass(frozen=True)
class Rows:
    """Packed components. ``positions`` are those of the prompt that are carried, ascending.

    values[r] is the row of (positions[pos[r]], comp[r]), position-major. All but the values lies on the host.
    """

    positions: Int[Tensor, "pos"]
    present: Bool[Tensor, "pos comp"]
    values: Float[Tensor, "row d"]

    @cached_property
    def index(self) -> tuple[Int[Tensor, "row"], Int[Tensor, "row"]]:
        """For every row: the index of its position, and its component."""
        pos, comp = self.present.nonzero(as_tuple=True)
        return pos, comp

    @cached_property
    def offsets(self) -> list[int]:
        """offsets[i]:offsets[i+1] are the rows of position i."""
        return [0, *self.present.sum(dim=1).cumsum(0).tolist()]

    @property
    def n_components(self) -> int:
        return self.present.shape[1]

    def with_values(self, values: Float[Tensor, "row e"]) -> Rows:
        """The same rows holding something else. What was derived from the mask is kept."""
        rows = Rows(self.positions, self.present, values)
        for derived in ("index", "offsets", "number"):
            if derived in self.__dict__:
                rows.__dict__[derived] = self.__dict__[derived]
        return rows

    @cached_property
    def number(self) -> Int[Tensor, "pos comp"]:
        """The row of every (position, component); meaningless where the component is absent."""
        return self.present.flatten().cumsum(0).view(self.present.shape) - 1

    def laid_out(
        self, positions: Int[Tensor, "kept"], present: Bool[Tensor, "kept comp"], zeros: Callable[..., Tensor]
    ) -> Rows:
        """These positions of them, perhaps with more components present: as zeros until something is added to them.

        zeros: makes the new values, of (rows, width, like).
        """
        if torch.equal(positions, self.positions) and torch.equal(present, self.present):
            return self
        kept = self.keep(positions)
        values = zeros(int(present.sum()), self.values.shape[1], self.values)
        values.index_copy_(0, on(values, kept.present[present].nonzero()[:, 0]), kept.values)
        return Rows(positions, present, values)

    def keep(self, positions: Int[Tensor, "kept"]) -> Rows:
        """Only the rows of these positions."""
        if torch.equal(positions, self.positions):
            return self
        chosen = torch.isin(self.positions, positions)
        rows = chosen[self.index[0]].nonzero()[:, 0]
        return Rows(self.positions[chosen], self.present[chosen], self.values.index_select(0, on(self.values, rows)))

    def copy(self, zeros: Callable[..., Tensor]) -> Rows:
        """zeros: makes the new values, of (rows, width, like)."""
        return self.with_values(zeros(*self.values.shape, self.values).copy_(self.values))

    def dense(self) -> Float[Tensor, "pos comp d"]:
        """With zeros where nothing is present."""
        return spread(self.values, self.present)

    def project(self, w: Float[Tensor, "pos d"]) -> Float[Tensor, "pos comp"]:
        """⟨w[p], component⟩ for every component at every position, 0 where it is absent."""
        products = (self.values * w.index_select(0, on(w, self.index[0]))).sum(-1, keepdim=True)
        return spread(products, self.present)[..., 0]


def spread(values: Float[Tensor, "row d"], present: Bool[Tensor, "pos comp"]) -> Float[Tensor, "pos comp d"]:
    """Packed rows laid out, with zeros where nothing is present."""
    dense = values.new_zeros(present.numel(), values.shape[1])
    return dense.index_copy_(0, on(dense, present.flatten().nonzero()[:, 0]), values).view(*present.shape, -1)


def at(x: Tensor, positions: Int[Tensor, "pos"], dim: int = 0) -> Tensor:
    """x at some positions, ascending, without a copy where they are neighbours."""
    if not len(positions):
        return x.narrow(dim, 0, 0)
    low, high = int(positions[0]), int(positions[-1]) + 1
    if high - low == len(positions):
        return x.narrow(dim, low, high - low)
    return x.index_select(dim, on(x, positions))


def chosen(x: Tensor, positions: Int[Tensor, "some"]) -> Tensor:
    """x at some positions, in any order and however often."""
    return x.index_select(0, on(x, positions))


def on(values: Tensor, layout: Tensor) -> Tensor:
    """A part of the layout where the values are. The host does not wait for it to arrive."""
    if values.device.type == "cuda":
        layout = layout.pin_memory()  # a copy of other memory would wait for what the device is doing
    return layout.to(values.device, non_blocking=True)
