"""Shapley values against their definition, a sum over all orders; and the errors against what really happens."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from depass_sae.attribution import shapley as sh
from depass_sae.attribution.shapley import Limits, alone, enumerated, ordered, sampled, shapley


@dataclass
class Table:
    """A game by a table [draw, coalition]: bit i of a coalition's number says whether player i is there. With every
    draw the whole is the same.
    """

    f: Tensor
    room: int = 64
    rows: int = 0

    def __post_init__(self) -> None:
        self.f[:, -1] = self.f[0, -1]

    @property
    def players(self) -> int:
        return int(math.log2(self.f.shape[1]))

    @property
    def whole(self) -> float:
        return self.f[0, -1].item()

    @property
    def chance(self) -> bool:
        return len(self.f) > 1

    def play(self, kept: Tensor, draw: Tensor) -> Tensor:
        self.rows += len(kept)
        return self.f[draw % len(self.f), (kept.long() << torch.arange(self.players)).sum(1)]


def table(players: int, draws: int, seed: int = 0) -> Table:
    return Table(torch.randn(draws, 2**players, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def by_definition(f: Tensor) -> Tensor:
    """Mean over all orders of what a player's coming in changes, one order after the other. f: [coalition]."""
    n = int(math.log2(len(f)))
    found = torch.zeros(n, dtype=torch.float64)
    for order in itertools.permutations(range(n)):
        there = 0
        for player in order:
            found[player] += f[there | 1 << player] - f[there]
            there |= 1 << player
    return found / math.factorial(n)


@given(players=st.integers(1, 5), draws=st.integers(1, 3), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_all_coalitions_give_the_mean_over_all_orders(players: int, draws: int, seed: int) -> None:
    game = table(players, draws, seed)
    for number, sample in zip(range(draws), enumerated(game), strict=False):
        assert sample[:-1].tolist() == pytest.approx(by_definition(game.f[number]).tolist(), abs=1e-12)
        assert sample[-1] == game.f[number, 0]


@given(players=st.integers(1, 12), seed=st.integers(0, 1000), together=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_every_sample_sums_to_the_whole(players: int, seed: int, together: int) -> None:
    game = table(players, 3, seed)
    for each in (ordered(game, seed, together), enumerated(game, together)):
        for sample in itertools.islice(each, 4):
            assert sample.sum().item() == pytest.approx(game.whole, abs=1e-12)


def test_a_pair_is_an_order_and_its_reverse_by_one_draw() -> None:
    game = table(3, 2)
    first, second = itertools.islice(ordered(game, 5), 2)
    generator = torch.Generator().manual_seed(5)
    for number, sample in enumerate((first, second)):
        order = torch.randperm(3, generator=generator).tolist()
        expected = torch.zeros(3, dtype=torch.float64)
        for one in (order, order[::-1]):
            there = 0
            for player in one:
                expected[player] += (game.f[number, there | 1 << player] - game.f[number, there]) / 2
                there |= 1 << player
        assert sample[:-1].tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_many_orders_come_to_what_all_coalitions_give() -> None:
    game = table(6, 1)
    (exact,) = enumerated(game)
    found = sampled(ordered(game, 0, 16), game.whole, Limits(samples=3000))
    away = ((found.mean - exact) / found.error)[:-1].abs()
    assert away.max() < 4
    assert found.error[:-1].max() < 0.05
    assert found.error[-1] == 0  # without chance the baseline is the same in every order


def test_how_many_are_played_together_changes_nothing() -> None:
    game = table(5, 7)
    for each in (lambda k: ordered(game, 3, k), lambda k: enumerated(game, k)):
        one, four = (torch.stack(list(itertools.islice(each(k), 6))) for k in (1, 4))
        assert torch.allclose(one, four, rtol=1e-12, atol=1e-12)  # sums of another shape round otherwise


def test_few_players_are_enumerated_and_nothing_of_it_is_left_to_chance() -> None:
    game = table(sh.ENUMERATED, 1)
    found = shapley(game, Limits(), seed=0)
    assert (found.stopped, len(found.samples), game.rows) == ("exact", 1, 2**sh.ENUMERATED)
    assert found.error.tolist() == [0.0] * (sh.ENUMERATED + 1)
    more = table(sh.ENUMERATED + 1, 1)
    assert shapley(more, Limits(samples=2), seed=0).stopped == "samples"
    assert more.rows == 2 * 2 * (sh.ENUMERATED + 2)


def test_alone_is_what_is_lost_without_one_player() -> None:
    game = table(4, 3)
    found = alone(game, Limits(samples=3))
    expected = [[game.whole - game.f[d, 15 - (1 << i)].item() for i in range(4)] for d in range(3)]
    assert torch.allclose(found.samples, torch.tensor(expected, dtype=torch.float64))
    assert alone(table(4, 1), Limits()).stopped == "exact"


# ------------------------------------------------------------------------------------------------ errors and stopping


def draws(values: list[float]) -> Iterator[Tensor]:
    for value in values:
        yield torch.tensor([value, 0.0], dtype=torch.float64)


def test_errors_are_those_of_a_mean_of_independent_samples() -> None:
    found = sampled(draws([1.0, 2.0, 4.0]), 1.0, Limits(samples=3))
    assert found.mean.tolist() == pytest.approx([7 / 3, 0])
    assert found.error[0].item() == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2 / 3))


def test_sampling_stops_when_the_largest_error_is_small_enough_but_not_before_there_are_enough() -> None:
    steady = [5.0, 5.1] * 50
    assert len(sampled(draws(steady), -5.0, Limits(error=0.5)).samples) == sh.LEAST
    wild = [5.0, 9.0] * 500
    found = sampled(draws(wild), -5.0, Limits(error=0.05))
    assert found.stopped == "error"
    assert found.error.max() <= 0.25
    assert sh.standard_error(found.samples[:-1]).max() > 0.25


def test_sampling_stops_when_the_time_is_up_but_an_error_there_is() -> None:
    clock = iter(range(1000))
    found = sampled(draws([5.0, 9.0] * 50), 5.0, Limits(error=0.01, seconds=7), clock=lambda: next(clock))
    assert (found.stopped, len(found.samples)) == ("time", 7)
    at_once = sampled(draws([5.0, 9.0] * 50), 5.0, Limits(seconds=1e-9))
    assert (at_once.stopped, len(at_once.samples)) == ("time", 2)
    assert at_once.error[0].isfinite()


def test_how_much_is_done_grows_to_all_of_it() -> None:
    for limits in (Limits(error=0.05), Limits(samples=40)):
        told: list[float] = []
        sampled(draws([5.0, 9.0] * 500), 5.0, limits, told.append)
        assert told == sorted(told)
        assert told[-1] == 1
        assert told[0] < 0.1


def test_standard_errors_are_honest() -> None:
    """Over 200 runs the true value lies within 1.96 standard errors in 93 to 97 % of the values."""
    game = Table(torch.randn(512, 2**7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    truth = torch.stack(list(itertools.islice(enumerated(game), 512))).mean(0)
    inside = []
    for seed in range(200):
        order = torch.randint(512, (64,), generator=torch.Generator().manual_seed(seed))
        run = Table(game.f[order])
        found = sampled(ordered(run, seed, 8), run.whole, Limits(samples=64))
        inside.append((found.mean - truth).abs() <= 1.96 * found.error)
    share = torch.stack(inside).double().mean().item()
    assert 0.93 <= share <= 0.97, share


def test_two_runs_agree_within_their_errors() -> None:
    game = table(8, 64)
    first, second = (sampled(ordered(game, seed, 8), game.whole, Limits(samples=64)) for seed in (1, 2))
    apart = (first.mean - second.mean)[:-1] / (first.error**2 + second.error**2)[:-1].sqrt()
    assert 0.1 < apart.square().mean().sqrt() < 2
