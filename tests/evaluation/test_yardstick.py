"""Tokens' worth on many targets at once is what each target alone gives, and every figure stands with its ceiling."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from depass_sae.attribution.agreement import rank_correlation, twice
from depass_sae.attribution.logits import LogitTarget
from depass_sae.attribution.targets import parse_feature
from depass_sae.evaluation import yardstick
from depass_sae.evaluation.resumed import append
from depass_sae.evaluation.rules import Measurement, Study
from depass_sae.evaluation.yardstick import ALONE, CEILING, PATTERN, REPLACED, SHAPLEY, Measured, measured, scored
from depass_sae.evaluation.yardstick_report import CANDIDATES, IDEAS, ahead, chosen, tokens_page
from depass_sae.models.prompt import encode

from ..attribution.tiny import BOS, handle, random_sae

IDS = [BOS, *range(60, 73)]


@cache
def study() -> Study:
    subject = handle(random_sae())._subject.asked()
    feature, _ = parse_feature(subject, "1/3")
    prompt = encode(subject.loaded, subject.adapter, IDS)
    return Study.of(subject, prompt, 0, lambda _: {"feature 1": feature, "logit": LogitTarget(7)})


@cache
def taken() -> list[Measured]:
    return measured(study(), 5)


def test_all_targets_at_once_are_what_each_alone_gives() -> None:
    lm = handle(random_sae())
    for one, target in zip(taken(), ({"feature": "1/3"}, {"logit": 7}), strict=True):
        asked: Any = {**target, "pos": len(IDS) - 1, "seed": 5}
        alone = lm.attribute_tokens(IDS, **asked, ablate=yardstick.SAMPLES).target.measured
        assert alone is not None
        assert torch.allclose(one.alone, alone.sampled.samples, atol=1e-4)
        assert one.positions == [p for p, value in enumerate(alone.values) if value is not None]
        total = one.shapley.sum(1)
        assert total.tolist() == pytest.approx([one.value] * yardstick.SAMPLES, rel=1e-5)


def test_measurements_are_read_as_they_were_written() -> None:
    (first, _) = taken()
    again = Measured.read(first.to_json())
    assert torch.equal(first.shapley, again.shapley)
    assert (first.positions, first.value, first.target) == (again.positions, again.value, again.target)


@cache
def records() -> list[Measurement]:
    return list(scored(study(), 5, taken()))


def test_every_method_is_held_to_both_measurements_without_the_last_word() -> None:
    one = taken()[0]
    others = [k for k, pos in enumerate(one.positions) if pos != len(IDS) - 1]
    lm = handle(random_sae())
    for rule in ("half", "softmax", "half-qk"):
        said = lm.attribute_tokens(IDS, "1/3", pos=len(IDS) - 1, rule=rule).contributions
        for protocol, drawn in ((SHAPLEY, one.shapley), (ALONE, one.alone)):
            (value,) = (r.value for r in records() if (r.target, r.method, r.protocol) == ("feature 1", rule, protocol))
            expected = rank_correlation(
                [said[one.positions[k]].item() for k in others], drawn[:, others].mean(0).tolist()
            )
            assert value == pytest.approx(expected)
    (ceiling,) = (r.value for r in records() if (r.target, r.method, r.protocol) == ("feature 1", CEILING, ALONE))
    halves = one.alone[::2, others].mean(0).tolist(), one.alone[1::2, others].mean(0).tolist()
    assert ceiling == pytest.approx(twice(rank_correlation(*halves) or 0.0))
    methods = {r.method for r in records() if r.protocol == SHAPLEY}
    assert {*CANDIDATES, *IDEAS, REPLACED, CEILING, "half", "random"} <= methods
    assert (ALONE, REPLACED) not in {(r.protocol, r.method) for r in records()}  # it would be itself


def test_two_rules_at_once_are_one_rule_where_they_are_the_same() -> None:
    embedded = study().seen.resid_pre[0].double()
    lm = handle(random_sae())
    for name, target in (("feature 1", {"feature": "1/3"}), ("logit", {"logit": 7})):
        asked: Any = {**target, "pos": len(IDS) - 1}
        for rule in ("half", "half-qk"):
            gradient, left = yardstick._below(study(), name, rule, rule)
            said = lm.attribute_tokens(IDS, **asked, rule=rule)
            assert torch.allclose((gradient * embedded).sum(-1), said.contributions, atol=1e-4)
            assert left == pytest.approx(said.other.get("pattern", 0.0), abs=1e-4)


def test_what_pattern_has_is_told_of_the_rules_that_have_it() -> None:
    assert {r.method for r in records() if r.protocol == PATTERN} == {
        "half-qk", "half-qk, mean slope", "half-qk, share 1", "half above, half-qk below", "half-qk above, half below"
    }  # fmt: skip


def made(values: dict[str, list[float]], first: int = 0) -> list[Measurement]:
    return [
        Measurement(first + prompt, "tokens", "feature 5", protocol, method, value)
        for method, numbers in values.items()
        for prompt, value in enumerate(numbers)
        for protocol in (SHAPLEY, ALONE)
    ]


def test_a_rule_is_chosen_by_some_sentences_and_held_to_the_others() -> None:
    rules = {name: [0.1, 0.2, 0.3] for name in CANDIDATES} | {"half": [0.3, 0.4, 0.5], "softmax": [0.4, 0.6, 0.6]}
    choose = made(rules | {CEILING: [0.8, 0.9, 0.7]})
    assert chosen(choose) == "softmax"
    mean, interval, n = ahead(choose, "feature", "softmax")
    assert (mean, n) == (pytest.approx(0.4 / 3), 3)
    assert interval == pytest.approx(1.96 * math.sqrt(((0.1 - mean) ** 2 * 2 + (0.2 - mean) ** 2) / 2 / 3))
    confirm = made(rules | {"softmax": [0.3, 0.4, 0.4], CEILING: [0.8, 0.9, 0.7]}, first=yardstick.CHOOSING)
    page = tokens_page([*choose, *confirm])
    assert "`softmax` is\nfurthest ahead of `half` for features" in page
    assert "the default stays `half`" in page
    assert "On 6 sentences" in page
    assert page.index(CEILING) < page.index("| half |")  # the ceiling heads its table
    assert f"| {CEILING} | 0.80 ± 0.11 |" in page


@pytest.mark.parametrize(("left", "verdict"), [(0.3, "so the default stays `half`"), (0.05, "should be the default")])
def test_a_rule_that_leaves_much_to_no_token_is_no_default(left: float, verdict: str) -> None:
    records = []
    for first in (0, yardstick.CHOOSING):
        for target in ("feature 5", "logit"):
            rules = {name: [0.1, 0.2, 0.3] for name in CANDIDATES} | {
                "half": [0.3, 0.4, 0.5],
                "half-qk": [0.6, 0.7, 0.8],
            }
            some = made(rules | {CEILING: [0.8, 0.9, 0.7]}, first)
            some += [Measurement(first, "tokens", target, PATTERN, "half-qk", left)]
            records += [replace(record, target=target) for record in some]
    page = tokens_page(records)
    assert f"leaves {left:.0%} to `pattern`" in page
    assert verdict in page


def test_what_is_known_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored_in = tmp_path / "scored.jsonl"
    known = [m for number in (0, yardstick.CHOOSING) for m in made({"half": [0.5]}, first=number)]
    append(scored_in, [yardstick.json.dumps(m.__dict__) for m in known])
    assert yardstick.run(tmp_path / "measured.jsonl", scored_in, 1, 1) == known
