"""The search over small games, whose every set can be tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from depass_sae.graph.masks import Clock, Outcome, interval, learned, matched, overlap, search, smallest, tightened

Rule = Callable[[Tensor], Tensor]


@dataclass
class Small:
    """A game whose outcome is a formula of who is kept; it counts how many sets it played."""

    players: int
    rule: Rule
    at_once: int = 4
    lead: Rule = lambda mask: torch.full_like(mask[..., 0], math.inf)
    played: list[Tensor] = field(default_factory=list)

    def play(self, sets: Tensor) -> Outcome:
        self.played += list(sets)
        return Outcome(self.rule(sets.double()), self.lead(sets.double()))

    def slope(self, mask: Tensor) -> tuple[float, Tensor]:
        mask = mask.clone().requires_grad_()
        loss = Outcome(self.rule(mask), self.lead(mask)).loss
        (gradient,) = torch.autograd.grad(loss, mask, allow_unused=True)
        return loss.item(), torch.zeros_like(mask) if gradient is None else gradient

    def sufficient(self, *members: int) -> bool:
        mask = torch.zeros(1, self.players, dtype=torch.bool)
        mask[0, list(members)] = True
        return bool(self.play(mask).sufficient)

    def minimal_sets(self) -> list[tuple[int, ...]]:
        """By trying all sets: those that are sufficient and cannot spare a member."""
        sets = itertools.chain.from_iterable(
            itertools.combinations(range(self.players), size) for size in range(self.players + 1)
        )
        return [
            found for found in sets
            if self.sufficient(*found) and not any(self.sufficient(*(set(found) - {one})) for one in found)
        ]  # fmt: skip


def redundant(mask: Tensor) -> Tensor:
    """Either 0 and 1 together, or 2 alone, give all; 3 adds a little."""
    both, alone = mask[..., 0] * mask[..., 1], mask[..., 2]
    return 0.9 * (both + alone - both * alone) + 0.1 * mask[..., 3]


GAMES: dict[str, Small] = {
    "a sum": Small(6, lambda m: m @ torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0, 0.0], dtype=torch.float64)),
    "one against another": Small(6, lambda m: m @ torch.tensor([0.9, -0.4, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64)),
    "redundant": Small(5, redundant),
    "a lead": Small(4, lambda m: m[..., 0], lead=lambda m: m[..., 1] - 0.5),
    "nothing is needed": Small(3, lambda m: 1 + 0 * m[..., 0]),
}


def found(game: Small, *, seed: int = 0) -> tuple[int, ...]:
    known = [game.slope(torch.ones(game.players, dtype=torch.float64))[1]]
    what = search(game, known, seed=seed, clock=Clock())
    assert what is not None
    assert what.minimal
    return tuple(what.members.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_found_is_sufficient_and_minimal_as_trying_all_sets_shows(name: str, seed: int) -> None:
    assert found(GAMES[name], seed=seed) in GAMES[name].minimal_sets()


def test_a_mask_finds_the_one_that_makes_two_others_redundant() -> None:
    assert found(GAMES["redundant"]) == (2,)


def test_it_is_no_larger_than_what_was_known_needs() -> None:
    game = Small(8, lambda m: (m[..., 7] + 0.001 * m.sum(-1)).clamp(max=1))
    known = [torch.arange(8.0), -torch.tensor([3.0, 2, 1, 0, 4, 5, 6, 2.5]), torch.arange(8.0, 0, -1)]
    what = search(game, known, seed=0, clock=Clock(0.0))
    assert what is not None
    assert what.prefixes[1:] == (1, 5, 8)
    assert what.size == min(what.prefixes)


def test_where_all_are_not_sufficient_there_is_nothing_to_find() -> None:
    assert search(Small(3, lambda m: 0.2 * m.sum(-1)), [torch.ones(3)], seed=0, clock=Clock()) is None
    assert (
        search(Small(2, lambda m: m.mean(-1), lead=lambda m: 0 * m[..., 0]), [torch.ones(2)], seed=0, clock=Clock())
        is None
    )


@pytest.mark.parametrize("needed", [0, 1, 2, 7, 19, 20])
@pytest.mark.parametrize("size", [20, 21])
def test_the_smallest_prefix_is_found_in_few_rounds(needed: int, size: int) -> None:
    game = Small(size, lambda m: (m.sum(-1) >= needed).double())
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    assert smallest(game, order) == needed
    assert len(game.played) <= 14
    assert all(set(row.nonzero()[:, 0].tolist()) == set(order[: int(row.sum())].tolist()) for row in game.played)


def test_a_prefix_that_there_is_not_is_none() -> None:
    assert smallest(Small(5, lambda m: 0 * m[..., 0]), torch.arange(5)) is None


def test_80_percent_is_enough_and_less_is_not() -> None:
    played = Outcome(torch.tensor([0.8, 0.79, 0.9, 0.9]), torch.tensor([1.0, 1.0, 0.0, -0.1]))
    assert played.sufficient.tolist() == [True, False, False, False]
    assert played.loss.tolist() == pytest.approx([0.2, 0.21, 0.1, 0.2])


def test_what_each_member_is_needed_for_is_what_is_lost_without_it() -> None:
    game = GAMES["a sum"]
    members = torch.tensor([True, True, True, False, False, False])
    kept = tightened(game, members, torch.arange(6).double())
    assert kept.minimal
    assert kept.needed[kept.members].tolist() == pytest.approx([0.5, 0.25, 0.15])
    assert kept.needed[~kept.members].isnan().all()


def test_when_the_time_is_over_the_set_is_still_sufficient_and_not_called_minimal() -> None:
    game = Small(6, lambda m: m[..., 0])
    start = torch.ones(6, dtype=torch.bool)
    what = tightened(game, start, torch.zeros(6), clock=Clock(0.0))
    assert not what.minimal
    assert what.members.tolist() == start.tolist()
    steps: list[int] = []
    learned(game, torch.zeros(6), clock=Clock(0.0), tell=lambda _what, done, _all: steps.append(done))
    assert steps == [1]


def test_the_mask_is_that_of_torchs_adam() -> None:
    game, start, steps = GAMES["redundant"], torch.tensor([0.5, 0.2, -0.3, 0.1, 0.0], dtype=torch.float64), 12
    logits = start.clone().requires_grad_()
    adam = torch.optim.Adam([logits], lr=0.3)
    for step in range(1, steps + 1):
        adam.zero_grad()
        share = logits.sigmoid()
        (Outcome(game.rule(share), game.lead(share)).loss + 1.5 * step / steps * share.mean()).backward()
        adam.step()
    assert learned(game, start, steps=steps, sparsity=1.5).tolist() == pytest.approx(logits.tolist())


def test_random_sets_have_as_many_of_every_cell_none_of_the_sets_own_where_there_are_others() -> None:
    cells = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2])
    members = torch.tensor([True, True, False, False, False, True, False, False, False, False])
    sets = matched(members, cells, 200, torch.Generator().manual_seed(0))
    for cell, count in ((0, 2), (1, 1), (2, 0)):
        assert (sets[:, cells == cell].sum(-1) == count).all()
    assert not (sets & members).any()
    assert sets[:, (cells < 2) & ~members].any(0).all()
    assert len({tuple(row.tolist()) for row in sets}) == 3
    again = matched(members, cells, 200, torch.Generator().manual_seed(0))
    assert torch.equal(sets, again)


def test_where_a_cell_has_too_few_others_random_sets_have_all_of_them_and_any_of_the_sets_own() -> None:
    members = torch.tensor([True, True, True, False, True])
    sets = matched(members, torch.tensor([0, 0, 0, 0, 1]), 100, torch.Generator().manual_seed(0))
    assert (sets.sum(-1) == 4).all()
    assert sets[:, 3:].all()
    assert len({tuple(row.tolist()) for row in sets}) == 3


def test_a_mean_over_random_sets_has_students_interval() -> None:
    found = interval(torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64))
    assert found["mean"] == 3
    half = 3.182446305 * (10 / 3) ** 0.5 / 2  # t of three degrees of freedom; the sum of squares is 10
    assert (found["low"], found["high"]) == pytest.approx((3 - half, 3 + half))
    assert interval(torch.tensor([2.0])) == {"mean": 2.0, "low": 2.0, "high": 2.0}


def test_overlap_is_of_what_is_in_either() -> None:
    one, other = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    assert overlap(one, other) == pytest.approx(1 / 3)
    assert overlap(one, one) == 1
    assert overlap(one & ~one, other & ~other) == 1
