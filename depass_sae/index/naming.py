"""Automatic names of all features of an SAE, from the tables of an index: ``labels.parquet`` beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..labels.automatic import Firings, Spelled, automatic_label
from ..labels.kept import NAME
from .tables import Sorted, Writer, blocks, columns_of, open_parquet, rows_of

BLOCK = 2**19
"""Rows that are read at a time."""


def write_labels(folder: Path, vocabulary: Spelled) -> None:
    """folder: of one SAE, with its other tables."""
    offsets = columns_of(open_parquet(folder / "offsets.parquet", mapped=False).read())
    tables = {name: Sorted.open(folder / f"{name}.parquet", offsets[name]) for name in ("tokens", "before")}
    features = open_parquet(folder / "features.parquet")
    ranges = list(blocks([offsets[name] for name in tables], BLOCK))
    bases = {name: _base(table, ranges, vocabulary) for name, table in tables.items()}
    with Writer(folder / NAME) as writer:
        for low, high in ranges:
            own = columns_of(rows_of(features, low, high, ["count", "density", "mean", "top_tokens"]))
            found = {name: _Rows.read(table, low, high, vocabulary) for name, table in tables.items()}
            numbers, labels = [], []
            for i in range(high - low):
                on, before = (found[name].feature(i, bases[name]) for name in ("tokens", "before"))
                activation = float(own["count"][i]) * float(own["mean"][i])
                raised = vocabulary.of[own["top_tokens"].row(i)].tolist()
                label = automatic_label(float(own["density"][i]), activation, on, before, raised, vocabulary.texts)
                if label is not None:
                    numbers.append(low + i)
                    labels.append(label)
            writer.add({"feature": np.array(numbers, dtype=np.int32), "label": labels})


def _base(table: Sorted, ranges: list[tuple[int, int]], vocabulary: Spelled) -> Float[np.ndarray, "text"]:
    """Of every text, its share of all firings."""
    count = np.zeros(len(vocabulary.texts))
    for low, high in ranges:
        rows = table.rows(int(table.offsets[low]), int(table.offsets[high]))
        count += np.bincount(vocabulary.of[rows["token"]], weights=rows["count"], minlength=len(count))
    return count / max(count.sum(), 1)


class _Rows:
    """The rows of a range of features, texts and activation."""

    def __init__(self, offsets: Int[np.ndarray, "d_sae+1"], texts: Any, weight: Any) -> None:
        self._offsets, self._texts, self._weight = offsets, texts, weight

    @classmethod
    def read(cls, table: Sorted, low: int, high: int, vocabulary: Spelled) -> _Rows:
        offsets = table.offsets[low : high + 1]
        rows = table.rows(int(offsets[0]), int(offsets[-1]))
        weight = rows["count"] * rows["mean"].astype(np.float64)
        return cls(offsets - offsets[0], vocabulary.of[rows["token"]], weight)

    def feature(self, i: int, base: Float[np.ndarray, "text"]) -> Firings:
        begin, end = self._offsets[i], self._offsets[i + 1]
        return Firings(self._texts[begin:end], self._weight[begin:end], base)
