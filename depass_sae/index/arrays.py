"""Small operations on sorted arrays that the summaries are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt


def starts_of(*columns: Shaped[np.ndarray, "n"]) -> Int[np.ndarray, "run"]:
    """Where rows begin that agree in all columns, of rows that are sorted by them."""
    n = len(columns[0])
    changed = np.zeros(n, dtype=bool)
    changed[:1] = True
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return changed.nonzero()[0]


def lengths_of(starts: Int[np.ndarray, "run"], n: int) -> Int[np.ndarray, "run"]:
    return np.diff(starts, append=n)


def rank_in(starts: Int[np.ndarray, "run"], n: int) -> Int[np.ndarray, "n"]:
    """Of every row, how many of its run stand before it."""
    return np.arange(n) - np.repeat(starts, lengths_of(starts, n))


def first_largest(values: Shaped[np.ndarray, "n"], starts: Int[np.ndarray, "run"]) -> Int[np.ndarray, "run"]:
    """The first row of each run that has the run's largest value."""
    n = len(values)
    if not n:
        return starts
    largest = np.repeat(np.maximum.reduceat(values, starts), lengths_of(starts, n))
    return np.minimum.reduceat(np.where(values == largest, np.arange(n), n), starts)


def first_of_each(*columns: Shaped[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Which rows are the first with their values, of rows in any order."""
    order = np.lexsort(columns[::-1])  # stable
    found = np.zeros(len(order), dtype=bool)
    found[order[starts_of(*(column[order] for column in columns))]] = True
    return found


def float_order(sizes: Shaped[np.ndarray, "n"]) -> UInt[np.ndarray, "n"]:
    """32 bits that ascend where sizes, none below zero, descend."""
    return np.uint64(0xFFFFFFFF) - sizes.astype(np.float32).view(np.uint32).astype(np.uint64)


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: row i is values[ends[i] : ends[i + 1]]."""

    ends: Int[np.ndarray, "row+1"]
    values: Shaped[np.ndarray, "value"]

    def __len__(self) -> int:
        return len(self.ends) - 1

    @classmethod
    def of(cls, rows: Sequence[Shaped[np.ndarray, "some"]]) -> Ragged:
        """Rows one after the other."""
        return cls(np.cumsum([0, *map(len, rows)], dtype=np.int64), np.concatenate(rows))

    @classmethod
    def cut(
        cls, values: Shaped[np.ndarray, "n"], starts: Int[np.ndarray, "row"], lengths: Int[np.ndarray, "row"]
    ) -> Ragged:
        """Pieces of an array."""
        ends = np.zeros(len(starts) + 1, dtype=np.int64)
        np.cumsum(lengths, out=ends[1:])
        within = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
        return cls(ends, values[np.repeat(starts, lengths) + within])

    def take(self, rows: Int[np.ndarray, "chosen"]) -> Ragged:
        return Ragged.cut(self.values, self.ends[rows], (self.ends[1:] - self.ends[:-1])[rows])

    def row(self, number: int) -> Shaped[np.ndarray, "some"]:
        return self.values[self.ends[number] : self.ends[number + 1]]

    @staticmethod
    def joined(parts: Sequence[Ragged]) -> Ragged:
        lengths = np.concatenate([np.diff(part.ends) for part in parts])
        ends = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=ends[1:])
        return Ragged(ends, np.concatenate([part.values for part in parts]))
