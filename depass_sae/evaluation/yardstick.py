"""What tokens are worth in the live model, measured on many targets at once: the yardstick that rules are held to.

On each of 120 sentences that no SAE was trained on, all targets stand at the last word: of every SAE the feature that
is most above its usual activation there, and the logit of the predicted token over the mean logit. Two measures, by
:data:`SAMPLES` samples each: the Shapley values of the tokens (pairs of orders), and what is lost when a token alone is
replaced by random ones of ordinary text. One run of the model says what all targets make of a text.
"""

from __future__ import annotations

import json
import lzma
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.agreement import rank_correlation, twice
from ..attribution.answer import Asked
from ..attribution.logits import LogitTarget
from ..attribution.readoff import Target
from ..attribution.removal import Replacing, Without
from ..attribution.reservoir import held_out
from ..attribution.shapley import Limits, alone, each_once, shapley
from ..attribution.targets import FeatureTarget
from ..attribution.tokens import TokenTarget, attribute_tokens_each
from ..models.place import Place
from ..models.prompt import Prompt, encode
from ..passes.backward import sweep
from ..passes.choices import EFFECT
from ..passes.intervene import intervene
from ..passes.record import Trace, read_batch
from ..passes.settings import Settings
from ..passes.sinks import sinks
from ..subject import Subject
from .resumed import append, finished, lines
from .rules import Measurement, Study, one_subject

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
        return targets | {"logit": LogitTarget(int(seen.logits[-1].argmax()), "mean")}

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
            found = each_once(texts, max(1, ROOM // texts.shape[1]), self._run)
            self.known[key] = dict(zip(self.study.targets, found.T, strict=True))
        return self.known[key]

    def _run(self, texts: Int[Tensor, "row pos"]) -> Float[Tensor, "row target"]:
        places = {name: target.place for name, (target, _) in self.study.targets.items()}
        read = intervene(self.study.subject.adapter, texts, {}, set(places.values()))
        return torch.stack([self.study.value(name, read[place]).double() for name, place in places.items()], dim=1)


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


# ------------------------------------------------------------------------------------------------------------- methods

RULES: Mapping[str, Settings] = {
    "half": Settings.of("half"),
    "softmax": Settings.of("softmax"),
    "linear": Settings.of("linear"),
    "linear-norm": Settings.of("linear-norm"),
    "relu": Settings.of("relu"),
    "half-qk": Settings.of("half-qk"),
    "half-qk, mean slope": Settings.of("half-qk", qk_slope="mean"),
    "half-qk, share 1": Settings.of("half-qk", qk_share=1.0),
}
AVERAGED = 8
"""Over so many texts ``half`` is averaged in which half of the tokens are replaced."""
MIDDLE = 15
"""The layer at which rules change where there are two."""

Scores = dict[str, Float[Tensor, "pos"]]


def scores(study: Study) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """Every method's scores of a prompt's tokens, for each target; and what ``pattern`` has under those that share with
    attention, as a share of the pre-activation.
    """
    names, embedded, n = list(study.targets), study.seen.resid_pre[0].double(), len(study.prompt)
    found: dict[str, Scores] = {name: {} for name in names}
    pattern: dict[str, dict[str, float]] = {name: {} for name in names}
    for rule, settings in RULES.items():
        for name, target in zip(names, _answers(study, [study.prompt], settings), strict=True):
            found[name][rule] = target.contributions
            if "pattern" in target.other:
                pattern[name][rule] = target.other["pattern"] / target.pre_activation
    averaged, usual = _averaged(study), _usual(study).double()
    for name, own in found.items():
        own["half of x − mean"] = (_below(study, name, "half", "half")[0] * (embedded - usual)).sum(-1)
        own["half, others replaced"] = averaged[name]
        for above, below in (("half", "half-qk"), ("half-qk", "half")):
            gradient, left = _below(study, name, above, below)
            own[f"{above} above, {below} below"] = (gradient * embedded).sum(-1)
            pattern[name][f"{above} above, {below} below"] = left / study.targets[name][1]
        *_, first = study.gradients(name, EFFECT)
        own["gradient × embedding"] = (first.before[0].double() * embedded).sum(-1)
        own["nearness"] = torch.arange(n).double()
        own["random"] = torch.rand(n, generator=study.generator, dtype=torch.float64)
    return found, pattern


def _answers(study: Study, prompts: Sequence[Prompt], settings: Settings) -> list[TokenTarget]:
    """To all targets on each of some prompts, at their last positions."""
    targets = [target for target, _ in study.targets.values()]
    asked = [Asked(prompt, target, len(prompt) - 1) for prompt in prompts for target in targets]
    return [answer.target for answer in attribute_tokens_each(study.subject, asked, settings=settings)]


def _below(study: Study, name: str, above: str, below: str) -> tuple[Float[Tensor, "pos d_model"], float]:
    """The gradient with respect to the embeddings, by one rule from the middle layer up and by another below it; and
    what ``pattern`` has.
    """
    target, _ = study.targets[name]
    place, left = target.read(study.subject, study.seen).place, 0.0
    if place.layer < MIDDLE:
        *_, lowest = study.gradients(name, RULES[below].choices)
    else:
        *_, upper = study.gradients(name, RULES[above].choices, down_to=2 * MIDDLE)
        *_, lowest = sweep(study.seen, {Place(MIDDLE, "resid_pre"): upper.before}, RULES[below].choices)
        left = upper.pattern_before.sum().item()
    return lowest.before[0].double(), left + lowest.pattern_before.sum().item()


def _usual(study: Study) -> Float[Tensor, "d_model"]:
    """The mean embedding of the tokens that others are replaced by."""
    allowed = Replacing.by(study.subject, 0).allowed
    return study.subject.adapter.model.get_input_embeddings().weight.detach()[allowed].mean(0)


def _averaged(study: Study) -> Scores:
    """``half`` where half of the other tokens are replaced, the last one kept: a token's mean over the texts that have
    it.
    """
    prompt, n = study.prompt, len(study.prompt)
    keep = torch.rand(AVERAGED, n, generator=study.generator) < 0.5
    keep[AVERAGED // 2 :] = ~keep[: AVERAGED // 2]  # every token is there in half of them
    keep[:, torch.tensor(prompt.special) | (torch.arange(n) == n - 1)] = True
    texts = torch.where(keep, prompt.ids(), Replacing.by(study.subject, 0).draw(AVERAGED, n, study.generator))
    prompts = [encode(study.subject.loaded, study.subject.adapter, ids) for ids in texts.tolist()]
    total = {name: torch.zeros(n, dtype=torch.float64) for name in study.targets}
    answers = iter(_answers(study, prompts, RULES["half"]))
    for here in keep:
        for own in total.values():
            own += torch.where(here, next(answers).contributions, 0.0)
    return {name: own / keep.sum(0) for name, own in total.items()}


# -------------------------------------------------------------------------------------------------------------- scoring

SHAPLEY, ALONE = "Shapley values", "replaced alone"
CEILING = "the measurement with itself"
REPLACED = "replacing one"
PATTERN = "pattern"
DELETED = (0.2, 0.4)
"""Shares of a prompt's tokens that are deleted together."""


def scored(study: Study, number: int, measured: Sequence[Measured]) -> Iterator[Measurement]:
    """Every method held to both measurements, for every target of a sentence."""
    last = len(study.prompt) - 1
    each, shares = scores(study)
    for one in measured:
        others = [k for k, pos in enumerate(one.positions) if pos != last]
        at = [one.positions[k] for k in others]
        note = partial(Measurement, number, "tokens", one.target)
        samples = {SHAPLEY: one.shapley[:, others], ALONE: one.alone[:, others]}
        found = {method: score[at] for method, score in each[one.target].items()} | {REPLACED: samples[ALONE].mean(0)}
        for protocol, drawn in samples.items():
            truth = drawn.mean(0).tolist()
            half = rank_correlation(drawn[::2].mean(0).tolist(), drawn[1::2].mean(0).tolist())
            yield note(protocol, CEILING, math.nan if half is None else twice(half))
            for method, score in found.items():
                if (protocol, method) != (ALONE, REPLACED):
                    rank = rank_correlation(score.tolist(), truth)
                    yield note(protocol, method, math.nan if rank is None else rank)
        for method, share in shares[one.target].items():
            yield note(PATTERN, method, abs(share))
        for share in DELETED:
            count = max(1, round(share * len(at)))
            gone = [[at[i] for i in score.argsort(descending=True)[:count].tolist()] for score in found.values()]
            for method, lost in zip(found, _deleted(study, one.target, gone), strict=True):
                yield note(f"top {share:.0%} deleted", method, lost)


def _deleted(study: Study, name: str, gone: Sequence[Sequence[int]]) -> list[float]:
    """The share of the target that is lost when equally many tokens are taken out of the text, for each choice."""
    texts = torch.tensor([[t for i, t in enumerate(study.prompt.token_ids) if i not in chosen] for chosen in gone])
    target, value = study.targets[name]

    def run(some: Int[Tensor, "row pos"]) -> Float[Tensor, "row"]:
        return study.value(name, read_batch(study.subject.adapter, some, target.place))

    return ((value - each_once(texts, len(texts), run)) / abs(value)).tolist()


# -------------------------------------------------------------------------------------------------------------- running


def run(measured_in: Path, scored_in: Path, count: int, workers: int, kept: Path | None = None) -> list[Measurement]:
    """Measure and score ``count`` sentences to choose by and as many to confirm. What the files (JSON lines) hold is
    not done again. kept: earlier measurements, compressed: measuring takes hours, scoring minutes.
    """
    wanted = [*range(count), *range(CHOOSING, CHOOSING + count)]
    known: dict[int, list[Measured]] = {}
    before = lzma.decompress(kept.read_bytes()).decode().splitlines() if kept is not None and kept.exists() else []
    for line in [*before, *lines(measured_in)]:
        one = Measured.read(line)
        known.setdefault(one.prompt, []).append(one)
    records = [Measurement(**json.loads(line)) for line in lines(scored_in)]
    missing = [number for number in wanted if number not in {record.prompt for record in records}]
    jobs = [(number, known.get(number)) for number in missing]
    for number, taken, found in finished(_work, jobs, "measuring", workers, len(wanted)):
        if number not in known:
            append(measured_in, [one.to_json() for one in taken])
        append(scored_in, [json.dumps(record.__dict__) for record in found])
        records += found
    return [record for record in records if record.prompt in wanted]


def _work(number: int, taken: list[Measured] | None) -> tuple[int, list[Measured], list[Measurement]]:
    asked = study(one_subject(), number)
    taken = measured(asked, number) if taken is None else taken
    return number, taken, list(scored(asked, number, taken))
