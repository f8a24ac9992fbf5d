"""Which rule is worth what: every rule against real interventions on SmolLM2 (``make rules``).

On each of a few dozen prompts, targets are read at the last position: the top feature of some SAEs, and the logit of
the predicted token (over the mean logit). Three kinds of source, each measured in the unfrozen model:

- *tokens*: each is replaced by random ones, several times over; and the most important ones are deleted together.
- *heads*: a head's output is set to zero, one head alone; and the most important heads together.
- *features* of an earlier SAE: a feature's decoder part is taken out of the stream, one alone; and many together.

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
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.subject import Subject
from ..attribution.targets import FeatureTarget, LogitTarget, Target
from ..models.prompt import Prompt, encode, special_ids
from ..passes.intervene import intervene
from ..passes.propagate import Allocation, propagate
from ..passes.sources import Heads, Start, Vectors, recorded_heads, tokens
from ..passes.sublayers import CONTRIBUTION, EFFECT, Choices
from ..passes.sweep import sweep
from ..passes.trace import Trace, read_batch
from ..saes import Hook, feature_parts, live_pre_activation

TOKEN_TARGETS = (11, 17, 23)
FEATURE_FROM, FEATURE_TO = 17, 23
HEADS_TO = 23
REPLACEMENTS = 4
ALONE = 40
"""How many heads or features are taken out one at a time."""
TOGETHER = (5, 10, 20, 40)
DELETED = (0.2, 0.4)
"""Shares of a prompt's tokens that are deleted together."""
COSTLY_PROMPTS = 49
"""Rules that carry every head and feature forward are measured on so many prompts."""
SWEPT: dict[str, Choices] = {**CONTRIBUTION, "effect": EFFECT}


@dataclass(frozen=True)
class Record:
    """One number: how a method did on one prompt. source -> target, protocol "alone", "together 5", ..."""

    prompt: int
    source: str
    target: str
    protocol: str
    method: str
    value: float


def prompts(count: int, subject: Subject, longest: int = 24) -> list[Prompt]:
    """First sentences of texts that no SAE was trained on, one topic each, 12 to ``longest`` tokens."""
    from ..demo.corpus import documents

    found = []
    for document in documents(None):
        sentence = re.match(r"\w[^\n]+?[.!?](?=\s)", document.text)
        if document.held_out and sentence:
            prompt = encode(subject.loaded, subject.adapter, sentence[0])
            if 12 <= len(prompt) <= longest:
                found.append(prompt)
    return random.Random(0).sample(found, count)


def measure_prompt(subject: Subject, prompt: Prompt, number: int) -> list[Record]:
    """Every question on one prompt."""
    study = _Study.of(subject, prompt, number)
    return [
        *(Record(number, *found) for found in _tokens(study)),
        *(Record(number, *found) for found in _heads(study)),
        *(Record(number, *found) for found in _features(study)),
    ]


Found = tuple[str, str, str, str, float]


@dataclass(frozen=True)
class _Study:
    """A prompt, its trace, and its targets at the last position: name -> (target, its value in the model)."""

    subject: Subject
    prompt: Prompt
    number: int
    seen: Trace
    targets: dict[str, tuple[Target, float]]
    generator: torch.Generator

    @classmethod
    def of(cls, subject: Subject, prompt: Prompt, number: int) -> _Study:
        seen = subject.trace(prompt, None)
        last = len(prompt) - 1
        targets: dict[str, tuple[Target, float]] = {}
        for layer in sorted({*TOKEN_TARGETS, FEATURE_TO, HEADS_TO}):
            hook = Hook(layer, "resid_post")
            with torch.no_grad():
                strongest = int(subject.saes[hook].encode(seen.at((layer, "resid_post")))[last].argmax())
            target = FeatureTarget(hook, strongest)
            targets[f"feature {layer}"] = (target, target.read(subject, seen).pre[last].item())
        logit = _CentredLogit(int(seen.logits[last].argmax()))  # type: ignore[index]
        targets["logit"] = (logit, logit.read(subject, seen).pre[last].item())
        return cls(subject, prompt, number, seen, targets, torch.Generator().manual_seed(number))

    def gradients(self, name: str, choices: Choices, down_to: int = 0) -> Iterator[Any]:
        """The sweep back from one target; for ``effect`` its own norm is live, too."""
        target, _ = self.targets[name]
        readoff = target.read(self.subject, self.seen)
        last = len(self.prompt) - 1
        w = readoff.direction.w[last]
        if choices is EFFECT:
            x = self.seen.at(readoff.point)[last:].detach().requires_grad_()
            with torch.enable_grad():
                (w,) = torch.autograd.grad(self._live(target, x), x)
            w = w[0]
        seeds = torch.zeros(1, len(self.prompt), len(w)).to(w)
        seeds[0, last] = w
        return sweep(self.seen, {readoff.point: seeds}, choices, down_to=down_to)

    def _live(self, target: Target, x: Float[Tensor, "one d"]) -> Tensor:
        if isinstance(target, FeatureTarget):
            return live_pre_activation(self.subject.saes[target.hook], x, target.index).sum()
        norm = self.subject.adapter.final_norm.to(x.dtype)
        return target.live(self.subject, norm(x) @ self.subject.adapter.unembed.weight.to(x.dtype)).sum()

    def carried(self, name: str, start: Start, rule: str) -> Float[Tensor, "comp"]:
        """Every component's contribution by the forward engine, ``bias`` and ``rest`` left out."""
        readoff = self.targets[name][0].read(self.subject, self.seen)
        at = torch.tensor([len(self.prompt) - 1])
        rows = propagate(self.seen, start, {readoff.point: at}, Allocation(rule))[readoff.point]
        return rows.project(readoff.direction.w[at])[0, :-2]

    def losses(self, names: Sequence[str], edits: Mapping[Any, Any], batch: int) -> dict[str, Float[Tensor, "batch"]]:
        """What each target loses in a batch of edited copies of the prompt."""
        points = {name: self.targets[name][0].point for name in names}
        ids = self.prompt.ids().expand(batch, -1)
        read = intervene(self.subject.adapter, ids, edits, set(points.values()))
        return {name: self.targets[name][1] - self._value(name, read[points[name]]) for name in names}

    def _value(self, name: str, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
        return self.targets[name][0].live(self.subject, x)


@dataclass(frozen=True)
class _CentredLogit(LogitTarget):
    """A logit over the mean of all logits, which no softmax sees."""

    def read(self, subject: Subject, trace: Trace) -> Any:
        from dataclasses import replace

        plain = LogitTarget.read(self, subject, trace)
        dtype = trace.resid_post.dtype
        norm, unembed = subject.adapter.final_norm.to(dtype), subject.adapter.unembed.weight.to(dtype)
        u = unembed[:, self.token] - unembed.mean(dim=1)
        w = norm.scale(trace.resid_post) * norm.centre(norm.gain * u)
        direction = replace(plain.direction, w=w)
        return replace(plain, direction=direction, pre=self.live(subject, trace.logits))  # type: ignore[arg-type]

    def live(self, subject: Subject, x: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch"]:
        return x[:, self.token] - x.mean(dim=1)


# -------------------------------------------------------------------------------------------------------------- tokens


def _tokens(study: _Study) -> Iterator[Found]:
    n = len(study.prompt)
    sources = list(range(1, n - 1))  # strictly before the target, the start token left out
    names = [*(f"feature {layer}" for layer in TOKEN_TARGETS), "logit"]
    measured = _replacement_losses(study, sources, names)
    start = tokens(study.prompt.tokens).start(study.seen)
    embedded = study.seen.resid_pre[0]
    for name in names:
        scores: dict[str, Tensor] = {
            rule: study.carried(name, start, rule) for rule in ("softmax", "linear-norm", "relu", "linear", "half")
        }
        *_, first = study.gradients(name, EFFECT)
        scores["gradient × embedding"] = (first.before[0] * embedded).sum(-1)
        scores["nearness"] = torch.arange(n).float()
        scores["random"] = torch.rand(n, generator=study.generator)
        for method, score in scores.items():
            score = score[sources]
            yield "tokens", name, "alone", method, _spearman(score, measured[name])
            for share in DELETED:
                count = max(1, round(share * len(sources)))
                gone = {sources[i] for i in score.argsort(descending=True)[:count].tolist()}
                yield "tokens", name, f"top {share:.0%} deleted", method, _deleted(study, name, gone)


def _replacement_losses(study: _Study, sources: list[int], names: list[str]) -> dict[str, Float[Tensor, "source"]]:
    allowed = torch.tensor(sorted(set(range(study.subject.adapter.vocab_size)) - special_ids(study.subject.loaded)))
    batch = study.prompt.ids().repeat(len(sources), REPLACEMENTS, 1)
    for row, position in enumerate(sources):
        batch[row, :, position] = allowed[torch.randint(len(allowed), (REPLACEMENTS,), generator=study.generator)]
    points = {name: study.targets[name][0].point for name in names}
    read = intervene(study.subject.adapter, batch.flatten(0, 1), {}, set(points.values()))
    return {
        name: study.targets[name][1] - study._value(name, read[points[name]]).view(len(sources), -1).mean(dim=1)
        for name in names
    }


def _deleted(study: _Study, name: str, gone: set[int]) -> float:
    """The share of the target that is lost when tokens are taken out of the text."""
    kept = torch.tensor([t for i, t in enumerate(study.prompt.token_ids) if i not in gone])
    target, value = study.targets[name]
    now = study._value(name, read_batch(study.subject.adapter, kept[None], target.point)).item()
    return (value - now) / abs(value)


# --------------------------------------------------------------------------------------------------------------- heads


def _heads(study: _Study) -> Iterator[Found]:
    subject = study.subject
    n_heads = subject.adapter.layer(0).attention.n_heads
    for name, layers in ((f"feature {HEADS_TO}", HEADS_TO + 1), ("logit", subject.adapter.n_layers)):
        scores = {method: _swept_heads(study, name, choices) for method, choices in SWEPT.items()}
        if study.number < COSTLY_PROMPTS:
            carried = [study.carried(name, Heads(layer).start(study.seen), "softmax") for layer in range(layers)]
            scores["softmax"] = torch.cat(carried)
        total = layers * n_heads
        scores["nearness"] = torch.arange(total).float()
        scores["random"] = torch.rand(total, generator=study.generator)
        chosen = torch.randperm(total, generator=study.generator)[:ALONE].tolist()
        sets = [[i] for i in chosen]
        sets += [score.argsort(descending=True)[:k].tolist() for score in scores.values() for k in TOGETHER]
        lost = study.losses([name], _without_heads(study, sets, n_heads), len(sets))[name]
        yield from _scored("heads", name, scores, chosen, lost, study.targets[name][1])


def _swept_heads(study: _Study, name: str, choices: Choices) -> Float[Tensor, "head_of_any_layer"]:
    found = []
    for level in study.gradients(name, choices):
        if level.sublayer == "attn":
            attention = study.subject.adapter.layer(level.layer).attention
            products = level.inner[0] * recorded_heads(study.seen, level.layer)
            found.append(products.unflatten(-1, (attention.n_heads, attention.d_head)).sum((0, 2)))
    return torch.cat(found[::-1])


def _without_heads(study: _Study, sets: list[list[int]], n_heads: int) -> dict[Any, Any]:
    """For every set of heads, one copy of the prompt in which they write nothing."""
    d_head = study.subject.adapter.layer(0).attention.d_head
    edits = {}
    for layer in {i // n_heads for chosen in sets for i in chosen}:
        keep = torch.ones(len(sets), n_heads)
        for row, chosen in enumerate(sets):
            for i in chosen:
                if i // n_heads == layer:
                    keep[row, i % n_heads] = 0
        edits[layer, "hook_z"] = _scaled(keep.repeat_interleave(d_head, dim=1))
    return edits


def _scaled(keep: Float[Tensor, "batch d"]) -> Callable[[Tensor], Tensor]:
    return lambda z: z * keep[:, None].to(z)


# ------------------------------------------------------------------------------------------------------------ features


def _features(study: _Study) -> Iterator[Found]:
    point = (FEATURE_FROM, "resid_post")
    found = feature_parts(study.subject.saes[Hook(*point)], study.seen.at(point))
    usable = (found.pos > 0).nonzero()[:, 0]  # features mean nothing on the start token
    pos, parts, activation = found.pos[usable], found.parts[usable], found.activation[usable]
    for name in (f"feature {FEATURE_TO}", "logit"):
        scores = {}
        for method, choices in SWEPT.items():
            for level in study.gradients(name, choices, down_to=FEATURE_FROM):
                if (level.layer, level.sublayer) == (FEATURE_FROM + 1, "attn"):
                    scores[method] = (level.before[0, pos] * parts).sum(-1)
                    break
        if study.number < COSTLY_PROMPTS and name != "logit":
            scores["softmax"] = study.carried(name, _feature_source(study, pos, parts).start(study.seen), "softmax")
        scores["activation"] = activation
        scores["random"] = torch.rand(len(pos), generator=study.generator)
        chosen = torch.randperm(len(pos), generator=study.generator)[:ALONE].tolist()
        sets = [[i] for i in chosen]
        sets += [score.argsort(descending=True)[:k].tolist() for score in scores.values() for k in TOGETHER]
        removed = torch.zeros(len(sets), len(study.prompt), parts.shape[1])
        for row, members in enumerate(sets):
            removed[row].index_add_(0, pos[members], parts[members])
        lost = study.losses([name], {point: _less(removed)}, len(sets))[name]
        yield from _scored("features", name, scores, chosen, lost, study.targets[name][1])


def _feature_source(study: _Study, pos: Tensor, parts: Tensor) -> Vectors:
    dense = torch.zeros(len(study.prompt), len(pos), parts.shape[1])
    present = torch.zeros(len(study.prompt), len(pos), dtype=torch.bool)
    dense[pos, torch.arange(len(pos))] = parts
    present[pos, torch.arange(len(pos))] = True
    return Vectors(dense, [str(i) for i in range(len(pos))], (FEATURE_FROM, "resid_post"), present)


def _less(removed: Float[Tensor, "batch pos d"]) -> Callable[[Tensor], Tensor]:
    return lambda x: x - removed.to(x)


# ------------------------------------------------------------------------------------------------------------- scoring


def _scored(
    source: str, name: str, scores: Mapping[str, Tensor], chosen: list[int], lost: Tensor, value: float
) -> Iterator[Found]:
    """First the losses of ``chosen`` alone, then of each method's top k, in the order in which they were measured."""
    alone, together = lost[: len(chosen)], iter(lost[len(chosen) :].tolist())
    for method, score in scores.items():
        yield source, name, "alone", method, _spearman(score[chosen], alone)
        for k in TOGETHER:
            yield source, name, f"top {k} out", method, next(together) / abs(value)


def _spearman(a: Tensor, b: Tensor) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a.detach().numpy(), b.detach().numpy()).statistic)


# ------------------------------------------------------------------------------------------------------------- running


def run(out: Path, count: int, workers: int) -> list[Record]:
    """Measure ``count`` prompts, several at once; what ``out`` (JSON lines) holds already is not measured again."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    from rich.progress import Progress

    out.parent.mkdir(parents=True, exist_ok=True)
    records = [Record(**json.loads(line)) for line in out.read_text().splitlines()] if out.exists() else []
    missing = sorted(set(range(count)) - {record.prompt for record in records})
    with Progress() as progress, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        bar = progress.add_task("prompts", total=count, completed=count - len(missing))
        for done in as_completed([pool.submit(_work, number, count) for number in missing]):
            found = done.result()
            with out.open("a") as file:
                file.writelines(json.dumps(record.__dict__) + "\n" for record in found)
            records += found
            progress.advance(bar)
    return records


@cache
def _subject() -> Subject:
    """One model per worker process."""
    from ..api import load

    torch.set_num_threads(1)
    return load("smollm2")._subject


def _work(number: int, count: int) -> list[Record]:
    return measure_prompt(_subject(), prompts(count, _subject())[number], number)
