"""Shapley values of any game: what each player is worth on average over all orders in which the players come in.

    φ_i = E_order[f(those before i, and i) − f(those before i)],        Σ_i φ_i = f(all) − f(none)

f may depend on chance, too: on what stands in the place of players that are not there, its *draw*. A *sample* is

* an order and its reverse that share a draw (an antithetic pair), or
* where there are few players, all coalitions by one draw, which is exact over orders.

Every sample telescopes, so Σφ + baseline is f(all) in each, and so in their mean. Samples are independent of one
another, and what a sample holds is not: standard errors come from the spread of samples alone.

Source: Shapley (1953); orders in antithetic pairs: Mitchell et al., "Sampling permutations for Shapley value
estimation" (JMLR 2022).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..errors import UserError

ENUMERATED = 10
"""Up to so many players all coalitions are played."""
LEAST = 16
"""So many samples there are before errors count: the spread of fewer is not known well."""


Tell = Callable[[float], None]
"""Called with the share of the work that is done."""


class Game(Protocol):
    """players: how many. whole: f(all), whatever the draw. chance: whether f depends on the draw at all. room: about
    how many coalitions are best played at once.
    """

    @property
    def players(self) -> int: ...

    @property
    def whole(self) -> float: ...

    @property
    def chance(self) -> bool: ...

    @property
    def room(self) -> int: ...

    def play(self, kept: Bool[Tensor, "row player"], draw: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """f of coalitions, in float64 on the host. draw: which of the draws each is played with."""


@dataclass(frozen=True)
class Within:
    """A game that is another in all that it does not say otherwise."""

    game: Game

    @property
    def players(self) -> int:
        return self.game.players

    @property
    def whole(self) -> float:
        return self.game.whole

    @property
    def chance(self) -> bool:
        return self.game.chance

    @property
    def room(self) -> int:
        return self.game.room

    def play(self, kept: Bool[Tensor, "row player"], draw: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        return self.game.play(kept, draw)


def each_once(
    rows: Shaped[Tensor, "row *"], room: int, run: Callable[[Tensor], Float[Tensor, "some *value"]]
) -> Float[Tensor, "row *value"]:
    """What ``run`` makes of rows, ``room`` of them at a time; those that are alike are run once."""
    different, which = torch.unique(rows, dim=0, return_inverse=True)
    return torch.cat([run(some) for some in different.split(room)])[which]


def check_limits(measure: str | None, error: float, seconds: float) -> None:
    """Raises UserError for a measure that there is not, and for limits that cannot be."""
    if measure not in (None, "shapley", "replace"):
        raise UserError(f"what is measured is shapley or replace, not {measure!r}")
    for name, value in (("error", error), ("seconds", seconds)):
        if not value > 0:  # NaN, too
            raise UserError(f"--measure-{name} is greater than 0, not {value}")


@dataclass(frozen=True)
class Limits:
    """When there are samples enough.

    error: standard errors at most this share of |whole|, by at least :data:`LEAST` samples. seconds: or so much time
    is up; two samples there are in any case. samples: so many and no others, whatever errors and time say.
    """

    error: float = 0.05
    seconds: float = 60.0
    samples: int | None = None


@dataclass(frozen=True, eq=False)
class Sampled:
    """Independent samples of several values, and why there are not more of them.

    stopped: "error", "time", "samples", or "exact" where nothing is left to chance.
    """

    samples: Float[Tensor, "sample value"]
    stopped: str

    @cached_property
    def mean(self) -> Float[Tensor, "value"]:
        return self.samples.mean(0)

    @cached_property
    def error(self) -> Float[Tensor, "value"]:
        """Standard errors of the means."""
        return standard_error(self.samples) if self.stopped != "exact" else torch.zeros_like(self.mean)

    @property
    def known(self) -> bool:
        """Whether the errors are: of a single sample that chance has a part in they are not."""
        return self.stopped == "exact" or len(self.samples) > 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sampled) and self.stopped == other.stopped and torch.equal(self.samples, other.samples)

    def __hash__(self) -> int:
        return hash((self.stopped, self.samples.shape))

    def halves(self) -> tuple[Float[Tensor, "value"], Float[Tensor, "value"]] | None:
        """The means of two halves of the samples; None where there are not two."""
        return None if len(self.samples) < 2 else (self.samples[::2].mean(0), self.samples[1::2].mean(0))


def standard_error(samples: Float[Tensor, "sample *value"]) -> Float[Tensor, "*value"]:
    """Of their mean; infinite for a single one."""
    if len(samples) < 2:
        return torch.full_like(samples[0], math.inf)
    return samples.std(0) / math.sqrt(len(samples))


def sampled(
    samples: Iterator[Float[Tensor, "value"]],
    scale: float,
    limits: Limits,
    tell: Tell = lambda share: None,
    clock: Callable[[], float] = time.monotonic,
) -> Sampled:
    """Samples until the limits say that they are enough. scale: what an error is a share of; tell: how much is done."""
    found: list[Tensor] = []
    begun, goal = clock(), limits.error * abs(scale)
    for sample in samples:
        found.append(sample)
        if limits.samples is not None:
            tell(len(found) / limits.samples)
            if len(found) >= limits.samples:
                return Sampled(torch.stack(found), "samples")
            continue
        spent = (clock() - begun) / limits.seconds
        largest = standard_error(torch.stack(found)).max().item() if len(sample) else 0.0
        accurate = min(1.0, len(found) / LEAST, (goal / largest) ** 2 if largest > 0 else 1.0)
        tell(min(1.0, max(spent, accurate)))
        if accurate >= 1:
            return Sampled(torch.stack(found), "error")
        if spent >= 1 and len(found) >= 2:
            return Sampled(torch.stack(found), "time")
    return Sampled(torch.stack(found), "exact")


def shapley(
    game: Game, limits: Limits, seed: int, tell: Tell = lambda share: None, all_of: int = ENUMERATED
) -> Sampled:
    """Samples of (φ_1, ..., φ_players, baseline): in each Σφ + baseline is the game's whole.

    all_of: up to so many players all coalitions are played.
    """
    n, most = game.players, limits.samples or LEAST
    if n <= all_of:
        return sampled(enumerated(game, ahead(game, 2**n, most)), game.whole, limits, tell)
    return sampled(ordered(game, seed, ahead(game, 2 * (n + 1), most)), game.whole, limits, tell)


def ahead(game: Game, coalitions: int, most: int) -> int:
    """So many samples of so many coalitions are played at once, ``most`` at most."""
    return max(1, min(most, game.room // max(1, coalitions)))


def ordered(game: Game, seed: int, together: int = 1) -> Iterator[Float[Tensor, "value"]]:
    """Samples by pairs of orders, without end; so many are played together."""
    n, generator = game.players, torch.Generator().manual_seed(seed)
    before = torch.arange(n + 1)[:, None]
    for low in count(step=together):
        orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(together)])
        turn = torch.stack([orders, orders.flip(1)], dim=1).argsort(-1)  # [sample, 2, player]: when each comes in
        kept = turn[:, :, None, :] < before  # [sample, 2, how many are in, player]
        draws = torch.arange(low, low + together).repeat_interleave(2 * (n + 1))
        f = game.play(kept.flatten(0, 2), draws).view(together, 2, n + 1)
        f[..., -1] = game.whole
        gained = f.diff(dim=-1).gather(-1, turn)  # what each player's coming in changes
        yield from torch.cat([gained.mean(1), f[:, 0, :1]], dim=1)


def enumerated(game: Game, together: int = 1) -> Iterator[Float[Tensor, "value"]]:
    """Samples by all coalitions: one where nothing is left to chance, else without end."""
    n = game.players
    kept = (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1  # [coalition, player]; the last one is all
    weights = coalition_weights(kept)
    together = together if game.chance else 1
    for low in count(step=together) if game.chance else [0]:
        draws = torch.arange(low, low + together).repeat_interleave(2**n)
        f = game.play(kept.repeat(together, 1), draws).view(together, 2**n)
        f[:, -1] = game.whole
        yield from torch.cat([f @ weights.T, f[:, :1]], dim=1)


def played(measure: str, game: Game, limits: Limits, seed: int, tell: Tell = lambda share: None) -> Sampled:
    """By one of the two measures: ``shapley``, or ``replace``, each player alone."""
    return shapley(game, limits, seed, tell) if measure == "shapley" else alone(game, limits, tell)


def alone(game: Game, limits: Limits, tell: Tell = lambda share: None) -> Sampled:
    """Samples of what is lost without each player alone, all others there. They sum to nothing."""

    def samples() -> Iterator[Float[Tensor, "value"]]:
        n, chance = game.players, game.chance
        together = ahead(game, n, limits.samples or LEAST) if chance else 1
        for low in count(step=together) if chance else [0]:
            draws = torch.arange(low, low + together).repeat_interleave(n)
            yield from game.whole - game.play(~torch.eye(n, dtype=torch.bool).repeat(together, 1), draws).view(
                together, n
            )

    return sampled(samples(), game.whole, limits, tell)


def coalition_weights(kept: Bool[Tensor, "coalition player"]) -> Float[Tensor, "player coalition"]:
    """How each coalition's value counts in each φ.

    (|S| − 1)! (n − |S|)! / n! with the player, −|S|! (n − |S| − 1)! / n! without.
    """
    n = kept.shape[1]
    size = kept.sum(1)
    of_size = torch.tensor([1 / (n * math.comb(n - 1, k)) for k in range(n)] or [0.0], dtype=torch.float64)
    joined, left = of_size[(size - 1).clamp(min=0)], of_size[size.clamp(max=max(n - 1, 0))]
    return torch.where(kept.T, joined, -left)
