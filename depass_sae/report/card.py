"""A feature's card over one or several prompts: where it fires, what drives it, what it writes, and what is near it.

At its strongest firings the pre-activation is split by :func:`.attribute_tokens`, and the split is kept whole:

    own token + earlier tokens + position 0 + other (biases, rest) + constant = pre-activation

Summed over these firings by the source tokens' text it says which words drive the feature. Position 0 stands on its
own: in most models it carries an activation that has nothing to do with its token. Neighbours by flow: neighbours.py.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import typed
from ..attribution.answer import Asked
from ..attribution.document import SCHEMA_VERSION, allocation_dict, fit_dict
from ..attribution.render import Html, Text, table_text
from ..attribution.targets import FeatureTarget, parse_feature
from ..attribution.tokens import TokenTarget, attribute_tokens_each
from ..errors import SAEFitWarning, UserError, warn
from ..files import check_place, write_text
from ..labels.files import check_labels
from ..labels.neuronpedia import feature_page
from ..models.place import Place
from ..models.prompt import Prompt, PromptLike, encode, several
from ..passes.forward import Allocation
from ..passes.frozen import INSIDE
from ..passes.many import alike_in_length
from ..passes.record import Trace
from ..passes.settings import Settings
from ..passes.sinks import sinks
from ..saes import Fit, describe
from ..subject import Subject
from ..texts import together
from .neighbours import (
    Alike,
    Arrived,
    ByFeature,
    DecoderVotes,
    Vote,
    decoder_votes,
    inflow_from,
    nearest,
    next_hook,
    outflow_to,
    previous_hook,
    writes_at,
)

if TYPE_CHECKING:
    import pandas

STRONGEST = 8
"""At so many firings the feature is taken apart."""
TOP = 10
"""So many entries a list of tokens or features has."""


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
    pre-activation, up to completeness_error.
    """

    firing: Firing
    own: float
    tokens: tuple[tuple[int, str, float], ...]
    first: float
    other: float
    constant: float
    completeness_error: float

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
    places where it fires itself (next layer)."""

    index: int
    contribution: float
    count: int


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


@dataclass(frozen=True, kw_only=True)
class FeatureCard:
    """One feature over some prompts. Contributions are in units of pre-activations; ``to_dict`` is the whole document.

    firings: all, strongest first. drives: of the strongest of them. votes: None where the decoder does not write into
    the stream. previous, following: None where no SAE is loaded there, or where the feature fires nowhere.
    labels: ``17/2601`` to a text, of this feature and of those on the card.
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
        return together(*said, self.allocation.note if self.drives else None)

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
            "firings": [_firing_dict(firing) for firing in self.firings],
            "sources": {
                "sums": self._sums,
                "firings": [_drive_dict(drive) for drive in self.drives],
                "tokens": [
                    {"token": s.token, "total": s.total, "own": s.own, "earlier": s.earlier, "count": s.count}
                    for s in self.source_tokens
                ],
            },
            "logits": None
            if self.votes is None
            else {
                "direction": self._direction,
                "top": [_vote_dict(vote) for vote in self.votes.top],
                "bottom": [_vote_dict(vote) for vote in self.votes.bottom],
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

    def table(self, top: int = TOP) -> Text:
        """The card as text."""
        from .tables import card_table

        return table_text(*card_table(self.to_dict(), top))

    def to_html(self) -> str:
        """A page of its own, which opens offline."""
        from .card_page import card_page

        return card_page(self.to_dict())

    @typed
    def write(self, path: str | os.PathLike[str]) -> None:
        """The card as .html or .json, whole or not at all. Raises UserError where it cannot be written."""
        check_card_place(path)
        if Path(path).suffix.lower() == ".html":
            write_text(path, self.to_html())
        else:
            write_text(path, json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=2) + "\n")

    def plot(self) -> Html:
        """The card as a piece of HTML, for notebooks."""
        from .card_page import card_piece

        return Html(card_piece(self.to_dict()))

    def _repr_html_(self) -> str:
        return self.plot()

    def __repr__(self) -> str:
        return str(self.table())

    @property
    def _flows(self) -> list[Flow]:
        return [flow for flow in (self.previous, self.following) if flow is not None]

    @property
    def _sums(self) -> dict[str, float]:
        """Over the strongest firings."""
        parts = ("own", "earlier", "first", "other", "constant")
        sums = {part: sum((getattr(drive, part) for drive in self.drives), 0.0) for part in parts}
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

    def _flow_dict(self, flow: Flow | None) -> dict[str, Any] | None:
        if flow is None:
            return None
        return {
            "layer": flow.hook.layer,
            "hook": flow.hook.name,
            "total": flow.total,
            "errors": flow.errors,
            "other": flow.other,
            "features": [
                {**self._named(flow.hook, flow.sae, f.index), "contribution": f.contribution, "count": f.count}
                for f in flow.features
            ],
        }


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


def _firing_dict(firing: Firing) -> dict[str, Any]:
    return {
        "prompt": firing.prompt,
        "pos": firing.pos,
        "token": firing.token,
        "activation": firing.activation,
        "pre_activation": firing.pre_activation,
    }


def _drive_dict(drive: Drive) -> dict[str, Any]:
    return {
        **_firing_dict(drive.firing),
        "own": drive.own,
        "earlier": drive.earlier,
        "first": drive.first,
        "other": drive.other,
        "constant": drive.constant,
        "completeness_error": drive.completeness_error,
        "tokens": [{"pos": pos, "token": token, "value": value} for pos, token, value in drive.tokens],
    }


def _vote_dict(vote: Vote) -> dict[str, Any]:
    return {"token": vote.token, "id": vote.id, "logit": vote.logit}


# ------------------------------------------------------------------------------------------------------------- making


def make_card(
    subject: Subject,
    prompts: PromptLike | Sequence[PromptLike],
    feature: str,
    *,
    top: int = TOP,
    strongest: int = STRONGEST,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> FeatureCard:
    """The card of one feature ("LAYER/INDEX").

    prompts: one, or several. top: how many tokens and features each list has. strongest: at how many firings the
    feature is taken apart. Flows are computed under the allocation's rule where that is ``half`` or ``linear``, else
    under ``half``.

    Raises UserError for a feature that does not exist or names a position, and for prompts that cannot be encoded.
    """
    if top < 1 or strongest < 1:
        raise UserError("a card lists 1 entry or more (top) and takes 1 firing or more apart (strongest)")
    target, _ = parse_feature(subject, feature, pos=False)
    target.check(subject)
    encoded = _encoded(subject, prompts)
    read = _read(subject, target, encoded, settings)
    firings = _firings(read)
    chosen = firings[:strongest]
    sae, hook = subject.saes[target.hook], target.hook
    swept = settings if settings.swept else settings.by("half")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAEFitWarning)  # said once for all prompts, below
        asked = [Asked(encoded[firing.prompt], target, firing.pos) for firing in chosen]
        found = attribute_tokens_each(subject, asked, settings=settings) if asked else []
    previous, following = _flows(subject, encoded, target, chosen, top, swept)
    layers = [other.layer for other in subject.saes]
    card = FeatureCard(
        model=subject.loaded.name,
        dtype=subject.dtype_name,
        sae=describe(sae),
        hook=hook,
        index=target.index,
        shared=tuple(sorted({layer for layer in layers if layers.count(layer) > 1})),
        allocation=settings.allocation,
        flow_rule=swept.rule,
        prompts=tuple(read),
        firings=firings,
        drives=tuple(Drive.of(firing, answer.target) for firing, answer in zip(chosen, found, strict=True)),
        votes=decoder_votes(subject, hook, target.index, top),
        nearest=nearest(sae, target.index, top),
        previous=previous,
        following=following,
    )
    if card.warning:
        warn(card.warning, SAEFitWarning)
    return card


def check_card_place(path: str | os.PathLike[str]) -> None:
    """Raises UserError where a card cannot be written to, before any work is done."""
    if Path(path).suffix.lower() not in (".html", ".json"):
        raise UserError(f"{path} does not say what to write: let it end with .html or .json")
    check_place(path)


def _encoded(subject: Subject, prompts: PromptLike | Sequence[PromptLike]) -> list[Prompt]:
    """A prompt, or a collection of them."""
    given = several(prompts)
    if not given:
        raise UserError("a card needs a prompt, or several")
    found = []
    for number, prompt in enumerate(given, start=1):
        try:
            found.append(encode(subject.loaded, subject.adapter, prompt))
        except UserError as error:
            raise UserError(f"prompt {number}: {error}" if len(given) > 1 else str(error)) from None
    return found


def _read(subject: Subject, target: FeatureTarget, prompts: Sequence[Prompt], settings: Settings) -> list[CardPrompt]:
    """Every prompt, those of about a length in one pass."""
    point = target.place
    found: dict[int, CardPrompt] = {}
    for group in alike_in_length([len(prompt) for prompt in prompts]):
        some = [prompts[number] for number in group]
        read = subject.traces(some, point[0], (point,))
        cards = [_card_prompt(subject, target, prompt, seen) for prompt, seen in zip(some, read, strict=True)]
        found.update(zip(group, cards, strict=True))
        settings.tell("reading the prompts", len(found), len(prompts))
    return [found[number] for number in range(len(prompts))]


def _card_prompt(subject: Subject, target: FeatureTarget, prompt: Prompt, seen: Trace) -> CardPrompt:
    encoded = subject.encoding(seen, target.hook)
    active: list[float | None] = list(encoded.activations[:, target.index].tolist())
    pre: list[float | None] = list(encoded.pre_activation(target.index, target.path).tolist())
    sunk = [pos for pos in sinks(seen, target.place) if not prompt.special[pos]]
    for pos in [0, *sunk] if prompt.special[0] else sunk:
        active[pos] = pre[pos] = None
    return CardPrompt(prompt, tuple(active), tuple(pre), encoded.fit, tuple(sunk))


def _firings(prompts: Sequence[CardPrompt]) -> tuple[Firing, ...]:
    """Strongest first, by size: abstopk fires with either sign."""
    found = [
        Firing(number, pos, prompt.prompt.tokens[pos], activation, pre)
        for number, prompt in enumerate(prompts)
        for pos, (activation, pre) in enumerate(zip(prompt.activations, prompt.pre_activations, strict=True))
        if activation and pre is not None
    ]
    return tuple(sorted(found, key=lambda firing: (-abs(firing.activation), firing.prompt, firing.pos)))


def _flows(
    subject: Subject,
    prompts: Sequence[Prompt],
    target: FeatureTarget,
    firings: Sequence[Firing],
    top: int,
    settings: Settings,
) -> tuple[Flow | None, Flow | None]:
    """What comes from the previous SAE layer and goes to the next at these firings, summed by feature."""
    hook, index = target.hook, target.index
    before, behind = previous_hook(subject, hook), next_hook(subject, hook)
    if not firings or (before is None and behind is None):
        return None, None
    numbers = sorted({firing.prompt for firing in firings})
    arrived: list[Arrived] = []
    left: list[ByFeature] = []
    points = [target.place, *([behind] if behind is not None else [])]
    deepest = max(place.layer for place in [*points, writes_at(subject, hook) or target.place])
    for done, number in enumerate(numbers, start=1):
        prompt = prompts[number]
        positions = sorted(firing.pos for firing in firings if firing.prompt == number)
        seen = subject.trace(prompt, deepest, points)
        if before is not None:
            arrived.append(inflow_from(subject, seen, prompt, before, hook, index, positions, settings))
        if behind is not None:
            left += outflow_to(subject, seen, prompt, hook, index, positions, behind, settings).values()
        settings.tell("following the flow", done, len(numbers))
    previous = following = None
    if before is not None:
        features, total = _largest([found.features for found in arrived], subject.saes[before].cfg.d_sae, top)
        errors, other = (sum(getattr(found, part).sum().item() for found in arrived) for part in ("errors", "other"))
        previous = Flow(before, describe(subject.saes[before]), features, total, errors, other)
    if behind is not None:
        features, total = _largest(left, subject.saes[behind].cfg.d_sae, top)
        following = Flow(behind, describe(subject.saes[behind]), features, total)
    return previous, following


def _largest(parts: Sequence[ByFeature], d_sae: int, top: int) -> tuple[tuple[FlowFeature, ...], float]:
    """The features whose sums are largest by size, and the sum over all. count: in how many entries each is."""
    found = ByFeature.joined(parts)
    sums, counts = found.sums(d_sae), found.counts(d_sae)
    order = sums.abs().argsort(descending=True, stable=True)[:top].tolist()
    return tuple(FlowFeature(i, sums[i].item(), int(counts[i])) for i in order if counts[i]), sums.sum().item()
