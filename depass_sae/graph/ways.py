"""The ways by which a source matters to a reading, and how one is weighed against another.

weight: what flows, as heads looked. effect: what the reading loses to first order with everything free to move. query,
key: what the source does to the reading by where heads looked, as part of their queries, of their keys. Only weights
sum to the reading; a source can have none and still be what decides.

Each way has its own unit, so a source counts by its share of all that comes by that way, and by the largest of these
shares. Queries and keys are in the unit of what flows: where that is more than all of them, they are shares of it, so
that heads whose looking makes no difference do not count as much as what does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

Grow = Literal["weight", "effect", "both"]
WAYS = ("weight", "effect", "query", "key")
LOOKED = ("query", "key")
"""By where heads looked: edges of these kinds, too, have no part in what sums."""
COUNTED: Mapping[str, tuple[str, ...]] = {"weight": ("weight",), "effect": WAYS[1:], "both": WAYS}
"""What counts, by how a graph grows."""


def looks(by: Grow) -> bool:
    """Whether queries and keys are asked for."""
    return bool(set(LOOKED) & set(COUNTED[by]))


def shares(
    numbers: Mapping[str, Float[np.ndarray, "source"]], sizes: Mapping[str, float], by: Grow
) -> Float[np.ndarray, "source"]:
    """Of every source, by its largest way; all sources of a reading together have at most 1.

    numbers: of each way, some sources; sizes: Σ |number| over all sources.
    """
    import numpy as np

    whole = {way: max(sizes[way], sizes["weight"] if way in LOOKED else 0.0) for way in COUNTED[by] if way in numbers}
    each = [np.abs(numbers[way]) / whole[way] for way in whole if whole[way]]
    if not each:
        return np.zeros(len(numbers["weight"]))
    largest = np.max(each, axis=0)
    return largest / max(1.0, float(largest.sum()))


def mostly(edge: Mapping[str, Any]) -> str:
    """The kind of edge that its largest number, of those in one unit, makes it: ``flow``, ``query`` or ``key``."""
    numbers = {"flow": abs(edge["weight"]), **{way: abs(edge.get(way, 0.0)) for way in LOOKED}}
    return max(numbers, key=numbers.__getitem__)
