"""Numbers that look random and are always the same: what is drawn does not depend on who draws it, or when.

SplitMix64's finalizer (Steele, Lea and Flood 2014) of a document's number and a place in it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt


def place_hash(
    document: Int[np.ndarray, "n"], window: Int[np.ndarray, "n"], pos: Int[np.ndarray, "n"]
) -> UInt[np.ndarray, "n"]:
    """64 bits for each position of a corpus."""
    mixed = _mixed(document.astype(np.uint64))
    mixed = _mixed(mixed ^ window.astype(np.uint64))
    return _mixed(mixed ^ pos.astype(np.uint64))


def _mixed(x: UInt[np.ndarray, "n"]) -> UInt[np.ndarray, "n"]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
