"""Which tokens misled the model: a probe's direction attributed to tokens, which are then masked (paper §4.1.2).

A prompt tells something untrue and asks for it: "The capital of France is Rome. The capital of France is". Probes of
the residual stream tell true sentences from false ones by their last token. Of what was told, tokens that look
untruthful to them are taken out directly (TACS, Yu et al. 2024), or as many of those that DePass holds responsible
for it; then the model completes what is left. Probes never saw the subject that they are used on: statements are
halved, and each half's probes are trained on the other. Beside both stand as many random tokens, and the untrue word
itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from ...passes.forward import Progress
from ..resumed import Record
from .probes import Probe, logistic, of_means
from .statements import Statement, statements

if TYPE_CHECKING:
    from ...api import LM

LAYERS = (12, 16, 20, 24)
"""Whose probes decide together: from the layer on, about, where the paper finds truthfulness separable."""
PROBES: dict[str, Callable[[Float[np.ndarray, "n d_model"], Sequence[int]], Probe]] = {
    "logistic regression": logistic,
    "difference of means": of_means,
}
DRAWS = 8
"""Random choices of tokens for every prompt."""


@dataclass(frozen=True)
class Told:
    """A statement told with the wrong answer, then asked. info: the positions of what is told; untrue: its answer's."""

    statement: Statement
    ids: list[int]
    info: range
    untrue: range

    @classmethod
    def of(cls, lm: LM, statement: Statement) -> Told:
        begun = len(_ids(lm, statement.prompt))
        told = len(_ids(lm, f"{statement.prompt}{statement.wrong}"))
        info = len(_ids(lm, statement.with_answer(statement.wrong)))
        ids = _ids(lm, f"{statement.with_answer(statement.wrong)} {statement.prompt}")
        return cls(statement, ids, range(info), range(begun, told))

    def without(self, gone: Sequence[int]) -> list[int]:
        return [token for pos, token in enumerate(self.ids) if pos not in set(gone)]


def run(lm: LM, progress: Progress | None = None, some: Sequence[Statement] | None = None) -> list[Record]:
    """A record for every statement and way of masking: whether the model then completes it right."""
    every = list(statements() if some is None else some)
    halves, records = (every[::2], every[1::2]), list[Record]()
    for half, other in (halves, halves[::-1]):
        probes = {name: _trained(lm, other, fit) for name, fit in PROBES.items()}
        usual = {name: _usual(lm, other, found) for name, found in probes.items()}
        for statement in half:
            told = Told.of(lm, statement)
            for way, choices in _masks(lm, told, probes, usual).items():
                answers = [_answered(lm, told.without(gone), statement) for gone in choices]
                right, share = (float(np.mean(column)) for column in zip(*answers, strict=True))
                masked = float(np.mean([len(gone) for gone in choices]))
                records.append(
                    {"prompt": statement.prompt, "way": way, "right": right, "share": share, "masked": masked}
                )
            alone = _answered(lm, _ids(lm, statement.prompt), statement)
            records.append({"prompt": statement.prompt, "way": "no information", "right": alone[0], "share": alone[1],
                            "masked": 0.0})  # fmt: skip
            if progress is not None:
                progress("masking untruthful tokens", len({one["prompt"] for one in records}), len(every))
    return records


def separated(lm: LM, some: Sequence[Statement] | None = None) -> list[Record]:
    """Of every probe and layer, and of every statement that it was not trained on: does it tell true from false?"""
    every = list(statements() if some is None else some)
    halves, records = (every[::2], every[1::2]), list[Record]()
    for half, other in (halves, halves[::-1]):
        for name, fit in PROBES.items():
            for layer, probe in _trained(lm, other, fit).items():
                for statement in half:
                    true, false = (
                        _states(lm, _ids(lm, statement.with_answer(answer)))[layer][-1:]
                        for answer in (statement.right, statement.wrong)
                    )
                    right = (probe.chances(true)[0] < 0.5, probe.chances(false)[0] > 0.5)
                    records.append({"probe": name, "layer": layer, "prompt": statement.prompt, "right": np.mean(right)})
    return records


def _masks(
    lm: LM, told: Told, probes: dict[str, dict[int, Probe]], usual: dict[str, Float[np.ndarray, "pos"]]
) -> dict[str, list[list[int]]]:
    """Of every way, which positions go; of the random one several choices."""
    found: dict[str, list[list[int]]] = {"misinformation": [[]], "the untrue word": [list(told.untrue)]}
    states = _states(lm, told.ids)
    for name, own in probes.items():
        chance = np.mean([probe.chances(states[layer][told.info]) for layer, probe in own.items()], axis=0)
        untruthful = [pos for pos in told.info if chance[pos] > 0.5] or [int(chance.argmax())]
        scores = _responsible(lm, told, own, untruthful)
        count = len(untruthful)
        found[f"{name}, direct"] = [untruthful]
        found[f"{name}, DePass"] = [_largest(scores, count)]
        found[f"{name}, DePass, contrast"] = [_largest(scores - usual[name][: len(scores)], count)]
        draw = random.Random(told.statement.prompt)
        found[f"{name}, random"] = [sorted(draw.sample(told.info, count)) for _ in range(DRAWS)]
    return found


def _responsible(lm: LM, told: Told, probes: dict[int, Probe], untruthful: Sequence[int]) -> Float[np.ndarray, "info"]:
    """What each token that was told contributes to the probes' logits at the untruthful ones, their mean (eq. 19)."""
    total = np.zeros(len(told.info))
    for layer, probe in probes.items():
        w = torch.tensor(probe.weight[0], dtype=torch.float32)
        at = {"pos": untruthful[0]} if len(untruthful) == 1 else {"pos": "all"}
        found = lm.attribute_tokens(told.ids, direction=w, layer=layer, **at)
        for target in (one for one in found.targets if one.pos in untruthful):
            values = target.contributions[: len(told.info)].numpy()
            total[: len(values)] += values / len(untruthful) / len(probes)
    return total


def _usual(lm: LM, some: Sequence[Statement], probes: dict[int, Probe]) -> Float[np.ndarray, "pos"]:
    """What a token at a place contributes on average where what is told is true: the last token is read."""
    sums, counts = np.zeros(64), np.zeros(64)
    for statement in some:
        ids = _ids(lm, statement.with_answer(statement.right))
        told = Told(statement, ids, range(len(ids)), range(0))
        values = _responsible(lm, told, probes, [len(ids) - 1])
        sums[: len(values)] += values
        counts[: len(values)] += 1
    return sums / np.maximum(counts, 1)


def _largest(scores: Float[np.ndarray, "info"], count: int) -> list[int]:
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def _trained(
    lm: LM, some: Sequence[Statement], fit: Callable[[Float[np.ndarray, "n d_model"], Sequence[int]], Probe]
) -> dict[int, Probe]:
    """By layer: of 1 for a false sentence, by the state of its last token."""
    states: dict[int, list[np.ndarray]] = {layer: [] for layer in LAYERS}
    classes = []
    for statement in some:
        for false, answer in enumerate((statement.right, statement.wrong)):
            found = _states(lm, _ids(lm, statement.with_answer(answer)))
            for layer in LAYERS:
                states[layer].append(found[layer][-1])
            classes.append(false)
    return {layer: fit(np.stack(rows), classes) for layer, rows in states.items()}


def _states(lm: LM, ids: Sequence[int]) -> dict[int, Float[np.ndarray, "pos d_model"]]:
    with torch.no_grad():
        found = lm.model(torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False).hidden_states
    return {layer: found[layer + 1][0].double().numpy() for layer in LAYERS}


def _answered(lm: LM, ids: Sequence[int], statement: Statement) -> tuple[float, float]:
    """Whether the likeliest token is the right answer's first, and its probability against the wrong one's."""
    right, wrong = (_ids(lm, f"{statement.prompt}{answer}") for answer in (statement.right, statement.wrong))
    first = next(i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b)
    with torch.no_grad():
        logits = lm.model(torch.tensor([list(ids)]), use_cache=False).logits[0, -1].double()
    share = torch.sigmoid(logits[right[first]] - logits[wrong[first]]).item()
    return float(logits.argmax().item() == right[first]), share


def _ids(lm: LM, text: str) -> list[int]:
    return list(lm.encode(text).token_ids)


def ways(records: Sequence[Record]) -> Iterator[str]:
    """In the order of the page."""
    yield from dict.fromkeys(["no information", *(one["way"] for one in records)])
