"""Growing a graph backwards from its target, the most influential nodes first.

1. The targets are expanded: what every source of the cuts that feed them contributes to them.
2. Each source's reach is what of the targets depends on it, along all paths and by whichever way says most on each
   step (ways.py): as it flows, by its effect, by queries and keys; as far as the graph is known.
3. The sources of the farthest reach join the graph; features among them are expanded in turn, many in one sweep.
4. Until there are as many nodes as asked for.

Reach only grows as more is expanded, so that nothing which was taken would have been left out. What a node's inflow has
besides the nodes that joined is summed, never dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..models.place import Place
from ..passes.looking import Looking
from ..passes.record import Trace
from ..passes.rows import Rows
from ..passes.settings import Settings
from .cuts import Standing
from .flow import Sources, carry, inflow, pulled_back
from .reads import Reads, error_reads, feature_reads
from .ways import Grow, looks, shares

AT_ONCE = 48
"""How many nodes join between two looks at everybody's reach."""
KEPT_SOURCES = 20_000
"""Of a node's inflow so many of the largest are remembered one by one, however many features are active."""


@dataclass(frozen=True)
class Others:
    """The sums of what a cut contributes to a node besides the sources that are remembered one by one."""

    weight: float = 0.0
    effect: float = 0.0
    magnitude: float = 0.0


@dataclass(frozen=True)
class Grown:
    """A node with its inflow from the cuts that feed it.

    level: the number of its own cut, or of cuts in all for a logit. source: its number among all sources (those of the
    first cut first), None for logits and for features that do not fire. worth: what it counts for as a target. read:
    the one reading. sources: the largest, with the numbers of each way that there are (:data:`.ways.WAYS`); others: of
    each cut that feeds it, the rest; sizes: of each way, Σ |number| over all sources. heads: (layer, head, weight,
    effect).
    """

    level: int
    source: int | None
    worth: float
    read: Reads = field(repr=False)
    sources: Int[np.ndarray, "source"] = field(repr=False)
    numbers: Mapping[str, Float[np.ndarray, "source"]] = field(repr=False)
    others: Mapping[int, Others] = field(repr=False)
    sizes: Mapping[str, float] = field(repr=False)
    heads: tuple[tuple[int, int, float, float], ...] = field(repr=False)

    @property
    def pre(self) -> float:
        return self.read.pre.item()

    @property
    def weights(self) -> Float[np.ndarray, "source"]:
        return self.numbers["weight"]

    @property
    def completeness_error(self) -> float:
        """|Σ inflow + constant − pre-activation| over the largest number among them."""
        constant = self.read.constant.item()
        others = sum(other.weight for other in self.others.values())
        missing = abs(float(self.weights.sum()) + others + constant - self.pre)
        size = max(abs(self.pre), abs(constant), float(np.abs(self.weights).max(initial=0)))
        return missing / size if size else 0.0


@dataclass(frozen=True)
class Goal:
    """A target: a feature (``feature``: its index), a logit or a direction, read at ``level``.

    told: what a graph says of it beside its node.
    """

    level: int
    reads: Reads
    worth: float
    feature: int | None = None
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Growth:
    """A graph on its way. ``expanded``: targets first, in the order given; then whatever joined.

    members: the sources that belong to the graph, expanded or not. by: the ways by which sources join.
    """

    seen: Trace
    standing: Standing
    settings: Settings
    by: Grow = "weight"
    expanded: list[Grown] = field(default_factory=list)
    members: set[int] = field(default_factory=set)
    carried: dict[tuple[int, Place], Rows] = field(default_factory=dict)
    looking: Looking = field(default_factory=Looking)

    def __len__(self) -> int:
        silent = sum(node.source is None for node in self.expanded)
        return silent + len(self.members)

    @cached_property
    def starts(self) -> list[int]:
        """starts[i]:starts[i+1] are the numbers of the sources of cut i."""
        return [0, *accumulate(cut.n_sources for cut in self.standing.cuts)]

    @cached_property
    def stands_for_many(self) -> Int[np.ndarray, "source"]:
        """The numbers of every cut's constant and bias, which never join: they belong to every graph."""
        return np.array([end - back for end in self.starts[1:] for back in (2, 1)])

    def at(self, source: int) -> tuple[int, int]:
        """A source's cut, and its number there."""
        level = bisect_right(self.starts, source) - 1
        return level, source - self.starts[level]

    def expand(self, level: int, reads: Reads, joining: Sequence[int | None], worths: Sequence[float]) -> None:
        """Find the inflow of nodes that are read at one place. joining: their numbers among all sources."""
        low = self.standing.below(level)
        carried = self._carried(low, reads.place)
        looking = self.looking if looks(self.by) else None
        found = inflow(self.seen, self.standing, low, reads, self.settings, carried, looking)
        ways = {"weight": found.weights, "effect": found.effects, "query": found.queries, "key": found.keys}
        sources = self._sources_of(found.weights)
        numbers = {way: self._together(own) for way, own in ways.items() if own}
        head_weights, head_effects = found.head_weights.tolist(), found.head_effects.tolist()
        for i in range(len(reads)):
            own = {way: values[i] for way, values in numbers.items()}
            sizes = {way: float(np.abs(values).sum()) for way, values in own.items()}
            there = np.any([values != 0 for values in own.values()], axis=0)
            kept = there & np.isin(sources, self.stands_for_many)
            order = np.flatnonzero(there & ~kept)
            if len(order) > (room := max(0, KEPT_SOURCES - 2)):
                most = shares({way: values[order] for way, values in own.items()}, sizes, self.by)
                order = np.sort(order[np.argsort(-most, kind="stable")[:room]])
            order = np.sort(np.concatenate([order, np.flatnonzero(kept)]))
            other = np.setdiff1d(np.flatnonzero(there), order, assume_unique=True)
            heads = zip(found.heads, head_weights[i], head_effects[i], strict=True)
            self.expanded.append(
                Grown(
                    level=level,
                    source=joining[i],
                    worth=worths[i],
                    read=reads.some(slice(i, i + 1)),
                    sources=sources[order],
                    numbers={way: values[order] for way, values in own.items()},
                    others=self._others(sources[other], own["weight"][other], own["effect"][other]),
                    sizes=sizes,
                    heads=tuple((layer, head, w, e) for (layer, head), w, e in heads),
                )
            )

    def _sources_of(self, found: Sources) -> Int[np.ndarray, "source"]:
        """The numbers of every cut's sources side by side."""
        return np.concatenate([np.arange(self.starts[cut], self.starts[cut + 1]) for cut in sorted(found)])

    def _together(self, found: Sources) -> Float[np.ndarray, "read source"]:
        """Every cut's numbers side by side."""
        return np.concatenate([found[cut].double().cpu().numpy() for cut in sorted(found)], axis=1)

    def _others(self, sources: np.ndarray, weights: np.ndarray, effects: np.ndarray) -> dict[int, Others]:
        levels = np.searchsorted(self.starts, sources, side="right") - 1
        return {
            level: Others(
                float(weights[levels == level].sum()),
                float(effects[levels == level].sum()),
                float(np.abs(weights[levels == level]).sum()),
            )
            for level in np.unique(levels).tolist()
        }

    def reach(self) -> Float[np.ndarray, "source"]:
        """Of every source of every cut, through the nodes that are expanded so far."""
        found = np.zeros(self.starts[-1])
        for node in sorted(self.expanded, key=lambda node: -node.level):
            own = node.worth + (0.0 if node.source is None else found[node.source])
            found[node.sources] += own * shares(node.numbers, node.sizes, self.by)
        return found

    def losses(self) -> list[float]:
        """For every expanded node: what one unit of its pre-activation does to the targets, along all paths."""
        loss = np.zeros(self.starts[-1])
        factor = {}
        for number, node in sorted(enumerate(self.expanded), key=lambda item: -item[1].level):
            through = 0.0 if node.source is None else loss[node.source]
            factor[number] = node.worth + (through / node.pre if node.pre else 0.0)
            loss[node.sources] += factor[number] * node.weights
        return [factor[number] for number in range(len(self.expanded))]

    def _carried(self, cut: int, point: Place) -> Rows | None:
        if self.settings.swept:
            return None
        if (cut, point) not in self.carried:
            self.carried[cut, point] = carry(self.seen, self.standing.cuts[cut], point, self.settings)
        return self.carried[cut, point]


RULES = ("half", "linear", "softmax", "linear-norm", "max")
"""``relu`` leaves a rest over that belongs to no node."""


def grow(
    seen: Trace,
    standing: Standing,
    targets: Sequence[Goal],
    max_nodes: int,
    *,
    by: Grow,
    errors_through: bool = False,
    settings: Settings,
) -> Growth:
    """Grow from the targets until ``max_nodes`` sources and targets belong to the graph, or none is left.

    by: the ways by which sources join. errors_through: errors of whole cuts are followed upstream; those of others are
    roots.
    """
    growth, cuts = Growth(seen, standing, settings, by), standing.cuts
    _expand_targets(growth, targets)
    while len(growth) < max_nodes:
        joining = _best(growth, min(AT_ONCE, max_nodes - len(growth)))
        if not joining:
            break
        for level, sources in joining.items():
            growth.members |= {growth.starts[level] + source for source in sources}
            _expand_features(growth, level, [s for s in sources if s < cuts[level].n_features])
            if errors_through:
                _expand_errors(growth, level, [s for s in sources if cuts[level].is_error(s)])
        settings.tell("growing the graph", min(len(growth), max_nodes), max_nodes)
    return growth


def _expand_targets(growth: Growth, targets: Sequence[Goal]) -> None:
    """Those that are read at one place in a sweep, and all in the order given."""
    sources: list[int | None] = []
    together: dict[tuple[int, Place], list[int]] = {}
    for number, target in enumerate(targets):
        cut = None if target.feature is None else growth.standing.cuts[target.level]
        own = None if cut is None else cut.source_of(int(target.reads.pos[0]), target.feature)  # type: ignore[arg-type]
        sources.append(None if own is None else growth.starts[target.level] + own)
        together.setdefault((target.level, target.reads.place), []).append(number)
    growth.members |= {source for source in sources if source is not None}
    for (level, _), numbers in together.items():
        reads = Reads.joined([targets[n].reads for n in numbers])
        growth.expand(level, reads, [sources[n] for n in numbers], [targets[n].worth for n in numbers])
    order = [n for numbers in together.values() for n in numbers]
    growth.expanded = [node for _, node in sorted(zip(order, growth.expanded, strict=True), key=lambda pair: pair[0])]


def _best(growth: Growth, count: int) -> Mapping[int, list[int]]:
    """The sources of the farthest reach that are not in the graph yet: cut -> sources of it, upper cuts first."""
    values = growth.reach()
    values[growth.stands_for_many] = 0
    values[list(growth.members)] = 0
    candidates = np.flatnonzero(values > 0)
    chosen: dict[int, list[int]] = {}
    for number in candidates[np.argsort(-values[candidates], kind="stable")][:count].tolist():
        level, source = growth.at(number)
        chosen.setdefault(level, []).append(source)
    return {level: sorted(chosen[level]) for level in sorted(chosen, reverse=True)}


def _expand_features(growth: Growth, level: int, sources: list[int]) -> None:
    if not sources:
        return
    active = growth.standing.cuts[level].active
    which = torch.tensor(sources, device=active.pos.device)
    reads = feature_reads(growth.standing.cuts[level], active.pos[which], active.index[which])
    numbers = [growth.starts[level] + source for source in sources]
    growth.expand(level, reads, numbers, [0.0] * len(sources))


def _expand_errors(growth: Growth, level: int, sources: list[int]) -> None:
    """Errors are read along the gradient of the targets, as far as the graph is known."""
    cut, below = growth.standing.cuts[level], growth.standing.below
    if not sources or level == 0 or not cut.is_whole:
        return
    above = [
        (share, node.read)
        for share, node in zip(growth.losses(), growth.expanded, strict=True)
        if node.level > level and below(node.level) == level
    ]
    factors = [cut.roots.new_tensor([share]) for share, _ in above]
    reads = [read for _, read in above]
    along = pulled_back(growth.seen, growth.standing, level, reads, factors, growth.settings.rule)
    positions = [cut.positions[source] for source in sources]
    reads_of_errors = error_reads(cut, growth.seen, positions, along)
    numbers = [growth.starts[level] + source for source in sources]
    growth.expand(level, reads_of_errors, numbers, [0.0] * len(sources))
