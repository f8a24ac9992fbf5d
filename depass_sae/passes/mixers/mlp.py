"""An MLP: neurons whose activations are frozen and shared out among components by a rule (rules.py).

An MLP mixes components (where they compete for a neuron) and keeps positions apart, so it goes a few positions at a
time, and, where one position is too much, a few neurons at a time: nothing mixes neurons.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...models import parts
from ...models.parts import Linear, Norm, Size, times
from ...models.sublayer import Tap, given
from ..choices import Choices
from ..memory import Blocks
from ..rows import BIAS, REST, Rows, at, on
from ..rules import RULES, Neurons, Rule, slope
from .mixer import Allotment, Mixer, Record
from .stream import Block, Stream

if TYPE_CHECKING:
    from ..frozen import Frozen

SLAB = {"cpu": 2**19}
"""Bytes of scores that a rule works on at once: few enough to stay in a core's own cache."""


class MLP(Mixer):
    """What a :class:`parts.MLP` does."""

    unit = "neuron"
    looks_back = False

    def __init__(self, part: parts.MLP) -> None:
        self.part = part

    def taps(self) -> dict[str, Tap]:
        assert self.part.down_module is not None
        return {"neurons": given(self.part.down_module)}

    def record(self, noted: Mapping[str, Tensor], norm: Norm, stream: Float[Tensor, "pos d_model"]) -> Record:
        return Record(neurons=noted["neurons"][: len(stream)])

    # ---------------------------------------------------------------------------------------------------- the two maps

    def inner(
        self,
        normed: Float[Tensor, "pos d_model"],
        at: Float[Tensor, "pos d_model"] | None,
        record: Record,
        choices: Choices,
        size: Size | None = None,
    ) -> Float[Tensor, "pos d_mlp"]:
        return neurons(self.part, normed, at, choices.mlp, size)

    @property
    def out(self) -> Linear:
        return self.part.down

    # ------------------------------------------------------------------------------------------------------ components

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
        """Who is there; ``rest`` takes part where nobody else does."""
        there = present[torch.isin(given, wanted)].clone()
        if norm.bias is not None or self.biased_inside(rule):
            there[:, BIAS] = True
        compete = there.clone()
        if rule.couples:
            compete &= ~first
            compete[:, REST] |= ~compete.any(dim=1)
        there |= compete
        if self.biased_outside:
            there[:, BIAS] = True
        if rule.may_spill:
            there[:, REST] = True
        return there, compete

    def biased_inside(self, rule: Rule) -> bool:
        """Whether bias vectors come before the neurons."""
        return has_bias(self.part, rule)

    @property
    def biased_outside(self) -> bool:
        """Whether they come after them."""
        return self.part.down.bias is not None

    def add(
        self, frozen: Frozen, before: Rows, rows: Rows, allot: Allotment, wanted: Collection[str], blocks: Blocks
    ) -> dict[str, Rows]:
        part, resid = self.part.to(frozen.resid), frozen.resid
        assert frozen.record.neurons is not None
        activation = at(frozen.record.neurons, rows.positions).to(resid.dtype)
        stream = Stream.of(frozen, before, rows, allot, wanted)
        every = slab(part, resid)

        def add_some(low: int, high: int) -> None:
            block = stream.block(low, high, every)
            into, out = stream.straight_into(block), None
            for some, hidden in shared_out(part, block, activation[low:high], allot, blocks.size):
                if into is not None and hidden.shape[1] == part.gate.d_out:
                    into.addmm_(hidden, part.down.weight)
                    return
                weight = part.down.weight[some]
                out = hidden @ weight if out is None else out.addmm_(hidden, weight)
            assert out is not None
            stream.take(block, out)

        blocks.work(stream.counts, row_width(part, allot.rule, resid), add_some)
        frozen.add_biases(rows, stream.found, "mlp_out")
        return stream.found

    # ----------------------------------------------------------------------------------------------------------- units

    @property
    def n_units(self) -> int:
        return self.part.down.d_in

    def by_unit(self, products: Float[Tensor, "target pos d_mlp"], record: Record) -> Float[Tensor, "target neuron"]:
        return products.sum(1)

    def written_by(
        self, z: Float[Tensor, "pos d_mlp"], groups: Sequence[Sequence[int]] | None, record: Record
    ) -> Float[Tensor, "pos group d_model"]:
        weight = self.part.down.weight.to(z)
        chosen = [[neuron] for neuron in range(z.shape[1])] if groups is None else [list(group) for group in groups]
        return torch.stack([z[:, group] @ weight[group] for group in chosen], dim=1)

    # ---------------------------------------------------------------------------------------------------------- sizes

    def blank(self, n: int, dtype: torch.dtype, compute: torch.dtype) -> Record:
        return Record(neurons=torch.empty(n, self.n_units, dtype=dtype, device="meta"))

    def swept(self, n: int) -> int:
        return 6 * self.n_units


# --------------------------------------------------------------------------------------------------------- neurons


def neurons(
    mlp: parts.MLP,
    normed: Float[Tensor, "pos d_model"],
    at: Float[Tensor, "pos d_model"] | None,
    choice: str,
    size: Size | None = None,
) -> Float[Tensor, "pos d_mlp"]:
    """What each neuron adds along its output row, from the normed stream and the one where it is frozen (None: itself).

    a rule of products:  (1 − by_up) (act(g)/g · u) ∘ gate(x̂) + by_up act(g) ∘ up(x̂)        g, u the frozen totals
    live:                act(gate(x̂)) ∘ up(x̂)
    """
    gate = mlp.gate.to(normed)
    up = None if mlp.up is None else mlp.up.to(normed)
    s, t = gate(normed, size), None if up is None else up(normed, size)
    if choice == "live":
        return mlp.act(s) if t is None else mlp.act(s) * _up_acted(mlp, t)
    g = (s if at is None else gate(at)).detach()
    if up is None or t is None:
        return slope(mlp.act, g) * s
    u = (t if at is None else up(at)).detach()
    by_gate, by_up = slope(mlp.act, g) * _up_acted(mlp, u), RULES[choice].by_up
    if not by_up:
        return by_gate * s
    if mlp.up_act is not None:
        steep, level = _up_line(mlp, u)
        t = steep * t + times(level, size)
    return (1 - by_up) * by_gate * s + by_up * mlp.act(g) * t


def has_bias(mlp: parts.MLP, rule: Rule) -> bool:
    """Whether bias vectors go into an MLP's scores."""
    if mlp.gate.bias is not None:
        return True
    return rule.needs_up and mlp.up is not None and (mlp.up.bias is not None or mlp.up_act is not None)


def _up_acted(mlp: parts.MLP, u: Tensor) -> Tensor:
    return u if mlp.up_act is None else mlp.up_act(u)


def _up_line(mlp: parts.MLP, u: Float[Tensor, "pos d_mlp"]) -> tuple[Tensor, Tensor]:
    """An activation on the up-projection as a frozen slope at u, and what it is at 0, which is a bias [d_mlp]."""
    act = mlp.up_act
    assert act is not None
    return slope(lambda u: act(u) - act(torch.zeros_like(u)), u), act(u.new_zeros(u.shape[-1]))


def shared_out(
    mlp: parts.MLP,
    block: Block,
    activation: Float[Tensor, "pos d_mlp"],
    allot: Allotment,
    limit: int,
) -> Iterator[tuple[slice, Float[Tensor, "row some"]]]:
    """What every row of a block gets of each neuron, some neurons at a time: no more than fit into so many bytes.

    activation: what each neuron adds along its output row, at the block's positions.
    """
    rule, x = allot.rule, block.x
    biased, aside = on(x, block.biased), on(x, block.aside)
    for some in _some_neurons(mlp.gate.d_out, len(x), limit, x.element_size()):
        gate, up = _part(mlp.gate, some), None if mlp.up is None else _part(mlp.up, some)
        s = _split(gate, x, biased)
        t = _split(up, x, biased) if up is not None and rule.needs_up else None
        g = u = None
        if rule.couples:
            s.index_fill_(0, aside, -torch.inf)
        else:
            g = gate(block.whole)
            u = None if up is None else up(block.whole)
            if u is not None and mlp.up_act is not None:
                steep, level = _up_line(mlp, u)
                u = mlp.up_act(u)
                if t is not None:
                    for run in block.runs:
                        run.of(t).mul_(steep[run.positions, None])
                    t[biased] += level
        for run in block.runs:
            rule.split(
                Neurons(
                    s=run.of(s),
                    t=None if t is None else run.of(t),
                    activation=activation[run.positions, some],
                    gate=None if g is None else g[run.positions],
                    up=None if u is None else u[run.positions],
                    act=mlp.act,
                    temperature=allot.temperature,
                )
            )
        yield some, s


def row_width(mlp: parts.MLP, rule: Rule, like: Tensor) -> int:
    """Bytes that a row takes while it goes through."""
    return like.element_size() * (mlp.gate.d_in + (2 if rule.needs_up else 1) * mlp.gate.d_out)


def slab(mlp: parts.MLP, like: Tensor) -> int:
    """Rows that a rule works on at once."""
    return SLAB.get(like.device.type, 2**62) // (mlp.gate.d_out * like.element_size())


def _split(linear: Linear, x: Float[Tensor, "row d_in"], biased: Tensor) -> Float[Tensor, "row d_out"]:
    """A linear map of every row, its bias in the rows of the ``bias`` component."""
    y = x @ linear.weight
    if linear.bias is not None:
        y[biased] += linear.bias
    return y


def _part(linear: Linear, some: slice) -> Linear:
    """Some of a map's outputs."""
    return Linear(linear.weight[:, some], None if linear.bias is None else linear.bias[some])


def _some_neurons(count: int, rows: int, block: int, size: int) -> Iterator[slice]:
    """Neurons whose scores for so many rows fit into a block."""
    step = max(1, block // max(1, rows * size))
    return (slice(low, min(low + step, count)) for low in range(0, count, step))
