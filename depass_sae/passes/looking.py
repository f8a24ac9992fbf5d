"""One hop through where heads look: what a target owes to a source because of whom a head looked at.

Under a frozen pattern a source counts by what heads move. It also counts by the patterns: as part of a query, which
looks elsewhere without it, or of a key, which is looked at less. With G the gradient of a target with respect to a
head's inner value z,

    ⟨G, (J s_m) v⟩        s_m[n, k] = ⟨q_m[n], k[k]⟩ · scale of a query's parts, ⟨q[n], k_m[k]⟩ · scale of a key's

with J how a pattern follows its scores (:mod:`.mixers.sharing`; by its mean slope, since the slope at the recorded
scores vanishes where a head is certain). All queries' parts of a head, bias vectors included, sum to what it carries
beyond an even look, ⟨G, (A − A₀) v⟩, and so do all keys'. That is no part of the target's own sum.

Each target is swept back as three rows: G⁰, through what heads move alone; and what has gone through exactly one query,
or key. At each attention

    G¹ ← J_vᵀ G¹ + J_qᵀ G⁰        G⁰ ← J_vᵀ G⁰

so that a source is reached through one hop, anywhere on its way. A sweep with patterns live holds all numbers of hops.

A score is a product of what stands at the query and at the key. With one part's queries q_m alone in the place of q the
hop through keys gives every source its pairs with that part: over all parts, and the queries' bias vectors, they sum to
what the source does as part of keys (:class:`Pairing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .frozen import Frozen
from .mixers.sharing import Sharing
from .rules import QK

Key = TypeVar("Key")
WAYS = 3
"""Rows of a target: as heads move, by a query, by a key."""


class Hop(Protocol):
    """What rows a target comes as, and what goes over from the first of them to the others."""

    @property
    def ways(self) -> int:
        """Rows of a target; the first is through what heads move alone."""

    def hop(
        self, frozen: Frozen, inner: Float[Tensor, "row pos d_inner"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]] | None:
        """What more arrives at the stream that a sublayer reads, and at bias vectors, in the rows of all ways but the
        first. None: no scores are made there.

        inner: all targets' rows of the first way, then those of the next.
        """


def begun(looking: Hop, seeds: Mapping[Key, Float[Tensor, "target pos d"]]) -> dict[Key, Float[Tensor, "row pos d"]]:
    """Where the sweep begins: nothing has been looked at yet."""
    return {place: torch.cat([seed, *[torch.zeros_like(seed)] * (looking.ways - 1)]) for place, seed in seeds.items()}


def _one_hop() -> QK:
    return QK(share=1.0, slope="mean")


KEPT = 2**28
"""Bytes of what is frozen of scores that are kept from one sweep to the next."""


@dataclass(frozen=True)
class Looking:
    """By queries, and by keys, on one prompt. qk: all of a score counts on each of its sides.

    Many sweeps go through the same scores, perhaps of the prompt's first positions alone, so these are kept.
    """

    qk: QK = field(default_factory=_one_hop)
    _kept: dict[int, Sharing] = field(default_factory=dict, init=False, repr=False, compare=False)
    ways = WAYS

    def hop(
        self, frozen: Frozen, inner: Float[Tensor, "row pos d_inner"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]] | None:
        """A rule's own split of a score gives each side half of what moves; here it is all of it."""
        sharing = self._sharing(frozen)
        if sharing is None:
            return None
        (by_query, of_query), (by_key, of_key) = frozen.looked_back(2 * inner.chunk(self.ways)[0], sharing)
        return torch.cat([by_query, by_key]), torch.cat([of_query, of_key])

    def _sharing(self, frozen: Frozen) -> Sharing | None:
        number, n = frozen.sublayer.number, len(frozen.resid)
        found = self._kept.get(number)
        if found is None or len(found) < n:
            found = frozen.sharing(self.qk)
            if found is None:
                return None
            self._kept.pop(number, None)
            if found.size + sum(one.size for one in self._kept.values()) <= KEPT:
                self._kept[number] = found
        return found.first(n)


@dataclass(frozen=True)
class Pairing:
    """By keys, for the queries of each of some parts; of one target.

    parts: what they are of the stream, by the depth of where it is read [comp, pos, d_model].
    """

    parts: Mapping[int, Float[Tensor, "comp pos d_model"]] = field(repr=False)
    qk: QK = field(default_factory=_one_hop)

    @property
    def ways(self) -> int:
        return 1 + len(next(iter(self.parts.values())))

    def hop(
        self, frozen: Frozen, inner: Float[Tensor, "row pos d_inner"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]] | None:
        parts = self.parts.get(frozen.sublayer.reads.depth)
        if parts is None:  # they stand only later
            return None
        return frozen.keys_looked_back(2 * inner[:1], parts[:, : inner.shape[1]].to(inner), self.qk)
