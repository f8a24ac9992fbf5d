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
from ..models.adapter import Adapter
from ..models.place import Place
from .memory import Need
from .mixers import mixer_of
from .record import Trace
from .rows import BIAS, REST
from .rules import QK, Rule
from .sources import Split


@dataclass(frozen=True)
class Step:
    """One sublayer, and the residual stream before it.

    number: among all sublayers, counted in turn. needed: positions of the stream that are carried here; produced:
    positions at which the sublayer's output is wanted.
    present: at these, who is in the stream after the sublayer; inside: who is in what it reads and writes, which is the
    same unless it reads an earlier stream (``aside``); compete: who takes part in the allocation of a neuron.
    """

    number: int
    needed: Int[Tensor, "needed"]
    produced: Int[Tensor, "produced"]
    state_reads: list[Place]
    output_reads: list[Place]
    present: Bool[Tensor, "produced comp"]
    inside: Bool[Tensor, "produced comp"]
    compete: Bool[Tensor, "produced comp"]
    aside: bool = False


def planned(
    trace: Trace, start: Split, reads: Mapping[Place, Int[Tensor, "kept"]], rule: Rule, skip_first: bool
) -> list[Step]:
    """The sublayers from a start to the last read; the last step is the stream that it leaves.

    skip_first: keep parts that come from position 0 alone out of the allocation at later positions.

    Raises UserError for a read before the start or beyond the trace.
    """
    positions, present, steps = start.rows.positions, start.rows.present, []
    streams = {}
    for step in _wanted(reads, start.at, trace):
        if not len(step.produced):
            steps.append(replace(step, present=present[:0], inside=present[:0], compete=present[:0]))
            break
        here = torch.isin(positions, step.needed)
        positions, present = positions[here], present[here]
        streams[step.number] = positions, present
        frozen = trace.sublayer(step.number)
        read = frozen.sublayer.reads.depth
        given, whose = streams.get(read, (positions, only_rest(present)))
        inside, compete = frozen.mixer.present(
            frozen.sublayer.norm,
            whose,
            given,
            step.produced,
            torch.tensor(trace.starts)[trace.prompt_of[step.produced]],
            _kept_out(start.first_only, trace, step.produced, skip_first),
            rule,
        )
        post = frozen.sublayer.post
        if post is not None and post.bias is not None:
            inside[:, BIAS] = True
        after = inside | present[torch.isin(positions, step.produced)]
        if torch.equal(positions, step.produced) and torch.equal(present, after):
            after = present  # one mask for all the steps between which it does not change
        aside = read != step.number
        inside = inside if aside else after
        steps.append(replace(step, present=after, inside=inside, compete=compete, aside=aside))
        positions, present = step.produced, after
    return steps


def only_rest(present: Bool[Tensor, "pos comp"]) -> Bool[Tensor, "pos comp"]:
    """Of a stream before the start, of which nothing is split."""
    alone = torch.zeros_like(present)
    alone[:, REST] = True
    return alone


def forecast(
    steps: list[Step],
    adapter: Adapter,
    start: Split,
    reads: Mapping[Place, Int[Tensor, "kept"]],
    qk: QK | None = None,
) -> Need:
    """What a pass takes at most beside its blocks: the stream, what takes its place where its layout changes, and
    beside these what is read inside a sublayer, what was read so far, a stream that is read again, and what queries
    and keys have a share by.
    """
    size, row = start.rows.values.element_size(), adapter.d_model * start.rows.values.element_size()
    most, kept = Need((), 0), 0
    positions, present = start.rows.positions, start.rows.present
    for step, then in zip(steps, [*steps[1:], None], strict=True):
        for place in step.state_reads:
            whole = len(step.produced) == 0 and torch.equal(positions, reads[place])  # handed over as it is
            kept += 0 if whole else int(present[torch.isin(positions, reads[place])].sum()) * row
        before, after = int(present.sum()) * row, int(step.present.sum())
        in_place = torch.equal(positions, step.produced) and torch.equal(present, step.present)
        in_place &= then is None or not then.aside
        widths = {place: adapter.width(place) * size for place in step.output_reads}
        inside = sum(after * width for width in widths.values())
        again = int(step.inside.sum()) * row if step.aside else 0
        if len(step.produced):
            again += mixer_of(adapter.sublayer(step.number).mixer).shared(int(step.needed[-1]) + 1, qk) * size
        now = Need((before,) if in_place else (before, after * row), kept + inside + again)
        most = max(most, now, key=lambda need: need.total)
        for place, width in widths.items():
            kept += int(step.present[torch.isin(step.produced, reads[place])].sum()) * width
        positions, present = step.produced, step.present
    return most


# ---------------------------------------------------------------------------------------------- what has to be carried


def _wanted(reads: Mapping[Place, Tensor], at: Place, trace: Trace) -> list[Step]:
    """The sublayers, each with the positions that later ones depend on; who is there is not known yet.

    Found backwards: a sublayer that looks back needs every position of a prompt up to the last one it produces there,
    others just their own.
    """
    states: dict[int, list[Place]] = {}
    outputs: dict[int, list[Place]] = {}
    for place in reads:
        if not 0 <= place.layer < trace.n_layers:
            raise UserError(f"there is no layer {place.layer} in this trace; it has layers 0 to {trace.n_layers - 1}")
        if place.depth < at.depth:
            raise UserError(
                f"{place.hook} of layer {place.layer} lies before the decomposition's start, {at.hook} of layer "
                f"{at.layer}"
            )
        (states if place.is_stream else outputs).setdefault(place.depth, []).append(place)
    if not reads:
        return []
    everything, nobody = torch.arange(len(trace.token_ids)), torch.zeros(0, 0, dtype=torch.bool)
    later = torch.zeros(len(everything), dtype=torch.bool)
    steps = []
    for number in range(max(*states, *(n + 1 for n in outputs), at.depth), at.depth - 1, -1):
        produced = later.clone()
        for place in outputs.get(number, []):
            produced[reads[place]] = True
        later = produced.clone()
        if number < 2 * trace.n_layers and trace.sublayer(number).mixer.looks_back:
            for prompt in trace.prompts:
                wanted = produced[prompt].nonzero()
                later[prompt.start : prompt.start + (int(wanted.max()) + 1 if len(wanted) else 0)] = True
        for place in states.get(number, []):
            later[reads[place]] = True
        steps.append(
            Step(
                number=number,
                needed=everything[later],
                produced=everything[produced],
                state_reads=states.get(number, []),
                output_reads=outputs.get(number, []),
                present=nobody,
                inside=nobody,
                compete=nobody,
            )
        )
    return steps[::-1]


def _kept_out(
    first_only: Bool[Tensor, "*pos comp"], trace: Trace, positions: Int[Tensor, "pos"], skip_first: bool
) -> Bool[Tensor, "pos comp"]:
    """Who takes no part at each position, since it comes from the first one of its prompt alone."""
    later = torch.full((len(trace.token_ids),), skip_first)
    later[list(trace.starts)] = False
    return (first_only.expand(len(later), -1) & later[:, None])[positions]
