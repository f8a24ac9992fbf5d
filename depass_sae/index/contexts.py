"""Where a feature fires: its strongest windows, and samples of every strength. Chosen so that parts can be merged.

*Top*: of every document the window with the largest activation (the first of equal ones), the strongest documents. The
first of equal documents counts. *Samples*: of every octave of activation the firings with the lowest hash of their
place, of every document one. More of these are kept than are shown, since documents that are shown already are passed
over in the end (:func:`shown`). Where contexts may repeat a document, windows stand for documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt

from .arrays import Ragged, first_of_each, float_order, lengths_of, rank_in, starts_of

TOP, SAMPLE = 0, 1
LOWEST, HIGHEST = -16, 32
"""Octaves of activations: from 2^LOWEST on; what is smaller or larger than all counts to the outermost."""
SPARE = 2
"""So many times as many samples are kept as are shown."""
ENOUGH = 4
"""Among so many times as many rows as are kept there are nearly always enough of different documents."""


def octave(size: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The whole number e with 2^e <= size < 2^(e + 1)."""
    return np.clip(np.frexp(size)[1] - 1, LOWEST, HIGHEST).astype(np.int32)


def half_octave(size: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Which bin of the histogram it is, from 0 on: each begins √2 times as high as the last (:func:`low_edge`)."""
    mantissa, exponent = np.frexp(size.astype(np.float64))
    bins = 2 * (exponent - 1 - LOWEST) + (mantissa >= np.sqrt(0.5))
    return np.clip(bins, 0, 2 * (HIGHEST - LOWEST)).astype(np.int32)


def low_edge(bins: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Where a bin of the histogram begins."""
    return 2.0 ** (LOWEST + np.asarray(bins) / 2)


@dataclass(frozen=True)
class Choosing:
    """How many are shown: of top contexts, and of samples an octave. repeats: whether one document may come twice."""

    top: int = 20
    samples: int = 4
    repeats: bool = False


@dataclass(frozen=True)
class Contexts:
    """A row for each context. activation: at pos of its window. at, values: all activations of the window."""

    feature: Int[np.ndarray, "n"]
    kind: Int[np.ndarray, "n"]
    bin: Int[np.ndarray, "n"]
    activation: Float[np.ndarray, "n"]
    pos: Int[np.ndarray, "n"]
    document: Int[np.ndarray, "n"]
    window: Int[np.ndarray, "n"]
    hash: UInt[np.ndarray, "n"]
    at: Ragged
    values: Ragged

    def __len__(self) -> int:
        return len(self.feature)

    @property
    def key(self) -> Int[np.ndarray, "n"]:
        """Of its window, in the whole corpus."""
        return window_key(self.document, self.window)

    def take(self, rows: Int[np.ndarray, "chosen"]) -> Contexts:
        columns = (getattr(self, field.name) for field in fields(self))
        taken: list[Any] = [x.take(rows) if isinstance(x, Ragged) else x[rows] for x in columns]
        return Contexts(*taken)

    @classmethod
    def merged(cls, parts: Sequence[Contexts], choosing: Choosing) -> Contexts:
        """parts: in the order of their documents."""
        columns = ([getattr(part, field.name) for part in parts] for field in fields(cls))
        joined: list[Any] = [Ragged.joined(x) if isinstance(x[0], Ragged) else np.concatenate(x) for x in columns]
        whole = cls(*joined)
        return whole.take(chosen(whole, choosing))


def window_key(document: Int[np.ndarray, "n"], window: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    return document.astype(np.int64) << 24 | window.astype(np.int64)


def chosen(found: Contexts, choosing: Choosing) -> Int[np.ndarray, "kept"]:
    """Which rows are kept, in the order in which they are: by feature, top ones first, then samples by octave."""
    top = found.kind == TOP
    within = np.where(top, float_order(np.abs(found.activation)), found.hash)
    key = found.key if choosing.repeats else found.document
    return picked(found.feature, np.where(top, 0, sample_group(found.bin)), within, key, choosing)


def sample_group(bins: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Of samples by their octave, the highest first; 0 is that of the top contexts."""
    return HIGHEST + 1 - bins


def picked(
    feature: Int[np.ndarray, "n"],
    group: Int[np.ndarray, "n"],
    within: UInt[np.ndarray, "n"],
    key: Int[np.ndarray, "n"],
    choosing: Choosing,
) -> Int[np.ndarray, "kept"]:
    """Rows by feature and group, in each those that are first by ``within`` (32 bits), no two with the same key.

    Of equal ones those that come first.
    """
    code = feature.astype(np.uint64) << np.uint64(40) | group.astype(np.uint64) << np.uint64(32)
    order = np.argsort(code | within.astype(np.uint64), kind="stable")
    code = code[order]
    starts = starts_of(code)
    rank, size = rank_in(starts, len(order)), np.repeat(lengths_of(starts, len(order)), lengths_of(starts, len(order)))
    most = np.where(group[order] == 0, choosing.top, SPARE * choosing.samples)
    near = rank < ENOUGH * most  # who comes far behind is hardly ever needed
    rows = near.nonzero()[0]
    rows = rows[first_of_each(code[rows], key[order][rows])]
    if short := set(code[near & (size > ENOUGH * most)].tolist()) - _full(code[rows], most[rows]):
        rows = (near | np.isin(code, list(short))).nonzero()[0]
        rows = rows[first_of_each(code[rows], key[order][rows])]
    return order[rows[rank_in(starts_of(code[rows]), len(rows)) < most[rows]]]


def _full(code: UInt[np.ndarray, "n"], most: Int[np.ndarray, "n"]) -> set[int]:
    """The groups that have as many as they may."""
    starts = starts_of(code)
    return set(code[starts][lengths_of(starts, len(code)) >= most[starts]].tolist())


def shown(found: Contexts, choosing: Choosing) -> Int[np.ndarray, "shown"]:
    """Of what was kept, in its order: all top contexts, and samples of documents that are not shown before them."""
    key = found.key if choosing.repeats else found.document
    group = np.where(found.kind == TOP, 0, sample_group(found.bin))
    starts = starts_of(found.feature, group)
    rows = (group == 0).nonzero()[0]
    # A feature's octaves one after the other, and those of all features at once.
    turn = np.repeat(rank_in(starts_of(found.feature[starts]), len(starts)), lengths_of(starts, len(found)))
    for number in range(turn.max(initial=-1) + 1):
        some = ((turn == number) & (group > 0)).nonzero()[0]
        both = np.concatenate([rows, some])
        some = some[first_of_each(found.feature[both], key[both])[len(rows) :]]
        rank = rank_in(starts_of(found.feature[some]), len(some))
        rows = np.concatenate([rows, some[rank < choosing.samples]])
    return np.sort(rows)
