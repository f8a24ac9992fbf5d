"""The decomposed forward pass (paper §3): components of the residual stream, carried through a frozen network.

What the model computed once stays as it was: attention patterns, norm scales, neuron activations. With these frozen,

    norm       X̂[n,m] = X̃[n,m]·g / rms(x[n])                          LayerNorm: (X̃ − mean X̃)/σ·g, its β to ``bias``
    attention  X̃[n,m] += Σ_h Σ_k A_h[n,k] X̂[k,m] W_V^h W_O^h           b_V (weighted by ΣA) and b_O to ``bias``
    MLP        X̃[n,m] += Σ_f hidden[n,m,f] v_f,  Σ_m hidden = a_f[n]    the rule's choice (rules.py); b_down to ``bias``

and Σ_m X̃[n,m] is what the model computed, at every position and layer. The pass goes through the layers one sublayer
at a time (carry.py). It keeps one copy of the stream as packed rows, only those that a read still needs, and changes it
in place; what is left to do is little more than the matrix products of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import UserError
from ..models.adapter import Layer
from .carry import add_attention, add_mlp
from .memory import Budget
from .rows import BIAS, REST, Rows
from .rules import TEMPERATURE, Rule, rule_named
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


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps of it are done, and how many there are."""


def propagate(
    trace: Trace,
    start: Start,
    reads: Mapping[Point, Int[Tensor, "kept"]],
    allocation: Allocation = Allocation(),
    *,
    budget: Budget = Budget(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> dict[Point, Rows]:
    """Carry a start's components forward and return them at every point that is read.

    reads: for each (layer, hook) the positions wanted there, ascending; hook is one of ``trace.HOOKS``. Nothing is
    computed that no read depends on: not the positions after the last one, nor the layers.

    Raises UserError where a read lies before the start, or beyond the layers of the trace, and for want of memory.
    """
    rule = rule_named(allocation.rule)
    reads = {point: positions.cpu() for point, positions in reads.items()}
    plan = _plan(reads, start.at, trace)
    rows = start.rows.keep(plan[0].needed).copy()
    found: dict[Point, Rows] = {}
    for done, step in enumerate(plan, start=1):
        for point in step.state_reads:
            found[point] = rows.keep(reads[point])
        if not step.produced.numel():
            break
        if step.state_reads:
            rows = rows.copy()  # what follows changes them in place
        layer = trace.adapter.layer(step.layer)
        wanted = [hook for _, hook in step.output_reads]
        if step.is_mlp:
            resid, neurons = trace.resid_mid[step.layer], trace.neurons[step.layer]
            present, compete = _competitors(layer, rows.keep(step.produced), start.first_only, trace, rule, allocation)
            rows = rows.laid_out(step.produced, present, budget.zeros)
            outputs = add_mlp(layer, resid, neurons, rows, compete, rule, allocation.temperature, wanted, budget)
        else:
            resid, pattern = trace.resid_pre[step.layer], trace.pattern[step.layer]
            after = rows.laid_out(step.produced, _reached(layer, rows, step.produced, trace), budget.zeros)
            outputs = add_attention(layer, resid, pattern, trace.starts, rows, after, wanted, budget)
            rows = after
        for point in step.output_reads:
            found[point] = outputs[point[1]].keep(reads[point])
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

    Found backwards: an attention layer needs every position of a prompt up to the last one it produces there, an MLP
    just its own.
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
    everything = torch.arange(len(trace.token_ids))
    later = torch.zeros(len(everything), dtype=torch.bool)
    steps = []
    for time in range(max(*states, *(t + 1 for t in outputs), first), first - 1, -1):
        produced = later.clone()
        for point in outputs.get(time, []):
            produced[reads[point]] = True
        is_mlp = bool(time % 2)
        later = produced.clone()
        if not is_mlp:
            for prompt in trace.prompts:
                wanted = produced[prompt].nonzero()
                later[prompt.start : prompt.start + (int(wanted.max()) + 1 if len(wanted) else 0)] = True
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


# -------------------------------------------------------------------------------------------------------- who is where


def _reached(layer: Layer, rows: Rows, queries: Int[Tensor, "query"], trace: Trace) -> Bool[Tensor, "query comp"]:
    """Which components are at each query after attention: those of all that it sees, and biases."""
    visible = reach(queries, rows.positions, layer.attention.window)
    visible &= trace.prompt_of[queries, None] == trace.prompt_of[rows.positions]
    present = (visible.float() @ rows.present.float()) > 0
    if any(part.bias is not None for part in (layer.attn_norm, layer.attention.v, layer.attention.o)):
        present[:, BIAS] = True
    return present


def _competitors(
    layer: Layer, rows: Rows, first_only: Bool[Tensor, "*pos comp"], trace: Trace, rule: Rule, allocation: Allocation
) -> tuple[Bool[Tensor, "pos comp"], Bool[Tensor, "pos comp"]]:
    """Who is there after an MLP, and who of them takes part in its allocation: ``rest`` where nobody else does."""
    mlp, present = layer.mlp, rows.present.clone()
    first = [layer.mlp_norm.bias, mlp.gate.bias, mlp.up.bias if mlp.up is not None and rule.needs_up else None]
    if any(bias is not None for bias in first):
        present[:, BIAS] = True
    compete = present.clone()
    if rule.couples:
        if allocation.first_token == "skip":
            later = torch.ones(len(trace.token_ids), dtype=torch.bool)
            later[list(trace.starts)] = False
            compete &= ~(first_only.expand(len(later), -1) & later[:, None])[rows.positions]
        compete[:, REST] |= ~compete.any(dim=1)
    present |= compete
    if mlp.down.bias is not None:
        present[:, BIAS] = True
    if rule.may_spill:
        present[:, REST] = True
    return present, compete
