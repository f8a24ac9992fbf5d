"""One prompt's attention on packed components: what stands at keys arrives at queries, as the frozen pattern says.

Where queries and keys have a share, values bring their components' queries and keys along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..rows import at, on, spread

if TYPE_CHECKING:
    from .attention import Attention
    from .sharing import Sharing

QUERIES = 256
"""Positions whose attention is mixed at once: the keys after the last of them are not looked at."""


@dataclass(frozen=True)
class Mixing:
    """One prompt's attention. keys, queries: which of the rows' positions are its own.

    weights: the pattern between them. after: for each key, how many queries lie before it; before: for each query, how
    many keys do not lie after it. prepare: what is done to the values at the keys, from one of them on. factor: what
    the heads' outputs are multiplied with. looking: by what queries and keys have a share (None: they have none).
    """

    keys: slice
    queries: slice
    weights: Float[Tensor, "kv_head group query key"]
    after: list[int]
    before: list[int]
    prepare: Callable[[Float[Tensor, "key comp d_kv"], int], Float[Tensor, "key comp d_kv"]] | None
    factor: Float[Tensor, "query 1 kv_head group d_head"] | None
    looking: Looking | None

    @classmethod
    def of(
        cls,
        mixer: Attention,
        pattern: Float[Tensor, "head query key"],
        scale: Float[Tensor, "pos"],
        values: list[Float[Tensor, "pos *"]],
        factor: Float[Tensor, "pos d_inner"] | None,
        sharing: Sharing | None,
        keys: Int[Tensor, "key"],
        queries: Int[Tensor, "query"],
        prompt: tuple[int, int],
    ) -> Mixing:
        own_keys, own_queries = (
            slice(*torch.searchsorted(positions, torch.tensor(prompt)).tolist()) for positions in (keys, queries)
        )
        keys, queries = keys[own_keys], queries[own_queries]
        weights, scale = at(at(pattern, queries, 1), keys, 2).to(scale.dtype), at(scale, keys)
        looking = None
        if sharing is not None:
            weights = weights / 2
            looking = Looking(sharing.between(queries, keys), scale, torch.searchsorted(keys, queries))
        if mixer.moves_as_mapped:
            weights, prepare = weights * scale, None
        else:
            prepare = partial(_prepared, mixer, scale, [at(x, keys) for x in values])
        groups = (mixer.n_kv_heads, -1)
        weights = weights.unflatten(0, groups)  # neighbouring heads share a value
        if factor is not None:
            factor = at(factor, queries).unflatten(-1, (*groups, mixer.part.d_head))[:, None]
        after, before = torch.searchsorted(queries, keys), torch.searchsorted(keys, queries, right=True)
        return cls(own_keys, own_queries, weights, after.tolist(), before.tolist(), prepare, factor, looking)

    def mix(
        self,
        values: Float[Tensor, "row d_kv"],
        here: Bool[Tensor, "key comp"],
        there: Bool[Tensor, "query comp"],
        limit: int,
    ) -> tuple[Float[Tensor, "arrived n_heads_d_head"], int]:
        """What arrives where ``there`` says, from the values that are ``here``; from which query on.

        limit: bytes that components' scores may take at once.
        """
        first = int(here.any(dim=1).nonzero()[0])  # nothing to mix before the first of them appears
        n_kv, group, n_queries, _ = self.weights.shape
        query, comps = self.after[first], here.shape[1]
        here = here[first:]
        laid_out = values.view(*here.shape, -1) if here.all() else spread(values, here)
        looks = None
        if self.looking is not None:
            laid_out, looks = laid_out.tensor_split([-self.looking.width], dim=-1)
        if self.prepare is not None:
            laid_out = self.prepare(laid_out, first)
        dense = laid_out.unflatten(-1, (n_kv, -1)).permute(2, 0, 1, 3).flatten(2)
        mixed = dense.new_empty(n_queries - query, comps, n_kv, group, dense.shape[2] // comps)
        for low in range(query, n_queries, QUERIES):
            high = min(low + QUERIES, n_queries)
            last = self.before[high - 1]
            some = self.weights[..., low:high, first:last].flatten(1, 2) @ dense[:, : last - first]
            some = some.view(n_kv, group, high - low, comps, -1)  # [kv_head, group, query, comp, d_head]
            mixed[low - query : high - query] = some.permute(2, 3, 0, 1, 4)
            if self.looking is not None and looks is not None:
                self.looking.add(mixed[low - query : high - query], looks, slice(low, high), first, last, limit)
        if self.factor is not None:
            mixed *= self.factor[query:]
        mixed = mixed.flatten(0, 1)
        arrived = there[query:].flatten()
        if not arrived.all():
            mixed = mixed.index_select(0, on(mixed, arrived.nonzero()[:, 0]))
        return mixed.flatten(1), query


@dataclass(frozen=True)
class Looking:
    """What queries and keys have a share by, of one prompt. scale: of the norm before, at the keys. own: which of the
    keys stands where each query does."""

    sharing: Sharing
    scale: Float[Tensor, "key"]
    own: Int[Tensor, "query"]

    @property
    def width(self) -> int:
        """Of a component's queries and keys together, at one position."""
        return self.sharing.asking.width + self.sharing.asked.width

    def add(
        self,
        mixed: Float[Tensor, "query comp kv_head group d_head"],
        looks: Float[Tensor, "key comp d_q_and_k"],
        queries: slice,
        first: int,
        last: int,
        limit: int,
    ) -> None:
        """mixed += what comes of the components' shares of some queries' scores, in place.

        looks: the components' queries and keys as the maps put them out, from the first key on that has any. last: the
        keys after it are not seen.
        """
        n_heads, n_queries = self.sharing.q.shape[1], queries.stop - queries.start
        own = self.own[queries]
        sharing = self.sharing.between(torch.arange(queries.start, queries.stop), torch.arange(last))
        keys_from = sharing.asked.at(torch.arange(first, last))
        looks = looks[: last - first] * self.scale[first:last, None, None]
        asking, asked = looks.split([sharing.asking.width, sharing.asked.width], dim=-1)
        asking = at(asking, own - first)
        step = max(1, limit // (3 * mixed.element_size() * n_heads * n_queries * last))
        for low in range(0, looks.shape[1], step):
            some = slice(low, low + step)
            found = sharing.of(sharing.asking(asking[:, some]), keys_from(asked[:, some]))
            mixed[:, some] += found.unflatten(2, mixed.shape[2:4])


def _prepared(
    mixer: Attention,
    scale: Float[Tensor, "key"],
    frozen: list[Float[Tensor, "key *"]],
    values: Float[Tensor, "key comp d_kv"],
    first: int,
) -> Float[Tensor, "key comp d_kv"]:
    return mixer.values(values * scale[first:, None, None], [x[first:] for x in frozen])
