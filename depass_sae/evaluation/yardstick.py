"""What tokens are worth in the live model, measured on many targets at once: the yardstick that rules are held to.

On each of 120 sentences that no SAE was trained on, all targets stand at the last word: of every SAE the feature that is
most above its usual activation there, and the logit of the predicted token over the mean logit. Two measures, each by
:data:`SAMPLES` samples: the Shapley values of the tokens (pairs of orders), and what is lost when a token alone is
replaced by random ones of ordinary text. One run of the model says what all targets make of a text.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.removal import Replacing, Without
from ..attribution.reservoir import held_out
from ..attribution.shapley import Limits, Sampled, alone, shapley
from ..attribution.targets import FeatureTarget, Target
from ..models.prompt import Prompt, encode
from ..passes.intervene import intervene
from ..passes.record import Trace
from ..passes.sinks import sinks
from ..subject import Subject
from .rules import CentredLogit, Study

SHORTEST, LONGEST = 12, 14
"""Tokens of a sentence with the start token and without its last sign: the shortest with ten sources beside its last
word, since measuring takes time with the square of the length.
"""
CHOOSING, CONFIRMING = 60, 60
"""So many sentences there are to choose a rule by, and so many others to confirm the choice."""
SAMPLES = 10
ROOM = 4096
"""About how many tokens go through the model at once."""


def sentences(subject: Subject) -> list[Prompt]:
    """The first sentence of that length in a text, one topic each: those to choose by come first."""
    found = []
    for text in held_out():
        each = (encode(subject.loaded, subject.adapter, said) for said in _SENTENCE.findall(text))
        found += [*islice((prompt for prompt in each if SHORTEST <= len(prompt) <= LONGEST), 1)]
    return random.Random(0).sample(found, CHOOSING + CONFIRMING)


_SENTENCE = re.compile(r"(?:^|(?<=[.!?] ))([A-Z][^\n.!?]+)[.!?](?=\s)", re.MULTILINE)


def study(subject: Subject, number: int) -> Study:
    """A sentence with its targets."""

    def choose(seen: Trace) -> dict[str, Target]:
        assert seen.logits is not None
        targets: dict[str, Target] = {}
        for hook in sorted(asked.saes):
            activations = asked.encoding(seen, hook).activations
            last, usual = activations[-1], activations[1:].mean(0)
            targets[f"feature {hook.layer}"] = FeatureTarget(hook, int((last - usual).argmax()))
        return targets | {"logit": CentredLogit(int(seen.logits[-1].argmax()))}

    asked = subject.asked()
    return Study.of(asked, sentences(subject)[number], number, choose)


@dataclass(frozen=True)
class Measured:
    """Both measurements of one target of one sentence, of the tokens at ``positions``.

    shapley: the last value of each sample is the baseline.
    """

    prompt: int
    target: str
    positions: list[int]
    value: float
    shapley: Float[Tensor, "sample value"]
    alone: Float[Tensor, "sample value"]

    def to_json(self) -> str:
        numbers = {key: getattr(self, key).tolist() for key in ("shapley", "alone")}
        return json.dumps(self.__dict__ | numbers)

    @classmethod
    def read(cls, line: str) -> Measured:
        kept = json.loads(line)
        return cls(**kept | {key: torch.tensor(kept[key], dtype=torch.float64) for key in ("shapley", "alone")})


def measured(study: Study, number: int) -> list[Measured]:
    """Of all targets of a sentence."""
    seen, last = study.seen, len(study.prompt) - 1
    kept = {p for p in range(last + 1) if study.prompt.special[p]} | set(sinks(seen, (seen.n_layers - 1, "resid_post")))
    positions = [p for p in range(last + 1) if p not in kept]
    without = Replacing.by(study.subject, number).of(study.prompt.ids(), [[p] for p in positions], SAMPLES)
    runs, limits = _Runs(study, positions, without), Limits(samples=SAMPLES)
    found = []
    for name, (_, value) in study.targets.items():
        game = _Game(runs, name, value)
        orders, single = shapley(game, limits, number), alone(game, limits)
        found.append(Measured(number, name, positions, value, orders.samples, single.samples))
    return found


@dataclass(frozen=True)
class _Runs:
    """What all targets make of texts. The same texts are asked for by every target, and run once."""

    study: Study
    positions: list[int]
    without: Without
    known: dict[bytes, dict[str, Float[Tensor, "row"]]] = field(default_factory=dict)

    def of(self, kept: Bool[Tensor, "row player"], draw: Int[Tensor, "row"]) -> dict[str, Float[Tensor, "row"]]:
        key = kept.numpy().tobytes() + draw.numpy().tobytes()
        if key not in self.known:
            gone = torch.zeros(len(kept), len(self.study.prompt), dtype=torch.bool)
            gone[:, self.positions] = ~kept
            ((_, texts),) = self.without(gone, draw)
            different, which = torch.unique(texts, dim=0, return_inverse=True)
            found = [self._run(some) for some in different.split(max(1, ROOM // texts.shape[1]))]
            self.known[key] = {name: torch.cat([one[name] for one in found])[which] for name in self.study.targets}
        return self.known[key]

    def _run(self, texts: Int[Tensor, "row pos"]) -> dict[str, Float[Tensor, "row"]]:
        places = {name: target.place for name, (target, _) in self.study.targets.items()}
        read = intervene(self.study.subject.adapter, texts, {}, set(places.values()))
        return {name: self.study.value(name, read[place]).double() for name, place in places.items()}


@dataclass(frozen=True)
class _Game:
    """One target's :class:`..attribution.shapley.Game`."""

    runs: _Runs
    name: str
    whole: float
    chance = True

    @property
    def players(self) -> int:
        return len(self.runs.positions)

    @cached_property
    def room(self) -> int:
        return ROOM // len(self.runs.study.prompt)

    def play(self, kept: Bool[Tensor, "row player"], draw: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        return self.runs.of(kept, draw)[self.name].clone()
