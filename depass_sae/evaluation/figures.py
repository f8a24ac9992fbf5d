"""What is told of many prompts: a figure, its interval, and by how much one method is ahead of another.

A figure is any function of what the prompts gave: a mean, a median, an area under a mean curve. Its interval comes
from drawing the prompts again with replacement (percentile bootstrap, Efron 1979); two methods are compared on the same
draws of the prompts that both have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..view import words
from .resumed import LEVEL, RESAMPLED

Many = Float[Tensor, "*draw prompt number"]


def mean(numbers: Many) -> Float[Tensor, "*draw"]:
    """Of the first number of each prompt."""
    return numbers[..., 0].mean(-1)


def median(numbers: Many) -> Float[Tensor, "*draw"]:
    """The same; of an even count the mean of the two in the middle."""
    return numbers[..., 0].quantile(0.5, dim=-1)


Statistic = Literal["mean", "median"]
STATISTICS: dict[str, Callable[[Many], Tensor]] = {"mean": mean, "median": median}


@dataclass(frozen=True)
class Figure:
    """name: in a table's head. keys: which of a prompt's numbers it is made of. better: which end is the good one.

    of: None where it is the mean, or whichever statistic is asked for, of one number.
    """

    name: str
    keys: tuple[str, ...]
    better: str = "high"
    of: Callable[[Many], Float[Tensor, "*draw"]] | None = None


@dataclass(frozen=True)
class Estimate:
    """A figure over ``n`` prompts with its interval (:data:`.LEVEL`); of a single prompt there is none."""

    value: float
    low: float
    high: float
    n: int


def estimate(numbers: Float[Tensor, "prompt number"], of: Callable[[Many], Tensor]) -> Estimate | None:
    """None where no prompt has all numbers."""
    return _drawn(lambda some: of(some[0]), [numbers])


def difference(
    one: Float[Tensor, "prompt number"], other: Float[Tensor, "prompt number"], of: Callable[[Many], Tensor]
) -> Estimate | None:
    """By how much one is above the other on the prompts that both have."""
    return _drawn(lambda some: of(some[0]) - of(some[1]), [one, other])


def _drawn(of: Callable[[list[Tensor]], Tensor], samples: Sequence[Float[Tensor, "prompt number"]]) -> Estimate | None:
    there = torch.stack([sample.isfinite().all(-1) for sample in samples]).all(0)
    n = int(there.sum())
    if not n:
        return None
    samples = [sample[there] for sample in samples]
    value = float(of(samples))
    if n < 2:
        return Estimate(value, torch.nan, torch.nan, n)
    again = of([sample[_draws(n)] for sample in samples])
    low, high = again.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=again.dtype)).tolist()
    return Estimate(value, low, high, n)


@cache
def _draws(n: int) -> Int[Tensor, "draw prompt"]:
    """The same for every figure of so many prompts."""
    return torch.randint(n, (RESAMPLED, n), generator=torch.Generator().manual_seed(0))


def written(one: Estimate, sign: bool = False) -> str:
    """``0.41 (0.33 to 0.49)``"""
    write = words.signed if sign else words.number
    if one.low != one.low:
        return write(one.value, 2)
    return f"{write(one.value, 2)} ({write(one.low, 2)} to {write(one.high, 2)})"
