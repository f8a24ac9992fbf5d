"""The live model with parts of it set: features, heads, neurons and tokens made what one says, and what follows.

A feature is set where its dictionary reads: the stream that arrives is encoded, and what the feature writes exchanged,

    x′ = x + part(new) − part(old)                what the dictionary misses of x stays as it is

so that sets in later layers see what was set below them. Nothing is frozen. What is set without a position is set at
every position, those included that are generated; features not at a special token at position 0, where they mean
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt, token_id, token_text
from ..passes.intervene import Edit, in_turn, intervene_everywhere
from ..saes import CrossLayerFeatures, live_activations, reconstructs, stands_for, written
from ..subject import Subject
from ..view.blocks import Block, Page
from ..view.shown import Shown
from . import looks
from .document import Heading
from .live import head_slice, seen_at
from .named import NamedPart
from .targets import parse_feature

if TYPE_CHECKING:
    import pandas

How = Literal["set", "scale", "add"]
Amount = float | str
"""A number; of a token, the one that stands in its place, by its text or id."""
Changes = Mapping[str, Amount]
"""Parts as they are written, and what becomes of each."""
LIKELIEST, CHANGED = 10, 20
"""So many of the likeliest tokens before and after, and of the features that change most."""
MOST_TOKENS = 10_000


@dataclass(frozen=True)
class Change:
    """One part and what becomes of it."""

    part: NamedPart
    how: How
    amount: Amount

    def __call__(self, old: Tensor) -> Tensor:
        """Of a number as it is."""
        amount = float(self.amount)
        match self.how:
            case "set":
                return torch.full_like(old, amount)
            case "scale":
                return old * amount
            case "add":
                return old + amount

    def to_dict(self) -> dict[str, Any]:
        return {"part": self.part.name, **self.part.to_dict(), "how": self.how, "amount": self.amount}


@dataclass(frozen=True)
class ChangedFeature:
    """A feature at a position, before and after."""

    hook: Place
    name: str
    pos: int
    token: str
    before: float
    after: float


@dataclass(frozen=True)
class Steered(Shown):
    """What the model says before and after. logits: of the last position. features: those of all dictionaries that
    change most, read in the edited model. continuation: what it goes on to write, greedily; empty where not asked for.
    """

    heading: Heading
    changes: tuple[Change, ...]
    logits_before: Float[Tensor, "vocab"] = field(repr=False)
    logits_after: Float[Tensor, "vocab"] = field(repr=False)
    names: Mapping[int, str] = field(repr=False)
    features: tuple[ChangedFeature, ...] = field(repr=False)
    continuation_before: str = ""
    continuation_after: str = ""

    @property
    def title(self) -> str:
        return "What follows when " + ", ".join(_said(change) for change in self.changes[:4])

    @property
    def divergence(self) -> float:
        """KL(before ‖ after) of the next token, in nats."""
        before, after = (x.double().log_softmax(-1) for x in (self.logits_before, self.logits_after))
        return float((before.exp() * (before - after)).sum())

    def to_dict(self) -> dict[str, Any]:
        """The document that ``depass-sae steer --json`` prints."""
        before, after = (x.double().softmax(-1) for x in (self.logits_before, self.logits_after))
        return {
            **self.heading.to_dict(),
            "changes": [change.to_dict() for change in self.changes],
            "divergence": self.divergence,
            "tokens_likeliest": [
                {
                    "index": token, "token": name, "logit_before": float(self.logits_before[token]),
                    "logit_after": float(self.logits_after[token]), "probability_before": float(before[token]),
                    "probability_after": float(after[token]),
                }
                for token, name in self.names.items()
            ],
            "features": [
                {"name": one.name, "layer": one.hook.layer, "hook": one.hook.hook}
                | {key: getattr(one, key) for key in ("pos", "token", "before", "after")}
                for one in self.features
            ],
            "continuation": {"before": self.continuation_before, "after": self.continuation_after},
        }  # fmt: skip

    def to_frame(self) -> pandas.DataFrame:
        """A row for every feature that changes."""
        import pandas

        return pandas.DataFrame(self.to_dict()["features"])

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """The likeliest tokens before and after, the features that change most, and what is written."""
        return looks.steered_blocks(self.to_dict(), top)

    def page(self) -> Page:
        return self.heading.page(self.title, self.blocks())


def _said(change: Change) -> str:
    verb = {"set": "is set to", "scale": "is multiplied by", "add": "gets"}[change.how]
    return f"{change.part.name} {verb} {change.amount}"


def changes_of(**groups: Changes | None) -> list[Change]:
    """What is asked for, by how. Raises UserError for what is no part or no amount, and where there is nothing."""
    found: list[Change] = []
    for how, group in groups.items():
        for text, amount in (group or {}).items():
            part = NamedPart.of(text)
            _check_amount(part, how, amount)
            found.append(Change(part, how, amount))  # type: ignore[arg-type]
    if not found:
        raise UserError("name what to change, for example {'17/2601@7': 0}")
    names = [change.part for change in found]
    if twice := next((part for part in names if names.count(part) > 1), None):
        raise UserError(f"{twice.name} is changed twice; say once what becomes of it")
    return found


def _check_amount(part: NamedPart, how: str, amount: Amount) -> None:
    if part.kind == "token":
        if how != "set":
            raise UserError(f"a token is set to another one, not {'scaled' if how == 'scale' else 'added to'}")
        return
    if isinstance(amount, str) or not abs(amount) < float("inf"):
        raise UserError(f"{part.name} is changed by a finite number, not {amount!r}")
    if part.kind == "head" and (how == "add" or (how == "set" and amount != 0)):
        raise UserError(f"what {part.name} adds is a vector: set it to 0, or scale it")


def check_generate(generate: int) -> None:
    """Raises UserError for what is no number of tokens."""
    if not 0 <= generate <= MOST_TOKENS:
        raise UserError(f"generate is a number of tokens from 0 to {MOST_TOKENS}, not {generate}")


def steer(subject: Subject, prompt: Prompt, changes: Sequence[Change], *, generate: int = 0) -> Steered:
    """Run the model with some parts changed, and go on writing ``generate`` tokens, each the likeliest.

    Raises UserError for parts that there are not, features of cross-layer transcoders and of transcoders whose output
    is normed, and neurons of experts.
    """
    check_generate(generate)
    for change in changes:
        change.part.check(subject, len(prompt))
    ids = prompt.ids()[None]
    replaced = _with_tokens(subject, ids, changes)
    edits, neurons = _edits(subject, prompt, changes)
    hooks = sorted(subject.saes)
    reads: set[Place | None] = {None, *(hook for hook in hooks if hook.layer < subject.adapter.n_layers)}
    before = intervene_everywhere(subject.adapter, ids, {}, reads, {}, subject.trace_dtype)
    after = intervene_everywhere(subject.adapter, replaced, edits, reads, neurons, subject.trace_dtype)
    logits_before, logits_after = before[None][0], after[None][0]
    likely = [token for x in (logits_before, logits_after) for token in x.topk(min(LIKELIEST, len(x))).indices.tolist()]
    names = {token: token_text(subject.loaded.tokenizer, token) for token in dict.fromkeys(likely)}
    written_before, written_after = (
        _continuation(subject, start, run_edits, run_neurons, generate)
        for start, run_edits, run_neurons in ((ids, {}, {}), (replaced, edits, neurons))
    )
    return Steered(
        Heading.of(subject, prompt), tuple(changes), logits_before, logits_after, names,
        _features(subject, prompt, hooks, before, after), written_before, written_after,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- changes


def _with_tokens(subject: Subject, ids: Int[Tensor, "1 pos"], changes: Sequence[Change]) -> Int[Tensor, "1 pos"]:
    ids = ids.clone()
    for change in changes:
        if change.part.kind == "token":
            amount = change.amount
            token = token_id(subject.loaded, amount) if isinstance(amount, str) else int(amount)
            if not 0 <= token < subject.adapter.vocab_size:
                raise UserError(f"token id {token} is not in the vocabulary of {subject.adapter.vocab_size}")
            ids[0, change.part.pos] = token
    return ids


def _edits(subject: Subject, prompt: Prompt, changes: Sequence[Change]) -> tuple[dict[Place, Edit], dict[int, Edit]]:
    """What is done at places, and to the neurons of layers."""
    edits: dict[Place, list[Edit]] = {}
    neurons: dict[int, list[tuple[Change, slice]]] = {}
    features: dict[Place, list[tuple[Change, int]]] = {}
    for change in changes:
        part = change.part
        if part.kind == "feature":
            target, _ = parse_feature(subject, part.name)
            target.check(subject)
            features.setdefault(target.hook, []).append((change, target.index))
        elif part.kind == "head":
            own = [(change, head_slice(subject.adapter, part.layer, part.index))]
            edits.setdefault(Place(part.layer, "hook_z"), []).append(partial(_units_changed, own))
        elif part.kind == "neuron":
            neurons.setdefault(part.layer, []).append((change, slice(part.index, part.index + 1)))
    first = int(prompt.special[0])
    for hook, wanted in sorted(features.items()):  # where dictionaries change one place, the lower one first
        for place, edit in _feature_edits(subject, hook, wanted, first):
            edits.setdefault(place.as_post, []).append(edit)
    return in_turn(edits), {layer: partial(_units_changed, own) for layer, own in neurons.items()}


def _units_changed(
    changes: Sequence[tuple[Change, slice]], x: Float[Tensor, "batch pos d"]
) -> Float[Tensor, "batch pos d"]:
    """Heads or neurons, each of them some of the d numbers."""
    x = x.clone()
    for change, own in changes:
        at = _positions(change.part)
        x[:, at, own] = change(x[:, at, own])
    return x


def _positions(part: NamedPart, first: int = 0) -> slice:
    """Where a part is changed. first: the first position at which it is there."""
    return slice(first, None) if part.pos is None else slice(part.pos, part.pos + 1)


def _feature_edits(
    subject: Subject, hook: Place, wanted: Sequence[tuple[Change, int]], first: int
) -> Iterator[tuple[Place, Edit]]:
    """Where a dictionary's features are exchanged, and how."""
    sae = subject.saes[hook]
    if isinstance(sae, CrossLayerFeatures):
        raise UserError(f"features of the cross-layer transcoder at {hook} write into many layers and cannot be set")

    def difference(x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_out"]:
        flat = x.flatten(0, 1)
        old = live_activations(sae, flat).unflatten(0, x.shape[:2])
        new = old.clone()
        for change, index in wanted:
            at = _positions(change.part, first)
            new[:, at, index] = change(old[:, at, index])
        return written(sae, flat, (new - old).flatten(0, 1)).unflatten(0, x.shape[:2])

    if reconstructs(sae):
        yield hook, lambda x: x + difference(x).to(x)
        return
    stands = stands_for(sae, hook)
    if stands.before_norm and subject.adapter.sublayer(stands.place.depth).post is not None:
        raise UserError(f"what the transcoder at {hook} writes is normed before it is added, so that no feature is set")
    kept: list[Tensor] = []
    at, made = seen_at(subject.adapter, hook)

    def note(x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        kept[:] = [difference(made(x))]
        return x

    yield at, note
    yield stands.place, lambda x: x + kept[0].to(x)


# ------------------------------------------------------------------------------------------------------------- results


def _features(
    subject: Subject,
    prompt: Prompt,
    hooks: Sequence[Place],
    before: Mapping[Place | None, Float[Tensor, "1 *pos d"]],
    after: Mapping[Place | None, Float[Tensor, "1 *pos d"]],
) -> tuple[ChangedFeature, ...]:
    """Those that change most, of all dictionaries, wherever they are read."""
    found = []
    for hook in hooks:
        if hook not in before:
            continue
        sae = subject.saes[hook]
        old, new = (live_activations(sae, x[hook][0]) for x in (before, after))
        change = (new - old).abs()
        change[: int(prompt.special[0])] = 0
        shared = sum(other.layer == hook.layer for other in hooks) > 1
        for flat in change.flatten().topk(min(CHANGED, change.numel())).indices.tolist():
            pos, index = divmod(flat, change.shape[1])
            if change[pos, index]:
                name = f"{hook if shared else hook.layer}/{index}"
                values = (float(old[pos, index]), float(new[pos, index]))
                found.append(ChangedFeature(hook, name, pos, prompt.tokens[pos], *values))
    return tuple(sorted(found, key=lambda one: -abs(one.after - one.before))[:CHANGED])


def _continuation(
    subject: Subject, ids: Int[Tensor, "1 pos"], edits: Mapping[Place, Edit], neurons: Mapping[int, Edit], count: int
) -> str:
    """What the model goes on to write, the likeliest token each time; every step runs the whole text."""
    start = ids.shape[1]
    for _ in range(count):
        logits = intervene_everywhere(subject.adapter, ids, edits, {None}, neurons, subject.trace_dtype)[None]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True).to(ids)], dim=1)
    return "".join(token_text(subject.loaded.tokenizer, token) for token in ids[0, start:].tolist())
