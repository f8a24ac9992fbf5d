"""Features by how often they fire: the dense, the rare and the dead, or all of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._version import SCHEMA_VERSION
from ..errors import UserError
from ..models.place import Place
from ..view.blocks import Block
from ..view.shown import Shown
from . import looks
from .results import TokenCount

if TYPE_CHECKING:
    import pandas

    from .index import Index

Which = Literal["dense", "rare", "dead", "all"]
TITLES: dict[str, tuple[str, str]] = {
    "dense": ("Those that fire most often", "features fire somewhere"),
    "rare": ("Those that fire, but least often", "features fire somewhere"),
    "dead": ("Those that fire nowhere", "features fire nowhere"),
    "all": ("All features", "features"),
}
"""Of each list its title, and what is counted."""


@dataclass(frozen=True)
class Order:
    """Of a list: by how often features fire (``count``), by their largest activation, or as they are numbered."""

    by: Literal["count", "max", "feature"]
    ascending: bool = False


ORDERS = {
    "dense": Order("count"),
    "rare": Order("count", ascending=True),
    "dead": Order("feature", ascending=True),
    "all": Order("feature", ascending=True),
}
"""Those that the lists have by themselves."""
TOKENS = 3


@dataclass(frozen=True)
class Listed:
    """fires_on: its most frequent tokens."""

    feature: str
    label: str | None
    count: int
    density: float
    max: float
    fires_on: tuple[TokenCount, ...]


@dataclass(frozen=True)
class FeatureList(Shown):
    """count: of all features that the list could name."""

    which: str
    model: str
    count: int
    features: tuple[Listed, ...]

    @property
    def title(self) -> str:
        return TITLES[self.which][0]

    def to_dict(self) -> dict[str, Any]:
        title, counted = TITLES[self.which]
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "list": self.which,
            "title": title,
            "which": counted,
            "count": self.count,
            "features": [{**asdict(one), "fires_on": list(map(asdict, one.fires_on))} for one in self.features],
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per feature."""
        import pandas

        columns = ("feature", "label", "count", "density", "max")
        return pandas.DataFrame([{key: getattr(one, key) for key in columns} for one in self.features], columns=columns)

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        return looks.feature_list(self.to_dict(), top)


def listed(
    index: Index, which: str, top: int, layer: str | None = None, order: Order | None = None, start: int = 0
) -> FeatureList:
    """Of all SAEs, or of those of one layer: ``top`` from the place ``start`` on.

    Raises UserError for another list, and for a layer without an SAE.
    """
    check_list(which)
    if top < 1:
        raise UserError(f"a list has 1 feature or more, not {top}")
    hooks = [hook for hook in sorted(index.saes) if layer in (None, str(hook.layer), str(hook))]
    if not hooks:
        raise UserError(f"there is no SAE at {layer}; there are SAEs at {', '.join(map(str, sorted(index.saes)))}")
    count = np.concatenate([index.features(hook)["count"] for hook in hooks])
    rows = ((count == 0) if which == "dead" else (count > 0) | (which == "all")).nonzero()[0]
    order = order or ORDERS[which]
    keys = rows if order.by == "feature" else np.concatenate([index.features(hook)[order.by] for hook in hooks])[rows]
    best = rows[np.argsort(keys if order.ascending else -keys, kind="stable")][start : start + top]
    widths = np.array([index.saes[hook] for hook in hooks])
    starts = np.cumsum(widths) - widths
    number = np.searchsorted(starts, best, side="right") - 1
    found = [
        _listed(index, hooks[n], int(row - starts[n])) for n, row in zip(number.tolist(), best.tolist(), strict=True)
    ]
    return FeatureList(which, index.manifest.model["name"], len(rows), tuple(found))


def check_list(which: str) -> None:
    """Raises UserError for a list that there is not."""
    if which not in TITLES:
        raise UserError(f"the lists are {', '.join(TITLES)}, not {which!r}")


def _listed(index: Index, hook: Place, feature: int) -> Listed:
    scalars = index.features(hook)
    return Listed(
        index.name(hook, feature),
        index.label(hook, feature),
        int(scalars["count"][feature]),
        float(scalars["density"][feature]),
        float(scalars["max"][feature]),
        index.token_counts(hook, "tokens", feature, TOKENS),
    )
