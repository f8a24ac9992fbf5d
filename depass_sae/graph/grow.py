"""Growing a graph backwards from its target, the most influential nodes first.

1. The targets are expanded: what every source of the cut below contributes to them.
2. Each source's influence is what flows through it to the targets (influence.py), as far as the graph is known.
3. The most influential sources join the graph; features among them are expanded in turn, many in one sweep.
4. Until there are as many nodes as asked for.

Influence only grows as more is expanded, so that nothing which was taken would have been left out. What a node's inflow
has besides the nodes that joined is summed, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int

from ..models.place import Place
from ..passes.record import Trace
from ..passes.rows import Rows
from ..passes.settings import Settings
from .cuts import Cut
from .flow import carry, inflow, pulled_back
from .reads import Reads, error_reads, feature_reads

AT_ONCE = 48
"""How many nodes join between two looks at everybody's influence."""
KEPT_SOURCES = 20_000
"""Of a node's inflow so many of the largest are remembered one by one, however many features are active."""


@dataclass(frozen=True)
class Grown:
    """A node with its inflow from the cut below.

    level: of the node (its inflow comes from cut level − 1). source: its number among its own cut's sources, None
    for logits and for features that do not fire. worth: what it counts for as a target. read: the one reading.
    sources, weights, effects: the largest; other_*: the sums of the rest. heads: (layer, head, weight, effect).
    """

    level: int
    source: int | None
    worth: float
    read: Reads = field(repr=False)
    sources: Int[np.ndarray, "source"] = field(repr=False)
    weights: Float[np.ndarray, "source"] = field(repr=False)
    effects: Float[np.ndarray, "source"] = field(repr=False)
    other_weight: float
    other_effect: float
    other_magnitude: float
    heads: tuple[tuple[int, int, float, float], ...] = field(repr=False)

    @property
    def pre(self) -> float:
        return self.read.pre.item()

    @property
    def inflow_size(self) -> float:
        return float(np.abs(self.weights).sum()) + self.other_magnitude

    @property
    def completeness_error(self) -> float:
        """|Σ inflow + constant − pre-activation| over the largest number among them."""
        constant = self.read.constant.item()
        missing = abs(float(self.weights.sum()) + self.other_weight + constant - self.pre)
        size = max(abs(self.pre), abs(constant), float(np.abs(self.weights).max(initial=0)))
        return missing / size if size else 0.0


@dataclass(frozen=True)
class Goal:
    """A target: a feature (``feature``: its index) or a logit, read at ``level``."""

    level: int
    reads: Reads
    worth: float
    feature: int | None = None


@dataclass
class Growth:
    """A graph on its way. ``expanded``: targets first, in the order given; then whatever joined.

    members: for every cut the sources that belong to the graph, expanded or not.
    """

    seen: Trace
    cuts: Sequence[Cut]
    settings: Settings
    errors_through: bool
    expanded: list[Grown] = field(default_factory=list)
    members: list[set[int]] = field(default_factory=list)
    carried: dict[tuple[int, Place], Rows] = field(default_factory=dict)

    def __len__(self) -> int:
        silent = sum(node.source is None for node in self.expanded)
        return silent + sum(map(len, self.members))

    def expand(self, level: int, reads: Reads, sources: Sequence[int | None], worths: Sequence[float]) -> None:
        """Find the inflow of nodes that are read at one level."""
        cut = self.cuts[level - 1]
        found = inflow(self.seen, cut, reads, self.settings, self._carried(level - 1, reads.place))
        weights, effects = found.weights.double().cpu().numpy(), found.effects.double().cpu().numpy()
        head_weights, head_effects = found.head_weights.tolist(), found.head_effects.tolist()
        for i in range(len(reads)):
            order = _largest(weights[i], KEPT_SOURCES)
            other = np.setdiff1d(np.arange(weights.shape[1]), order, assume_unique=True)
            heads = zip(found.heads, head_weights[i], head_effects[i], strict=True)
            self.expanded.append(
                Grown(
                    level=level,
                    source=sources[i],
                    worth=worths[i],
                    read=reads.some(slice(i, i + 1)),
                    sources=order,
                    weights=weights[i][order],
                    effects=effects[i][order],
                    other_weight=float(weights[i][other].sum()),
                    other_effect=float(effects[i][other].sum()),
                    other_magnitude=float(np.abs(weights[i][other]).sum()),
                    heads=tuple((layer, head, w, e) for (layer, head), w, e in heads),
                )
            )

    def influence(self) -> list[Float[np.ndarray, "source"]]:
        """Of every source of every cut, through the nodes that are expanded so far."""
        found = [np.zeros(cut.n_sources) for cut in self.cuts]
        for node in sorted(self.expanded, key=lambda node: -node.level):
            own = node.worth + (0.0 if node.source is None else found[node.level][node.source])
            if node.inflow_size:
                found[node.level - 1][node.sources] += own * np.abs(node.weights) / node.inflow_size
        return found

    def shares(self) -> list[float]:
        """For every expanded node: what one unit of its pre-activation does to the targets, along all paths."""
        loss = [np.zeros(cut.n_sources) for cut in self.cuts]
        factor = {}
        for number, node in sorted(enumerate(self.expanded), key=lambda item: -item[1].level):
            through = 0.0 if node.source is None else loss[node.level][node.source]
            factor[number] = node.worth + (through / node.pre if node.pre else 0.0)
            loss[node.level - 1][node.sources] += factor[number] * node.weights
        return [factor[number] for number in range(len(self.expanded))]

    def _carried(self, cut: int, point: Place) -> Rows | None:
        if self.settings.swept:
            return None
        if (cut, point) not in self.carried:
            self.carried[cut, point] = carry(self.seen, self.cuts[cut], point, self.settings)
        return self.carried[cut, point]


RULES = ("half", "linear", "softmax", "linear-norm", "max")
"""``relu`` leaves a rest over that belongs to no node."""


def grow(
    seen: Trace,
    cuts: Sequence[Cut],
    targets: Sequence[Goal],
    max_nodes: int,
    *,
    errors_through: bool = False,
    settings: Settings,
) -> Growth:
    """Grow from the targets until ``max_nodes`` sources and targets belong to the graph, or none is left."""
    growth = Growth(seen, cuts, settings, errors_through, members=[set() for _ in cuts])
    for target in targets:
        source = None
        if target.feature is not None:
            source = _source_of(cuts[target.level], int(target.reads.pos[0]), target.feature)
        if source is not None:
            growth.members[target.level].add(source)
        growth.expand(target.level, target.reads, [source], [target.worth])
    while len(growth) < max_nodes:
        joining = _best(growth, min(AT_ONCE, max_nodes - len(growth)))
        if not joining:
            break
        for level, sources in joining.items():
            growth.members[level] |= set(sources)
            _expand_features(growth, level, [s for s in sources if s < cuts[level].n_features])
            if errors_through:
                _expand_errors(growth, level, [s for s in sources if _is_error(cuts[level], s)])
        settings.tell("growing the graph", min(len(growth), max_nodes), max_nodes)
    return growth


def _best(growth: Growth, count: int) -> Mapping[int, list[int]]:
    """The most influential sources that are not in the graph yet: cut -> sources, upper cuts first."""
    candidates = []
    for level, values in enumerate(growth.influence()):
        for source in np.flatnonzero(values[:-2] > 0).tolist():
            if source not in growth.members[level]:
                candidates.append((-values[source], level, source))
    chosen: dict[int, list[int]] = {}
    for _, level, source in sorted(candidates)[:count]:
        chosen.setdefault(level, []).append(source)
    return {level: sorted(chosen[level]) for level in sorted(chosen, reverse=True)}


def _expand_features(growth: Growth, level: int, sources: list[int]) -> None:
    if not sources:
        return
    cut = growth.cuts[level]
    assert cut.features is not None
    which = torch.tensor(sources, device=cut.features.pos.device)
    reads = feature_reads(cut, cut.features.pos[which], cut.features.index[which])
    growth.expand(level, reads, sources, [0.0] * len(sources))


def _expand_errors(growth: Growth, level: int, sources: list[int]) -> None:
    """Errors are read along the gradient of the targets, as far as the graph is known."""
    if not sources or level == 0:
        return
    cut = growth.cuts[level]
    above = [(share, n.read) for share, n in zip(growth.shares(), growth.expanded, strict=True) if n.level == level + 1]
    factors = cut.roots.new_tensor([share for share, _ in above])
    reads = Reads.joined([read for _, read in above])
    along = pulled_back(growth.seen, cut, reads, factors, growth.settings.rule)
    positions = [cut.positions[source] for source in sources]
    reads = error_reads(cut, growth.seen, positions, along)
    growth.expand(level, reads, sources, [0.0] * len(sources))


def _is_error(cut: Cut, source: int) -> bool:
    root = source - cut.n_features
    return 0 <= root < len(cut.roots) and not cut.is_token[root]


def _source_of(cut: Cut, pos: int, index: int) -> int | None:
    """A feature's number among its cut's sources, where it fires."""
    assert cut.features is not None
    found = ((cut.features.pos == pos) & (cut.features.index == index)).nonzero()
    return int(found[0]) if len(found) else None


def _largest(values: Float[np.ndarray, "source"], count: int) -> Int[np.ndarray, "kept"]:
    """The numbers of the largest by size, ascending; constant and bias always."""
    if len(values) <= count:
        return np.arange(len(values))
    order = np.argsort(-np.abs(values[:-2]), kind="stable")[: count - 2]
    return np.concatenate([np.sort(order), [len(values) - 2, len(values) - 1]])
