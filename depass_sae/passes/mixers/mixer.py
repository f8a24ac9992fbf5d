"""What a sublayer's mixer can do, whichever kind it is: the engines ask this, and nothing else.

Between the normed stream and what a sublayer writes stands its inner value z [pos, d_inner]: the heads before W_O, or
the neurons. A mixer makes z of the stream, and what is written of z; it carries components through both; and it knows
who its units are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import UserError
from ...models.parts import Linear, Norm, Size
from ...models.sublayer import Tap
from ..choices import Choices
from ..memory import Blocks
from ..rows import Rows, chosen
from ..rules import QK, Rule

if TYPE_CHECKING:
    from ..frozen import Frozen
    from .sharing import Sharing

Whose = int | Literal["shared"]
"""An expert, by its number, or the shared one."""


@dataclass(frozen=True)
class Record:
    """What one forward pass leaves of a sublayer beside the stream: all that is frozen and cannot be had from that.

    pattern: between positions. neurons: what each adds along its output row; the largest, and of no use to gradients.
    at: what else there is of each position, by name.
    """

    pattern: Float[Tensor, "head query key"] | None = field(default=None, repr=False)
    neurons: Float[Tensor, "pos d_mlp"] | None = field(default=None, repr=False)
    at: Mapping[str, Float[Tensor, "pos *"]] = field(default_factory=dict, repr=False)

    def first(self, n: int) -> Record:
        """Of the first n positions."""
        return Record(
            None if self.pattern is None else self.pattern[:, :n, :n],
            None if self.neurons is None else self.neurons[:n],
            {name: x[:n] for name, x in self.at.items()},
        )

    def some(self, positions: Int[Tensor, "some"]) -> Record:
        """Of some positions, in any order and however often, where nothing is kept between positions."""
        assert self.pattern is None
        neurons = None if self.neurons is None else chosen(self.neurons, positions)
        return Record(None, neurons, {name: chosen(x, positions) for name, x in self.at.items()})

    def without_neurons(self) -> Record:
        return replace(self, neurons=None)

    @staticmethod
    def together(records: Sequence[Record]) -> Record:
        """Of several prompts, one after the other; patterns lie along the diagonal of one, zero elsewhere."""
        patterns = [record.pattern for record in records if record.pattern is not None]
        neurons = [record.neurons for record in records if record.neurons is not None]
        return Record(
            _diagonal(patterns) if patterns else None,
            torch.cat(neurons) if neurons else None,
            {name: torch.cat([record.at[name] for record in records]) for name in records[0].at},
        )


def _diagonal(patterns: Sequence[Float[Tensor, "head query key"]]) -> Float[Tensor, "head query key"]:
    sizes = [pattern.shape[1] for pattern in patterns]
    whole, start = patterns[0].new_zeros(patterns[0].shape[0], sum(sizes), sum(sizes)), 0
    for pattern, size in zip(patterns, sizes, strict=True):
        whole[:, start : start + size, start : start + size] = pattern
        start += size
    return whole


@dataclass(frozen=True)
class Allotment:
    """How a pass shares out: by which rule, at which temperature, and who takes part at each position.

    qk: how queries and keys have a share in what heads move (None: they have none).
    """

    rule: Rule
    temperature: float
    compete: Bool[Tensor, "pos comp"]
    qk: QK | None = None


class Mixer(ABC):
    """unit: what its parts are called. looks_back: whether a position sees earlier ones."""

    unit: str
    looks_back: bool

    # ----------------------------------------------------------------------------------------------------- recording

    @abstractmethod
    def taps(self) -> dict[str, Tap]:
        """What has to be noted of it while the model runs, by name; each [batch, pos, ...] or [batch·pos, ...]."""

    @abstractmethod
    def record(self, noted: Mapping[str, Tensor], norm: Norm, stream: Float[Tensor, "pos d_model"]) -> Record:
        """What is frozen, of one prompt, from what was noted (perhaps of more positions) and the stream that is read.

        Raises UserError where the model does not hand out what it should.
        """

    # ---------------------------------------------------------------------------------------------------- the two maps

    @abstractmethod
    def inner(
        self,
        normed: Float[Tensor, "pos d_model"],
        at: Float[Tensor, "pos d_model"] | None,
        record: Record,
        choices: Choices,
        size: Size | None = None,
    ) -> Float[Tensor, "pos d_inner"]:
        """z of the normed stream, differentiable. at: the normed stream where it is frozen (None: the same)."""

    def pattern(
        self, normed: Float[Tensor, "pos d_model"], record: Record, choices: Choices
    ) -> Float[Tensor, "pos d_inner"] | None:
        """What of z no part of the stream has made, nor a bias vector: the component ``pattern``. None: there is none.

        normed: the whole.
        """
        return None

    @property
    @abstractmethod
    def out(self) -> Linear:
        """What writes z, where one map does for all positions."""

    def write(self, z: Float[Tensor, "pos d_inner"], record: Record) -> Float[Tensor, "pos d_model"]:
        """What z writes; bias vectors are not in it."""
        return z @ self.out.weight.to(z)

    def back(
        self, gradient: Float[Tensor, "target pos d_model"], record: Record
    ) -> Float[Tensor, "target pos d_inner"]:
        """A gradient with respect to what is written, with respect to z."""
        return gradient @ self.out.weight.to(gradient).T

    def sharing(self, normed: Float[Tensor, "pos d_model"], record: Record, qk: QK | None) -> Sharing | None:
        """What queries and keys have a share by, frozen. None: they have none, or there are no scores.

        normed: the whole.
        """
        return None

    def looked_back(
        self,
        gradient: Float[Tensor, "target pos d_inner"],
        normed: Float[Tensor, "pos d_model"],
        record: Record,
        sharing: Sharing,
    ) -> list[tuple[Float[Tensor, "target pos d_model"], Float[Tensor, "target pos"]]]:
        """A gradient with respect to z, with respect to the normed stream that queries are made of, and keys: through
        what scores do to the pattern alone. Beside each, what their bias vectors have.

        normed: the whole. sharing: what is frozen of its scores.
        """
        raise NotImplementedError(f"{self.unit}s have no scores, and so nothing of them is frozen")

    def keys_looked_back(
        self,
        gradient: Float[Tensor, "1 pos d_inner"],
        parts: Float[Tensor, "comp pos d_model"],
        normed: Float[Tensor, "pos d_model"],
        record: Record,
        qk: QK,
    ) -> tuple[Float[Tensor, "comp pos d_model"], Float[Tensor, "comp pos"]] | None:
        """The second of these, for the queries that parts of the normed stream make, each alone. None: no scores."""
        return None

    def write_bias(self, record: Record, like: Tensor) -> Float[Tensor, "*pos d_model"] | None:
        """The bias vectors of what is written; like: in whose dtype and on whose device."""
        return None if self.out.bias is None else self.out.bias.to(like)

    def live_bias(
        self, normed: Float[Tensor, "pos d_model"], record: Record, size: Size | None = None
    ) -> Float[Tensor, "pos d_model"] | None:
        """The same as a function of the stream, where it is one."""
        return None

    # ------------------------------------------------------------------------------------------------------ components

    @abstractmethod
    def present(
        self,
        norm: Norm,
        present: Bool[Tensor, "given comp"],
        given: Int[Tensor, "given"],
        wanted: Int[Tensor, "wanted"],
        starts: Int[Tensor, "wanted"],
        first: Bool[Tensor, "wanted comp"],
        rule: Rule,
    ) -> tuple[Bool[Tensor, "wanted comp"], Bool[Tensor, "wanted comp"]]:
        """Who is there in what it writes at the positions that are wanted, and who takes part in an allocation.

        present: who is in what it reads, at the positions that are given. starts: where each one's prompt begins.
        first: who may not take part, since it comes from position 0 alone.
        """

    @abstractmethod
    def add(
        self, frozen: Frozen, before: Rows, rows: Rows, allot: Allotment, wanted: Collection[str], blocks: Blocks
    ) -> dict[str, Rows]:
        """rows += what it writes of each component of ``before``, in place; they may be the same rows.

        Returns what is wanted of the places inside it and of what it adds.
        """

    # ----------------------------------------------------------------------------------------------------------- units

    @property
    @abstractmethod
    def n_units(self) -> int: ...

    @property
    def unit_name(self) -> Callable[[int], str]:
        """What a unit is called within its layer, by its index; goes to other processes."""
        return str

    def number(self, index: int, whose: Whose | None = None) -> int:
        """Of a unit, or of an expert's, among all. Raises UserError for what the layer does not have, which goes on
        behind its name.
        """
        if whose is not None:
            raise UserError(f"has no experts; leave {whose}. out")
        if index >= self.n_units:
            raise UserError(f"has {self.unit}s 0 to {self.n_units - 1}, and none numbered {index}")
        return index

    @abstractmethod
    def by_unit(self, products: Float[Tensor, "target pos d_inner"], record: Record) -> Float[Tensor, "target unit"]:
        """Sums over positions and what each unit has of d_inner."""

    @abstractmethod
    def written_by(
        self, z: Float[Tensor, "pos d_inner"], groups: Sequence[Sequence[int]] | None, record: Record
    ) -> Float[Tensor, "pos group d_model"]:
        """What groups of units write (None: each its own)."""

    # ---------------------------------------------------------------------------------------------------------- sizes

    @abstractmethod
    def blank(self, n: int, dtype: torch.dtype, compute: torch.dtype) -> Record:
        """A record of n positions of a model that runs in ``dtype``, as large as a real one: on the meta device, where
        tensors have shapes and no numbers. What a pass is laid out by stays on the host.
        """

    @abstractmethod
    def swept(self, n: int) -> int:
        """Numbers that a target takes at each position on its way back."""

    def shared(self, n: int, qk: QK | None) -> int:
        """Numbers that are kept of n positions beside the components, where queries and keys have a share."""
        return 0

    # --------------------------------------------------------------------------- what only some can be asked for

    def look(self) -> Any:
        """What splits a score. Raises UserError where there are no scores to be split."""
        raise UserError(f"this sublayer has no attention scores: its units are {self.unit}s")

    def split_by_source(
        self, frozen: Frozen, inner: Float[Tensor, "target pos d_inner"], rows: Rows, qk: QK | None = None
    ) -> Float[Tensor, "target unit comp"]:
        """Each unit's contribution, by the component of ``rows`` that it moved."""
        raise UserError(f"{self.unit}s cannot be split by token")
