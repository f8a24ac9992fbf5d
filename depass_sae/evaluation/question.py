"""One prompt with its target, as methods and protocols of an evaluation see it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.answer import Asked
from ..attribution.logits import LogitTarget
from ..attribution.positions import choose_positions
from ..attribution.readoff import Readoff, Target
from ..attribution.targets import make_target, parse_target
from ..errors import UserError
from ..graph.feature_game import Asked as AskedFeatures
from ..graph.feature_game import FeatureGame, Removal, feature_game, predicted_logit
from ..models.place import Place
from ..models.prompt import Prompt, encode
from ..passes.backward import Level, sweep
from ..passes.choices import EFFECT, Choices
from ..passes.record import Trace
from ..passes.settings import Settings
from ..subject import Subject
from .prompts import Item

CONTRAST = "contrast"
"""The removal by which what a prompt has gives way to what its contrast has."""


@dataclass(frozen=True, eq=False)
class Question:
    """A target at the last position of a prompt, which is cut off behind it.

    seen: the prompt's trace. value: the target in the live model. contrast: a prompt as long, where there is one.
    removal: how sources are taken out, unless a protocol has its own way (games.py). seed: of whatever is random here.
    settings: how passes are worked on.
    """

    subject: Subject = field(repr=False)
    item: Item
    prompt: Prompt
    target: Target
    seen: Trace = field(repr=False)
    contrast: Prompt | None
    removal: str
    seed: int = 0
    settings: Settings = Settings()  # noqa: RUF009 (frozen)

    @property
    def pos(self) -> int:
        return len(self.prompt) - 1

    @cached_property
    def readoff(self) -> Readoff:
        return self.target.read(self.subject, self.seen)

    @property
    def place(self) -> Place:
        """Where the target is read; a logit on the stream before the final norm."""
        return self.readoff.place

    @cached_property
    def value(self) -> float:
        return self.readoff.now[self.pos].item()

    @property
    def asked(self) -> Asked:
        return Asked(self.prompt, self.target, self.pos)

    @cached_property
    def key(self) -> str:
        """What tells it from others: its tokens, target and contrast."""
        said: list[Any] = [self.prompt.token_ids, self.target.describe(self.subject), self.target.name]
        said += [None if self.contrast is None else self.contrast.token_ids]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    @property
    def generator(self) -> torch.Generator:
        """A new one, the same for the same question and seed."""
        return torch.Generator().manual_seed(int(self.key, 16) ^ self.seed)

    def gradients(self, choices: Choices) -> Iterator[Level]:
        """The sweep back from the target to the embeddings."""
        return gradients(self.subject, self.seen, self.target, self.readoff, choices)

    @cached_property
    def features(self) -> FeatureGame:
        """The active features below the target as players; with removal "contrast" those that differ there."""
        contrast = self.with_contrast() if self.removal == CONTRAST else None
        asked = AskedFeatures(self.prompt, self.target, self.pos, contrast)
        return feature_game(self.subject, asked, None, Removal())[0]

    def with_contrast(self) -> Prompt:
        """Raises UserError where there is none."""
        if self.contrast is None:
            raise UserError('removal "contrast" needs a contrast beside each prompt, of the same length')
        return self.contrast

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key, "prompt": self.prompt.text, "token_ids": list(self.prompt.token_ids),
            "target": self.target.name, "pos": self.pos, "value": self.value,
            **({} if self.contrast is None else {"contrast": self.contrast.text}),
        }  # fmt: skip


def gradients(
    subject: Subject, seen: Trace, target: Target, readoff: Readoff, choices: Choices, down_to: int = 0
) -> Iterator[Level]:
    """The sweep back from a target at a trace's last position; for ``effect`` its own norm is live, too."""
    last = len(seen.token_ids) - 1
    w = readoff.direction.w[last]
    if choices is EFFECT:
        w = target.slope(subject, seen.at(readoff.place)[last:])[0]
    seeds = torch.zeros(1, last + 1, len(w)).to(w)
    seeds[0, last] = w
    return sweep(seen, {readoff.place: seeds}, choices, down_to=down_to)


# ----------------------------------------------------------------------------------------------------- what a run gives

VALUE, CHANCE, AHEAD = range(3)
"""The columns of what a run of the live model gives."""


def outcomes(subject: Subject, target: Target, x: Float[Tensor, "row d"]) -> Float[Tensor, "row 3"]:
    """Of activations at the target's place, or logits: the target's value; the probability of its tokens; and 1 where
    they are ahead of those that they are held to by name, or of all others. NaN where a target has no such thing.
    """
    found = torch.full((len(x), 3), torch.nan, dtype=torch.float64)
    found[:, VALUE] = target.live(subject, x).double().cpu()
    if isinstance(target, LogitTarget):
        own = list(target.tokens)
        found[:, CHANCE] = x.double().softmax(-1)[:, own].sum(-1).cpu()
        rest = x.clone()
        rest[:, own] = -torch.inf
        rivals = rest[:, list(target.others)] if target.others else rest
        found[:, AHEAD] = (x[:, own].amax(-1) > rivals.amax(-1)).double().cpu()
    return found


@dataclass(frozen=True)
class LeftOut:
    """A prompt that says nothing here, and why."""

    item: Item
    why: str


def ask(
    subject: Subject,
    item: Item,
    where: str,
    target: str | None,
    every: bool,
    removal: str,
    seed: int,
    settings: Settings,
) -> Question | LeftOut:
    """An item as a question. target: of those that name none. every: also where the model does not give the answer.

    Raises UserError, which says where, for a target that there is not, and for a contrast of another length.
    """
    try:
        return _ask(subject, item, target, every, removal, seed, settings)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _ask(
    subject: Subject, item: Item, target: str | None, every: bool, removal: str, seed: int, settings: Settings
) -> Question | LeftOut:
    prompt = encode(subject.loaded, subject.adapter, _given(item.prompt))
    named, at = _target(subject, item, target, prompt)
    seen = subject.trace(prompt, None, [place for place in [named.place] if place is not None])
    chosen = choose_positions(prompt, seen, named, named.read(subject, seen), at).positions
    if len(chosen) > 1:
        raise UserError("an evaluation is of one position of each prompt; name it, like 17/2601@6")
    pos = chosen[0]
    contrast = None
    if item.contrast is not None:
        contrast = encode(subject.loaded, subject.adapter, _given(item.contrast))
        if len(contrast) != len(prompt):
            raise UserError(
                f"its contrast has {len(contrast)} tokens and the prompt {len(prompt)}; let them be as many"
            )
        contrast = _first(contrast, pos + 1)
    question = Question(
        subject, item, _first(prompt, pos + 1), named.at(seen, pos), seen.first(pos + 1), contrast,
        removal, seed, settings,
    )  # fmt: skip
    now = question.readoff
    if now.activation is not None and now.activation[pos] == 0:
        return LeftOut(item, f"{named.name} does not fire")
    if isinstance(named, LogitTarget) and not every:
        assert seen.logits is not None
        if not outcomes(subject, question.target, seen.logits[pos : pos + 1])[0, AHEAD]:
            return LeftOut(item, "the model gives another answer")
    return question


def _given(prompt: str | tuple[int, ...]) -> str | list[int]:
    return prompt if isinstance(prompt, str) else list(prompt)


def _first(prompt: Prompt, n: int) -> Prompt:
    if n == len(prompt):
        return prompt
    return replace(prompt, token_ids=prompt.token_ids[:n], tokens=prompt.tokens[:n], special=prompt.special[:n])


def _target(subject: Subject, item: Item, default: str | None, prompt: Prompt) -> tuple[Target, Any]:
    """A plain logit is held to the mean: as it is it has no zero that means that nothing is there."""
    if item.answer is not None:
        if item.foil is not None:
            return make_target(subject, logit_diff=(item.answer, item.foil))
        return make_target(subject, logit=item.answer, against="mean")
    text = default if item.target is None else item.target
    if text is None:
        return predicted_logit(subject, prompt).over_mean(), None
    target, at = parse_target(subject, text)
    if isinstance(target, LogitTarget) and target.against is None:
        target = target.over_mean()
    return target, at
