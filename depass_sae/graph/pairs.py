"""Which pairs of a query and a key decided where the heads looked that a feature reads through.

A score is a product of what stands at the query and at the key, so what a feature owes to where heads looked splits
over pairs of sources exactly: Σ over all queries' parts, and their bias vectors, is what a source does as part of keys.
Of each feature that is asked about, the sources that do most as parts of queries are carried on to every attention
(:mod:`.passing`), and one sweep back with their queries alone gives their pairs with every source at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest

import torch
from jaxtyping import Float
from torch import Tensor

from ..passes.choices import CONTRIBUTION
from ..passes.looking import Pairing
from ..passes.onwards import onwards
from ..passes.record import Trace
from .flow import paired
from .grow import Grown, Growth
from .passing import ends, given_source

QUERIES, PAIRS = 10, 10
"""Of a feature so many sources are carried on, as parts of queries, and so many pairs are kept."""
MOST = 100
"""Features that may be asked about: each takes a sweep, and each of its queries a pass."""


@dataclass(frozen=True)
class Pair:
    """What two sources together did to a reading by where heads looked: one as part of queries, one as part of keys."""

    query: int
    key: int
    value: float


@dataclass
class Carried:
    """Sources at every stream that attention may read, each carried on once."""

    seen: Trace
    growth: Growth
    kept: dict[int, dict[int, Float[Tensor, "pos d_model"]]] = field(default_factory=dict)

    def at(self, sources: Sequence[int]) -> dict[int, Float[Tensor, "comp pos d_model"]]:
        """By the depth of the stream; zero below the place where a source stands."""
        each = [self._one(source) for source in sources]
        depths = sorted(set().union(*each))
        zero = torch.zeros_like(self.seen.streams[0])
        return {depth: torch.stack([one.get(depth, zero) for one in each]) for depth in depths}

    def _one(self, source: int) -> dict[int, Float[Tensor, "pos d_model"]]:
        if source not in self.kept:
            standing, rule = self.growth.standing, self.growth.settings.rule
            level, own = self.growth.at(source)
            arrived = onwards(self.seen, given_source(standing.cuts[level], own), CONTRIBUTION[rule], ends(standing))
            streams = {one.place.depth: one.above for one in arrived if one.place.is_stream}
            self.kept[source] = {depth: above for depth, above in streams.items() if above.any()}
        return self.kept[source]


def find_pairs(
    growth: Growth, asked: Sequence[Grown], names: Mapping[int, str], tell: Callable[[int, int], None]
) -> list[list[Pair]]:
    """Of every node the largest pairs of sources that have names. names: by their numbers among all sources."""
    carried, found = Carried(growth.seen, growth), []
    for done, node in enumerate(asked):
        tell(done, len(asked))
        found.append(_pairs(growth, carried, node, names))
    return found


def _pairs(growth: Growth, carried: Carried, node: Grown, names: Mapping[int, str]) -> list[Pair]:
    by_query = zip(node.sources.tolist(), node.numbers["query"].tolist(), strict=True)
    able = [(source, value) for source, value in by_query if value and source in names]
    queries = sorted(source for source, _ in nlargest(QUERIES, able, key=lambda one: (abs(one[1]), -one[0])))
    if not queries:
        return []
    pairing = Pairing(carried.at(queries))
    low = growth.standing.below(node.level)
    rows = paired(growth.seen, growth.standing, low, node.read, pairing, growth.settings)
    found = []
    for query, row in zip(queries, rows, strict=True):
        for cut, values in row.items():
            first = growth.starts[cut]
            for own in values[0].nonzero()[:, 0].tolist():
                if first + own in names:
                    found.append(Pair(query, first + own, values[0, own].item()))
    return nlargest(PAIRS, found, key=lambda pair: (abs(pair.value), -pair.query, -pair.key))
