"""Names that are made of what a feature fires on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from depass_sae.labels.automatic import Firings, Spelled, automatic_label, keyed, spelled

TEXTS = ("climate", "environment", "the", "of", "warm")
BASE = np.array([0.01, 0.01, 0.4, 0.3, 0.28])


def firings(weights: dict[int, float], base: Any = BASE) -> Firings:
    return Firings(np.array(list(weights), dtype=np.int64), np.array(list(weights.values()), dtype=float), base)


def label(
    on: dict[int, float],
    before: dict[int, float] | None = None,
    *,
    density: float = 0.01,
    raised: Any = (),
    total: Any = 1,
) -> str | None:
    return automatic_label(density, total, firings(on), firings(before or {}), raised, TEXTS)


def test_tokens_that_are_frequent_for_the_feature_alone_name_it_best_first() -> None:
    assert label({2: 0.4, 1: 0.2, 0: 0.3, 3: 0.1}) == "climate · environment (auto)"


def test_what_is_frequent_everywhere_names_nothing() -> None:
    assert label({2: 0.5, 3: 0.5}, raised=[4, 4, 0]) == "writes warm · climate (auto)"
    assert label({2: 0.5, 3: 0.5}) is None


def test_a_feature_of_many_tokens_is_named_by_what_comes_before_them() -> None:
    rare = np.full(5, 0.01)
    found = automatic_label(0.01, 1.0, firings({0: 0.1}, rare), firings({3: 0.8}), [4], TEXTS)
    assert found == "after of (auto)"


def test_tokens_that_have_little_of_the_activation_do_not_name_it() -> None:
    assert label({0: 0.19}, raised=[4]) == "writes warm (auto)"
    assert label({0: 0.2}, raised=[4]) == "climate (auto)"


def test_a_feature_that_fires_at_half_of_the_tokens_is_always_on_and_one_that_never_fires_has_no_name() -> None:
    assert label({0: 1.0}, density=0.5) == "always on (auto)"
    assert label({0: 1.0}, density=0.49) == "climate (auto)"
    assert label({}, density=0, total=0, raised=[4]) is None


def test_spellings_of_one_text_count_together() -> None:
    vocabulary = Spelled.tokens([" Climate", "climate", "the", " CLIMATE", "  "])
    assert vocabulary.texts == ("climate", "the", "␣␣")
    assert vocabulary.of.tolist() == [0, 0, 1, 0, 2]
    base = np.array([0.1, 0.9, 0.0])
    chosen, share = keyed(vocabulary.of[[0, 1, 3]], np.array([0.1, 0.1, 0.1]), 1.0, base)
    assert chosen.tolist() == [0]
    assert share == pytest.approx(0.3)


def test_keyness_is_share_times_log_lift() -> None:
    base = np.array([0.1, 0.001, 0.1])
    first, second = 0.5 * math.log(5), 0.1 * math.log(100)
    assert first > second > first / 4
    assert keyed(np.arange(3), np.array([0.5, 0.1, 0.19]), 1.0, base)[0].tolist() == [0, 1]


def test_hostile_and_long_texts_are_tamed() -> None:
    assert spelled("\x1b[31m\u202e") == "\ufffd[31m\ufffd"
    assert len(spelled("x" * 100)) == 30
