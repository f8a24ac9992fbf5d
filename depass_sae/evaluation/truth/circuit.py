"""What is known of a circuit: a model, what is asked of it, and what is true of that by the way it was built."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from typing import Any, TypeVar

from ...subject import Subject

Values = dict[Any, float]
"""What each source has, by its name; what is not named has 0."""


@dataclass(frozen=True)
class Case:
    """A prompt and a target, and what is true there by question (:mod:`.questions`).

    look: layer, head, query and key of what is asked of attention. mask: the token that comes in where others go.
    """

    prompt: str
    target: str
    truths: Mapping[str, Values]
    look: tuple[int, int, int, int] | None = None
    mask: str = "_"


@dataclass(frozen=True)
class Circuit:
    """A model whose mechanism is known, and cases of it. about: the mechanism, in a sentence or two."""

    name: str
    about: str
    subject: Subject = field(repr=False)
    cases: Sequence[Case] = field(repr=False)


Player = TypeVar("Player", bound=Hashable)


def worth(players: Sequence[Player], f: Callable[[frozenset[Player]], float]) -> Values:
    """Shapley's value by its definition: the mean over all orders of what a player's coming in changes. f: of a set.

    So many others before it, of all n − 1, are there in 1/n of the orders, and every set of so many equally often.
    """
    n = len(players)
    sets = {frozenset(some): 0.0 for size in range(n + 1) for some in combinations(players, size)}
    sets = {some: f(some) for some in sets}
    return {
        player: sum(
            (sets[some | {player}] - value) / (n * comb(n - 1, len(some)))
            for some, value in sets.items()
            if player not in some
        )
        for player in players
    }


def worth_of_tokens(words: Sequence[str], mask: str, f: Callable[[list[str]], float]) -> Values:
    """Of every token after the first, with ``mask`` in its place where it is gone. f: of a whole prompt."""
    return worth(
        range(1, len(words)),
        lambda kept: f([word if pos in kept or pos == 0 else mask for pos, word in enumerate(words)]),
    )
