"""One frozen sublayer on components: what a layer's attention or MLP adds to every row, added in place.

Attention mixes positions and keeps components apart, so it goes a few components at a time. An MLP mixes components
(where they compete for a neuron) and keeps positions apart, so it goes a few positions at a time, and, where one
position is too much, a few neurons at a time: nothing mixes neurons.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.adapter import Layer, Linear, Norm
from .memory import Blocks
from .rows import BIAS, Rows, at, on, spread
from .rules import Neurons, Rule

QUERIES = 256
"""Positions whose attention is mixed at once: the keys after the last of them are not looked at."""
SLAB = {"cpu": 2**19}
"""Bytes of scores that a rule works on at once: few enough to stay in a core's own cache."""


def add_attention(
    layer: Layer,
    resid: Float[Tensor, "pos d_model"],
    pattern: Float[Tensor, "head query key"],
    starts: Sequence[int],
    before: Rows,
    rows: Rows,
    wanted: Collection[str],
    blocks: Blocks,
) -> dict[str, Rows]:
    """rows += attention of ``before``, in place; they may be the same rows. Returns what is wanted of hook_z, attn_out.

    starts: where each prompt begins. before: at every position up to the last of each prompt in ``rows``, whose
    components are present wherever one can arrive.
    """
    norm, attention = layer.attn_norm.to(resid.dtype), layer.attention
    v, o = attention.v.to(resid.dtype), attention.o.to(resid.dtype)
    n_kv, n_heads, d_head = attention.n_kv_heads, attention.n_heads, attention.d_head
    widths = {"hook_z": o.weight.shape[0], "attn_out": o.weight.shape[1]}
    found = {hook: rows.with_values(rows.values.new_zeros(len(rows.values), widths[hook])) for hook in wanted}

    # Frozen scales go with the pattern and the gain with W_V: rows are taken as they are.
    w_v, scale = _gained(norm, v), norm.scale(resid)[:, 0]
    prompts = [
        _Mixing.of(pattern, scale, before.positions, rows.positions, prompt, n_kv)
        for prompt in pairwise([*starts, len(resid)])
    ]

    def add_some(low: int, high: int) -> None:
        present = before.present[:, low:high]
        x = before.values.index_select(0, on(before.values, before.number[:, low:high][present]))
        values, done, mixed, numbers = x @ w_v, 0, [], []
        for prompt in prompts:
            here, there = present[prompt.keys], rows.present[prompt.queries, low:high]
            size = int(here.sum())
            if size:
                z, query = prompt.mix(values[done : done + size], here, there)
                mixed.append(z)
                numbers.append(rows.number[prompt.queries, low:high][query:][there[query:]])
            done += size
        if mixed:
            index, z = on(x, torch.cat(numbers)), torch.cat(mixed) if len(mixed) > 1 else mixed[0]
            out = z @ o.weight
            for hook, output in found.items():  # set, not added: this may be done again
                output.values.index_copy_(0, index, z if hook == "hook_z" else out)
            rows.values.index_add_(0, index, out)

    width = resid.element_size() * (resid.shape[1] + o.weight.shape[0] + w_v.shape[1])
    blocks.work((before.present.sum(dim=0) + rows.present.sum(dim=0)).tolist(), width, add_some)
    b_v = _bias_through(norm, v)
    if b_v is not None or o.bias is not None:
        z = rows.values.new_zeros(len(rows.positions), n_heads, d_head)
        if b_v is not None:
            seen = at(pattern, rows.positions, 1).to(resid.dtype).sum(-1)
            z = seen.T[..., None] * b_v.view(n_kv, d_head).repeat_interleave(n_heads // n_kv, dim=0)
        index, z = on(z, rows.number[:, BIAS]), z.flatten(1)
        out = z @ o.weight if o.bias is None else z @ o.weight + o.bias
        rows.values.index_add_(0, index, out)
        for hook, output in found.items():
            output.values.index_add_(0, index, z if hook == "hook_z" else out)
    return found


def add_mlp(
    layer: Layer,
    resid: Float[Tensor, "pos d_model"],
    activation: Float[Tensor, "pos d_mlp"],
    rows: Rows,
    compete: Bool[Tensor, "pos comp"],
    rule: Rule,
    temperature: float,
    wanted: Collection[str],
    blocks: Blocks,
) -> dict[str, Rows]:
    """rows += the MLP of each, in place. Returns what is wanted of mlp_in (the normed rows) and mlp_out.

    activation: what each neuron added along its output row.
    """
    norm, mlp = layer.mlp_norm.to(resid.dtype), layer.mlp
    gate, down = mlp.gate.to(resid.dtype), mlp.down.to(resid.dtype)
    up = None if mlp.up is None else mlp.up.to(resid.dtype)
    recorded, activation = at(resid, rows.positions), at(activation, rows.positions).to(resid.dtype)
    whole, factor = norm(recorded), norm.scale(recorded) * norm.gain
    found = {hook: rows.with_values(torch.zeros_like(rows.values)) for hook in wanted}
    d_mlp = gate.weight.shape[1]
    slab = SLAB.get(resid.device.type, 2**62) // (d_mlp * resid.element_size())
    competing, has_bias = compete[rows.present], rows.present[:, BIAS]

    def add_some(low: int, high: int) -> None:
        block = slice(rows.offsets[low], rows.offsets[high])
        runs = list(_alike(rows.offsets[low : high + 1], slab))
        biased = on(resid, rows.number[low:high, BIAS][has_bias[low:high]] - block.start)
        x = _scaled(norm, rows.values[block], factor[low:high], runs)
        if norm.bias is not None:
            x[biased] += norm.bias
        if "mlp_in" in found:
            found["mlp_in"].values[block] = x
        aside = on(x, (~competing[block]).nonzero()[:, 0])
        out = None
        for some in _neurons(d_mlp, len(x), blocks.size, x.element_size()):
            s = _split(_part(gate, some), x, biased)
            t = _split(_part(up, some), x, biased) if up is not None and rule.needs_up else None
            g = u = None
            if rule.couples:
                s.index_fill_(0, aside, -torch.inf)
            else:
                g = _part(gate, some)(whole[low:high])
                u = None if up is None else _part(up, some)(whole[low:high])
            for run in runs:
                rule.split(
                    Neurons(
                        s=run.of(s),
                        t=None if t is None else run.of(t),
                        activation=activation[low:high][run.positions, some],
                        gate=None if g is None else g[run.positions],
                        up=None if u is None else u[run.positions],
                        act=mlp.act,
                        temperature=temperature,
                    )
                )
            if s.shape[1] == d_mlp and "mlp_out" not in found:
                rows.values[block].addmm_(s, down.weight)
                return
            out = s @ down.weight[some] if out is None else out.addmm_(s, down.weight[some])
        assert out is not None
        if "mlp_out" in found:
            found["mlp_out"].values[block] = out
        rows.values[block].add_(out)

    width = resid.element_size() * (resid.shape[1] + (2 if rule.needs_up else 1) * d_mlp)
    blocks.work([b - a for a, b in pairwise(rows.offsets)], width, add_some)
    if down.bias is not None:
        biased = on(resid, rows.number[:, BIAS])
        for output in (rows, *(found[hook] for hook in found if hook == "mlp_out")):
            output.values[biased] += down.bias
    return found


# ---------------------------------------------------------------------------------------------------------- small steps


def _gained(norm: Norm, linear: Linear) -> Float[Tensor, "d_model d_out"]:
    """The weight that makes of the stream, but for the norm's scale, what ``linear`` makes of the normed stream."""
    return norm.centre((norm.gain[:, None] * linear.weight).T).T


def _bias_through(norm: Norm, linear: Linear) -> Float[Tensor, "d_out"] | None:
    """What the norm's bias and the map's own come out as."""
    if norm.bias is None:
        return linear.bias
    return linear(norm.bias)


@dataclass(frozen=True)
class _Mixing:
    """One prompt's attention. keys, queries: which of the rows' positions are its own.

    weights: the pattern between them, the norm's frozen scale at each key included. after: for each key, how many
    queries lie before it; before: for each query, how many keys do not lie after it.
    """

    keys: slice
    queries: slice
    weights: Float[Tensor, "kv_head group query key"]
    after: list[int]
    before: list[int]

    @classmethod
    def of(
        cls,
        pattern: Float[Tensor, "head query key"],
        scale: Float[Tensor, "pos"],
        keys: Int[Tensor, "key"],
        queries: Int[Tensor, "query"],
        prompt: tuple[int, int],
        n_kv_heads: int,
    ) -> _Mixing:
        own_keys, own_queries = (
            slice(*torch.searchsorted(positions, torch.tensor(prompt)).tolist()) for positions in (keys, queries)
        )
        keys, queries = keys[own_keys], queries[own_queries]
        weights = at(at(pattern, queries, 1), keys, 2).to(scale.dtype) * at(scale, keys)
        weights = weights.unflatten(0, (n_kv_heads, -1))  # neighbouring heads share a value
        after, before = torch.searchsorted(queries, keys), torch.searchsorted(keys, queries, right=True)
        return cls(own_keys, own_queries, weights, after.tolist(), before.tolist())

    def mix(
        self, values: Float[Tensor, "row d_kv"], here: Bool[Tensor, "key comp"], there: Bool[Tensor, "query comp"]
    ) -> tuple[Float[Tensor, "arrived n_heads_d_head"], int]:
        """What arrives where ``there`` says, from the values that are ``here``; from which query on."""
        first = int(here.any(dim=1).nonzero()[0])  # nothing to mix before the first of them appears
        n_kv, group, n_queries, _ = self.weights.shape
        query, comps = self.after[first], here.shape[1]
        here = here[first:]
        laid_out = values.view(*here.shape, -1) if here.all() else spread(values, here)
        dense = laid_out.unflatten(-1, (n_kv, -1)).permute(2, 0, 1, 3).flatten(2)
        mixed = dense.new_empty(n_queries - query, comps, n_kv, group, dense.shape[2] // comps)
        for low in range(query, n_queries, QUERIES):
            high = min(low + QUERIES, n_queries)
            last = self.before[high - 1]
            some = self.weights[..., low:high, first:last].flatten(1, 2) @ dense[:, : last - first]
            some = some.view(n_kv, group, high - low, comps, -1)  # [kv_head, group, query, comp, d_head]
            mixed[low - query : high - query] = some.permute(2, 3, 0, 1, 4)
        mixed = mixed.flatten(0, 1)
        arrived = there[query:].flatten()
        if not arrived.all():
            mixed = mixed.index_select(0, on(mixed, arrived.nonzero()[:, 0]))
        return mixed.flatten(1), query


@dataclass(frozen=True)
class _Run:
    """Neighbouring positions with the same number of rows, which stand in one tensor without gaps."""

    positions: slice
    rows: slice

    def of(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "pos comp d"]:
        return x[self.rows].unflatten(0, (self.positions.stop - self.positions.start, -1))


def _alike(offsets: list[int], most: int) -> Iterator[_Run]:
    """Runs of at most so many rows, or one position's."""
    counts = [b - a for a, b in pairwise(offsets)]
    for count, run in groupby(range(len(counts)), counts.__getitem__):
        members = list(run)
        if count:
            step = max(1, most // count)
            for low in range(members[0], members[-1] + 1, step):
                high = min(low + step, members[-1] + 1)
                yield _Run(slice(low, high), slice(offsets[low] - offsets[0], offsets[high] - offsets[0]))


def _scaled(
    norm: Norm, values: Float[Tensor, "row d_model"], factor: Float[Tensor, "pos d_model"], runs: list[_Run]
) -> Float[Tensor, "row d_model"]:
    """The rows of each position times its factor, in one go over memory."""
    centred, scaled = norm.centre(values), torch.empty_like(values)
    for run in runs:
        torch.mul(run.of(centred), factor[run.positions, None], out=run.of(scaled))
    return scaled


def _split(linear: Linear, x: Float[Tensor, "row d_in"], biased: Tensor) -> Float[Tensor, "row d_out"]:
    """A linear map of every row, its bias in the rows of the ``bias`` component."""
    y = x @ linear.weight
    if linear.bias is not None:
        y[biased] += linear.bias
    return y


def _part(linear: Linear, some: slice) -> Linear:
    """Some of a map's outputs."""
    return Linear(linear.weight[:, some], None if linear.bias is None else linear.bias[some])


def _neurons(count: int, rows: int, block: int, size: int) -> Iterator[slice]:
    """Neurons whose scores for so many rows fit into a block."""
    step = max(1, block // max(1, rows * size))
    return (slice(low, min(low + step, count)) for low in range(0, count, step))
