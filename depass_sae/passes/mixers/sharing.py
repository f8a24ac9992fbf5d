"""Queries and keys that have a share in what a head moves (rule ``half-qk``).

What arrives at a query is a product, Σ_k A v, and each of its factors gets half. The pattern's half goes to the parts
of the scores that made it, which are products themselves:

    z_m = ½ A v_m + ½ (J s_m) v        s_m[n, k] = share · (⟨q_m[n], k[k]⟩ + ⟨q[n], k_m[k]⟩) · scale

q_m and k_m rotated and normed per head at the whole's scale, and a soft-cap's slope on s_m. J is how a pattern follows
its scores. There a softmax only knows how far a key lies above the head's average key:

    local    (J s)[n, k] = A[n, k] (s[n, k] − Σ_k′ A[n, k′] s[n, k′])                  as it does at the recorded scores
    mean     J = ∫₀¹ (diag A_t − A_t A_tᵀ) dt, A_t the pattern of t·score       on the way from no score to the score

so that what comes of s is Σ_k A s (v − z), no more than another attention. A sink's score is a constant: it takes no
part, and the rows that it leaves sum to less than 1. What no part has made is the component ``pattern``,

    pattern = ½ A v − ½ (J Σ_m s_m) v

computed from the recorded scores, not from what is missing: that would hide a score that is wrong. With share ½ and no
soft-cap Σ_m s_m is the score, and with the mean slope ``pattern`` is ½ A₀ v, what an even look moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ...models.parts import Norm
from ..rows import at
from ..rules import Slope

POINTS, MOST_POINTS = 16, 128
"""The mean slope's quadrature (Gauss and Legendre's) has so many points, or a multiple of them: a head that is more
certain turns from one key to another within a smaller part of the way. Good to 2e-5 where scores lie 120 apart at most.
"""
SPARE = 4
"""A quadrature has so many points more than scores lie apart."""


def along(slope: Slope, apart: float = 0.0) -> list[tuple[float, float]]:
    """Where between no score (0) and the score (1) a slope is taken, and how much each counts.

    apart: the farthest that two keys' scores lie apart for any query.
    """
    if slope == "local":
        return [(1.0, 1.0)]
    return _quadrature(min(POINTS * math.ceil(max(apart + SPARE, 1) / POINTS), MOST_POINTS))


@cache
def _quadrature(count: int) -> list[tuple[float, float]]:
    """Gauss and Legendre's points from 0 to 1, and their weights."""
    import numpy as np

    x, w = np.polynomial.legendre.leggauss(count)
    return list(zip(((x + 1) / 2).tolist(), (w / 2).tolist(), strict=True))


@dataclass(frozen=True)
class Side:
    """One of a score's two sides: what a map puts out of a part of the stream, as that part's queries or keys.

    width: of what the map puts out. n_heads: so many queries or keys are in it; shared: by how many heads in a row each
    of them is used. scale: of the QK-norm, where there is one: the whole's. turn: cosines and sines of the positions'
    rotation.
    """

    width: int
    n_heads: int
    shared: int
    norm: Norm | None
    scale: Float[Tensor, "pos head 1"] | None
    turn: tuple[Float[Tensor, "pos d_rotated"], Float[Tensor, "pos d_rotated"]] | None

    def __call__(self, y: Float[Tensor, "pos comp width"]) -> Float[Tensor, "pos comp n_heads d_head"]:
        return self.turned(y.unflatten(-1, (self.n_heads, -1)).repeat_interleave(self.shared, dim=2))

    def turned(self, heads: Float[Tensor, "pos comp n_heads d_head"]) -> Float[Tensor, "pos comp n_heads d_head"]:
        """Of one for each head that uses it: normed and rotated."""
        if self.norm is not None and self.scale is not None:
            heads = self.norm.frozen(heads, self.scale.repeat_interleave(self.shared, dim=1)[:, None])
        return heads if self.turn is None else rotate(heads, *(x[:, None, None] for x in self.turn))

    def back(self, gradient: Float[Tensor, "target pos n_heads d_head"]) -> Float[Tensor, "target pos n_heads d_head"]:
        """A gradient with respect to what is normed and turned, with respect to what it is before."""
        if self.turn is not None:
            cos, sin = (x[:, None] for x in self.turn)
            gradient = rotate(gradient, cos, -sin)
        if self.norm is None or self.scale is None:
            return gradient
        scale = self.scale.repeat_interleave(self.shared, dim=1)
        return self.norm.centre(gradient * self.norm.gain * scale)

    def at(self, positions: Int[Tensor, "some"]) -> Side:
        turn = None if self.turn is None else (at(self.turn[0], positions), at(self.turn[1], positions))
        return replace(self, scale=None if self.scale is None else at(self.scale, positions), turn=turn)


@dataclass(frozen=True)
class Sharing:
    """What is frozen of the scores of one attention, between some queries and keys.

    asking, asked: how parts become queries and keys. q, k, v: the whole's. moved: what the recorded pattern moves of v.
    weights: at every point of the slope its pattern times what a change of a score counts there; looked: what that
    pattern moves of v.
    """

    asking: Side
    asked: Side
    q: Float[Tensor, "query head d_head"]
    k: Float[Tensor, "key head d_head"]
    v: Float[Tensor, "key head d_value"]
    moved: Float[Tensor, "query head d_value"]
    weights: Float[Tensor, "point head query key"]
    looked: Float[Tensor, "point query head d_value"]

    def of(
        self, q: Float[Tensor, "query comp head d_head"], k: Float[Tensor, "key comp head d_head"]
    ) -> Float[Tensor, "query comp head d_value"]:
        """½ (J s_m) v of parts with these queries and keys; where keys before a first one have none, of those after."""
        by_query = torch.einsum("qmhd,khd->mhqk", q, self.k)
        by_key = torch.einsum("qhd,kmhd->mhqk", self.q, k)
        scores = by_query + functional.pad(by_key, (len(self.k) - len(k), 0))
        drawn = torch.einsum("mhqk,khe->qmhe", self.weights.sum(0) * scores, self.v)
        average = torch.einsum("phqk,mhqk->mphq", self.weights, scores)
        return drawn - torch.einsum("mphq,pqhe->qmhe", average, self.looked)

    def back(
        self, gradient: Float[Tensor, "target query head d_value"]
    ) -> tuple[Float[Tensor, "target query head d_head"], Float[Tensor, "target key head d_head"]]:
        """A gradient with respect to ½ (J s) v, with respect to each head's queries and keys before norm and turn."""
        by_score = self._by_score(gradient)
        by_query = torch.einsum("thqk,khd->tqhd", by_score, self.k)
        by_key = torch.einsum("thqk,qhd->tkhd", by_score, self.q)
        return self.asking.back(by_query), self.asked.back(by_key)

    def keys_back(
        self, gradient: Float[Tensor, "1 query head d_value"], q: Float[Tensor, "query comp head d_head"]
    ) -> Float[Tensor, "comp key head d_head"]:
        """The same with respect to keys, for queries that are parts of the whole's, one after the other."""
        by_key = torch.einsum("hqk,qmhd->mkhd", self._by_score(gradient)[0], q)
        return self.asked.back(by_key)

    def _by_score(self, gradient: Float[Tensor, "target query head d_value"]) -> Float[Tensor, "target head query key"]:
        worth = torch.einsum("tqhe,khe->thqk", gradient, self.v) * self.weights.sum(0)
        average = torch.einsum("tqhe,pqhe->tphq", gradient, self.looked)
        return worth - torch.einsum("tphq,phqk->thqk", average, self.weights)

    @property
    def rest(self) -> Float[Tensor, "query head d_value"]:
        """What of the product no part has made: the component ``pattern``."""
        return self.moved / 2 - self.of(self.q[:, None], self.k[:, None])[:, 0]

    def __len__(self) -> int:
        """Positions of queries."""
        return len(self.q)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(x.nbytes for x in (self.q, self.k, self.v, self.moved, self.weights, self.looked))

    def first(self, n: int) -> Sharing:
        """Between the first n positions, which no later one has touched."""
        return self if n == len(self) else self.between(torch.arange(n), torch.arange(n))

    def between(self, queries: Int[Tensor, "query"], keys: Int[Tensor, "key"]) -> Sharing:
        return Sharing(
            self.asking.at(queries),
            self.asked.at(keys),
            at(self.q, queries),
            at(self.k, keys),
            at(self.v, keys),
            at(self.moved, queries),
            at(at(self.weights, queries, 2), keys, 3),
            at(self.looked, queries, 1),
        )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of the first channels, as many as there are angles; their two halves are the pairs."""
    turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned
