"""The decomposed forward pass (paper §3): components of the residual stream, carried through a frozen network.

What the model computed once stays as it was: attention patterns, norm scales, neuron activations. With these frozen,

    norm       X̂[n,m] = X̃[n,m]·g / rms(x[n])                          LayerNorm: (X̃ − mean X̃)/σ·g, its β to ``bias``
    attention  X̃[n,m] += Σ_h Σ_k A_h[n,k] X̂[k,m] W_V^h W_O^h           b_V (weighted by ΣA) and b_O to ``bias``
    MLP        X̃[n,m] += Σ_f hidden[n,m,f] v_f,  Σ_m hidden = a_f[n]    the rule's choice (rules.py); b_down to ``bias``

and Σ_m X̃[n,m] is what the model computed, at every position and layer. The pass is planned on the host (plan.py) and
goes through the layers one sublayer at a time (mixers/). It keeps one copy of the stream as packed rows, only those
that a read still needs, and changes it in place; what is left to do is little more than the rows' matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Int
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from . import DEFAULT_RULE
from .memory import SMALL, Blocks, Budget, check_room, gib, is_full, no_room
from .mixers.mixer import Allotment
from .plan import Step, forecast, only_rest, planned
from .record import Trace
from .rows import Rows, at
from .rules import QK, TEMPERATURE, Slope, rule_named
from .sources import Split

FirstToken = Literal["skip", "compete"]


@dataclass(frozen=True)
class Allocation:
    """The rule by which neurons are shared out, and its settings.

    temperature: of ``softmax``. first_token: "skip" keeps parts that come from position 0 alone out of the allocation
    at later positions, where rules share neurons out (``linear`` and ``half`` need no such exception). qk_share,
    qk_slope: of ``half-qk`` (:class:`.rules.QK`).
    """

    rule: str = DEFAULT_RULE
    temperature: float = TEMPERATURE
    first_token: FirstToken = "skip"
    qk_share: float = 0.5
    qk_slope: Slope = "local"

    def __post_init__(self) -> None:
        rule_named(self.rule)
        QK(self.qk_share, self.qk_slope)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature must be greater than 0 and finite, not {self.temperature}")
        if self.first_token not in ("skip", "compete"):
            raise UserError(f'first_token must be "skip" or "compete", not {self.first_token!r}')

    @property
    def qk(self) -> QK | None:
        """How queries and keys have a share in what heads move. None: by this rule they have none."""
        return QK(self.qk_share, self.qk_slope) if rule_named(self.rule).shares_scores else None

    @property
    def aside(self) -> tuple[str, ...]:
        """The components that stand after a source's own: ``bias`` and ``rest``, perhaps ``pattern`` before them."""
        return rule_named(self.rule).aside

    @property
    def note(self) -> str | None:
        """What has to be said with every answer by this rule."""
        return rule_named(self.rule).note


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps of it are done, and how many there are."""


def propagate(
    trace: Trace,
    start: Split,
    reads: Mapping[Place, Int[Tensor, "kept"]],
    allocation: Allocation = Allocation(),
    *,
    budget: Budget = Budget(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> dict[Place, Rows]:
    """Carry a start's components forward and return them at every place that is read.

    The components are those of the start under the rule (:meth:`.Split.under`).

    reads: for each place the positions wanted there, ascending. Nothing is computed that no read depends on: not the
    positions after the last one, nor the layers.

    Raises UserError where a read lies before the start, or beyond the layers of the trace, and for want of memory.
    """
    rule = rule_named(allocation.rule)
    start = start.under(rule)
    reads = {Place(*place): positions.cpu() for place, positions in reads.items()}
    plan = planned(trace, start, reads, rule, allocation.first_token == "skip")
    need, device = forecast(plan, trace.adapter, start, reads, allocation.qk), start.rows.values.device
    check_room(need, device, budget)
    what = "carrying components through the layers" + (f", {gib(need.total)}" if need.total >= SMALL else "")

    def told(done: int) -> None:
        if progress is not None:
            progress(what, done, len(plan) - 1)

    try:
        return _carry(trace, start, plan, reads, allocation, budget, told)
    except RuntimeError as error:
        if not is_full(error):
            raise
        raise no_room(device) from None


def _carry(
    trace: Trace,
    start: Split,
    plan: list[Step],
    reads: Mapping[Place, Int[Tensor, "kept"]],
    allocation: Allocation,
    budget: Budget,
    told: Callable[[int], None],
) -> dict[Place, Rows]:
    """Through the layers, sublayer by sublayer. told: is called with how many are done."""
    found: dict[Place, Rows] = {}
    blocks = Blocks(budget, start.rows.values.device)
    rows = start.rows.keep(plan[0].needed) if plan else start.rows
    ours = False  # whether nobody else has these rows' values, so that they may be changed
    earlier = None  # what a sublayer aside reads, once it is passed
    for done, step in enumerate(plan, start=1):
        for place in step.state_reads:
            found[place] = rows.keep(reads[place])
            ours &= found[place] is not rows
        if not len(step.produced):
            break
        frozen = trace.sublayer(step.number)
        if done < len(plan) and plan[done].aside:
            earlier, ours = rows, False
        after = rows.laid_out(step.produced, step.present, budget.zeros)
        if after is rows and not ours:
            rows = after = rows.copy(budget.zeros)
        before = after if not frozen.mixer.looks_back else rows
        if step.aside:
            before = _whole(trace, frozen.sublayer.reads, step) if earlier is None else earlier
            before = before.laid_out(step.produced, step.inside, budget.zeros)
        allot = Allotment(rule_named(allocation.rule), allocation.temperature, step.compete, allocation.qk)
        outputs = frozen.add(before, after, allot, [place.hook for place in step.output_reads], blocks)
        rows, ours = after, True
        for place in step.output_reads:
            found[place] = outputs[place.hook].keep(reads[place])
        told(done)
    return found


def _whole(trace: Trace, place: Place, step: Step) -> Rows:
    """A stream before the start, of which nothing is split: all of it is ``rest``."""
    return Rows(step.produced, only_rest(step.inside), at(trace.at(place), step.produced))
