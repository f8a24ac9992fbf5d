"""Which features fire on a prompt, strongest first, per layer and position: where every question starts.

A feature that fires everywhere heads every position and says nothing about any. Such features are marked, and
``sort="specific"`` puts first what a position has beyond a feature's usual activation on the prompt:

    |activation| − mean of |activation| over the prompt's positions, without position 0, special tokens and sinks

Where there is an index of a corpus, it puts first what is rarest there: at what share of its tokens the feature fires
as strongly, or more. Then names are there, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from ..errors import SAEFitWarning, UserError, warn
from ..labels.automatic import ALWAYS as ALWAYS_OVER
from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.sinks import sinks
from ..saes import Fit, describe
from ..subject import Subject
from ..view.blocks import Block, Page
from ..view.figures import figures
from ..view.shown import Shown
from . import looks
from .document import Heading, fit_dict

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


Sort = Literal["activation", "specific"]
SHOWN = 8
"""So many features of a position are shown where nobody says how many."""
ALWAYS, ENOUGH = 0.9, 8
"""A feature is always on where it fires at such a share of the positions that count, and there are so many of them."""


class Corpus(Protocol):
    """What is known of features over a corpus: an index."""

    @property
    def tokens(self) -> int: ...

    def check_saes(self, saes: Mapping[Place, Any]) -> None:
        """Raises UserError where it is of others."""

    def densities(self, hook: Place, features: Sequence[int]) -> list[float]:
        """At what share of its tokens each fires."""

    def shares(self, hook: Place, features: Sequence[int], activations: Sequence[float]) -> list[float]:
        """At what share of its tokens each fires as strongly, or more."""

    def label(self, hook: Place, index: int) -> str | None: ...


@dataclass(frozen=True)
class ActiveAt:
    """The active features of one position in the report's order; none at position 0 where that is a special token.

    shares: see :meth:`.Corpus.shares`; none without a corpus.
    """

    pos: int
    token: str
    indices: tuple[int, ...]
    activations: tuple[float, ...]
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class LayerFeatures:
    """One SAE on the prompt. ``name``: what its features are written with; ``17.attn_out`` where SAEs share a layer.

    usual: every active feature's mean activation by size; always_on: those that fire at nearly every position, or at
    half of a corpus's tokens. Neither counts position 0, special tokens and attention sinks. density, labels: of the
    active ones, over a corpus.
    """

    hook: Place
    name: str
    sae: dict[str, Any]
    fit: Fit
    positions: tuple[ActiveAt, ...]
    usual: Mapping[int, float]
    always_on: tuple[int, ...]
    density: Mapping[int, float] = field(default_factory=dict)
    labels: Mapping[int, str] = field(default_factory=dict)

    def over_corpus(self, at: ActiveAt, number: int) -> dict[str, Any]:
        """What a corpus says of a feature that is active."""
        index = at.indices[number]
        if not at.shares:
            return {}
        return {"label": self.labels.get(index), "density": self.density[index], "share": at.shares[number]}


@dataclass(frozen=True)
class FeatureReport(Shown):
    """Every active feature of every SAE that was asked, layers ascending.

    sort: what comes first at a position: the strongest ("activation"), or what is most above its usual, or rarest over
    a corpus ("specific"). corpus: of how many tokens it is; None without one.
    """

    heading: Heading
    layers: tuple[LayerFeatures, ...]
    sort: Sort = "activation"
    corpus: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The document that ``depass-sae features --json`` prints."""
        return {
            **self.heading.to_dict(),
            "sort": self.sort,
            **({} if self.corpus is None else {"corpus": {"tokens": self.corpus}}),
            "layers": [
                {
                    "layer": layer.hook.layer,
                    "hook": layer.hook.name,
                    "sae": layer.sae,
                    **(fit_dict(layer.fit) or {}),
                    "always_on": list(layer.always_on),
                    "positions": [
                        {
                            "pos": at.pos,
                            "token": at.token,
                            "features": [
                                {"index": i, "activation": a, **layer.over_corpus(at, n)}
                                for n, (i, a) in enumerate(zip(at.indices, at.activations, strict=True))
                            ],
                        }
                        for at in layer.positions
                    ],
                }
                for layer in self.layers
            ],
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per active feature. above_usual, or share over a corpus: what ``sort="specific"`` goes by."""
        import pandas

        rows = [
            (
                *(layer.hook.layer, layer.hook.name, at.pos, at.token, f"{layer.name}/{index}", index, activation),
                *(abs(activation) - layer.usual.get(index, 0.0), index in layer.always_on),
                *layer.over_corpus(at, number).values(),
            )
            for layer in self.layers
            for at in layer.positions
            for number, (index, activation) in enumerate(zip(at.indices, at.activations, strict=True))
        ]
        columns = ["layer", "hook", "pos", "token", "feature", "index", "activation", "above_usual", "always_on"]
        columns += [] if self.corpus is None else ["label", "density", "share"]
        return pandas.DataFrame(rows, columns=columns)

    @property
    def title(self) -> str:
        return "Which features fire"

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """The first ``top`` features of every position, a table per SAE."""
        return looks.features_blocks(self.to_dict(), SHOWN if top is None else top)

    def page(self) -> Page:
        return self.heading.page(self.title, (*looks.feature_maps(self.to_dict()), *self.blocks()))

    def figure(self) -> Figure:
        """The strongest features of every SAE at each position."""
        return figures(looks.feature_maps(self.to_dict()))


def find_features(
    subject: Subject,
    prompt: Prompt,
    layer: int | None = None,
    sort: Sort = "activation",
    corpus: Corpus | None = None,
) -> FeatureReport:
    """The features that fire on a prompt, for all SAEs or those of one layer.

    Raises UserError where there is no SAE at the layer, for an order that is none, and for a corpus of other SAEs.
    """
    check_sort(sort)
    hooks = sorted(hook for hook in subject.saes if layer in (None, hook.layer))
    if not hooks:
        subject.hook(-1 if layer is None else layer)  # says which there are
    too_deep = [hook for hook in hooks if hook.layer >= subject.adapter.n_layers]
    if too_deep:
        raise UserError(f"{subject.loaded.name} has {subject.adapter.n_layers} layers; no SAE can be at {too_deep[0]}")
    if corpus is not None:
        corpus.check_saes({hook: subject.saes[hook] for hook in hooks})
    seen = subject.trace(prompt, hooks[-1].layer, hooks)
    layers = []
    for hook in hooks:
        encoded = subject.encoding(seen, hook)
        shared = sum(other.layer == hook.layer for other in subject.saes) > 1
        positions = [
            {}
            if pos == 0 and prompt.special[0]
            else dict(zip(active.indices.tolist(), active.activations.tolist(), strict=True))
            for pos, active in enumerate(encoded.active)
        ]
        left_out = {0, *sinks(seen, hook)}
        counted = [at for pos, at in enumerate(positions) if pos not in left_out and not prompt.special[pos]]
        usual, always_on = _usual(counted)
        name = str(hook) if shared else str(hook.layer)
        if encoded.fit.warning:
            warn(f"{hook}: {encoded.fit.warning}", SAEFitWarning)
        ordered = tuple(
            ActiveAt(pos, token, tuple(at), tuple(at.values()))
            for pos, (token, at) in enumerate(
                zip(prompt.tokens, (_ordered(at, usual, sort) for at in positions), strict=True)
            )
        )
        found = LayerFeatures(hook, name, describe(encoded.sae), encoded.fit, ordered, usual, always_on)
        layers.append(found if corpus is None else _over(corpus, found, sort))
    return FeatureReport(Heading.of(subject, prompt), tuple(layers), sort, None if corpus is None else corpus.tokens)


def _over(corpus: Corpus, layer: LayerFeatures, sort: Sort) -> LayerFeatures:
    """With what a corpus says of the features."""
    active = sorted({index for at in layer.positions for index in at.indices})
    density = dict(zip(active, corpus.densities(layer.hook, active), strict=True))
    labels = {index: label for index in active if (label := corpus.label(layer.hook, index)) is not None}
    positions = []
    for at in layer.positions:
        shares = corpus.shares(layer.hook, at.indices, at.activations)
        order = list(range(len(shares)))
        if sort == "specific":
            order.sort(key=lambda n, shares=shares, at=at: (shares[n], -abs(at.activations[n])))  # type: ignore[misc]
        indices, activations = tuple(at.indices[n] for n in order), tuple(at.activations[n] for n in order)
        positions.append(ActiveAt(at.pos, at.token, indices, activations, tuple(shares[n] for n in order)))
    always_on = sorted({*layer.always_on, *(index for index in active if density[index] >= ALWAYS_OVER)})
    return replace(layer, positions=tuple(positions), density=density, labels=labels, always_on=tuple(always_on))


def _usual(positions: Sequence[Mapping[int, float]]) -> tuple[dict[int, float], tuple[int, ...]]:
    """The mean size of every feature's activation over some positions, and the features that fire at nearly all."""
    sums: defaultdict[int, float] = defaultdict(float)
    for at in positions:
        for index, activation in at.items():
            sums[index] += abs(activation)
    counts = Counter(index for at in positions for index in at)
    n = len(positions)
    always = sorted(index for index, count in counts.items() if n >= ENOUGH and count >= ALWAYS * n)
    return {index: total / n for index, total in sums.items()}, tuple(always)


def check_sort(sort: str) -> None:
    """Raises UserError for an order that there is not."""
    if sort not in get_args(Sort):
        raise UserError(f"features are sorted by {' or '.join(get_args(Sort))}, not by {sort!r}")


def _ordered(at: Mapping[int, float], usual: Mapping[int, float], sort: Sort) -> dict[int, float]:
    if sort == "activation":  # as they come
        return dict(at)
    return dict(sorted(at.items(), key=lambda entry: usual.get(entry[0], 0.0) - abs(entry[1])))
