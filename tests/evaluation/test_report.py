"""Means, intervals and the page of the measured rules."""

from __future__ import annotations

import math

import pytest

from depass_sae.evaluation.ioi import sentences
from depass_sae.evaluation.report import page, paired, summarise
from depass_sae.evaluation.rules import INDIRECT_OBJECT, Measurement


def records() -> list[Measurement]:
    values = {"half": [0.5, 0.7, 0.6], "random": [0.0, 0.1, math.nan]}
    return [
        Measurement(prompt, "tokens", "logit", "alone", method, value)
        for method, numbers in values.items()
        for prompt, value in enumerate(numbers)
    ]


def test_a_mean_stands_with_the_95_percent_interval_of_its_prompts() -> None:
    mean, interval, n = summarise(records())["tokens", "logit"]["half"]["alone"]
    assert (mean, n) == (pytest.approx(0.6), 3)
    assert interval == pytest.approx(1.96 * 0.1 / math.sqrt(3))


def test_a_prompt_without_ranks_is_left_out_of_its_mean_alone() -> None:
    mean, _, n = summarise(records())["tokens", "logit"]["random"]["alone"]
    assert (mean, n) == (pytest.approx(0.05), 2)


def test_the_page_has_a_table_per_question_with_the_best_method_in_bold() -> None:
    text = page(records())
    assert "## tokens → logit" in text
    assert "| half | **0.60 ± 0.11** | 3 |" in text
    assert "3 prompts" in text


def test_the_page_says_how_many_sentences_the_model_gets_right() -> None:
    found = [Measurement(n, INDIRECT_OBJECT, "logit difference", "alone", "half", 0.5) for n in (0, 7)]
    text = page([*records(), *found])
    assert f"2 of {len(sentences())} sentences" in text
    assert "3 prompts" in text


def test_rules_are_compared_on_the_same_prompts() -> None:
    values = {"half": {0: 0.5, 1: 0.7, 2: 0.9}, "softmax": {0: 0.4, 1: 0.5}}
    found = [
        Measurement(prompt, "tokens", "logit", "alone", method, value)
        for method, numbers in values.items()
        for prompt, value in numbers.items()
    ]
    mean, _, n = paired(found, "tokens", "logit", "half", "softmax")["alone"]
    assert (mean, n) == (pytest.approx(0.15), 2)
