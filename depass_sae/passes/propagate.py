"""The decomposed forward pass (paper §3): components of the residual stream, carried through a frozen network.

What the model computed once stays as it was: attention patterns, norm scales, neuron activations. With these frozen,

    norm       X̂[n,m] = X̃[n,m]·g / rms(x[n])                          LayerNorm: (X̃ − mean X̃)/σ·g, its β to ``bias``
    attention  X̃[n,m] += Σ_h Σ_k A_h[n,k] X̂[k,m] W_V^h W_O^h           b_V (weighted by ΣA) and b_O to ``bias``
    MLP        X̃[n,m] += Σ_f hidden[n,m,f] v_f,  Σ_m hidden = a_f[n]    the rule's choice (rules.py); b_down to ``bias``

and Σ_m X̃[n,m] is what the model computed, at every position and layer. The pass goes through the layers one sublayer
at a time. It carries packed rows, only the positions that a read still needs, and stops at the last read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.adapter import Attention, Layer, Linear, Norm
from .rows import Rows
from .rules import TEMPERATURE, Neurons, Rule, rule_named
from .sources import Start
from .sublayers import reach
from .trace import HOOKS, Point, Trace

FirstToken = Literal["skip", "compete"]


@dataclass(frozen=True)
class Allocation:
    """The rule by which neurons are shared out, and its two settings.

    temperature: of ``softmax``. first_token: "skip" keeps parts that come from position 0 alone out of the allocation
    at later positions, where rules share neurons out (``linear`` and ``half`` need no such exception).
    """

    rule: str = "softmax"
    temperature: float = TEMPERATURE
    first_token: FirstToken = "skip"

    def __post_init__(self) -> None:
        rule_named(self.rule)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature must be greater than 0 and finite, not {self.temperature}")
        if self.first_token not in ("skip", "compete"):
            raise UserError(f'first_token must be "skip" or "compete", not {self.first_token!r}')


@dataclass(frozen=True)
class Chunks:
    """How much is worked on at once. Sizes change the memory that a pass needs, and never its result.

    positions: per block of an MLP. components: per block of an attention layer.
    """

    positions: int = 16
    components: int = 16


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps of it are done, and how many there are."""

BIAS, REST = -2, -1  # where these two stand among the components


def propagate(
    trace: Trace,
    start: Start,
    reads: Mapping[Point, Int[Tensor, "kept"]],
    allocation: Allocation = Allocation(),
    *,
    chunks: Chunks = Chunks(),
    progress: Progress | None = None,
) -> dict[Point, Rows]:
    """Carry a start's components forward and return them at every point that is read.

    reads: for each (layer, hook) the positions wanted there, ascending; hook is one of ``trace.HOOKS``. Nothing is
    computed that no read depends on: not the positions after the last one, nor the layers.

    Raises UserError where a read lies before the start, or beyond the layers of the trace.
    """
    rule = rule_named(allocation.rule)
    plan = _plan(reads, start.at, trace)
    rows = start.rows.keep(plan[0].needed)
    found: dict[Point, Rows] = {}
    for done, step in enumerate(plan, start=1):
        for point in step.state_reads:
            found[point] = rows.keep(reads[point])
        if not step.produced.numel():
            break
        layer = trace.adapter.layer(step.layer)
        if step.is_mlp:
            outputs = _mlp_step(layer, rows, trace.resid_mid[step.layer], rule, allocation, start.first_only, chunks)
        else:
            pattern = trace.pattern[step.layer]
            outputs = _attention_step(layer, rows, trace.resid_pre[step.layer], pattern, step.produced, chunks)
        for point in step.output_reads:
            found[point] = outputs[point[1]].keep(reads[point])
        rows = _add(rows.keep(step.produced), outputs["mlp_out" if step.is_mlp else "attn_out"])
        if progress is not None:
            progress("carrying components through the layers", done, len(plan) - 1)
    return found


# ---------------------------------------------------------------------------------------------- what has to be carried


@dataclass(frozen=True)
class _Step:
    """One sublayer, and the residual stream before it.

    needed: positions of the stream that are carried here; produced: positions at which the sublayer's output is wanted.
    """

    layer: int
    is_mlp: bool
    needed: Int[Tensor, "needed"]
    produced: Int[Tensor, "produced"]
    state_reads: list[Point]
    output_reads: list[Point]


_STATE = {"resid_pre": 0, "resid_mid": 1, "resid_post": 2}  # read between sublayers: after how many of this layer's
_OUTPUT = {"hook_z": 0, "attn_out": 0, "mlp_in": 1, "mlp_out": 1}  # read inside a sublayer: which one


def _plan(reads: Mapping[Point, Tensor], at: Point, trace: Trace) -> list[_Step]:
    """The sublayers from the start to the last read, each with the positions that later ones depend on.

    Found backwards: an attention layer needs every position up to the last one it produces, an MLP just its own.
    """
    first = 2 * at[0] + _STATE[at[1]]
    states: dict[int, list[Point]] = {}
    outputs: dict[int, list[Point]] = {}
    for point in reads:
        layer, hook = point
        if hook not in HOOKS:
            raise UserError(f"unknown hook point {hook!r}; there are {', '.join(HOOKS)}")
        if not 0 <= layer < trace.n_layers:
            raise UserError(f"there is no layer {layer} in this trace; it has layers 0 to {trace.n_layers - 1}")
        group, time = (states, 2 * layer + _STATE[hook]) if hook in _STATE else (outputs, 2 * layer + _OUTPUT[hook])
        if time < first:
            raise UserError(f"{hook} of layer {layer} lies before the decomposition's start, {at[1]} of layer {at[0]}")
        group.setdefault(time, []).append(point)
    everything = torch.arange(len(trace.token_ids), device=trace.resid_post.device)
    later = torch.zeros(len(everything), dtype=torch.bool, device=everything.device)
    steps = []
    for time in range(max(*states, *(t + 1 for t in outputs), first), first - 1, -1):
        produced = later.clone()
        for point in outputs.get(time, []):
            produced[reads[point]] = True
        is_mlp = bool(time % 2)
        later = produced.clone()
        if not is_mlp and produced.any():
            later[: int(produced.nonzero().max()) + 1] = True
        for point in states.get(time, []):
            later[reads[point]] = True
        steps.append(
            _Step(
                layer=time // 2,
                is_mlp=is_mlp,
                needed=everything[later],
                produced=everything[produced],
                state_reads=states.get(time, []),
                output_reads=outputs.get(time, []),
            )
        )
    return steps[::-1]


# ------------------------------------------------------------------------------------------------------- the sublayers


def _attention_step(
    layer: Layer,
    rows: Rows,
    resid: Float[Tensor, "pos d_model"],
    pattern: Float[Tensor, "head query key"],
    queries: Int[Tensor, "query"],
    chunks: Chunks,
) -> dict[str, Rows]:
    norm, attention = layer.attn_norm.to(resid.dtype), layer.attention
    v, o = attention.v.to(resid.dtype), attention.o.to(resid.dtype)
    rows = _with_bias(rows, norm.bias, v.bias, o.bias)
    values = _mapped(_normed(norm, rows, resid), v)
    z = _mix(attention, values, pattern, queries, chunks.components)
    return {"hook_z": z, "attn_out": _mapped(z, o)}


def _mix(attention: Attention, values: Rows, pattern: Tensor, queries: Int[Tensor, "query"], components: int) -> Rows:
    """z[n,m] = Σ_k A_h[n,k] v[k,m] for every head: positions mix, components do not, so a few go at a time."""
    keys = values.positions
    visible = reach(queries, keys, attention.window)
    present = (visible.float() @ values.present.float()) > 0
    z = Rows(queries, present, values.values.new_empty(int(present.sum()), attention.n_heads * attention.d_head))
    a = pattern[:, queries][:, :, keys].to(values.values.dtype)
    a = a.view(attention.n_kv_heads, -1, len(queries), len(keys))  # consecutive heads share a key-value head
    for low in range(0, values.n_components, components):
        some = slice(low, low + components)
        here = values.present[:, some]
        if not here.any():
            continue
        k0 = int(here.any(dim=1).nonzero()[0])  # nothing to mix before the first of them appears
        q0 = int(torch.searchsorted(queries, keys[k0]))
        dense = values.block(slice(k0, None), some).unflatten(-1, (attention.n_kv_heads, attention.d_head))
        dense = dense.permute(2, 0, 1, 3).flatten(2)  # [kv_head, key, comp * d_head]
        mixed = a[:, :, q0:, k0:].flatten(1, 2) @ dense  # [kv_head, group * query, comp * d_head]
        mixed = mixed.view(attention.n_kv_heads, -1, len(queries) - q0, here.shape[1], attention.d_head)
        mask = present[q0:, some]
        z.values[z.number[q0:, some][mask]] = mixed.permute(2, 3, 0, 1, 4)[mask].flatten(1)
    return z


def _mlp_step(
    layer: Layer,
    rows: Rows,
    resid: Float[Tensor, "pos d_model"],
    rule: Rule,
    allocation: Allocation,
    first_only: Bool[Tensor, "comp"],
    chunks: Chunks,
) -> dict[str, Rows]:
    norm, mlp = layer.mlp_norm.to(resid.dtype), layer.mlp
    gate, down = mlp.gate.to(resid.dtype), mlp.down.to(resid.dtype)
    up = None if mlp.up is None else mlp.up.to(resid.dtype)
    rows = _with_bias(rows, norm.bias, gate.bias, up.bias if up is not None and rule.needs_up else None)
    normed = _normed(norm, rows, resid)
    whole = norm(resid[rows.positions])
    compete = _competitors(normed, first_only, rule, allocation)
    masks, blocks = [], []
    for low in range(0, len(normed.positions), chunks.positions):
        some = slice(low, low + chunks.positions)
        mask = normed.present[some] | compete[some]
        slots = mask.any(dim=0)
        slots[[BIAS, REST]] = True
        block = normed.select(some, slots)
        neurons = Neurons(
            s=_mapped(block, gate).dense(),
            t=_mapped(block, up).dense() if up is not None and rule.needs_up else None,
            compete=compete[some][:, slots],
            gate=gate(whole[some]),
            up=None if up is None else up(whole[some]),
            act=mlp.act,
            temperature=allocation.temperature,
        )
        hidden = rule.hidden(neurons)
        if rule.may_spill:
            mask[:, REST] |= hidden[:, REST].any(dim=-1)
        if down.bias is not None:
            mask[:, BIAS] = True
        masks.append(mask)
        blocks.append(hidden[mask[:, slots]] @ down.weight)
    out = Rows(normed.positions, torch.cat(masks), torch.cat(blocks))
    return {"mlp_in": normed, "mlp_out": _with_vector(out, down.bias)}


def _competitors(
    rows: Rows, first_only: Bool[Tensor, "comp"], rule: Rule, allocation: Allocation
) -> Bool[Tensor, "pos comp"]:
    """Who takes part in the allocation at each position: the present, ``rest`` where that leaves nobody."""
    compete = rows.present.clone()
    if rule.couples:
        if allocation.first_token == "skip":
            compete &= ~(first_only[None] & (rows.positions > 0)[:, None])
        compete[:, REST] |= ~compete.any(dim=1)
    return compete


# ------------------------------------------------------------------------------------------------- small steps on rows


def _with_bias(rows: Rows, *biases: Tensor | None) -> Rows:
    """The ``bias`` component present at every position, where any of these bias vectors exists."""
    if all(bias is None for bias in biases):
        return rows
    present = rows.present.clone()
    present[:, BIAS] = True
    return rows.widen(present)


def _with_vector(rows: Rows, vector: Float[Tensor, "d"] | None) -> Rows:
    """A bias vector added to the ``bias`` component at every position. Writes into the rows' values."""
    if vector is not None:
        rows.values[rows.index[1] == rows.n_components + BIAS] += vector
    return rows


def _mapped(rows: Rows, linear: Linear) -> Rows:
    return _with_vector(rows.with_values(rows.values @ linear.weight), linear.bias)


def _normed(norm: Norm, rows: Rows, resid: Float[Tensor, "pos d_model"]) -> Rows:
    scale = norm.scale(resid[rows.positions])[rows.index[0]]
    return _with_vector(rows.with_values(norm.centre(rows.values) * scale * norm.gain), norm.bias)


def _add(rows: Rows, delta: Rows) -> Rows:
    """The residual connection. A sublayer's output is present wherever its input was."""
    widened = rows.widen(delta.present)
    return widened.with_values(widened.values + delta.values)
