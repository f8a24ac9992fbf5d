"""A feature's card over one or several prompts: where it fires, what drives it, what it writes, and what is near it.

At its strongest firings the pre-activation is split by :func:`.attribute_tokens`, and the split is kept whole:

    own token + earlier tokens + position 0 + other (biases, rest) + constant = pre-activation

Summed over these firings by the source tokens' text it says which words drive the feature. Position 0 stands on its
own: in most models it carries an activation that has nothing to do with its token. Neighbours by flow:
graph/neighbours.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...attribution.answer import pattern_note
from ...attribution.document import SCHEMA_VERSION, allocation_dict, fit_dict
from ...attribution.tokens import TokenTarget
from ...attribution.votes import DecoderVotes
from ...graph.neighbours import Alike
from ...labels.contexts import PublicFeature
from ...labels.files import check_labels
from ...labels.neuronpedia import feature_page
from ...models.place import Place
from ...models.prompt import Prompt
from ...passes.forward import Allocation
from ...passes.frozen import INSIDE
from ...saes import Fit
from ...texts import together
from ...view.blocks import Block, Page
from ...view.html import Html, fragment
from ...view.shown import Shown

if TYPE_CHECKING:
    import pandas


PARTS = ("own", "earlier", "first", "other", "constant")
"""What a firing's pre-activation is the sum of."""


@dataclass(frozen=True)
class CardPrompt:
    """A prompt and the feature on it, at every position.

    None at position 0, where that is a special token, and at ``sinks``: other positions that are attention sinks.
    """

    prompt: Prompt
    activations: tuple[float | None, ...]
    pre_activations: tuple[float | None, ...]
    fit: Fit
    sinks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Firing:
    """The feature at one position where it fires. prompt: the number of the prompt, from 0."""

    prompt: int
    pos: int
    token: str
    activation: float
    pre_activation: float


@dataclass(frozen=True)
class Drive:
    """What drives one firing, in units of its pre-activation.

    own: its own token. tokens: those between position 0 and it, each with its contribution; earlier: their sum.
    first: position 0, where it fires elsewhere. other: bias vectors and rest. These and constant sum to the
    pre-activation, up to completeness_error. pattern: how much of other is that, under a rule that has it.
    """

    firing: Firing
    own: float
    tokens: tuple[tuple[int, str, float], ...]
    first: float
    other: float
    constant: float
    completeness_error: float
    pattern: float | None = None

    @property
    def earlier(self) -> float:
        return sum(value for _, _, value in self.tokens)

    @classmethod
    def of(cls, firing: Firing, target: TokenTarget) -> Drive:
        values = target.contributions.tolist()
        tokens = [(source.pos, source.text, values[source.pos]) for source in target.sources]
        return cls(
            firing=firing,
            own=values[firing.pos],
            tokens=tuple(tokens[1 : firing.pos]),
            first=values[0] if firing.pos else 0.0,
            other=sum(target.other.values()),
            constant=target.constant,
            completeness_error=target.completeness_error,
            pattern=target.other.get("pattern"),
        )


@dataclass(frozen=True)
class SourceToken:
    """A token's text over all of the strongest firings: what it contributes as the firing token and as an earlier one.

    count: at how many places it stood as a source.
    """

    token: str
    own: float
    earlier: float
    count: int

    @property
    def total(self) -> float:
        return self.own + self.earlier


@dataclass(frozen=True)
class FlowFeature:
    """A feature of a neighbouring SAE layer. contribution: summed; count: over so many firings (previous layer), or
    places where it fires itself (next layer). effect: summed over the same firings, of the previous layer's features
    alone; to first order, with nothing frozen."""

    index: int
    contribution: float
    count: int
    effect: float | None = None


@dataclass(frozen=True)
class Flow:
    """The features of one neighbouring SAE layer, largest contribution first.

    total: of all its features, listed or not. errors, other: the rest of the pre-activations (previous layer alone).
    """

    hook: Place
    sae: dict[str, Any]
    features: tuple[FlowFeature, ...]
    total: float
    errors: float | None = None
    other: float | None = None


@dataclass(frozen=True)
class Followed:
    """A later feature, and what the card's feature does to it at its strongest firings, summed (graph/downstream.py).

    direct: through no other feature; total: by all ways; effect: to first order, with nothing frozen. count: over so
    many places where it fires.
    """

    hook: Place
    sae: dict[str, Any]
    index: int
    direct: float
    total: float
    effect: float
    count: int


@dataclass(frozen=True)
class Compared:
    """A context of Neuronpedia's as it is here. prompt: the number of the prompt that it became.

    differs: the largest difference of activations, as a share of the context's largest; at pos. None: other tokens.
    """

    context: int
    prompt: int
    differs: float | None
    pos: int | None


@dataclass(frozen=True)
class Public:
    """What Neuronpedia has of the feature; compared: its contexts that are prompts of the card."""

    feature: PublicFeature
    compared: tuple[Compared, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**self.feature.to_dict(), "compared": [asdict(one) for one in self.compared]}


@dataclass(frozen=True, kw_only=True)
class FeatureCard(Shown):
    """One feature over some prompts. Contributions are in units of pre-activations; ``to_dict`` is the whole document.

    firings: all, strongest first. drives: of the strongest of them. votes: None where the decoder does not write into
    the stream. previous, following: None where no SAE is loaded there, or where the feature fires nowhere.
    labels: ``17/2601`` to a text, of this feature and of those on the card. public: what Neuronpedia has of it.
    downstream: the later features that it drives most, where they were asked for.
    """

    model: str
    dtype: str
    sae: dict[str, Any]
    hook: Place
    index: int
    shared: tuple[int, ...]
    allocation: Allocation
    flow_rule: str
    prompts: tuple[CardPrompt, ...]
    firings: tuple[Firing, ...]
    drives: tuple[Drive, ...]
    votes: DecoderVotes | None
    nearest: tuple[Alike, ...]
    previous: Flow | None
    following: Flow | None
    labels: Mapping[str, str] = field(default_factory=dict)
    public: Public | None = None
    downstream: tuple[Followed, ...] | None = None

    @property
    def feature(self) -> str:
        return self._name(self.hook, self.index)

    @property
    def link(self) -> str | None:
        """Its page on Neuronpedia."""
        return feature_page(self.sae["neuronpedia_id"], self.index)

    @property
    def label(self) -> str | None:
        return self._label(self.hook, self.index)

    @property
    def n_positions(self) -> int:
        """Over all prompts, without special tokens at position 0 and attention sinks."""
        return sum(value is not None for prompt in self.prompts for value in prompt.activations)

    @property
    def density(self) -> float:
        """The share of these positions at which the feature fires."""
        return len(self.firings) / self.n_positions if self.n_positions else 0.0

    @property
    def note(self) -> str | None:
        """What has to be said: a feature that fires nowhere, positions that are left out, and what the rule needs."""
        said = []
        several = len(self.prompts) > 1
        if not self.firings:
            where = f"any of the {len(self.prompts)} prompts" if several else "this prompt"
            said.append(f"feature {self.feature} does not fire on {where}, so nothing is known here of what drives it")
        sunk = [(number, pos) for number, prompt in enumerate(self.prompts, start=1) for pos in prompt.sinks]
        if sunk:
            number, pos = sunk[0]
            place = f"position {pos} ({self.prompts[number - 1].prompt.tokens[pos]!r})"
            place += f" of text {number}" if several else ""
            more = f" and {len(sunk) - 1} more" if len(sunk) > 1 else ""
            sinks = "attention sinks" if more else "an attention sink"
            said.append(f"{place}{more} left out as {sinks}; tokens --pos {pos} asks for it")
        firing = [drive for drive in self.drives if drive.firing.pre_activation > 0]
        shares = [(drive.pattern or 0.0) / drive.firing.pre_activation for drive in firing]
        of_rule = (self.allocation.note, pattern_note(self.allocation, shares)) if self.drives else ()
        return together(*said, *of_rule)

    @property
    def warning(self) -> str | None:
        """The first of the SAE's misfits, and on how many prompts it has one."""
        found = [prompt.fit.warning for prompt in self.prompts if prompt.fit.warning]
        if not found or len(self.prompts) == 1:
            return found[0] if found else None
        return f"{found[0]} This is so on {len(found)} of {len(self.prompts)} prompts."

    @cached_property
    def source_tokens(self) -> tuple[SourceToken, ...]:
        """The drives' own and earlier tokens by their text, largest first. Position 0 is in none of them."""
        own: defaultdict[str, float] = defaultdict(float)
        earlier: defaultdict[str, float] = defaultdict(float)
        count: defaultdict[str, int] = defaultdict(int)
        for drive in self.drives:
            own[drive.firing.token] += drive.own
            count[drive.firing.token] += 1
            for _, token, value in drive.tokens:
                earlier[token] += value
                count[token] += 1
        found = [SourceToken(token, own.get(token, 0.0), earlier.get(token, 0.0), n) for token, n in count.items()]
        return tuple(sorted(found, key=lambda source: (-abs(source.total), source.token)))

    @property
    def pages(self) -> dict[str, tuple[str, int]]:
        """This feature and those on the card that are on Neuronpedia, as :func:`.fetch_labels` takes them."""
        listed = [(self.hook, self.sae, [self.index, *(other.index for other in self.nearest)])]
        listed += [(flow.hook, flow.sae, [f.index for f in flow.features]) for flow in self._flows]
        listed += [(one.hook, one.sae, [one.index]) for one in self.downstream or ()]
        return {
            self._name(hook, index): (sae["neuronpedia_id"], index)
            for hook, sae, indices in listed
            for index in indices
            if sae["neuronpedia_id"]
        }

    def with_labels(self, labels: Mapping[str, str]) -> FeatureCard:
        """The same card with what features mean: ``layer/index`` to a text. Raises UserError for one that is none."""
        check_labels(labels)
        return replace(self, labels=dict(labels))

    def to_dict(self) -> dict[str, Any]:
        """The document that ``depass-sae feature --json`` prints, and that the card's page shows."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "sae": self.sae,
            "dtype": self.dtype,
            **allocation_dict(self.allocation),
            "feature": {"layer": self.hook.layer, "index": self.index, "hook": self.hook.name},
            "name": self.feature,
            "link": self.link,
            "label": self.label,
            "note": self.note,
            "warning": self.warning,
            "density": self.density,
            "n_positions": self.n_positions,
            "n_firings": len(self.firings),
            "prompts": [_prompt_dict(prompt) for prompt in self.prompts],
            "firings": [asdict(firing) for firing in self.firings],
            "sources": {
                "sums": self._sums,
                "firings": [_drive_dict(drive) for drive in self.drives],
                "tokens": [{**asdict(source), "total": source.total} for source in self.source_tokens],
            },
            "logits": None
            if self.votes is None
            else {
                "direction": self._direction,
                "top": [asdict(vote) for vote in self.votes.top],
                "bottom": [asdict(vote) for vote in self.votes.bottom],
            },
            "nearest": [
                {**self._named(self.hook, self.sae, other.index), "cosine": other.cosine} for other in self.nearest
            ],
            "flow": {
                "rule": self.flow_rule,
                "firings": len(self.drives),
                "previous": self._flow_dict(self.previous),
                "next": self._flow_dict(self.following),
            },
            **({} if self.public is None else {"public": self.public.to_dict()}),
            **({} if self.downstream is None else {"downstream": [self._followed(one) for one in self.downstream]}),
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per position of every prompt."""
        import pandas

        rows = [
            (number, pos, token, activation, pre)
            for number, prompt in enumerate(self.prompts)
            for pos, (token, activation, pre) in enumerate(
                zip(prompt.prompt.tokens, prompt.activations, prompt.pre_activations, strict=True)
            )
        ]
        return pandas.DataFrame(rows, columns=["prompt", "pos", "token", "activation", "pre_activation"])

    @property
    def title(self) -> str:
        return f"Feature {self.feature}"

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        from .looks import card_section

        return (card_section(self.to_dict(), top),)

    def page(self) -> Page:
        from .looks import card_page

        return card_page(self.to_dict())

    def plot(self, top: int | None = None) -> Html:
        return fragment(self.blocks(top))  # they have the title

    @property
    def _flows(self) -> list[Flow]:
        return [flow for flow in (self.previous, self.following) if flow is not None]

    @property
    def _sums(self) -> dict[str, float]:
        """Over the strongest firings."""
        sums = {part: sum((getattr(drive, part) for drive in self.drives), 0.0) for part in PARTS}
        return {**sums, "pre_activation": sum((drive.firing.pre_activation for drive in self.drives), 0.0)}

    @property
    def _direction(self) -> str:
        through = " through W_O" if INSIDE.get(self.hook.hook) == "z" else ""
        whole = "cross_layer" in self.sae["architecture"]
        row = f"the sum of W_dec[{self.index}] over all layers that it writes into" if whole else f"W_dec[{self.index}]"
        return (
            f"{row}{through}, times the final norm's gain, through the unembedding; the mean over the "
            "vocabulary taken off, the norm's scale left out"
        )

    def _name(self, hook: Place, index: int) -> str:
        return f"{hook if hook.layer in self.shared else hook.layer}/{index}"

    def _label(self, hook: Place, index: int) -> str | None:
        """Where SAEs share a layer, ``17/2601`` means the one on the residual stream."""
        plain = self.labels.get(f"{hook.layer}/{index}") if hook.layer not in self.shared or _is_resid(hook) else None
        return self.labels.get(self._name(hook, index), plain)

    def _named(self, hook: Place, sae: Mapping[str, Any], index: int) -> dict[str, Any]:
        return {
            "feature": self._name(hook, index),
            "index": index,
            "label": self._label(hook, index),
            "link": feature_page(sae["neuronpedia_id"], index),
        }

    def _followed(self, one: Followed) -> dict[str, Any]:
        numbers = {key: getattr(one, key) for key in ("direct", "total", "effect", "count")}
        return {**self._named(one.hook, one.sae, one.index), "layer": one.hook.layer, "hook": one.hook.name, **numbers}

    def _flow_dict(self, flow: Flow | None) -> dict[str, Any] | None:
        if flow is None:
            return None
        features = [{**self._named(flow.hook, flow.sae, f.index), **_flow_feature_dict(f)} for f in flow.features]
        sums = {"total": flow.total, "errors": flow.errors, "other": flow.other}
        return {"layer": flow.hook.layer, "hook": flow.hook.name, **sums, "features": features}


def _flow_feature_dict(feature: FlowFeature) -> dict[str, Any]:
    return {key: value for key, value in asdict(feature).items() if value is not None}


def _is_resid(hook: Place) -> bool:
    return hook.name.startswith("resid_")


def _prompt_dict(prompt: CardPrompt) -> dict[str, Any]:
    return {
        "prompt": prompt.prompt.text,
        "tokens": list(prompt.prompt.tokens),
        "token_ids": list(prompt.prompt.token_ids),
        "activations": list(prompt.activations),
        "pre_activations": list(prompt.pre_activations),
        "fit": fit_dict(prompt.fit),
        **({"sinks": list(prompt.sinks)} if prompt.sinks else {}),
    }


def _drive_dict(drive: Drive) -> dict[str, Any]:
    parts = {part: getattr(drive, part) for part in (*PARTS, "completeness_error")}
    tokens = [{"pos": pos, "token": token, "value": value} for pos, token, value in drive.tokens]
    return {**asdict(drive.firing), **parts, "tokens": tokens}
