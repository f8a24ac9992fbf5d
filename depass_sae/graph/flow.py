"""Edges: what every source contributes to readings, through no other cut, and its first-order effect on them.

Beside these stands what a source has done by where heads looked, as part of their queries or of their keys: no part of
what sums to a reading (:mod:`..passes.looking`).

Rules under which the frozen pass is affine (``half``, ``linear``) go backwards, many readings in one sweep; effects
always do, with everything live. A sweep hands its gradient out at every cut beside the stream that it meets, and ends
at the whole cut below. The other rules carry a whole cut's sources forward to the next once, all of them together, and
every reading there is an inner product with what arrives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.place import Place
from ..passes.backward import Cuts, Seeds, Step, steps
from ..passes.choices import CONTRIBUTION, EFFECT, Choices
from ..passes.looking import Hop, Pairing, begun
from ..passes.many import Aim, Batch, in_batches
from ..passes.record import Trace
from ..passes.rows import Rows, on
from ..passes.settings import Settings
from ..passes.support import Few
from .cuts import Cut, Standing
from .reads import Reads

Sources = dict[int, Float[Tensor, "read source"]]
"""For every cut that feeds some readings, by its number, a number for each of its sources."""


@dataclass(frozen=True)
class Inflow:
    """What arrives at readings from the cuts that feed them: contributions, and first-order effects.

    head_weights, head_effects: the same contributions by the attention head that they came through last, for the
    heads (layer, head) above the whole cut that are passed; a second view, not more inflow.
    queries, keys: what sources do to readings as part of heads' queries and of their keys; empty where not asked for.
    """

    weights: Sources = field(repr=False)
    effects: Sources = field(repr=False)
    queries: Sources = field(repr=False)
    keys: Sources = field(repr=False)
    heads: list[tuple[int, int]]
    head_weights: Float[Tensor, "read head"] = field(repr=False)
    head_effects: Float[Tensor, "read head"] = field(repr=False)


def inflow(
    seen: Trace,
    standing: Standing,
    low: int,
    reads: Reads,
    settings: Settings,
    carried: Rows | None = None,
    looking: Hop | None = None,
) -> Inflow:
    """Every source's contribution to every reading, and its effect. low: the whole cut below the readings; swept, they
    may lie anywhere behind it.

    carried: what :func:`carry` returned for this cut and point; needed where the rule is not swept, which then has
    nothing that goes through queries and keys. looking: to find that, too.
    """
    (effects,), heads, head_effects = _swept(seen, standing, low, replace(reads, w=reads.slope), EFFECT, settings)
    queries: Sources = {}
    keys: Sources = {}
    if carried is None:
        choices = CONTRIBUTION[settings.rule]
        (weights, *looked), _, head_weights = _swept(seen, standing, low, reads, choices, settings, looking)
        queries, keys = looked or (queries, keys)
    else:
        weights = {low: _read(carried, standing.cuts[low], reads)}
        head_weights = torch.full_like(head_effects, torch.nan)
    return Inflow(weights, effects, queries, keys, heads, head_weights, head_effects)


def paired(
    seen: Trace, standing: Standing, low: int, read: Reads, pairing: Pairing, settings: Settings
) -> list[Sources]:
    """Of every part that asks, what every source as part of keys does to one reading, by where heads looked."""
    (_, *rows), _, _ = _swept(seen, standing, low, read, CONTRIBUTION[settings.rule], settings, pairing)
    return rows


def carry(seen: Trace, cut: Cut, to: Place, settings: Settings) -> Rows:
    """A whole cut's sources at the next point of the graph, by the forward engine."""
    everywhere = torch.arange(len(seen.token_ids))
    return settings.quiet().carry(seen, cut.start(), {to: everywhere})[to]


def pulled_back(
    seen: Trace,
    standing: Standing,
    low: int,
    reads: Sequence[Reads],
    factors: Sequence[Float[Tensor, "read"]],
    rule: str,
) -> Float[Tensor, "pos d_model"]:
    """The gradient at a whole cut of Σ factor · reading, through no other cut."""
    seeds: dict[Place, Tensor] = {}
    for read, factor in zip(reads, factors, strict=True):
        seed = seeds.setdefault(read.place, read.w.new_zeros(1, len(seen.token_ids), read.w.shape[1]))
        seed[0].index_add_(0, read.pos, factor[:, None] * read.w)
    cuts = standing.meeting(lambda number, place, gradient: None)
    *_, (gradient, _) = _descend(seen, standing.cuts[low].place, seeds, CONTRIBUTION[rule], cuts)
    return gradient[0]


# -------------------------------------------------------------------------------------------------------- backward


def _swept(
    seen: Trace,
    standing: Standing,
    low: int,
    reads: Reads,
    choices: Choices,
    settings: Settings,
    looking: Hop | None = None,
) -> tuple[list[Sources], list[tuple[int, int]], Tensor]:
    """[read, source] of every cut that is met, as heads move and, looking, by their queries and keys; and the first of
    these by head.
    """
    cut, ways = standing.cuts[low], 1 if looking is None else looking.ways
    values: Sources = {low: seen.resid_post.new_zeros(ways, len(reads), cut.n_sources)}
    by_head: dict[int, Tensor] = {}

    def back(batch: Batch) -> None:
        handed: Sources = {}

        def hand(number: int, place: Place, gradient: Tensor) -> None:
            more = standing.cuts[number].handed(gradient, place)
            handed[number] = handed[number] + more if number in handed else more

        heads, seeds = {}, batch.seeds() if looking is None else begun(looking, batch.seeds())
        for gradient, step in _descend(
            batch.trace, cut.place, seeds, choices, standing.meeting(hand), looking, batch.few
        ):
            if step is not None and step.level is not None and step.level.looks_back:
                heads[step.level.layer] = step.level.units()
            bias = gradient.new_zeros(gradient.shape[:2]) if step is None else step.bias_before
        hand(low, cut.place, gradient)
        handed[low][:, -1] = bias.sum(1)
        for found, rows in ((values, handed), (by_head, heads)):
            for number, row in rows.items():
                each = row.unflatten(0, (ways, -1))
                found.setdefault(number, row.new_zeros(ways, len(reads), row.shape[1]))[:, batch.which] = each

    aims = [Aim(reads.place, w, pos) for w, pos in zip(reads.w, reads.pos.tolist(), strict=True)]
    in_batches([seen], aims, settings.budget, back, rows=ways)
    rows = sorted(by_head.items())
    heads = [(layer, head) for layer, row in rows for head in range(row.shape[2])]
    each_head = torch.cat([values[low].new_zeros(len(reads), 0), *(row[0] for _, row in rows)], dim=1)
    return [{number: row[way] for number, row in values.items()} for way in range(ways)], heads, each_head


def _descend(
    seen: Trace,
    low: Place,
    seeds: Seeds,
    choices: Choices,
    cuts: Cuts,
    looking: Hop | None = None,
    few: Few | None = None,
) -> Iterator[tuple[Tensor, Step | None]]:
    """From what is read down to a place of the stream: the gradient before each sublayer, at last the one there.

    None for a step where all is read at the place itself.
    """
    if any(low.depth < place.behind for place in seeds):
        for step in steps(seen, seeds, choices, cuts, down_to=low.depth, looking=looking, few=few):
            yield step.before, step
    else:
        yield sum(seeds.values()), None  # type: ignore[misc]


# --------------------------------------------------------------------------------------------------------- forward


def _read(carried: Rows, cut: Cut, reads: Reads) -> Float[Tensor, "read source"]:
    """Inner products with what arrived. ``rest`` stands after the sources, and is empty under the rules of a graph."""
    values = carried.values.new_zeros(len(reads), cut.n_sources + 1)
    for pos in reads.pos.unique().tolist():
        which = (reads.pos == pos).nonzero()[:, 0]
        rows = carried.values[carried.offsets[pos] : carried.offsets[pos + 1]]
        here = values.new_zeros(len(which), cut.n_sources + 1)
        here[:, on(here, carried.present[pos].nonzero()[:, 0])] = reads.w[which] @ rows.T
        values[which] = here
    return values[:, :-1]
