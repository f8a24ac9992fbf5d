"""Which rule is worth what for heads and features: against real interventions on SmolLM2 (``make rules``).

For tokens see :mod:`.yardstick`. On each of a few dozen prompts, targets are read at the last position: the top feature
of some SAEs, and the logit of the predicted token (over the mean logit). Sources, each measured in the unfrozen model,
by nothing random:

- *heads*: a head's output is set to zero, one head alone; and the most important heads together.
- *features* of an earlier SAE: a feature's decoder part is taken out of the stream, one alone; and many together.
- *heads (indirect object)*: all of them, for the difference of two names' logits, on sentences made for it (ioi.py).

*alone* is Spearman's correlation of a method's scores with the measured losses; *together* is the share of the target
that is gone when the method's top k are taken out. Baselines stand beside the rules: nearness to the target, gradient
times part (``effect``), activation, chance. Means over prompts with 95 % intervals.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.logits import LogitTarget
from ..attribution.readoff import Target
from ..attribution.reservoir import held_out
from ..attribution.targets import FeatureTarget
from ..loading import load_subject
from ..models.place import Place
from ..models.prompt import Prompt, encode, token_id
from ..passes.choices import CONTRIBUTION, EFFECT, Choices
from ..passes.forward import Allocation, propagate
from ..passes.intervene import intervene
from ..passes.record import Trace
from ..passes.sources import Heads, Split, Vectors
from ..subject import Subject
from .ioi import sentences
from .question import gradients
from .resumed import append, finished, lines

FEATURE_FROM, FEATURE_TO = 17, 23
HEADS_TO = 23
ALONE = 40
"""How many heads or features are taken out one at a time."""
TOGETHER = (5, 10, 20, 40)
INDIRECT_OBJECT = "heads (indirect object)"
SWEPT: dict[str, Choices] = {**CONTRIBUTION, "effect": EFFECT}


@dataclass(frozen=True)
class Measurement:
    """One number: how a method did on one prompt. source -> target, protocol "alone", "together 5", ..."""

    prompt: int
    source: str
    target: str
    protocol: str
    method: str
    value: float


def prompts(count: int, subject: Subject, longest: int = 24) -> list[Prompt]:
    """First sentences of texts that no SAE was trained on, one topic each, 12 to ``longest`` tokens."""
    found = []
    for text in held_out():
        sentence = re.match(r"\w[^\n]+?[.!?](?=\s)", text)
        if sentence:
            prompt = encode(subject.loaded, subject.adapter, sentence[0])
            if 12 <= len(prompt) <= longest:
                found.append(prompt)
    return random.Random(0).sample(found, count)


Found = tuple[str, str, str, float]
"""target, protocol, method, value: what a question says of one text."""


@dataclass(frozen=True)
class Study:
    """A prompt, its trace, and its targets at the last position: name -> (target, its value in the model)."""

    subject: Subject
    prompt: Prompt
    seen: Trace
    targets: dict[str, tuple[Target, float]]
    generator: torch.Generator

    @classmethod
    def of(cls, subject: Subject, prompt: Prompt, number: int, choose: Callable[[Trace], dict[str, Target]]) -> Study:
        """choose: the targets, by what the model does with the prompt."""
        subject = subject.asked()
        seen = subject.trace(prompt, None, list(subject.saes))
        chosen = choose(seen).items()
        targets = {name: (target, target.read(subject, seen).now[-1].item()) for name, target in chosen}
        return cls(subject, prompt, seen, targets, torch.Generator().manual_seed(number))

    def gradients(self, name: str, choices: Choices, down_to: int = 0) -> Iterator[Any]:
        """The sweep back from one target; for ``effect`` its own norm is live, too."""
        target, _ = self.targets[name]
        return gradients(self.subject, self.seen, target, target.read(self.subject, self.seen), choices, down_to)

    def carried(self, name: str, start: Split, rule: str) -> Float[Tensor, "comp"]:
        """Every component's contribution by the forward engine, ``bias`` and ``rest`` left out."""
        readoff = self.targets[name][0].read(self.subject, self.seen)
        at = torch.tensor([len(self.prompt) - 1])
        rows = propagate(self.seen, start, {readoff.place: at}, Allocation(rule))[readoff.place]
        return rows.project(readoff.direction.w[at])[0, :-2]

    def losses(self, name: str, edits: Mapping[Any, Any], batch: int) -> Float[Tensor, "batch"]:
        """What a target loses in each of a batch of edited copies of the prompt."""
        target, value = self.targets[name]
        ids = self.prompt.ids().expand(batch, -1)
        read = intervene(self.subject.adapter, ids, edits, {target.place})
        return value - self.value(name, read[target.place])

    def value(self, name: str, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
        return self.targets[name][0].live(self.subject, x)


def _on_prompt(layers: Sequence[int]) -> Callable[[Subject, int, int], Study]:
    """Studies of the strongest features of these layers' SAEs, and of the predicted token's logit."""

    def study(subject: Subject, number: int, count: int) -> Study:
        def choose(seen: Trace) -> dict[str, Target]:
            targets: dict[str, Target] = {}
            for layer in layers:
                hook = Place(layer, "resid_post")
                with torch.no_grad():
                    strongest = int(subject.saes[hook].encode(seen.at((layer, "resid_post")))[-1].argmax())
                targets[f"feature {layer}"] = FeatureTarget(hook, strongest)
            return targets | {"logit": LogitTarget(int(seen.logits[-1].argmax()), "mean")}  # type: ignore[index]

        return Study.of(subject, prompts(count, subject)[number], number, choose)

    return study


def _on_sentence(subject: Subject, number: int, _count: int) -> Study | None:
    """The study of a sentence with an indirect object; None where the model prefers the wrong name."""
    sentence = sentences()[number]
    target = LogitTarget(token_id(subject.loaded, sentence.indirect_object), token_id(subject.loaded, sentence.subject))
    prompt = encode(subject.loaded, subject.adapter, sentence.text)
    study = Study.of(subject, prompt, number, lambda _: {"logit difference": target})
    return study if study.targets["logit difference"][1] > 0 else None


# --------------------------------------------------------------------------------------------------------------- heads


def _heads(study: Study, alone: int | None = ALONE) -> Iterator[Found]:
    """alone: how many are taken out one at a time (None: all)."""
    adapter = study.subject.adapter
    n_heads = study.seen.sublayer(0).mixer.n_units
    for name, (target, value) in study.targets.items():
        layers = adapter.n_layers if target.place is None else target.place[0] + 1
        total = layers * n_heads
        scores = {method: _swept_heads(study, name, choices) for method, choices in SWEPT.items()}
        carried = [study.carried(name, Heads(layer).start(study.seen), "softmax") for layer in range(layers)]
        scores["softmax"] = torch.cat(carried)
        scores["nearness"] = torch.arange(total).float()
        scores["random"] = torch.rand(total, generator=study.generator)
        chosen = torch.randperm(total, generator=study.generator)[:alone].tolist()
        sets = _sets(chosen, scores)
        lost = study.losses(name, _without_heads(study, sets, n_heads), len(sets))
        yield from _scored(name, scores, chosen, lost, value)


def _swept_heads(study: Study, name: str, choices: Choices) -> Float[Tensor, "head_of_any_layer"]:
    found = [level.units()[0] for level in study.gradients(name, choices) if level.looks_back]
    return torch.cat(found[::-1])


def _without_heads(study: Study, sets: list[list[int]], n_heads: int) -> dict[Any, Any]:
    """For every set of heads, one copy of the prompt in which they write nothing."""
    edits = {}
    for layer in {i // n_heads for chosen in sets for i in chosen}:
        keep = torch.ones(len(sets), n_heads)
        for row, chosen in enumerate(sets):
            for i in chosen:
                if i // n_heads == layer:
                    keep[row, i % n_heads] = 0
        place = Place(layer, "hook_z")
        edits[place] = _scaled(keep.repeat_interleave(study.subject.adapter.width(place) // n_heads, dim=1))
    return edits


def _scaled(keep: Float[Tensor, "batch d"]) -> Callable[[Tensor], Tensor]:
    return lambda z: z * keep[:, None].to(z)


# ------------------------------------------------------------------------------------------------------------ features


def _features(study: Study) -> Iterator[Found]:
    point = Place(FEATURE_FROM, "resid_post")
    found = study.subject.encoding(study.seen, Place(*point)).parts
    usable = (found.pos > 0).nonzero()[:, 0]  # features mean nothing on the start token
    pos, parts, activation = found.pos[usable], found.parts[usable], found.activation[usable]
    for name, (_, value) in study.targets.items():
        scores = {}
        for method, choices in SWEPT.items():
            *_, lowest = study.gradients(name, choices, down_to=point.depth)
            scores[method] = (lowest.before[0, pos] * parts).sum(-1)
        scores["softmax"] = study.carried(name, _feature_source(study, pos, parts).start(study.seen), "softmax")
        scores["activation"] = activation
        scores["random"] = torch.rand(len(pos), generator=study.generator)
        chosen = torch.randperm(len(pos), generator=study.generator)[:ALONE].tolist()
        sets = _sets(chosen, scores)
        removed = torch.zeros(len(sets), len(study.prompt), parts.shape[1])
        for row, members in enumerate(sets):
            removed[row].index_add_(0, pos[members], parts[members])
        lost = study.losses(name, {point: _less(removed)}, len(sets))
        yield from _scored(name, scores, chosen, lost, value)


def _feature_source(study: Study, pos: Tensor, parts: Tensor) -> Vectors:
    dense = torch.zeros(len(study.prompt), len(pos), parts.shape[1])
    present = torch.zeros(len(study.prompt), len(pos), dtype=torch.bool)
    dense[pos, torch.arange(len(pos))] = parts
    present[pos, torch.arange(len(pos))] = True
    return Vectors(dense, [str(i) for i in range(len(pos))], Place(FEATURE_FROM, "resid_post"), present)


def _less(removed: Float[Tensor, "batch pos d"]) -> Callable[[Tensor], Tensor]:
    return lambda x: x - removed.to(x)


# ------------------------------------------------------------------------------------------------------------- scoring


def _sets(chosen: list[int], scores: Mapping[str, Tensor]) -> list[list[int]]:
    """What is taken out: each of ``chosen`` alone, then each method's top k."""
    together = [score.argsort(descending=True)[:k].tolist() for score in scores.values() for k in TOGETHER]
    return [[i] for i in chosen] + together


def _scored(name: str, scores: Mapping[str, Tensor], chosen: list[int], lost: Tensor, value: float) -> Iterator[Found]:
    """lost: by each of ``_sets``, in their order."""
    alone, together = lost[: len(chosen)], iter(lost[len(chosen) :].tolist())
    for method, score in scores.items():
        yield name, "alone", method, _spearman(score[chosen], alone)
        for k in TOGETHER:
            yield name, f"top {k} out", method, next(together) / abs(value)


def _spearman(a: Tensor, b: Tensor) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a.detach().numpy(), b.detach().numpy()).statistic)


# ------------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Protocol:
    """How the text of a number is studied (of how many; None: not at all), and what is measured there.

    most: so many texts there are for it.
    """

    study: Callable[[Subject, int, int], Study | None]
    measure: Callable[[Study], Iterator[Found]]
    most: int | None = None

    def texts(self, count: int) -> range:
        """The numbers of its texts, where ``count`` are asked for."""
        return range(count if self.most is None else min(count, self.most))


QUESTIONS = {
    "heads": Protocol(_on_prompt([HEADS_TO]), _heads),
    "features": Protocol(_on_prompt([FEATURE_TO]), _features),
    INDIRECT_OBJECT: Protocol(_on_sentence, partial(_heads, alone=None), len(sentences())),
}
"""By source. Each is measured by itself, so that none changes what another draws."""


def measure(subject: Subject, source: str, number: int, count: int) -> list[Measurement]:
    """A question on the text of a number, of ``count``; nothing where it does not arise."""
    question = QUESTIONS[source]
    study = question.study(subject, number, count)
    return [] if study is None else [Measurement(number, source, *found) for found in question.measure(study)]


def run(out: Path, count: int, workers: int) -> list[Measurement]:
    """Measure ``count`` prompts, several at once; what ``out`` (JSON lines) holds already is not measured again."""
    records = [Measurement(**json.loads(line)) for line in lines(out)]
    known = {(record.source, record.prompt) for record in records}
    wanted = [(source, number) for source, question in QUESTIONS.items() for number in question.texts(count)]
    missing = [(*job, count) for job in wanted if job not in known]
    for found in finished(_work, missing, "measuring", workers, len(wanted)):
        append(out, [json.dumps(record.__dict__) for record in found])
        records += found
    return records


@cache
def one_subject() -> Subject:
    """One model per worker process."""
    torch.set_num_threads(1)
    return load_subject("smollm2")


def _work(source: str, number: int, count: int) -> list[Measurement]:
    return measure(one_subject(), source, number, count)
