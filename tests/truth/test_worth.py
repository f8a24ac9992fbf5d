"""Shapley values by their definition, on games whose values everybody knows, and on the circuits' own formulas."""

import math

import pytest

from depass_sae.evaluation.truth.circuit import worth
from depass_sae.evaluation.truth.copying import CopyHead, Induction


def test_both_of_an_and_have_half() -> None:
    assert worth("ab", lambda kept: float(len(kept) == 2)) == pytest.approx({"a": 0.5, "b": 0.5})


def test_a_glove_is_worth_a_sixth_where_two_have_its_side() -> None:
    found = worth("lLr", lambda kept: float("r" in kept and len(kept) > 1))
    assert found == pytest.approx({"l": 1 / 6, "L": 1 / 6, "r": 2 / 3})


def test_values_sum_to_what_all_have_beyond_none() -> None:
    def f(kept: frozenset[int]) -> float:
        return math.cos(sum(2**i for i in kept))

    assert sum(worth(range(5), f).values()) == pytest.approx(f(frozenset(range(5))) - f(frozenset()))


def test_a_copied_token_has_an_even_look_and_half_of_the_rest_and_the_query_the_other_half() -> None:
    copies = CopyHead(score=3.0)
    words = ["<s>", "a", "B", "b", "?"]
    looked = math.exp(3) / (math.exp(3) + 4)
    more = (looked - 1 / 5) / 2
    assert copies.case(words, "B").truths["tokens, worth"] == pytest.approx({1: 0, 2: 1 / 5 + more, 3: 0, 4: more})


def test_in_induction_three_tokens_share_what_the_match_brings() -> None:
    words = ["<s>", "A", "B", "D", "A"]
    third = (math.exp(6) / (math.exp(6) + 4) - 1 / 5) / 3
    found = Induction(score=6.0).case(words).truths["tokens, worth"]
    assert found == pytest.approx({1: third, 2: 1 / 5 + third, 3: 0, 4: third})
