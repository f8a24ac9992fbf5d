"""Experts: at each position the router chooses a few of many MLPs; its weights and its choice are frozen.

    z[n] = (w_1 · neurons of the first expert chosen at n, ..., w_k · those of the k-th, w_s · the shared expert's)

A unit is a neuron of one expert, ``expert.neuron``; which of them a position's z holds is in the record. Only chosen
experts cost anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import UserError
from ...models import parts
from ...models.parts import Norm, Size
from ...models.sublayer import Tap, returned
from ..choices import Choices
from ..memory import Blocks
from ..rows import Rows, at, on
from ..rules import Rule
from .mixer import Allotment, Record, Whose
from .mlp import MLP, has_bias, neurons, row_width, shared_out, slab
from .stream import Block, Stream, alike

if TYPE_CHECKING:
    from ..frozen import Frozen


@dataclass(frozen=True)
class _Sent:
    """The positions that go through one expert, and as which of their choices; on the host."""

    expert: int
    pos: Int[Tensor, "sent"]
    slot: Int[Tensor, "sent"]


@dataclass(frozen=True)
class UnitName:
    """``expert.neuron``, or ``shared.neuron``."""

    n: int
    width: int

    def __call__(self, index: int) -> str:
        expert, neuron = divmod(index, self.width)
        return f"{expert}.{neuron}" if expert < self.n else f"shared.{index - self.n * self.width}"


class Experts(MLP):
    """What a :class:`parts.Experts` does: an MLP for each expert, on the positions that were sent there."""

    part: parts.Experts  # type: ignore[assignment]

    def __init__(self, part: parts.Experts) -> None:
        self.part = part
        self.width = part.expert(0).down.d_in

    def taps(self) -> dict[str, Tap]:
        return {"weights": returned(self.part.router, 1), "choice": returned(self.part.router, 2)}

    def record(self, noted: Mapping[str, Tensor], norm: Norm, stream: Float[Tensor, "pos d_model"]) -> Record:
        # The choice goes to the host, where a pass is laid out.
        n = len(stream)
        return Record(at={"weights": noted["weights"][:n], "choice": noted["choice"][:n].cpu()})

    # ---------------------------------------------------------------------------------------------------- the two maps

    def inner(
        self,
        normed: Float[Tensor, "pos d_model"],
        at: Float[Tensor, "pos d_model"] | None,
        record: Record,
        choices: Choices,
        size: Size | None = None,
    ) -> Float[Tensor, "pos d_inner"]:
        choice, live = record.at["choice"], choices.mlp == "live"
        weights = self._live_weights(normed, record, size) if live else record.at["weights"].to(normed.dtype)
        found = []
        for sent in self._sent(choice):
            pos, slot = on(normed, sent.pos), on(normed, sent.slot)
            some = None if at is None else at[pos]
            own = neurons(
                self._expert(sent.expert), normed[pos], some, choices.mlp, None if size is None else size[pos]
            )
            found.append(own * weights[pos, slot, None])
        z = _in_slots(found, choice)
        if self.part.shared is None:
            return z
        weight = self._shared_weight(normed if live or at is None else at, size if live else None)
        own = neurons(self.part.shared, normed, at, choices.mlp, size)
        return torch.cat([z, own * (weight if live else weight.detach())], dim=1)

    def write(self, z: Float[Tensor, "pos d_inner"], record: Record) -> Float[Tensor, "pos d_model"]:
        out = z.new_zeros(len(z), self._expert(0).down.d_out)
        for sent in self._sent(record.at["choice"]):
            pos, slot = on(z, sent.pos), on(z, sent.slot)
            own = self._slots(z)[pos, slot] @ self._expert(sent.expert).down.weight.to(z)
            out = out.index_add(0, pos, own)
        if self.part.shared is not None:
            out = out + z[:, self._routed :] @ self.part.shared.down.weight.to(z)
        return out

    def back(
        self, gradient: Float[Tensor, "target pos d_model"], record: Record
    ) -> Float[Tensor, "target pos d_inner"]:
        choice, found = record.at["choice"], []
        by_pos = gradient.transpose(0, 1)
        for sent in self._sent(choice):
            weight = self._expert(sent.expert).down.weight.to(gradient)
            found.append(by_pos[on(gradient, sent.pos)] @ weight.T)
        inner = _in_slots(found, choice).transpose(0, 1)
        if self.part.shared is None:
            return inner
        return torch.cat([inner, gradient @ self.part.shared.down.weight.to(gradient).T], dim=2)

    def write_bias(self, record: Record, like: Tensor) -> Float[Tensor, "pos d_model"] | None:
        return self._weighted_bias(record.at["weights"].to(like), record) if self.biased_outside else None

    def live_bias(
        self, normed: Float[Tensor, "pos d_model"], record: Record, size: Size | None = None
    ) -> Float[Tensor, "pos d_model"] | None:
        return self._weighted_bias(self._live_weights(normed, record, size), record) if self.biased_outside else None

    def _weighted_bias(self, weights: Float[Tensor, "pos k"], record: Record) -> Float[Tensor, "pos d_model"]:
        bias = weights.new_zeros(len(weights), self._expert(0).down.d_out)
        for sent in self._sent(record.at["choice"]):
            own, pos = self._expert(sent.expert).down.bias, on(weights, sent.pos)
            assert own is not None
            bias = bias.index_add(0, pos, weights[pos, on(weights, sent.slot), None] * own.to(weights))
        return bias

    def _live_weights(
        self, normed: Float[Tensor, "pos d_model"], record: Record, size: Size | None
    ) -> Float[Tensor, "pos k"]:
        """The router's, its choice as recorded."""
        return self.part.weigh(self.part.logits.to(normed)(normed, size), on(normed, record.at["choice"]))

    # ------------------------------------------------------------------------------------------------------ components

    def biased_inside(self, rule: Rule) -> bool:
        return any(has_bias(mlp, rule) for mlp in self._kinds)

    @property
    def biased_outside(self) -> bool:
        return self._expert(0).down.bias is not None

    def add(
        self, frozen: Frozen, before: Rows, rows: Rows, allot: Allotment, wanted: Collection[str], blocks: Blocks
    ) -> dict[str, Rows]:
        resid, choice = frozen.resid, at(frozen.record.at["choice"], rows.positions)
        weights = at(frozen.record.at["weights"], rows.positions).to(resid.dtype)
        stream = Stream.of(frozen, before, rows, allot, wanted)
        every = min(slab(mlp, resid) for mlp in self._kinds)

        def through(mlp: parts.MLP, block: Block, weight: Float[Tensor, "pos 1"], out: Tensor, number: Tensor) -> None:
            mlp = mlp.to(resid)
            activation = neurons(mlp, block.whole, None, "live")
            for some, hidden in shared_out(mlp, block, activation, allot, blocks.size):
                for run in block.runs:
                    run.of(hidden).mul_(weight[run.positions, None])
                out.index_add_(0, number, hidden @ mlp.down.weight[some])

        def add_some(low: int, high: int) -> None:
            block = stream.block(low, high, every)
            out = torch.zeros_like(block.x)
            for sent in self._sent(choice[low:high]):
                some, number = _of_positions(block, stream.before.offsets[low : high + 1], sent.pos, every)
                weight = weights[low:high][on(out, sent.pos), on(out, sent.slot), None]
                through(self._expert(sent.expert), some, weight, out, number)
            if self.part.shared is not None:
                everyone = torch.arange(len(out), device=out.device)
                through(self.part.shared, block, self._shared_weight(block.whole, None), out, everyone)
            stream.take(block, out)

        width = max(row_width(mlp, allot.rule, resid) for mlp in self._kinds)
        blocks.work(stream.counts, width, add_some)
        frozen.add_biases(rows, stream.found, "mlp_out")
        return stream.found

    # ----------------------------------------------------------------------------------------------------------- units

    @property
    def n_units(self) -> int:
        return self.part.n * self.width + self._shared_width

    @property
    def unit_name(self) -> Callable[[int], str]:
        return UnitName(self.part.n, self.width)

    def number(self, index: int, whose: Whose | None = None) -> int:
        if whose is None:
            raise UserError(f"has experts: write EXPERT.NEURON, for example {self.unit_name(index % self.n_units)}")
        if whose == "shared" and not self._shared_width:
            raise UserError("has no shared expert")
        if whose != "shared" and whose >= self.part.n:
            raise UserError(f"has experts 0 to {self.part.n - 1}, and none numbered {whose}")
        expert, width = (self.part.n, self._shared_width) if whose == "shared" else (whose, self.width)
        if index >= width:
            raise UserError(f"has experts with neurons 0 to {width - 1}, and none numbered {index}")
        return expert * self.width + index

    def difference(
        self,
        normed: Float[Tensor, "pos d_model"],
        weights: Float[Tensor, "pos k"],
        choice: Int[Tensor, "pos k"],
        whose: Whose,
        edit: Callable[[Float[Tensor, "pos d_expert"]], Float[Tensor, "pos d_expert"]],
    ) -> Float[Tensor, "pos d_model"]:
        """What it gives more once an edit has changed an expert's neurons: nothing at positions not sent there."""
        mlp = self.part.shared if whose == "shared" else self._expert(whose)
        assert mlp is not None
        before = neurons(mlp, normed, None, "live")
        change = edit(before) - before
        if whose == "shared":
            weight = self._shared_weight(normed, None)
        else:
            weight = torch.where(choice == whose, weights, 0).sum(-1, keepdim=True).to(change)
        return weight * (change @ mlp.down.weight.to(change))

    def by_unit(self, products: Float[Tensor, "target pos d_inner"], record: Record) -> Float[Tensor, "target neuron"]:
        found = products.new_zeros(len(products), self.n_units)
        by_pos = self._slots(products.transpose(0, 1))
        for sent in self._sent(record.at["choice"]):
            own = by_pos[on(products, sent.pos), ..., on(products, sent.slot), :]
            found[:, sent.expert * self.width : (sent.expert + 1) * self.width] = own.sum(0)
        found[:, self.part.n * self.width :] = products[..., self._routed :].sum(1)
        return found

    def written_by(
        self, z: Float[Tensor, "pos d_inner"], groups: Sequence[Sequence[int]] | None, record: Record
    ) -> Float[Tensor, "pos group d_model"]:
        wide = z.new_zeros(len(z), self.n_units)
        for sent in self._sent(record.at["choice"]):
            pos = on(z, sent.pos)
            columns = slice(sent.expert * self.width, (sent.expert + 1) * self.width)
            wide[pos, columns] = self._slots(z)[pos, on(z, sent.slot)]
        wide[:, self.part.n * self.width :] = z[:, self._routed :]
        chosen = [[unit] for unit in range(self.n_units)] if groups is None else [list(group) for group in groups]
        return torch.stack([wide[:, group] @ self._output_rows(group).to(z) for group in chosen], dim=1)

    def _output_rows(self, units: Sequence[int]) -> Float[Tensor, "unit d_model"]:
        """What each unit writes along."""
        found = []
        for unit in units:
            expert, neuron = divmod(unit, self.width)
            if expert < self.part.n:
                found.append(self._expert(expert).down.weight[neuron])
            else:
                assert self.part.shared is not None
                found.append(self.part.shared.down.weight[unit - self.part.n * self.width])
        return torch.stack(found)

    # ---------------------------------------------------------------------------------------------------------- sizes

    def blank(self, n: int, dtype: torch.dtype, compute: torch.dtype) -> Record:
        """As if every expert were chosen about as often as the others."""
        choice = (torch.arange(n * self.part.k) % self.part.n).view(n, self.part.k)
        return Record(at={"weights": torch.empty(n, self.part.k, dtype=dtype, device="meta"), "choice": choice})

    def swept(self, n: int) -> int:
        return 6 * (self._routed + self._shared_width)

    # ------------------------------------------------------------------------------------------------------ small steps

    @property
    def _routed(self) -> int:
        """How much of z is the chosen experts'."""
        return self.part.k * self.width

    @property
    def _shared_width(self) -> int:
        return 0 if self.part.shared is None else self.part.shared.down.d_in

    @property
    def _kinds(self) -> list[parts.MLP]:
        """One expert for all, and the shared one."""
        return [self._expert(0), *([] if self.part.shared is None else [self.part.shared])]

    def _expert(self, index: int) -> parts.MLP:
        return self.part.expert(index)

    def _shared_weight(self, normed: Float[Tensor, "pos d_model"], size: Size | None) -> Float[Tensor, "pos 1"]:
        gate = self.part.shared_gate
        return normed.new_ones(len(normed), 1) if gate is None else gate.to(normed)(normed, size)

    def _slots(self, z: Float[Tensor, "pos *target d_inner"]) -> Float[Tensor, "pos *target k d_expert"]:
        return z[..., : self._routed].unflatten(-1, (self.part.k, self.width))

    def _sent(self, choice: Int[Tensor, "pos k"]) -> list[_Sent]:
        """Who goes where, experts ascending."""
        k, order = choice.shape[1], choice.flatten().argsort(stable=True)
        ends = torch.bincount(choice.flatten(), minlength=self.part.n).cumsum(0).tolist()
        return [
            _Sent(expert, order[low:high] // k, order[low:high] % k)
            for expert, (low, high) in enumerate(pairwise([0, *ends]))
            if high > low
        ]


def _in_slots(by_expert: list[Tensor], choice: Int[Tensor, "pos k"]) -> Float[Tensor, "pos *target k_d_expert"]:
    """What each expert gave, experts ascending, put in the order of the positions' choices."""
    together = torch.cat(by_expert)
    back = on(together, choice.flatten().argsort(stable=True).argsort())
    found = together.index_select(0, back).unflatten(0, tuple(choice.shape))  # [pos, k, *target, d_expert]
    return found.movedim(1, -2).flatten(-2)


def _of_positions(
    block: Block, offsets: Sequence[int], pos: Int[Tensor, "sent"], every: int
) -> tuple[Block, Int[Tensor, "row"]]:
    """Some of a block's positions as a block, and which of its rows they are."""
    starts, counts = torch.tensor(offsets[:-1]) - offsets[0], torch.tensor(offsets).diff()
    rows = torch.cat([torch.arange(int(starts[p]), int(starts[p] + counts[p])) for p in pos.tolist()])
    ends = [0, *counts[pos].cumsum(0).tolist()]
    number = torch.full((offsets[-1] - offsets[0],), -1)
    number[rows] = torch.arange(len(rows))

    def kept(index: Int[Tensor, "some"]) -> Int[Tensor, "kept"]:
        found = number[index]
        return found[found >= 0]

    index = on(block.x, rows)
    some = replace(
        block,
        x=block.x.index_select(0, index),
        whole=block.whole.index_select(0, on(block.x, pos)),
        runs=list(alike(ends, every)),
        biased=kept(block.biased),
        aside=kept(block.aside),
    )
    return some, index
