"""One frozen sublayer on components: what a layer's attention or MLP adds to every row, added in place.

Attention mixes positions and keeps components apart, so it goes a few components at a time. An MLP mixes components
(where they compete for a neuron) and keeps positions apart, so it goes a few positions at a time, and, where one
position is too much, a few neurons at a time: nothing mixes neurons.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import groupby, pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..models.adapter import Layer, Linear, Norm
from .memory import Budget
from .rows import BIAS, Rows
from .rules import Neurons, Rule


def add_attention(
    layer: Layer,
    resid: Float[Tensor, "pos d_model"],
    pattern: Float[Tensor, "head query key"],
    before: Rows,
    rows: Rows,
    wanted: Collection[str],
    budget: Budget,
) -> dict[str, Rows]:
    """rows += attention of ``before``, in place; they may be the same rows. Returns what is wanted of hook_z, attn_out.

    before: at every position up to the last of ``rows``, whose components are present wherever one can arrive.
    """
    norm, attention = layer.attn_norm.to(resid.dtype), layer.attention
    v, o = attention.v.to(resid.dtype), attention.o.to(resid.dtype)
    keys, queries, n_heads = before.positions, rows.positions, attention.n_heads
    a = pattern[:, queries][:, :, keys].to(resid.dtype)
    widths = {"hook_z": o.weight.shape[0], "attn_out": o.weight.shape[1]}
    found = {hook: rows.with_values(rows.values.new_zeros(len(rows.values), widths[hook])) for hook in wanted}

    def add(index: Tensor, z: Float[Tensor, "row n_heads_d_head"], bias: Tensor | None = None) -> None:
        out = z @ o.weight if bias is None else z @ o.weight + bias
        rows.values.index_add_(0, index, out)
        for hook, output in found.items():
            output.values.index_add_(0, index, z if hook == "hook_z" else out)

    # Frozen scales go with the pattern and the gain with W_V: rows are taken as they are.
    w_v = _gained(norm, v)
    scaled = a * norm.scale(resid[keys])[:, 0]
    scaled = scaled.unflatten(0, (attention.n_kv_heads, -1))  # consecutive heads share a value
    width = resid.element_size() * (resid.shape[1] + o.weight.shape[0] + w_v.shape[1])
    for low, high in budget.spans((before.present.sum(dim=0) + rows.present.sum(dim=0)).tolist(), width):
        here = before.present[:, low:high]
        if not here.any():
            continue
        k0 = int(here.any(dim=1).nonzero()[0])  # nothing to mix before the first of them appears
        q0 = int(torch.searchsorted(queries, keys[k0]))
        here, mask = here[k0:], rows.present[q0:, low:high]
        x = before.values.index_select(0, before.number[k0:, low:high][here])
        values = _laid_out(x @ w_v, here)
        values = values.unflatten(-1, (attention.n_kv_heads, attention.d_head)).permute(2, 0, 1, 3).flatten(2)
        mixed = scaled[..., q0:, k0:].flatten(1, 2) @ values  # [kv_head, group * query, comp * d_head]
        mixed = mixed.view(attention.n_kv_heads, -1, *mask.shape, attention.d_head).permute(2, 3, 0, 1, 4)
        add(rows.number[q0:, low:high][mask], (mixed.flatten(0, 1) if mask.all() else mixed[mask]).flatten(1))
    b_v = _bias_through(norm, v)
    if b_v is not None or o.bias is not None:
        z = rows.values.new_zeros(len(queries), n_heads, attention.d_head)
        if b_v is not None:
            shared = b_v.view(attention.n_kv_heads, attention.d_head)
            z = a.sum(-1).T[..., None] * shared.repeat_interleave(n_heads // attention.n_kv_heads, dim=0)
        add(rows.number[:, BIAS], z.flatten(1), o.bias)
    return found


def add_mlp(
    layer: Layer,
    resid: Float[Tensor, "pos d_model"],
    rows: Rows,
    compete: Bool[Tensor, "pos comp"],
    rule: Rule,
    temperature: float,
    wanted: Collection[str],
    budget: Budget,
) -> dict[str, Rows]:
    """rows += the MLP of each, in place. Returns what is wanted of mlp_in (the normed rows) and mlp_out."""
    norm, mlp = layer.mlp_norm.to(resid.dtype), layer.mlp
    gate, down = mlp.gate.to(resid.dtype), mlp.down.to(resid.dtype)
    up = None if mlp.up is None else mlp.up.to(resid.dtype)
    recorded = resid[rows.positions]
    whole, factor = norm(recorded), norm.scale(recorded) * norm.gain
    competing = compete[rows.present]
    found = {hook: rows.with_values(torch.zeros_like(rows.values)) for hook in wanted}
    has_bias = rows.present[:, BIAS]
    d_mlp = gate.weight.shape[1]
    width = resid.element_size() * (resid.shape[1] + (2 if rule.needs_up else 1) * d_mlp)
    for low, high in budget.spans([b - a for a, b in pairwise(rows.offsets)], width):
        block = slice(rows.offsets[low], rows.offsets[high])
        offsets = [offset - block.start for offset in rows.offsets[low : high + 1]]
        biased = rows.number[low:high, BIAS][has_bias[low:high]] - block.start
        x = _scaled(norm, rows.values[block], factor[low:high], offsets)
        if norm.bias is not None:
            x[biased] += norm.bias
        for some in _neurons(d_mlp, len(x), budget, x.element_size()):
            s = _split(_part(gate, some), x, biased)
            t = _split(_part(up, some), x, biased) if up is not None and rule.needs_up else None
            g = _part(gate, some)(whole[low:high])
            u = None if up is None else _part(up, some)(whole[low:high])
            for first, last in _alike(offsets):
                run = slice(offsets[first], offsets[last])
                shape = (last - first, offsets[first + 1] - offsets[first])
                neurons = Neurons(
                    s=s[run].unflatten(0, shape),
                    t=None if t is None else t[run].unflatten(0, shape),
                    compete=competing[block][run].view(shape),
                    gate=g[first:last],
                    up=None if u is None else u[first:last],
                    act=mlp.act,
                    temperature=temperature,
                )
                s[run].copy_(rule.hidden(neurons).flatten(0, 1))
            if "mlp_out" in found:
                out = s @ down.weight[some]
                found["mlp_out"].values[block] += out
                rows.values[block] += out
            else:
                rows.values[block].addmm_(s, down.weight[some])
        if "mlp_in" in found:
            found["mlp_in"].values[block] = x
    if down.bias is not None:
        for output in (rows, *(found[hook] for hook in found if hook == "mlp_out")):
            output.values[rows.number[:, BIAS]] += down.bias
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


def _laid_out(values: Float[Tensor, "row d"], here: Bool[Tensor, "pos comp"]) -> Float[Tensor, "pos comp d"]:
    """With zeros where nothing is present."""
    if here.all():
        return values.view(*here.shape, -1)
    dense = values.new_zeros(*here.shape, values.shape[1])
    dense[here] = values
    return dense


def _scaled(
    norm: Norm, values: Float[Tensor, "row d_model"], factor: Float[Tensor, "pos d_model"], offsets: list[int]
) -> Float[Tensor, "row d_model"]:
    """The rows of each position times its factor, in one go over memory."""
    centred, scaled = norm.centre(values), torch.empty_like(values)
    for i, (a, b) in enumerate(pairwise(offsets)):
        torch.mul(centred[a:b], factor[i], out=scaled[a:b])
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


def _neurons(count: int, rows: int, budget: Budget, size: int) -> Iterator[slice]:
    """Neurons whose scores for so many rows fit into a block."""
    step = max(1, budget.block // max(1, rows * size))
    return (slice(low, low + step) for low in range(0, count, step))


def _alike(offsets: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring positions with the same number of rows, so that they stand in one tensor without gaps."""
    counts = [b - a for a, b in pairwise(offsets)]
    for count, run in groupby(range(len(counts)), counts.__getitem__):
        members = list(run)
        if count:
            yield members[0], members[-1] + 1
