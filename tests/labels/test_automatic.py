"""Names that are made of what a feature fires on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from depass_sae.labels.automatic import (
    Cause,
    Firings,
    Named,
    Spelled,
    automatic_label,
    caused_label,
    keyed,
    spelled,
)

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


def test_tokens_that_have_little_of_the_activation_say_what_it_is_about_or_nothing() -> None:
    assert label({0: 0.2}, raised=[4]) == "climate (auto)"
    assert label({0: 0.19}, raised=[4]) == "about climate (auto)"
    assert label({0: 0.03, 1: 0.02}, raised=[4]) == "about climate · environment (auto)"
    assert label({0: 0.03}, raised=[4]) == "about climate (auto)"
    assert label({0: 0.029}, raised=[4]) == "writes warm (auto)"


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


@pytest.mark.parametrize(
    ("label", "kind", "texts"),
    [
        ("climate · warm (auto)", "on", ("climate", "warm")),
        ("after of · the (auto)", "after", ("of", "the")),
        ("about climate · warm (auto)", "about", ("climate", "warm")),
        ("writes warm (auto)", "writes", ("warm",)),
        ("always on (auto)", "always on", ()),
        ("after · before (auto)", "on", ("after", "before")),
        ("writes (auto)", "on", ("writes",)),
        ("after after · writes (auto)", "after", ("after", "writes")),
    ],
)
def test_a_name_is_read_as_it_is_written(label: str, kind: Any, texts: tuple[str, ...]) -> None:
    assert Named.of(label) == Named(kind, texts)
    assert Named(kind, texts).label == label
    assert Named.of("a name that somebody gave") is None


def causes(*shares: float, contexts: int = 5) -> list[Cause]:
    return [Cause(f"t{i}", share, contexts) for i, share in enumerate(shares)]


def test_a_feature_without_a_name_of_tokens_is_named_by_the_earlier_tokens_that_it_comes_from() -> None:
    for label in (None, "writes warm · climate (auto)"):
        assert caused_label(label, 0.6, causes(0.1, 0.3, 0.2)) == "after t1 · t2 (auto)"
        assert caused_label(label, 0.5, causes(0.2)) == "after t0 (auto)"
        assert caused_label(label, 0.6, causes(0.5, 0.12)) == "after t0 (auto)"  # beside the first it says nothing
        assert caused_label(label, 0.6, causes(0.3, 0.3)) == "after t0 · t1 (auto)"
    for label in ("climate (auto)", "after of (auto)", "always on (auto)", "mine", "writes", "writes · wrote (auto)"):
        assert caused_label(label, 0.9, causes(0.9)) is None


def test_causes_that_say_little_name_nothing() -> None:
    assert caused_label(None, 0.49, causes(0.45)) is None  # most comes from elsewhere
    assert caused_label(None, 0.9, causes(0.12, 0.07)) is None  # of many tokens, none has much
    assert caused_label(None, 0.9, causes(0.9, contexts=1)) is None  # in one context alone
    assert caused_label(None, 0.9, causes(-0.9)) is None
    assert caused_label(None, 0.9, []) is None
