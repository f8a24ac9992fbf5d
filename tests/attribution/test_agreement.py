"""Rank correlations with what belongs beside them."""

import math

import pytest
import torch
from scipy.stats import spearmanr

from depass_sae.attribution.agreement import LEAST, Agreement, interval, twice


def test_fewer_than_ten_things_have_no_rank_correlation() -> None:
    ramp = [float(i) for i in range(LEAST)]
    assert Agreement.of(ramp[1:], ramp[1:]) is None
    assert Agreement.of(ramp, [1.0] * LEAST) is None
    found = Agreement.of(ramp, [-x for x in ramp])
    assert (found.rank, found.n, found.reliability) == (pytest.approx(-1), LEAST, None)


def test_the_interval_holds_the_true_correlation_in_95_percent_of_samples() -> None:
    rho, n, generator = 0.6, 30, torch.Generator().manual_seed(0)
    true = 6 / math.pi * math.asin(rho / 2)  # Spearman's of a bivariate normal
    inside = 0
    for _ in range(1000):
        a, b = torch.randn(2, n, generator=generator, dtype=torch.float64)
        low, high = interval(float(spearmanr(a, rho * a + math.sqrt(1 - rho**2) * b).statistic), n)
        inside += low <= true <= high
    assert 0.93 <= inside / 1000 <= 0.97


def test_the_reliability_of_two_halves_is_that_of_two_whole_measurements() -> None:
    """A truth and noise of equal size: halves of n correlate as n-fold means should, and so do two whole ones."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(20000, generator=generator)
    noisy = [truth + torch.randn(20000, generator=generator) for _ in range(4)]
    correlation = lambda a, b: float(torch.corrcoef(torch.stack([a, b]))[0, 1])  # noqa: E731
    whole = correlation(noisy[0] + noisy[1], noisy[2] + noisy[3])
    assert twice(correlation(noisy[0], noisy[1])) == pytest.approx(whole, abs=0.02)
    said = truth[:50].tolist()
    halves = (noisy[0][:50].tolist(), noisy[1][:50].tolist())
    half = float(spearmanr(*halves).statistic)
    assert Agreement.of(said, said, halves).reliability == pytest.approx(2 * half / (1 + half))
    assert twice(-0.3) == -0.3


def test_the_interval_is_bonett_and_wrights() -> None:
    width = 1.96 * math.sqrt((1 + 0.5**2 / 2) / (12 - 3))
    z = 0.5 * math.log((1 + 0.5) / (1 - 0.5))
    assert interval(0.5, 12) == pytest.approx((math.tanh(z - width), math.tanh(z + width)))
