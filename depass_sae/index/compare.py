"""Two indexes of the same SAEs, side by side: which features fire more, or less, over another corpus.

z is that of two shares, as if tokens were drawn one by one: (p₁ − p₂) / √(p (1 − p) (1/n₁ + 1/n₂)), p the share over
both. Tokens of a text go together, so it says in which order to look, and is no test.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import SCHEMA_VERSION
from ..errors import UserError
from ..view.blocks import Block
from ..view.shown import Shown
from . import looks

if TYPE_CHECKING:
    import pandas

    from .index import Index

BOUND = 5.0
"""So large a z is counted as a difference."""


@dataclass(frozen=True)
class Difference:
    """count: in the first and in the second. log2_ratio: of their shares, the second's over the first's, half a firing
    added to each."""

    feature: str
    label: str | None
    count: tuple[int, int]
    log2_ratio: float
    z: float


@dataclass(frozen=True)
class Comparison(Shown):
    """tokens: of each. compared: features; differ: those with a |z| above the bound; only: that fire in one alone."""

    folders: tuple[str, str]
    tokens: tuple[int, int]
    compared: int
    differ: int
    only: tuple[int, int]
    notes: tuple[str, ...]
    features: tuple[Difference, ...]

    @property
    def title(self) -> str:
        return "Features over two corpora"

    def to_dict(self) -> dict[str, Any]:
        said = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        return {
            "schema_version": SCHEMA_VERSION,
            "bound": BOUND,
            **said,
            "features": [asdict(d) for d in self.features],
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per feature that is named."""
        import pandas

        rows = [
            {"feature": d.feature, "label": d.label, "first": d.count[0], "second": d.count[1],
             "log2_ratio": d.log2_ratio, "z": d.z}
            for d in self.features
        ]  # fmt: skip
        return pandas.DataFrame(rows, columns=["feature", "label", "first", "second", "log2_ratio", "z"])

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        return looks.comparison(self.to_dict(), top)


def compare(first: Index, second: Index, top: int = 20) -> Comparison:
    """The features that differ most, by |z|. Raises UserError for indexes that have no SAE in common."""
    if top < 1:
        raise UserError(f"a comparison names 1 feature or more, not {top}")
    ours, theirs = first.manifest.saes, second.manifest.saes
    hooks = [h for h in first.saes if h in second.saes and ours[str(h)]["sha256"] == theirs[str(h)]["sha256"]]
    if not hooks:
        raise UserError("the two indexes have no SAE in common (the same weights at the same hook)")
    n = np.array([first.tokens, second.tokens], dtype=np.float64)
    names, counts = [], []
    for hook in hooks:
        counts.append(np.stack([first.features(hook)["count"], second.features(hook)["count"]]))
        names += [(hook, i) for i in range(first.saes[hook])]
    count = np.concatenate(counts, axis=1).astype(np.float64)
    share, both = count / n[:, None], count.sum(0) / n.sum()
    spread = np.sqrt(both * (1 - both) * (1 / n).sum())
    z = np.divide(share[1] - share[0], spread, out=np.zeros_like(spread), where=spread > 0)
    ratio = np.log2((count[1] + 0.5) / n[1]) - np.log2((count[0] + 0.5) / n[0])
    order = np.argsort(-np.abs(z), kind="stable")[:top]
    notes = []
    if first.manifest.model != second.manifest.model:
        notes.append("The indexes were made with models, or precisions, that are not the same.")
    if first.manifest.settings["window"] != second.manifest.settings["window"]:
        notes.append("Their windows are not of one length.")
    return Comparison(
        folders=(str(first.folder), str(second.folder)),
        tokens=(first.tokens, second.tokens),
        compared=count.shape[1],
        differ=int((np.abs(z) > BOUND).sum()),
        only=(int(((count[0] > 0) & (count[1] == 0)).sum()), int(((count[1] > 0) & (count[0] == 0)).sum())),
        notes=tuple(notes),
        features=tuple(
            Difference(
                first.name(*names[i]), first.given_label(*names[i]) or second.label(*names[i]),
                (int(count[0, i]), int(count[1, i])), float(ratio[i]), float(z[i]),
            )
            for i in order.tolist()
            if z[i]
        ),
    )  # fmt: skip
