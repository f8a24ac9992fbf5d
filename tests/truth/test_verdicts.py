"""How an answer is held against the truth."""

import pytest

from depass_sae.evaluation.truth.questions import verdict_of

TRUTH = {"a": 2.0, "b": -1.0}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ({"a": 2.0, "b": -1.0}, "exact"),
        ({"a": 2.0, "b": -1.0 + 1e-5, "c": 1e-5}, "exact"),
        ({"a": 2.0, "b": -1.0 + 1e-3}, "ranked"),
        ({"a": 1.0, "b": -0.5}, "proportional"),
        ({"a": -2.0, "b": 1.0}, "wrong"),
        ({"a": 2.0, "b": 1.0}, "wrong"),
        ({"a": 1.5, "b": -1.0, "c": 0.5}, "ranked"),
        ({"a": 1.5, "b": -1.0, "c": 1.1}, "wrong"),
        ({"a": 1.0, "b": -1.5}, "wrong"),
        ({"a": 2.0}, "wrong"),
        ({}, "wrong"),
        ({"a": 2e-17, "b": -1e-17}, "wrong"),
        (None, "not answered"),
    ],
)
def test_an_answer_is_exact_or_proportional_or_ranked_or_wrong(answer: dict | None, verdict: str) -> None:
    assert verdict_of(TRUTH, answer).verdict == verdict


def test_where_nothing_has_anything_only_nothing_is_exact() -> None:
    assert verdict_of({"a": 0.0}, {"a": 1e-6}).verdict == "exact"
    assert verdict_of({}, {"a": 1e-3}).verdict == "wrong"


def test_equals_may_be_in_any_order() -> None:
    assert verdict_of({"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 2.0, "c": 1.0}).verdict == "ranked"


def test_the_error_is_a_share_of_the_largest_true_value() -> None:
    assert verdict_of({"a": 4.0}, {"a": 4.0, "b": 1.0}).error == pytest.approx(0.25)
