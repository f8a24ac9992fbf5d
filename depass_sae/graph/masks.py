"""Which few of many players does a game need? The search, which knows nothing of models.

A game is played by a set of its players, or by shares of them: what is left of its whole outcome. A set is *sufficient*
where that is enough, *minimal* where no member can be left out of it, and *necessary* where the others alone lose.

1. A mask, one sigmoid per player, is learned by gradient: what is lost, and the mask's mean, which counts for more and
   more. It starts from what is known of the players.
2. By the mask's order, and by what was known, the smallest sufficient prefix is found; the smallest of them is taken.
3. Members are left out by exact trials: first many at once, those that matter least by the gradient, then one by one,
   until nobody can be spared or the time is over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SUFFICIENT, NECESSARY, UNUSUAL = 0.8, 0.5, 0.95
"""What share of the whole a set has to keep; what its absence has to lose, and more than how many random sets."""
STEPS, RATE, SPARSITY = 40, 0.3, 25.0
"""Of Adam, and what the mask's mean counts for in the end."""
WITHIN = 1e-6
"""Rounding, which decides nothing."""
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """share: of the whole that is left. lead: how far the answer is ahead of all others, in the same unit; infinite
    where nobody asks."""

    share: Float[Tensor, "batch"]
    lead: Float[Tensor, "batch"]

    @property
    def sufficient(self) -> Bool[Tensor, "batch"]:
        return (self.share >= SUFFICIENT - WITHIN) & (self.lead > 0)

    @property
    def loss(self) -> Float[Tensor, "batch"]:
        """What is lost: of the share, and of the lead where the answer falls behind."""
        return (1 - self.share).clamp(min=0) + (-self.lead).clamp(min=0)


class Game(Protocol):
    """What a set of players is worth. at_once: how many sets are best played together."""

    @property
    def players(self) -> int: ...

    @property
    def at_once(self) -> int: ...

    def play(self, sets: Bool[Tensor, "batch player"]) -> Outcome:
        """Exactly, for any number of sets."""

    def slope(self, mask: Float[Tensor, "player"]) -> tuple[float, Float[Tensor, "player"]]:
        """The loss of a mixture of players, and its gradient."""


@dataclass(frozen=True)
class Clock:
    """When a search has to end. seconds: None for never."""

    seconds: float | None = None
    start: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        return time.monotonic() - self.start

    def over(self, share: float = 1.0) -> bool:
        """Whether this share of the time is gone."""
        return self.seconds is not None and self.spent >= share * self.seconds


@dataclass(frozen=True)
class Found:
    """A set that is sufficient. minimal: whether no member can be left out, else the time was over.

    needed: what share of the whole is lost when one member is left out of the set, where that was tried.
    mask: the learned order. prefixes: how many it takes by the mask's order, and by each that was known.
    """

    members: Bool[Tensor, "player"]
    minimal: bool
    needed: Float[Tensor, "player"]
    mask: Float[Tensor, "player"]
    prefixes: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return int(self.members.sum())


def _nobody(what: str, done: int, steps: int) -> None: ...


def search(
    game: Game, known: Sequence[Float[Tensor, "player"]], *, seed: int, clock: Clock, tell: Tell = _nobody
) -> Found | None:
    """A small sufficient set; None where all players together are not sufficient.

    known: of the players, by size of any unit; the mask starts from their mean rank.
    """
    if not bool(game.play(torch.ones(1, game.players, dtype=torch.bool)).sufficient):
        return None
    mask = learned(game, _start(known, seed), clock=clock, tell=tell)
    orders = [size.argsort(descending=True, stable=True) for size in (mask, *(one.abs() for one in known))]
    prefixes = tuple(count for order in orders if (count := smallest(game, order)) is not None)
    fewest, order = min(zip(prefixes, orders, strict=True), key=lambda pair: pair[0])
    members = torch.zeros(game.players, dtype=torch.bool)
    members[order[:fewest]] = True
    found = tightened(game, members, mask, clock=clock, tell=tell)
    return replace(found, prefixes=prefixes)


def _start(known: Sequence[Float[Tensor, "player"]], seed: int) -> Float[Tensor, "player"]:
    """Logits from −1 to 2 by the players' mean rank, and a little noise of a seed."""
    n = len(known[0])
    ranks = [size.abs().argsort().argsort().double() / max(n - 1, 1) for size in known]
    noise = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 3 * torch.stack(ranks).mean(0) - 1 + 0.1 * noise


def learned(
    game: Game,
    start: Float[Tensor, "player"],
    *,
    steps: int = STEPS,
    rate: float = RATE,
    sparsity: float = SPARSITY,
    clock: Clock = Clock(),
    tell: Tell = _nobody,
) -> Float[Tensor, "player"]:
    """The mask's logits after Adam's steps; fewer where most of the time is over."""
    logits = start.clone().double()
    mean, square = torch.zeros_like(logits), torch.zeros_like(logits)
    for step in range(1, steps + 1):
        share = logits.sigmoid()
        _, gradient = game.slope(share)
        counts = sparsity * step / steps
        gradient = (gradient.double() + counts / len(logits)) * share * (1 - share)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        upwards = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        logits = logits - rate * upwards
        tell("learning which features it takes", step, steps)
        if clock.over(0.6):
            break
    return logits


def smallest(game: Game, order: Int[Tensor, "player"]) -> int | None:
    """How many it takes of the players in their order, by quarters; None where all of them are not sufficient.

    The number is sufficient, and one less is not.
    """
    n = len(order)
    rank = order.argsort()
    too_few, enough = -1, n + 1
    while enough - too_few > 1:
        tried = sorted({too_few + max(1, (enough - too_few) * k // 4) for k in (1, 2, 3)} - {enough})
        if too_few < 0 and enough > n:
            tried = sorted({*(k for k in tried if k <= n), n})
        sets = torch.stack([rank < count for count in tried])
        fine = game.play(sets).sufficient.tolist()
        if enough > n and not fine[-1] and tried[-1] == n:
            return None
        sufficient = [count for count, good in zip(tried, fine, strict=True) if good]
        enough = min(sufficient, default=enough)
        too_few = max((count for count in tried if count < enough), default=too_few)
    return enough


def tightened(
    game: Game,
    members: Bool[Tensor, "player"],
    mask: Float[Tensor, "player"],
    *,
    clock: Clock = Clock(),
    tell: Tell = _nobody,
) -> Found:
    """A sufficient set without those of its members that it can spare."""
    members, first = members.clone(), int(members.sum())
    while not clock.over():  # many at once
        _, gradient = game.slope(members.double())
        least = _by(-gradient, members)  # what a member keeps from being lost, to first order
        gone = _most_spared(game, members, least)
        if not gone:
            break
        members[least[:gone]] = False
        tell("leaving features out", first - int(members.sum()), first)
    untried, failed = _by(mask, members).tolist(), []
    needed = torch.full((game.players,), torch.nan, dtype=torch.float64)
    whole = float(game.play(members[None]).share)
    while untried and not clock.over():
        some, untried = untried[: game.at_once], untried[game.at_once :]
        found = game.play(_without_each(members, some))
        needed[some] = whole - found.share.double().cpu()
        share, fine = found.share.tolist(), found.sufficient.tolist()
        spared = sorted((i for i, good in enumerate(fine) if good), key=lambda i: -share[i])
        failed += [player for player, good in zip(some, fine, strict=True) if not good]
        if spared:
            order = torch.tensor([some[i] for i in spared])
            gone = max(1, _most_spared(game, members, order))
            members[order[:gone]] = False
            untried, failed = [*untried, *failed, *order[gone:].tolist()], []
            needed[:] = torch.nan
            whole = float(game.play(members[None]).share)
        tell("leaving features out", len(failed), int(members.sum()) or 1)
    return Found(members, not untried, needed, mask)


def _by(worth: Float[Tensor, "player"], members: Bool[Tensor, "player"]) -> Int[Tensor, "member"]:
    """The members, those that are worth least first."""
    here = members.nonzero()[:, 0]
    return here[worth[here].argsort(stable=True)]


def _most_spared(game: Game, members: Bool[Tensor, "player"], order: Int[Tensor, "some"]) -> int:
    """How many of the first in this order can be left out together."""
    fine, too_many = 0, len(order) + 1
    while too_many - fine > 1:
        tried = sorted({fine + max(1, (too_many - fine) * k // 4) for k in (1, 2, 3)} - {too_many})
        sets = members.repeat(len(tried), 1)
        for row, count in enumerate(tried):
            sets[row, order[:count]] = False
        good = game.play(sets).sufficient.tolist()
        wrong = [count for count, well in zip(tried, good, strict=True) if not well]
        too_many = min(wrong, default=too_many)
        fine = max((count for count in tried if count < too_many), default=fine)
    return fine


def _without_each(members: Bool[Tensor, "player"], some: Sequence[int]) -> Bool[Tensor, "some player"]:
    sets = members.repeat(len(some), 1)
    sets[torch.arange(len(some)), torch.tensor(some)] = False
    return sets


# --------------------------------------------------------------------------------------------------------- random sets


DRAWS = 20
INTERVAL = "95 % of Student's t"
"""What a mean over random sets comes with."""


def matched(
    members: Bool[Tensor, "player"], cells: Int[Tensor, "player"], draws: int, generator: torch.Generator
) -> Bool[Tensor, "draw player"]:
    """Random sets with as many players of every cell as the set has: others first, members where there are too few."""
    sets = torch.zeros(draws, len(members), dtype=torch.bool)
    for cell in cells[members].unique().tolist():
        own, others = ((here & (cells == cell)).nonzero()[:, 0] for here in (members, ~members))
        for row in sets:
            order = torch.cat([some[torch.randperm(len(some), generator=generator)] for some in (others, own)])
            row[order[: len(own)]] = True
    return sets


def interval(draws: Float[Tensor, "draw"]) -> dict[str, float]:
    """The mean over random sets and where it lies by 95 %, by Student's t."""
    from scipy.stats import t

    mean, n = float(draws.mean()), len(draws)
    half = float(t.ppf(0.975, n - 1)) * float(draws.std()) / math.sqrt(n) if n > 1 else 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half}


def overlap(one: Bool[Tensor, "player"], other: Bool[Tensor, "player"]) -> float:
    """Jaccard's: how many are in both, of those in either; 1 where neither has any."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0
