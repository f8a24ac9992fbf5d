"""How often a feature fires with something: a token, a position, another feature. Counts add up, whoever counted.

Where there may be no end of such things, a feature keeps those that are most frequent. What a count may then miss is
known: a key that was dropped with the count c in one part was there at most as often as that part's bound and c say,
and bounds add up as counts do. No count is ever too high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from .arrays import lengths_of, rank_in, starts_of


@dataclass(frozen=True)
class Counts:
    """A row for each feature and key, sorted by both. total, largest: of the sizes of its activations there."""

    feature: Int[np.ndarray, "n"]
    key: Int[np.ndarray, "n"]
    count: Int[np.ndarray, "n"]
    total: Float[np.ndarray, "n"]
    largest: Float[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.feature)

    @classmethod
    def empty(cls) -> Counts:
        return cls(*(np.zeros(0, dtype=dtype) for dtype in (np.int32, np.int32, np.int64, np.float64, np.float32)))

    @classmethod
    def of(
        cls, feature: Int[np.ndarray, "firing"], key: Int[np.ndarray, "firing"], size: Float[np.ndarray, "firing"]
    ) -> Counts:
        """Of firings, in an order that decides nothing but the last bits of the totals."""
        if not len(feature):
            return cls.empty()
        order = _sorted(feature, key)
        starts = starts_of(feature[order], key[order])
        first, size = order[starts], size[order]
        return cls(
            feature[first].astype(np.int32),
            key[first].astype(np.int32),
            lengths_of(starts, len(order)),
            np.add.reduceat(size.astype(np.float64), starts),
            np.maximum.reduceat(size, starts).astype(np.float32),
        )

    @classmethod
    def merged(cls, parts: Sequence[Counts]) -> Counts:
        columns = ([getattr(part, field.name) for part in parts] for field in fields(cls))
        return cls(*map(np.concatenate, columns))._grouped()

    def take(self, rows: Int[np.ndarray, "chosen"] | Bool[np.ndarray, "n"] | slice) -> Counts:
        return Counts(*(getattr(self, field.name)[rows] for field in fields(self)))

    def most_frequent_first(self) -> Counts:
        """Each feature's rows by their counts; of equal ones the smaller key first."""
        return self.take(np.lexsort((self.key, -self.count, self.feature)))

    def kept(self, most: int, which: int) -> tuple[Counts, Counts]:
        """Each feature's ``most`` frequent keys, and the largest count that it drops, under the key ``which``."""
        starts = starts_of(self.feature)
        lengths = lengths_of(starts, len(self))
        rows = np.repeat(lengths > most, lengths).nonzero()[0]  # few features have as many
        rows = rows[np.lexsort((self.key[rows], -self.count[rows], self.feature[rows]))]
        rank = rank_in(starts_of(self.feature[rows]), len(rows))
        lost = self.take(rows[rank == most])
        lost = Counts(lost.feature, np.full_like(lost.key, which), lost.count, 0 * lost.total, 0 * lost.largest)
        kept = np.ones(len(self), dtype=bool)
        kept[rows[rank >= most]] = False
        return self.take(kept), lost

    def _grouped(self) -> Counts:
        if not len(self):
            return Counts.empty()
        rows = self.take(_sorted(self.feature, self.key))
        starts = starts_of(rows.feature, rows.key)
        return Counts(
            rows.feature[starts].astype(np.int32),
            rows.key[starts].astype(np.int32),
            np.add.reduceat(rows.count, starts),
            np.add.reduceat(rows.total, starts),
            np.maximum.reduceat(rows.largest, starts).astype(np.float32),
        )


def _sorted(feature: Int[np.ndarray, "n"], key: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The rows by feature and key; of equal ones those that come first."""
    return np.argsort(feature.astype(np.int64) << 32 | key.astype(np.int64), kind="stable")
