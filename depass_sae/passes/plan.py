"""What a pass has to carry, worked out on the host before anything is computed: where it goes, and who is where.

Backwards from the reads: at which positions each sublayer is needed at all. Then forwards from the start: which
components are present there, and which of them compete for an MLP's neurons. So the rows of every step are known in
advance, and with them the memory that the pass will take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import UserError
from ..models.adapter import Adapter, Layer
from .memory import Need
from .rows import BIAS, REST
from .rules import Rule
from .sources import Start
from .trace import HOOKS, Point, Trace


@dataclass(frozen=True)
class Step:
    """One sublayer, and the residual stream before it.

    needed: positions of the stream that are carried here; produced: positions at which the sublayer's output is wanted.
    present, compete: at these, who is there after the sublayer, and who takes part in the allocation of an MLP.
    """

    layer: int
    is_mlp: bool
    needed: Int[Tensor, "needed"]
    produced: Int[Tensor, "produced"]
    state_reads: list[Point]
    output_reads: list[Point]
    present: Bool[Tensor, "produced comp"]
    compete: Bool[Tensor, "produced comp"]


def planned(
    trace: Trace, start: Start, reads: Mapping[Point, Int[Tensor, "kept"]], rule: Rule, skip_first: bool
) -> list[Step]:
    """The sublayers from a start to the last read; the last step is the stream that it leaves.

    skip_first: keep parts that come from position 0 alone out of the allocation at later positions.

    Raises UserError for a read before the start or beyond the trace.
    """
    positions, present, steps = start.rows.positions, start.rows.present, []
    for step in _wanted(reads, start.at, trace):
        if not len(step.produced):
            steps.append(replace(step, present=present[:0], compete=present[:0]))
            break
        layer, here = trace.adapter.layer(step.layer), torch.isin(positions, step.needed)
        positions, present = positions[here], present[here]
        if step.is_mlp:
            present = present[torch.isin(positions, step.produced)]
            after, compete = _after_mlp(layer, present, step.produced, start.first_only, trace, rule, skip_first)
        else:
            after = compete = _after_attention(layer, present, positions, step.produced, trace)
        if torch.equal(positions, step.produced) and torch.equal(present, after):
            after = present  # one mask for all the steps between which it does not change
        steps.append(replace(step, present=after, compete=compete))
        positions, present = step.produced, after
    return steps


def forecast(steps: list[Step], adapter: Adapter, start: Start, reads: Mapping[Point, Int[Tensor, "kept"]]) -> Need:
    """What a pass takes at most beside its blocks: the stream, what takes its place where its layout changes, and
    beside these what is read inside a sublayer, and what was read so far.
    """
    attention = adapter.layer(0).attention
    widths = {"hook_z": attention.n_heads * attention.d_head}
    size, row = start.rows.values.element_size(), adapter.d_model * start.rows.values.element_size()
    most, kept = Need((), 0), 0
    positions, present = start.rows.positions, start.rows.present
    for step in steps:
        for point in step.state_reads:
            whole = len(step.produced) == 0 and torch.equal(positions, reads[point])  # handed over as it is
            kept += 0 if whole else int(present[torch.isin(positions, reads[point])].sum()) * row
        before, after = int(present.sum()) * row, int(step.present.sum())
        in_place = torch.equal(positions, step.produced) and torch.equal(present, step.present)
        inside = sum(after * widths.get(hook, adapter.d_model) * size for _, hook in step.output_reads)
        now = Need((before,) if in_place else (before, after * row), kept + inside)
        most = max(most, now, key=lambda need: need.total)
        for point in step.output_reads:
            rows = int(step.present[torch.isin(step.produced, reads[point])].sum())
            kept += rows * widths.get(point[1], adapter.d_model) * size
        positions, present = step.produced, step.present
    return most


# ---------------------------------------------------------------------------------------------- what has to be carried

_STATE = {"resid_pre": 0, "resid_mid": 1, "resid_post": 2}  # read between sublayers: after how many of this layer's
_OUTPUT = {"hook_z": 0, "attn_out": 0, "mlp_in": 1, "mlp_out": 1}  # read inside a sublayer: which one


def _wanted(reads: Mapping[Point, Tensor], at: Point, trace: Trace) -> list[Step]:
    """The sublayers, each with the positions that later ones depend on; who is there is not known yet.

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
    if not reads:
        return []
    everything, nobody = torch.arange(len(trace.token_ids)), torch.zeros(0, 0, dtype=torch.bool)
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
            Step(
                layer=time // 2,
                is_mlp=is_mlp,
                needed=everything[later],
                produced=everything[produced],
                state_reads=states.get(time, []),
                output_reads=outputs.get(time, []),
                present=nobody,
                compete=nobody,
            )
        )
    return steps[::-1]


# -------------------------------------------------------------------------------------------------------- who is where


def _after_attention(
    layer: Layer,
    present: Bool[Tensor, "key comp"],
    keys: Int[Tensor, "key"],
    queries: Int[Tensor, "query"],
    trace: Trace,
) -> Bool[Tensor, "query comp"]:
    """Which components are at each query after attention: those of all that it sees, and biases."""
    window = layer.attention.window or len(trace.token_ids)
    starts = torch.tensor(trace.starts)[trace.prompt_of[queries]]
    first = torch.searchsorted(keys, torch.maximum(starts, queries - window + 1))
    last = torch.searchsorted(keys, queries, right=True)
    upto = torch.cat([torch.zeros(1, present.shape[1], dtype=torch.int32), present.cumsum(0, dtype=torch.int32)])
    after = upto[last] > upto[first]
    if any(part.bias is not None for part in (layer.attn_norm, layer.attention.v, layer.attention.o)):
        after[:, BIAS] = True
    return after


def _after_mlp(
    layer: Layer,
    present: Bool[Tensor, "pos comp"],
    positions: Int[Tensor, "pos"],
    first_only: Bool[Tensor, "*pos comp"],
    trace: Trace,
    rule: Rule,
    skip_first: bool,
) -> tuple[Bool[Tensor, "pos comp"], Bool[Tensor, "pos comp"]]:
    """Who is there after an MLP, and who of them takes part in its allocation: ``rest`` where nobody else does."""
    mlp, present = layer.mlp, present.clone()
    first = [layer.mlp_norm.bias, mlp.gate.bias, mlp.up.bias if mlp.up is not None and rule.needs_up else None]
    if any(bias is not None for bias in first):
        present[:, BIAS] = True
    compete = present.clone()
    if rule.couples:
        if skip_first:
            later = torch.ones(len(trace.token_ids), dtype=torch.bool)
            later[list(trace.starts)] = False
            compete &= ~(first_only.expand(len(later), -1) & later[:, None])[positions]
        compete[:, REST] |= ~compete.any(dim=1)
    present |= compete
    if mlp.down.bias is not None:
        present[:, BIAS] = True
    if rule.may_spill:
        present[:, REST] = True
    return present, compete
