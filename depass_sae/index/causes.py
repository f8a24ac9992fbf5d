"""Why a feature fires: the pre-activations at its strongest contexts, split over what they came from.

In each context the pre-activation is split by source token (:mod:`..attribution.tokens`), by head, and by the features
of the SAEs below, each of these splits a whole of its own. A share is a part over the sum of all parts of its context,
which is the pre-activation up to the completeness error; so that in every context and on average

    own token + earlier tokens + constant = 1

where *constant* is what no token of the context brings: position 0 (the start token, or what stands there in its
place), bias vectors and what the rule leaves over, and the constant that the feature's own encoder adds. Shares have
signs: what holds a feature back is below zero, and others may then have more than all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import fsum
from typing import TYPE_CHECKING, Any

from .._version import SCHEMA_VERSION
from ..labels.automatic import Cause, spelled
from ..models.place import Place
from ..view.blocks import Block, Page
from ..view.shown import Shown

if TYPE_CHECKING:
    import pandas

DISTANCES = ((1, 1), (2, 4), (5, 16), (17, None))
"""How far before the firing token an earlier one stands: from, and up to."""
FIRST = 5
"""So many tokens of a context, the largest by size, are its causes; heads and features twice as many."""
LISTED = 50
"""So many source tokens a document lists."""


@dataclass(frozen=True, kw_only=True)
class CausedContext:
    """A context up to where the feature was read. contributions: of every token, in units of the pre-activation.

    activations: of the feature, at every token. other: what is no token of it (``bias``, ``rest``, ``pattern``).
    constant: the encoder's own. These and the contributions sum to the pre-activation, up to completeness_error.
    """

    document: str
    number: int
    start: int
    pos: int
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    contributions: tuple[float, ...]
    other: Mapping[str, float]
    constant: float
    pre_activation: float
    completeness_error: float

    @property
    def whole(self) -> float:
        """The sum of all parts."""
        return fsum([*self.contributions, *self.other.values(), self.constant])

    @property
    def earlier(self) -> range:
        """The positions of earlier tokens."""
        return range(1, self.pos)

    @cached_property
    def causes(self) -> tuple[int, ...]:
        """The positions of the tokens that contribute most by size, largest first; position 0 is none of them."""
        found = sorted({*self.earlier, self.pos}, key=lambda pos: (-abs(self.contributions[pos]), pos))
        return tuple(found[:FIRST])


@dataclass(frozen=True)
class Shares:
    """Of the pre-activation. distances: what ``earlier`` is the sum of, by :data:`DISTANCES`.

    start, other, encoder: what ``constant`` is the sum of: position 0, bias vectors and the rule's rest, the constant.
    """

    own: float
    earlier: float
    constant: float
    distances: tuple[float, ...]
    start: float
    other: float
    encoder: float

    @classmethod
    def of(cls, context: CausedContext) -> Shares:
        values, whole = context.contributions, context.whole
        first = 0.0 if context.pos == 0 else values[0]
        other = fsum(context.other.values())
        distances = tuple(
            fsum(values[pos] for pos in context.earlier if low <= context.pos - pos <= (high or context.pos))
            for low, high in DISTANCES
        )
        parts = (first, other, context.constant)
        return cls(
            values[context.pos] / whole, fsum(distances) / whole, fsum(parts) / whole,
            tuple(part / whole for part in distances), *(part / whole for part in parts),
        )  # fmt: skip

    @classmethod
    def mean(cls, some: list[Shares]) -> Shares:
        def of(values: list[float]) -> float:
            return fsum(values) / len(some)

        rows = [vars(one) for one in some]
        singles = {name: of([row[name] for row in rows]) for name in rows[0] if name != "distances"}
        return cls(**singles, distances=tuple(map(of, map(list, zip(*(one.distances for one in some), strict=True)))))


@dataclass(frozen=True)
class SourceText:
    """What tokens that read the same have of the pre-activation, as the firing token and before it: means of shares.

    contexts: in how many they are among the causes.
    """

    text: str
    own: float
    earlier: float
    contexts: int


@dataclass(frozen=True)
class HeadShare:
    """A head's mean share. contexts: in how many it is among the ten largest. Those of different layers overlap."""

    head: str
    share: float
    contexts: int


@dataclass(frozen=True)
class FeatureShare:
    """The same of a feature of an SAE below."""

    feature: str
    label: str | None
    index: int
    share: float
    contexts: int


@dataclass(frozen=True)
class Below:
    """The features of one SAE below, largest first; total: of all of them, listed or not.

    errors: of that SAE. other: what the stream has from elsewhere: position 0, the decoder's and the encoder's
    constants, bias vectors. total + errors + other = 1, up to the completeness error.
    """

    hook: Place
    features: tuple[FeatureShare, ...]
    total: float
    errors: float
    other: float


@dataclass(frozen=True, kw_only=True)
class Causes(Shown):
    """Why a feature fires in its strongest contexts. asked: the settings, and the model and the SAEs that say so.

    label: what the feature means. heads, below: largest first by size.
    """

    model: str
    hook: Place
    index: int
    feature: str
    label: str | None
    asked: dict[str, Any]
    contexts: tuple[CausedContext, ...]
    heads: tuple[HeadShare, ...]
    below: tuple[Below, ...]

    @cached_property
    def shares(self) -> Shares:
        """Their means over the contexts."""
        return Shares.mean([Shares.of(context) for context in self.contexts])

    @cached_property
    def sources(self) -> tuple[SourceText, ...]:
        """By what tokens read, largest first by size."""
        own, earlier, contexts = (defaultdict[str, float](float) for _ in range(3))
        for context in self.contexts:
            texts, whole = list(map(spelled, context.tokens)), context.whole * len(self.contexts)
            own[texts[context.pos]] += context.contributions[context.pos] / whole
            for pos in context.earlier:
                earlier[texts[pos]] += context.contributions[pos] / whole
            for text in {texts[pos] for pos in context.causes}:
                contexts[text] += 1
        found = [
            SourceText(text, own.get(text, 0.0), earlier.get(text, 0.0), int(contexts.get(text, 0)))
            for text in own.keys() | earlier.keys()
        ]
        return tuple(sorted(found, key=lambda source: (-abs(source.own + source.earlier), source.text)))

    @property
    def before(self) -> list[Cause]:
        """The earlier tokens, as a name is made of them."""
        return [Cause(source.text, source.earlier, source.contexts) for source in self.sources]

    @property
    def completeness_error(self) -> float:
        """The largest of the contexts'."""
        return max(context.completeness_error for context in self.contexts)

    def with_labels(self, label: Callable[[Place, int], str | None]) -> Causes:
        """With what the features mean now."""
        below = tuple(
            replace(one, features=tuple(replace(f, label=label(one.hook, f.index)) for f in one.features))
            for one in self.below
        )
        return replace(self, label=label(self.hook, self.index), below=below)

    @property
    def title(self) -> str:
        return f"Why {self.feature} fires"

    def to_dict(self) -> dict[str, Any]:
        shares = asdict(self.shares)
        listed, others = self.sources[:LISTED], self.sources[LISTED:]
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "feature": {"layer": self.hook.layer, "index": self.index, "hook": self.hook.name},
            "name": self.feature,
            "label": self.label,
            "asked": self.asked,
            "shares": shares
            | {
                "distances": [
                    {"from": low, "to": high, "share": share}
                    for (low, high), share in zip(DISTANCES, self.shares.distances, strict=True)
                ]
            },
            "completeness_error": self.completeness_error,
            "sources": {
                "texts": [asdict(source) for source in listed],
                "others": {key: fsum(getattr(source, key) for source in others) for key in ("own", "earlier")},
            },
            "heads": [asdict(head) for head in self.heads],
            "below": [
                {**asdict(one), "hook": str(one.hook), "features": list(map(asdict, one.features))}
                for one in self.below
            ],
            "contexts": [_context_dict(context) for context in self.contexts],
        }

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Causes:
        """Of its document. Raises KeyError, TypeError or ValueError for what is none."""
        feature = said["feature"]
        return cls(
            model=said["model"],
            hook=Place(feature["layer"], feature["hook"]),
            index=feature["index"],
            feature=said["name"],
            label=said["label"],
            asked=said["asked"],
            contexts=tuple(map(_context, said["contexts"])),
            heads=tuple(HeadShare(**head) for head in said["heads"]),
            below=tuple(map(_below, said["below"])),
        )

    def to_frame(self) -> pandas.DataFrame:
        """One row per token of every context, and one each for what is no token; these sum to the pre-activation."""
        import pandas

        rows: list[dict[str, Any]] = []
        for number, context in enumerate(self.contexts):
            head = {"context": number, "document": context.document}
            each = zip(context.tokens, context.activations, context.contributions, strict=True)
            rows += [
                {**head, "kind": "token", "pos": pos, "token": token, "activation": activation, "contribution": value}
                for pos, (token, activation, value) in enumerate(each)
            ]
            other = {**context.other, "constant": context.constant}
            rows += [{**head, "kind": kind, "contribution": value} for kind, value in other.items()]
        columns = ["context", "document", "kind", "pos", "token", "activation", "contribution"]
        return pandas.DataFrame(rows, columns=columns).astype({"pos": "Int64"})

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        from . import causes_looks

        return causes_looks.causes(self.to_dict(), top)

    def page(self) -> Page:
        from . import causes_looks

        return causes_looks.causes_page(self.to_dict())


def _context_dict(context: CausedContext) -> dict[str, Any]:
    return asdict(context) | {
        "tokens": list(context.tokens),
        "token_ids": list(context.token_ids),
        "activations": list(context.activations),
        "contributions": list(context.contributions),
        "other": dict(context.other),
        "causes": list(context.causes),
    }


def _context(said: Mapping[str, Any]) -> CausedContext:
    lists = ("tokens", "token_ids", "activations", "contributions")
    fields: dict[str, Any] = {key: tuple(v) if key in lists else v for key, v in said.items() if key != "causes"}
    found = CausedContext(**fields)
    if not len(found.tokens) == len(found.activations) == len(found.contributions) == found.pos + 1 > 0:
        raise ValueError("a context's lists differ in length")
    return found


def _below(said: Mapping[str, Any]) -> Below:
    return Below(
        **{**said, "hook": Place.parse(said["hook"]), "features": tuple(FeatureShare(**f) for f in said["features"])}
    )
