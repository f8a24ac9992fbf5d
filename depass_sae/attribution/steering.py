"""The live model with parts of it set: features, heads, neurons and tokens made what one says, and what follows.

Nothing is frozen, so that sets in later layers see what was set below them. What is set without a position is set at
every position, those included that are generated; features not at a special token at position 0, where they mean
nothing. Prompts of equal length, each with changes of its own, go through the model together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt, token_id, token_text
from ..passes.intervene import Edit, Inside, intervene_everywhere
from ..saes import live_activations
from ..subject import Subject
from ..view.blocks import Block, Page
from ..view.shown import Shown
from . import looks
from .changes import Change
from .document import Heading
from .edits import edits_of
from .live import copies_at_once
from .writing import Writing, check_finite, written_on

if TYPE_CHECKING:
    import pandas

LIKELIEST, CHANGED = 10, 20
"""So many of the likeliest tokens before and after, and of the features that change most."""


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
    change most, read in the edited model. continuation: what it goes on to write; empty where not asked for. how: by
    what it is written.
    """

    heading: Heading
    changes: tuple[Change, ...]
    logits_before: Float[Tensor, "vocab"] = field(repr=False)
    logits_after: Float[Tensor, "vocab"] = field(repr=False)
    names: Mapping[int, str] = field(repr=False)
    features: tuple[ChangedFeature, ...] = field(repr=False)
    continuation_before: str
    continuation_after: str
    how: Writing

    @property
    def title(self) -> str:
        return "What follows when " + ", ".join(change.said for change in self.changes[:4])

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
            **self.how.to_dict(),
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


@dataclass(frozen=True)
class Steering:
    """A prompt and what is changed on it."""

    prompt: Prompt
    changes: Sequence[Change]


def steer_each(subject: Subject, asked: Sequence[Steering], how: Writing) -> list[Steered]:
    """Run the model with some parts changed, each prompt with changes of its own, and go on writing.

    Raises UserError, before anything runs, for parts that there are not, and where there is no room for what is to be
    written.
    """
    if not asked:
        raise UserError("name what to change in one run at least, for example [{'17/2601@7': 0}]")
    _check(subject, asked, how)
    batches = [_Batch.of(subject, asked, which) for which in _together(subject, asked, how)]
    done, steps = 0, 2 * how.steps * len(batches)

    def ran() -> None:
        nonlocal done
        done += 1
        if how.progress is not None:
            how.progress("running the model, changed", done, steps)

    found: dict[int, Steered] = {}
    for batch in batches:
        found |= batch.run(subject, how, ran)
    return [found[number] for number in range(len(asked))]


def _check(subject: Subject, asked: Sequence[Steering], how: Writing) -> None:
    """Whatever depends on one of several prompts says on which."""
    several = len({one.prompt.token_ids for one in asked}) > 1
    for number, one in enumerate(asked, start=1):
        try:
            how.check_room(subject, len(one.prompt))
            for change in one.changes:
                change.part.check(subject, len(one.prompt))
        except UserError as error:
            raise UserError(f"prompt {number}: {error}" if several else str(error)) from None


def _together(subject: Subject, asked: Sequence[Steering], how: Writing) -> list[list[int]]:
    """Those of equal length, as many at a time as there is room for."""
    alike: dict[int, list[int]] = {}
    for number, one in enumerate(asked):
        alike.setdefault(len(one.prompt), []).append(number)
    widest = max((sae.cfg.d_sae for sae in subject.saes.values()), default=1)
    found = []
    for n, numbers in alike.items():
        most = copies_at_once(n + how.generate, widest)
        found += [numbers[low : low + most] for low in range(0, len(numbers), most)]
    return found


@dataclass(frozen=True)
class _Ran:
    """What is read of prompts: at places every position, of the logits (None) the last; what is written on."""

    read: Mapping[Place | None, Float[Tensor, "batch *pos d"]]
    texts: Sequence[str]

    def of(self, row: int) -> dict[Place | None, Float[Tensor, "*pos d"]]:
        return {place: values[row] for place, values in self.read.items()}


@dataclass(frozen=True)
class _Batch:
    """Prompts of equal length, by their numbers, with the edits of their changes."""

    asked: Mapping[int, Steering]
    replaced: Int[Tensor, "batch pos"]
    edits: Mapping[Place | Inside, Edit]

    @classmethod
    def of(cls, subject: Subject, asked: Sequence[Steering], which: Sequence[int]) -> _Batch:
        own = {number: asked[number] for number in which}
        prompts, changes = [one.prompt for one in own.values()], [one.changes for one in own.values()]
        replaced = torch.stack([_with_tokens(subject, one) for one in own.values()])
        return cls(own, replaced, edits_of(subject, prompts, changes))

    def run(self, subject: Subject, how: Writing, ran: Callable[[], None]) -> dict[int, Steered]:
        """By number. A prompt that several of them have is run once as it is."""
        prompts = list(dict.fromkeys(one.prompt for one in self.asked.values()))
        before = _run(subject, torch.stack([prompt.ids() for prompt in prompts]), {}, how, ran)
        after = _run(subject, self.replaced, self.edits, how, ran)
        return {
            number: _steered(subject, one, how, before, prompts.index(one.prompt), after, row)
            for row, (number, one) in enumerate(self.asked.items())
        }


def _run(
    subject: Subject,
    ids: Int[Tensor, "batch pos"],
    edits: Mapping[Place | Inside, Edit],
    how: Writing,
    ran: Callable[[], None],
) -> _Ran:
    reads: set[Place | None] = {None, *(hook for hook in subject.saes if hook.layer < subject.adapter.n_layers)}
    read = intervene_everywhere(subject.adapter, ids, edits, reads, subject.trace_dtype)
    ran()
    check_finite(read[None])
    return _Ran(read, written_on(subject, ids, edits, read[None], how, ran))


def _with_tokens(subject: Subject, asked: Steering) -> Int[Tensor, "pos"]:
    ids = asked.prompt.ids()
    for change in asked.changes:
        if change.part.kind == "token":
            amount = change.amount
            token = token_id(subject.loaded, amount) if isinstance(amount, str) else int(amount)
            if not 0 <= token < subject.adapter.vocab_size:
                raise UserError(f"token id {token} is not in the vocabulary of {subject.adapter.vocab_size}")
            ids[change.part.pos] = token
    return ids


# ------------------------------------------------------------------------------------------------------------- results


def _steered(
    subject: Subject, asked: Steering, how: Writing, before: _Ran, row_before: int, after: _Ran, row_after: int
) -> Steered:
    read_before, read_after = before.of(row_before), after.of(row_after)
    logits = (read_before[None], read_after[None])
    likely = [token for x in logits for token in x.topk(min(LIKELIEST, len(x))).indices.tolist()]
    return Steered(
        Heading.of(subject, asked.prompt), tuple(asked.changes), *logits,
        {token: token_text(subject.loaded.tokenizer, token) for token in dict.fromkeys(likely)},
        _features(subject, asked.prompt, read_before, read_after),
        before.texts[row_before], after.texts[row_after], replace(how, progress=None),
    )  # fmt: skip


def _features(
    subject: Subject,
    prompt: Prompt,
    before: Mapping[Place | None, Float[Tensor, "*pos d"]],
    after: Mapping[Place | None, Float[Tensor, "*pos d"]],
) -> tuple[ChangedFeature, ...]:
    """Those that change most, of all dictionaries, wherever they are read."""
    found, hooks = [], sorted(subject.saes)
    for hook in hooks:
        if hook not in before:
            continue
        sae = subject.saes[hook]
        old, new = (live_activations(sae, x[hook]) for x in (before, after))
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
