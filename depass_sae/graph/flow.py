"""Edges: what every source of a cut contributes to readings at the next cut, and its first-order effect on them.

Rules under which the frozen pass is affine (``half``, ``linear``) go backwards, many readings in one sweep; effects
always do, with everything live. The other rules carry the cut's sources forward to the next once, all of them
together, and every reading there is an inner product with what arrives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.place import Place
from ..passes.backward import Level, sweep
from ..passes.choices import CONTRIBUTION, EFFECT, Choices
from ..passes.many import Aim, Batch, in_batches
from ..passes.record import Trace
from ..passes.rows import Rows, on
from ..passes.settings import Settings
from .cuts import Cut
from .reads import Reads


@dataclass(frozen=True)
class Inflow:
    """What arrives at readings from a cut: contributions, and first-order effects.

    head_weights, head_effects: the same contributions by the attention head that they came through last, for the
    heads (layer, head) between the cut and the readings; a second view, not more inflow.
    """

    weights: Float[Tensor, "read source"] = field(repr=False)
    effects: Float[Tensor, "read source"] = field(repr=False)
    heads: list[tuple[int, int]]
    head_weights: Float[Tensor, "read head"] = field(repr=False)
    head_effects: Float[Tensor, "read head"] = field(repr=False)


def inflow(seen: Trace, cut: Cut, reads: Reads, settings: Settings, carried: Rows | None = None) -> Inflow:
    """Every source's contribution to every reading, and its effect. Swept, readings may lie anywhere behind the cut.

    carried: what :func:`carry` returned for this cut and point; needed where the rule is not swept.
    """
    effects, heads, head_effects = _swept(seen, cut, replace(reads, w=reads.slope), EFFECT, settings)
    if carried is None:
        weights, _, head_weights = _swept(seen, cut, reads, CONTRIBUTION[settings.rule], settings)
    else:
        weights, head_weights = _read(carried, cut, reads), torch.full_like(head_effects, torch.nan)
    return Inflow(weights, effects, heads, head_weights, head_effects)


def carry(seen: Trace, cut: Cut, to: Place, settings: Settings) -> Rows:
    """A cut's sources at the next point of the graph, by the forward engine."""
    everywhere = torch.arange(len(seen.token_ids))
    return settings.quiet().carry(seen, cut.start(), {to: everywhere})[to]


def pulled_back(
    seen: Trace, cut: Cut, reads: Reads, factors: Float[Tensor, "read"], rule: str
) -> Float[Tensor, "pos d_model"]:
    """The gradient at a cut of Σ factor · reading."""
    gradient = reads.w.new_zeros(1, len(seen.token_ids), reads.w.shape[1])
    gradient[0].index_add_(0, reads.pos, factors[:, None] * reads.w)
    for level in _descend(seen, cut.place, reads.place, gradient, CONTRIBUTION[rule]):
        gradient = level.before
    return gradient[0]


# -------------------------------------------------------------------------------------------------------- backward


def _swept(
    seen: Trace, cut: Cut, reads: Reads, choices: Choices, settings: Settings
) -> tuple[Tensor, list[tuple[int, int]], Tensor]:
    """[read, source], and the same by head."""
    values = seen.resid_post.new_zeros(len(reads), cut.n_sources)
    by_head: dict[int, Tensor] = {}

    def back(batch: Batch) -> None:
        (gradient,) = batch.seeds().values()
        bias = gradient.new_zeros(gradient.shape[:2])
        found = {}
        for level in _descend(batch.trace, cut.place, reads.place, gradient, choices):
            if level.looks_back:
                found[level.layer] = level.units()
            gradient, bias = level.before, level.bias_before
        values[batch.which] = cut.inflow(gradient, bias.sum(1))
        for layer, row in found.items():
            by_head.setdefault(layer, row.new_zeros(len(reads), row.shape[1]))[batch.which] = row

    aims = [Aim(reads.place, w, pos) for w, pos in zip(reads.w, reads.pos.tolist(), strict=True)]
    in_batches([seen], aims, settings.budget, back)
    rows = sorted(by_head.items())
    heads = [(layer, head) for layer, row in rows for head in range(row.shape[1])]
    return values, heads, torch.cat([values.new_zeros(len(reads), 0), *(row for _, row in rows)], dim=1)


def _descend(seen: Trace, low: Place, high: Place, seeds: Tensor, choices: Choices) -> Iterator[Level]:
    """The levels between a place of the stream and one above it, from that one down; none where they are the same."""
    if low.depth < high.behind:
        yield from sweep(seen, {high: seeds}, choices, down_to=low.depth)


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
