"""How each source's share of a target grows layer by layer (the paper's representation-level view).

The sources are carried forward once. Behind every layer their parts of the stream are read along the target's own
direction, its norm frozen where the target is read:

    Σ_m ⟨w, X̃_l[p, m]⟩ + constant = ⟨w, x_l[p]⟩ + constant          at every depth l; the last is the target itself
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..passes.rows import at
from ..passes.settings import Settings
from ..passes.sources import Spans
from .answer import Reading
from .document import others_dict, others_of


@dataclass(frozen=True)
class DepthLevel:
    """One depth, in units of the target's pre-activation. place: of the stream; layer −1 stands for the embeddings.

    values: one per source. other: what is none (``bias``, ``rest``). total: what the stream has along the direction
    there, the target's constant included.
    """

    place: Place
    values: Float[Tensor, "source"]
    other: dict[str, float]
    total: float

    @property
    def layer(self) -> int:
        return self.place.layer if self.place.depth else -1

    def to_dict(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "hook": self.place.hook,
            "values": self.values.tolist(),
            "other": others_dict(self.other),
            "total": self.total,
        }


def check_depth(place: Place, name: str) -> None:
    """Raises UserError for a target that is not read on the stream: nowhere else is its direction a direction."""
    if not place.is_stream:
        raise UserError(f"{name} is read at {place.hook}, and shares grow by depth on the residual stream alone")


def by_depth(
    reading: Reading, source: Spans, counts: Sequence[int], settings: Settings
) -> list[tuple[DepthLevel, ...]]:
    """For every position that is asked about the shares at every depth, from the embeddings on.

    counts: how many of the sources, in order, begin at or before each position.
    """
    readoff, seen = reading.readoff, reading.seen
    last, places = readoff.place, torch.tensor(reading.positions)
    behind = [Place(layer, "resid_post") for layer in range(seen.n_layers)]
    depths = [Place(0, "resid_pre"), *(place for place in behind if place.depth < last.depth), last]
    reads = {place.as_post if place.depth else place: places for place in depths}
    found = settings.carry(seen, source.start(seen), reads)
    w = at(readoff.direction.w, places)
    levels: list[list[DepthLevel]] = [[] for _ in places]
    for place, rows in found.items():
        values = rows.project(w).double().cpu()
        whole = (w * at(seen.at(place), places)).sum(-1) + at(readoff.direction.c, places)
        for mine, count, row, total in zip(levels, counts, values, whole.tolist(), strict=True):
            other = others_of(row, settings.allocation)
            mine.append(DepthLevel(place, row[:count], other, total))
    return [tuple(sorted(mine, key=lambda level: level.place.depth)) for mine in levels]
