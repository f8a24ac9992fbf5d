"""What a stream is split into where a pass starts: tokens, heads, modules, neurons, subspaces, or any given vectors.

A source turns a trace into a :class:`Split`: labelled components that sum to the residual stream, position by position.
A source keeps its own sublayer's biases: a head is z_h W_O^h with b_V in z_h, a module's output includes b_O or b_down.
Two components stand after a source's own in every decomposition: ``bias`` (what bias vectors add on the way) and
``rest`` (what the source leaves over, and what no other component can take).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..arguments import typed
from ..errors import UserError
from ..models.place import Place, stream_at
from .frozen import Frozen
from .record import Trace
from .rows import BIAS, REST, Rows, on
from .rules import Rule


@dataclass(frozen=True)
class Split:
    """Components at one point of the residual stream.

    labels: one per component, ``bias`` and ``rest`` last.
    first_only: the components that come from position 0 alone; for every position, where packed prompts differ in it.
    In most models that position carries a massive, meaningless activation, which would win every allocation (see
    :class:`.forward.Allocation`).
    """

    at: Place
    rows: Rows
    labels: tuple[str, ...]
    first_only: Bool[Tensor, "*pos comp"]

    def under(self, rule: Rule) -> Split:
        """The same with a component for all that the rule adds on the way: ``pattern``, before ``bias``."""
        if rule.aside == self.labels[-len(rule.aside) :]:
            return self

        def with_room(mask: Bool[Tensor, "*pos comp"]) -> Bool[Tensor, "*pos comp"]:
            return torch.cat([mask[..., :BIAS], torch.zeros_like(mask[..., BIAS:REST]), mask[..., BIAS:]], dim=-1)

        rows = Rows(self.rows.positions, with_room(self.rows.present), self.rows.values)
        labels = (*self.labels[:BIAS], *rule.aside)
        return Split(self.at, rows, labels, with_room(self.first_only))


class Source(Protocol):
    """A rule for splitting the stream at one point."""

    def start(self, trace: Trace) -> Split: ...


@typed
@dataclass(frozen=True)
class Spans:
    """One component for each group of positions, at ``resid_pre`` of a layer (0: the embeddings, positions included).

    groups: disjoint; positions in no group are left to ``rest``. Sub-tokens of a word that are one group are one
    component from the start, not a sum of scores (paper appendix B.3).
    """

    groups: Sequence[Sequence[int]]
    labels: Sequence[str]
    layer: int = 0

    def start(self, trace: Trace) -> Split:
        x = _stream(trace, (self.layer, "resid_pre"))
        n, m = len(x), len(self.groups)
        present = torch.zeros(n, m + 2, dtype=torch.bool)
        present[torch.arange(n), self.owner(n)] = True
        first_only = torch.tensor([list(group) == [0] for group in self.groups] + [False, False])
        rows = Rows(torch.arange(n), present, x)
        return Split(Place(self.layer, "resid_pre"), rows, (*self.labels, "bias", "rest"), first_only)

    def owner(self, n: int) -> Int[Tensor, "pos"]:
        """Which component each of n positions belongs to: its group's, or ``rest``. Raises UserError for bad groups."""
        owner = torch.full((n,), len(self.groups) + 1)
        for component, group in enumerate(self.groups):
            positions = torch.as_tensor(list(group), dtype=torch.long)
            if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < n:
                raise UserError(f"span {positions.tolist()} is outside the prompt, whose positions are 0 to {n - 1}")
            if (owner[positions] != len(self.groups) + 1).any():
                raise UserError(f"position {positions.tolist()} is in two spans; spans must not overlap")
            owner[positions] = component
        return owner


def tokens(labels: Sequence[str], layer: int = 0) -> Spans:
    """One component per token (paper eq. 18)."""
    return Spans([[position] for position in range(len(labels))], labels, layer)


@typed
@dataclass(frozen=True)
class Vectors:
    """Any given vectors, at any point of the residual stream; what they leave over is ``rest``.

    parts: zero where a component is absent. present: where each one takes part (default: everywhere).
    at: (layer, "resid_pre" | "resid_mid" | "resid_post").
    """

    parts: Float[Tensor, "pos comp d_model"]
    labels: Sequence[str]
    at: Place
    present: Bool[Tensor, "pos comp"] | None = None
    first_only: Bool[Tensor, "comp"] | None = None

    def start(self, trace: Trace) -> Split:
        x = _stream(trace, self.at)
        if self.parts.dim() != 3 or self.parts.shape[::2] != x.shape or self.parts.shape[1] != len(self.labels):
            expected = f"[{x.shape[0]}, {len(self.labels)}, {x.shape[1]}]"
            raise UserError(
                f"vectors have shape {list(self.parts.shape)}, expected {expected} (pos, component, d_model)"
            )
        parts = self.parts.to(x)
        present = torch.ones(parts.shape[:2], dtype=torch.bool) if self.present is None else self.present
        present = present.cpu()
        parts = parts * on(parts, present)[..., None]
        rest = x - parts.sum(dim=1)
        # What is left over by rounding alone is no component: it would compete for neurons.
        largest = torch.cat([parts, x[:, None]], dim=1).abs().amax((1, 2))
        left = (rest.abs().amax(-1) > 100 * torch.finfo(x.dtype).eps * largest).cpu()
        start = _start(Place(*self.at), self.labels, parts, None, rest)
        mask = torch.cat([present, start.rows.present[:, -2:-1], left[:, None]], dim=1)
        first_only = start.first_only.clone()
        if self.first_only is not None:
            first_only[:-2] = self.first_only.cpu()
        full = start.rows.dense().flatten(0, 1)
        rows = Rows(start.rows.positions, mask, full.index_select(0, on(full, mask.flatten().nonzero()[:, 0])))
        return Split(start.at, rows, start.labels, first_only)


@typed
@dataclass(frozen=True)
class Heads:
    """One component per attention head of a layer; the residual stream before it is ``rest``, b_O goes to ``bias``."""

    layer: int

    def start(self, trace: Trace) -> Split:
        frozen = _sublayer(trace, self.layer, ATTENTION)
        labels = [f"head {head}" for head in range(frozen.mixer.n_units)]
        rest = trace.streams[frozen.sublayer.number]
        return _start(_behind(trace, frozen), labels, frozen.written_by(), frozen.written_bias(), rest)


@typed
@dataclass(frozen=True)
class Modules:
    """The output of a layer's attention ("attn") or MLP ("mlp"); the residual stream before it is ``rest``."""

    layer: int
    module: Literal["attn", "mlp"]

    def start(self, trace: Trace) -> Split:
        if self.module not in (ATTENTION, NEURONS):
            raise UserError(f'a module is "attn" or "mlp", not {self.module!r}')
        frozen = _sublayer(trace, self.layer, self.module)
        number = frozen.sublayer.number
        rest = trace.streams[number]
        part = trace.streams[number + 1] - rest
        return _start(_behind(trace, frozen), [f"{self.module} {self.layer}"], part[:, None], None, rest)


@typed
@dataclass(frozen=True)
class Neurons:
    """One component per group of an MLP's neurons (default: each neuron its own).

    The stream before the MLP and the neurons in no group are ``rest``; b_down goes to ``bias``. The neurons of experts
    are counted expert by expert, those of a shared one after them.
    """

    layer: int
    groups: Sequence[Sequence[int]] | None = None

    def start(self, trace: Trace) -> Split:
        frozen = _sublayer(trace, self.layer, NEURONS)
        number, n = frozen.sublayer.number, frozen.mixer.n_units
        groups = [[neuron] for neuron in range(n)] if self.groups is None else [list(group) for group in self.groups]
        if not groups or not all(0 <= neuron < n for group in groups for neuron in group):
            raise UserError(f"groups are of the layer's neurons, 0 to {n - 1}; at least one is needed")
        parts, bias = frozen.written_by(groups), frozen.written_bias()
        rest = trace.streams[number] + (frozen.written() - parts.sum(dim=1))
        names = [[frozen.mixer.unit_name(neuron) for neuron in group] for group in groups]
        labels = [f"neuron {group[0]}" if len(group) == 1 else f"neurons [{', '.join(group)}]" for group in names]
        return _start(_behind(trace, frozen), labels, parts, bias, rest)


@typed
@dataclass(frozen=True)
class Subspace:
    """The stream's projection on one or several subspaces of the residual stream; what is off them all is ``rest``.

    matrices: rows that span each subspace, [n, d_model] (decoder directions, a probe's weights, a projector), or one
    such matrix. They are orthonormalised by SVD; of several, each is taken orthogonal to those before it.
    hook: where in the layer; ``resid_post`` is what it hands on.
    rank: keep the first so many singular directions of each (default: all that are not zero).
    """

    matrices: Float[Tensor, "n d_model"] | Sequence[Float[Tensor, "n d_model"]]
    layer: int
    hook: str = "resid_post"
    rank: int | None = None

    def start(self, trace: Trace) -> Split:
        x = _stream(trace, (self.layer, self.hook))
        parts = torch.stack([x @ basis.T @ basis for basis in self.bases(x)], dim=1)
        labels = [f"subspace {i}" for i in range(parts.shape[1])]
        return _start(Place(self.layer, self.hook), labels, parts, None, x - parts.sum(dim=1))

    def bases(self, x: Float[Tensor, "pos d_model"]) -> list[Float[Tensor, "rank d_model"]]:
        """Orthonormal rows of each subspace, in the dtype and on the device of ``x``."""
        matrices = [self.matrices] if isinstance(self.matrices, Tensor) else list(self.matrices)
        if not matrices or (self.rank is not None and self.rank < 1):
            raise UserError("a subspace needs a matrix of rows that span it, and a rank of 1 or more")
        bases: list[Tensor] = []
        for matrix in matrices:
            if matrix.dim() != 2 or matrix.shape[1] != x.shape[1]:
                raise UserError(f"a subspace is given by rows of {x.shape[1]} entries, not by {list(matrix.shape)}")
            rows = matrix.detach().to(x.device, torch.float64)
            if not rows.isfinite().all():
                raise UserError("a subspace's rows have NaN or infinite entries")
            size = torch.linalg.matrix_norm(rows, 2)
            for basis in bases:
                rows = rows - rows @ basis.T @ basis
            _, singular, directions = torch.linalg.svd(rows, full_matrices=False)
            kept = directions[singular > 1e-6 * size][: self.rank]
            if not len(kept):
                raise UserError("a subspace has no direction of its own: its rows are zero, or lie in those before it")
            bases.append(kept)
        return [basis.to(x.dtype) for basis in bases]


ATTENTION, NEURONS = "attn", "mlp"
"""What the two sublayers of a layer are called."""


def _sublayer(trace: Trace, layer: int, name: str) -> Frozen:
    """One of a layer's. Raises UserError where there is no such layer."""
    _check_layer(trace, layer)
    both = (trace.sublayer(2 * layer), trace.sublayer(2 * layer + 1))
    return next(frozen for frozen in both if frozen.sublayer.name == name)


def _behind(trace: Trace, frozen: Frozen) -> Place:
    """The stream right after a sublayer."""
    return stream_at(frozen.sublayer.number + 1, trace.n_layers).as_post


def _check_layer(trace: Trace, layer: int) -> None:
    if not 0 <= layer < trace.n_layers:
        raise UserError(f"there is no layer {layer}; there are layers 0 to {trace.n_layers - 1}")


def _stream(trace: Trace, at: tuple[int, str]) -> Float[Tensor, "pos d_model"]:
    """The residual stream where a source starts. Raises UserError where there is none."""
    layer, hook = at
    _check_layer(trace, layer)
    if not Place(layer, hook).is_stream:
        raise UserError(f"a decomposition starts on the residual stream, not at {hook}")
    return trace.at(at)


def _start(
    at: Place,
    labels: Sequence[str],
    parts: Float[Tensor, "pos comp d_model"],
    bias: Float[Tensor, "*pos d_model"] | None,
    rest: Float[Tensor, "pos d_model"],
) -> Split:
    """Components that are present at every position, ``bias`` where there is one."""
    n, m, _ = parts.shape
    present = torch.ones(n, m + 2, dtype=torch.bool)
    present[:, -2] = bias is not None
    added = torch.zeros_like(rest) if bias is None else bias.expand_as(rest)
    full = torch.cat([parts, added[:, None], rest[:, None]], dim=1)
    if bias is None:
        full = full[:, [*range(m), m + 1]]
    rows = Rows(torch.arange(n), present, full.flatten(0, 1))
    return Split(at, rows, (*labels, "bias", "rest"), torch.zeros(m + 2, dtype=torch.bool))
