"""What an index answers: a feature over its corpus, and what the index is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .._version import SCHEMA_VERSION
from ..models.place import Place
from ..view.blocks import Block, Page
from ..view.shown import Shown
from . import looks

if TYPE_CHECKING:
    import pandas

    from .causes import Causes
    from .index import Index


@dataclass(frozen=True)
class Context:
    """A window of a document. activation: the feature's at ``pos``; activations: at each of its tokens.

    number: of the document in the corpus. start: how many of the document's tokens stand before the window.
    """

    activation: float
    pos: int
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    document: str
    number: int
    start: int


@dataclass(frozen=True)
class TokenCount:
    """How often a feature fires on a token, or beside it; mean and max of its activation there."""

    token: str
    id: int
    count: int
    mean: float
    max: float


@dataclass(frozen=True)
class Histogram:
    """count: of what is at low or above, and below the next bin."""

    low: tuple[float, ...]
    count: tuple[int, ...]

    def to_list(self, name: str) -> list[dict[str, Any]]:
        return [{name: low, "count": count} for low, count in zip(self.low, self.count, strict=True)]


@dataclass(frozen=True, kw_only=True)
class FeatureInIndex(Shown):
    """A feature over a corpus. scanned: tokens of it at which features count.

    contexts: strongest first, no two of one document unless the scan was asked for that. samples: of every octave of
    activation, strongest octave first, drawn by a hash. fires_on, before, after: the tokens it fires on and those
    beside them, most frequent first. partners: features of the same SAE with (name, label, on how many of the ``drawn``
    tokens on which this one fires they fire, too). missed: by how much a count may be too low where a feature has more
    keys than are kept. top, bottom: tokens that its decoder raises and lowers most: (text, id, logit). causes: why it
    fires in its strongest contexts, where that was asked.
    """

    model: str
    sae: Mapping[str, Any]
    hook: Place
    index: int
    name: str
    label: str | None
    count: int
    scanned: int
    mean: float
    largest: float
    histogram: Histogram
    positions: Histogram
    contexts: tuple[Context, ...]
    samples: tuple[Context, ...]
    fires_on: tuple[TokenCount, ...]
    before: tuple[TokenCount, ...]
    after: tuple[TokenCount, ...]
    partners: tuple[tuple[str, str | None, int], ...]
    drawn: int
    missed: Mapping[str, int]
    top: tuple[tuple[str, int, float], ...]
    bottom: tuple[tuple[str, int, float], ...]
    causes: Causes | None = None

    @property
    def density(self) -> float:
        """The share of the tokens at which it fires."""
        return self.count / self.scanned if self.scanned else 0.0

    @property
    def title(self) -> str:
        return f"Feature {self.name} over a corpus"

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "sae": self.sae,
            "feature": {"layer": self.hook.layer, "index": self.index, "hook": self.hook.name},
            "name": self.name,
            "label": self.label,
            "count": self.count,
            "tokens": self.scanned,
            "density": self.density,
            "mean": self.mean,
            "max": self.largest,
            "histogram": self.histogram.to_list("activation"),
            "positions": self.positions.to_list("pos"),
            "contexts": [_context_dict(context) for context in self.contexts],
            "samples": [_context_dict(context) for context in self.samples],
            "fires_on": [asdict(token) for token in self.fires_on],
            "before": [asdict(token) for token in self.before],
            "after": [asdict(token) for token in self.after],
            "partners": {
                "drawn": self.drawn,
                "features": [{"feature": name, "label": label, "count": n} for name, label, n in self.partners],
            },
            "missed": dict(self.missed),
            "logits": {key: [_vote_dict(vote) for vote in getattr(self, key)] for key in ("top", "bottom")},
            **({} if self.causes is None else {"causes": self.causes.to_dict()}),
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per token of every context."""
        import pandas

        rows = [
            {"kind": kind, "context": number, "document": context.document, "pos": pos, "token": token, "activation": a}
            for kind, contexts in (("top", self.contexts), ("sample", self.samples))
            for number, context in enumerate(contexts)
            for pos, (token, a) in enumerate(zip(context.tokens, context.activations, strict=True))
        ]
        return pandas.DataFrame(rows, columns=["kind", "context", "document", "pos", "token", "activation"])

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        return looks.feature(self.to_dict(), top)

    def page(self) -> Page:
        return looks.feature_page(self.to_dict())


def _context_dict(context: Context) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(context).items()}


def _vote_dict(vote: tuple[str, int, float]) -> dict[str, Any]:
    return dict(zip(("token", "id", "logit"), vote, strict=True))


@dataclass(frozen=True)
class SaeOverview:
    """sae: its hook. dead: features that fire nowhere. l0: features per token."""

    sae: str
    features: int
    dead: int
    l0: float


@dataclass(frozen=True)
class Overview(Shown):
    """What an index is of. left_out: of the corpus."""

    folder: str
    model: Mapping[str, Any]
    corpus: Mapping[str, Any]
    tokens: int
    settings: Mapping[str, Any]
    left_out: Mapping[str, Any]
    saes: tuple[SaeOverview, ...]

    @classmethod
    def of(cls, index: Index) -> Overview:
        manifest, saes = index.manifest, []
        for hook, width in index.saes.items():
            count = index.features(hook)["count"]
            saes.append(
                SaeOverview(str(hook), width, int((count == 0).sum()), float(count.sum() / max(index.tokens, 1)))
            )
        return cls(
            str(index.folder), manifest.model, manifest.corpus, manifest.tokens, manifest.settings, manifest.left_out,
            tuple(saes),
        )  # fmt: skip

    @property
    def title(self) -> str:
        return "An index of features over a corpus"

    def to_dict(self) -> dict[str, Any]:
        saes = [asdict(sae) for sae in self.saes]
        return {"schema_version": SCHEMA_VERSION, **vars(self), "saes": saes}

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        return looks.overview(self.to_dict(), top)
