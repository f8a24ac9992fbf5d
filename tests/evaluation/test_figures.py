"""Figures over prompts: their intervals are those of drawing prompts again, and pairs are compared as pairs."""

from __future__ import annotations

import math

import pytest
import torch

from depass_sae.evaluation.figures import difference, estimate, mean, median


def column(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def test_a_mean_has_the_interval_of_its_standard_error_where_there_are_many() -> None:
    numbers = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, error = estimate(numbers, mean), float(numbers.std()) / 20
    assert found is not None
    assert found.value == pytest.approx(float(numbers.mean()))
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.2 * error)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(200):
        found = estimate(torch.randn(30, 1, generator=generator, dtype=torch.float64), mean)
        assert found is not None
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 200 <= 0.98


def test_prompts_without_a_number_are_left_out_and_counted() -> None:
    found = estimate(column(1, math.nan, 3, 100), median)
    assert found is not None
    assert (found.value, found.n) == (3, 3)
    assert estimate(column(math.nan), mean) is None


def test_of_a_single_prompt_there_is_no_interval() -> None:
    found = estimate(column(2), mean)
    assert found is not None
    assert found.value == 2
    assert math.isnan(found.low)


def test_what_prompts_have_in_common_does_not_widen_a_difference() -> None:
    hard = 10 * torch.randn(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    better = hard + 1 + 0.01 * torch.randn(50, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = difference(better, hard, mean)
    assert found is not None
    assert found.value == pytest.approx(1, abs=0.01)
    assert found.high - found.low < 0.02


def test_a_difference_is_of_the_prompts_that_both_have() -> None:
    found = difference(column(1, 2, math.nan, 4), column(0, math.nan, 7, 1), mean)
    assert found is not None
    assert (found.value, found.n) == (2, 2)
