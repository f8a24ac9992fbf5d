"""What may be evaluated: tokens, heads, neurons, features; by which methods, and by which protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..attribution.removal import DELETE, MASK, TEXT, check_removal
from ..errors import UserError
from .games import MEAN, ZERO, Game, feature_sets, head_game, neuron_game, token_game, token_players
from .methods import Method, features, tokens
from .methods.units import HEAD_METHODS, NEURON_METHODS
from .protocols import Protocol
from .protocols.circuits import CMD, CPR
from .protocols.curves import MASKS, TOKEN_CURVES
from .protocols.ranks import REPLACE, SHAPLEY
from .protocols.sets import SETS
from .question import CONTRAST, Question

Evaluated = Literal["tokens", "heads", "neurons", "features"]
ALL = "all"


@dataclass(frozen=True)
class Source:
    """usual: the methods that are asked for where nobody names some, of all. removals: ways to take sources out, the
    usual one first. players: which of a method's scores are those of a game's players; None for all of them.
    """

    name: str
    methods: Mapping[str, Method]
    usual: Sequence[str]
    protocols: Mapping[str, Protocol]
    removals: Sequence[str]
    game: Callable[[Question, Protocol], Game]
    players: Callable[[Question], list[int]] | None = None

    def check_removal(self, removal: str | None) -> str:
        """The way to take sources out. Raises UserError for one that these do not have."""
        if removal is None:
            return self.removals[0]
        if MASK in self.removals:
            check_removal(removal)
        elif removal not in self.removals:
            raise UserError(f"{self.name} are taken out by {' or '.join(self.removals)}, not by {removal!r}")
        return removal

    def check_methods(self, names: Iterable[str] | None) -> list[str]:
        """Raises UserError that lists the names there are."""
        return _chosen(names, self.methods, self.usual, f"method for {self.name}")

    def check_protocols(self, names: Iterable[str] | None) -> list[str]:
        return _chosen(names, self.protocols, list(self.protocols), f"protocol for {self.name}")


def _chosen(names: Iterable[str] | None, known: Iterable[str], usual: Sequence[str], what: str) -> list[str]:
    wanted, there = list(dict.fromkeys(usual if names is None else names)), list(known)
    if ALL in wanted:
        return there
    if unknown := [name for name in wanted if name not in there]:
        raise UserError(f"there is no {what} called {unknown[0]!r}; there are {', '.join(there)}, or all")
    if not wanted:
        raise UserError(f"name one {what}, or more: {', '.join(there)}")
    return wanted


def _by_name(*protocols: Protocol) -> dict[str, Protocol]:
    return {protocol.name: protocol for protocol in protocols}


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "tokens", tokens.METHODS,
            ("half", "softmax", "linear", "attnlrp", "effect", "ig", "rollout", "norm", "nearness", "leave-one-out",
             "random"),
            _by_name(REPLACE, SHAPLEY, *TOKEN_CURVES), (TEXT, DELETE, MASK),
            lambda question, protocol: token_game(question, protocol.removal), token_players,
        ),
        Source(
            "heads", HEAD_METHODS, ("half", "linear", "half-qk", "effect", "norm", "random"),
            _by_name(REPLACE, *MASKS, CPR, CMD), (ZERO, MEAN, CONTRAST), lambda question, _: head_game(question),
        ),
        Source(
            "neurons", NEURON_METHODS, ("half", "linear", "half-qk", "effect", "norm", "activation", "random"),
            _by_name(*MASKS, CPR, CMD), (ZERO, MEAN, CONTRAST), lambda question, _: neuron_game(question),
        ),
        Source(
            "features", features.METHODS, ("half", "linear", "effect", "activation", "random"),
            _by_name(SETS, CPR, CMD), (ZERO, CONTRAST), lambda question, _: feature_sets(question),
        ),
    )
}  # fmt: skip


def source_named(name: str) -> Source:
    """Raises UserError that lists the names there are."""
    if name not in SOURCES:
        raise UserError(f"what is evaluated is of {', '.join(SOURCES)}, not of {name!r}")
    return SOURCES[name]
