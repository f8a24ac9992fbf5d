"""The smallest set of features that suffices for a target, found in the live model and checked there, as a graph.

A set is *sufficient* where, with all other active features removed (feature_game.py), the answer stays first and at
least 80 % of the target is left; *minimal* where no member can be left out (masks.py); *necessary* where removing it
loses at least half of the target, and more than 95 % of random sets with as many features at every layer and position
lose. Being necessary is easier than being sufficient: few features break an answer that many together make.

The graph is lm.graph's (build.py) with the target and every feature of the circuit expanded, and what else would be a
feature of it in the remainders; ``graph["circuit"]`` has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.measure import check_seed
from ..errors import UserError
from ..passes.settings import Settings
from ..subject import Subject
from ..texts import together
from .build import GraphSettings
from .chosen import graph_of
from .feature_game import Asked, FeatureGame, Removal, feature_game, measured_as
from .masks import (
    DRAWS,
    NECESSARY,
    SUFFICIENT,
    UNUSUAL,
    Clock,
    Found,
    Outcome,
    interval,
    matched,
    overlap,
    search,
)

if TYPE_CHECKING:
    import networkx as nx

SECONDS = 60.0
"""What a search may take, where nobody says so; it ends earlier where nothing can be left out any more."""
MOST_DRAWS = 10_000


@dataclass(frozen=True)
class Search:
    """How a circuit is searched for. seconds: the most that it takes. draws: random sets that it is held against.

    stability: search again from the next seed, and say how much of the two circuits is the same.
    """

    seconds: float = SECONDS
    draws: int = DRAWS
    seed: int = 0
    stability: bool = False

    def check(self) -> None:
        """Raises UserError for numbers that cannot be."""
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UserError(f"seconds is how long the search may take, above 0, not {self.seconds}")
        if not DRAWS <= self.draws <= MOST_DRAWS:
            raise UserError(f"draws are {DRAWS} to {MOST_DRAWS} random sets, not {self.draws}")
        check_seed(self.seed)


@dataclass(frozen=True)
class Circuit:
    """A circuit and what was measured of it. effects, contributions: of every player, in shares of the whole.

    sizes: how many features each order needs for the same sufficiency.
    """

    game: FeatureGame
    found: Found
    effects: Float[Tensor, "player"]
    contributions: Float[Tensor, "player"]
    figures: dict[str, Any]

    @property
    def members(self) -> list[int]:
        return self.found.members.nonzero()[:, 0].tolist()


def find_circuit(
    subject: Subject, asked: Asked, layers: Sequence[int] | None, removal: Removal, how: Search, settings: Settings
) -> tuple[Circuit, str | None]:
    """The circuit of one prompt, and what has to be said of its target.

    Raises UserError where nothing is to be found: no feature below the target, or all of them are not sufficient.
    """
    removal.check()
    how.check()
    clock = Clock(how.seconds)
    game, seen, note = feature_game(subject, asked, layers, removal)
    effects, contributions = game.effects(), game.contributions(seen, settings.rule)
    found = search(game, [effects, contributions], seed=how.seed, clock=clock, tell=settings.tell)
    if found is None:
        share = float(game.play(torch.ones(1, game.players, dtype=torch.bool)).share)
        raise UserError(
            f"all {game.players} features together keep {share:.0%} of the target, which is not sufficient; "
            'leave SAE errors in (errors="keep")'
        )
    spent = clock.spent
    figures = {
        "size": found.size,
        "players": game.players,
        "measure": measured_as(game.target),
        "target": game.whole,
        "baseline": game.without,
        "answer": game.answer is not None,
        **_checks(game, found, how),
        "sizes": {
            "circuit": found.size,
            **dict(zip(("prefix", "effect", "contribution"), found.prefixes, strict=True)),
        },
        "minimal": found.minimal,
        "stopped": "minimal" if found.minimal else "time",
        "seconds": spent,
        "stability": _stability(game, found, [effects, contributions], how, settings) if how.stability else None,
        "settings": {
            **removal.to_dict(),
            "others": "zero" if asked.contrast is None else "contrast",
            "contrast": _prompt(asked),
            "sufficient": SUFFICIENT,
            "necessary": NECESSARY,
            "unusual": UNUSUAL,
            "seconds": how.seconds,
            "draws": how.draws,
            "seed": how.seed,
        },
    }
    return Circuit(game, found, effects, contributions, figures), note


def _prompt(asked: Asked) -> dict[str, Any] | None:
    if asked.contrast is None:
        return None
    contrast = asked.contrast
    return {"prompt": contrast.text, "tokens": list(contrast.tokens), "token_ids": list(contrast.token_ids)}


# ------------------------------------------------------------------------------------------------------------ measured


def _checks(game: FeatureGame, found: Found, how: Search) -> dict[str, Any]:
    """The circuit kept and removed, beside random sets of the same cells, all features and none."""
    members, n = found.members, game.players
    generator = torch.Generator().manual_seed(how.seed)
    random = matched(members, game.cells, how.draws, generator)
    every, none = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    played = game.play(torch.cat([torch.stack([members, ~members, every, none]), random, ~random]))
    share, draws = played.share.double().cpu(), how.draws
    lost = 1 - share
    below = float((lost[4 + draws :] < lost[1]).double().mean())
    bare = replace(game, removal=replace(game.removal, errors="zero")).play(every[None])
    return {
        "kept": _one(game, played, 0),
        "removed": _one(game, played, 1),
        "all_features": _one(game, played, 2),
        "no_features": _one(game, played, 3),
        "all_without_errors": _one(game, bare, 0),
        "sufficient": bool(played.sufficient[0]),
        "necessary": bool(lost[1] >= NECESSARY) and below > UNUSUAL,
        "random": {
            "draws": draws,
            "kept": interval(share[4 : 4 + draws]),
            "removed": interval(share[4 + draws :]),
            "loses_less": below,
            "overlap": sum(overlap(members, row) for row in random) / draws,
        },
    }


def _one(game: FeatureGame, played: Outcome, row: int) -> dict[str, Any]:
    """first: whether the answer is ahead of every other token; None where nobody asks."""
    share, lead = float(played.share[row]), float(played.lead[row])
    return {"value": game.value(share), "share": share, "first": None if game.answer is None else lead > 0}


def _stability(
    game: FeatureGame, found: Found, known: Sequence[Float[Tensor, "player"]], how: Search, settings: Settings
) -> dict[str, Any]:
    again = search(game, known, seed=how.seed + 1, clock=Clock(how.seconds), tell=settings.tell)
    assert again is not None  # all players are sufficient, whatever the seed
    return {"seed": how.seed + 1, "size": again.size, "jaccard": overlap(found.members, again.members)}


# --------------------------------------------------------------------------------------------------------------- graph


def circuit_graph(
    subject: Subject,
    asked: Asked,
    *,
    layers: Sequence[int] | None = None,
    removal: Removal = Removal(),  # noqa: B008 (frozen)
    how: Search = Search(),
    settings: Settings,
) -> nx.DiGraph:
    """The circuit of one prompt as a feature-flow graph, with ``graph["circuit"]``."""
    GraphSettings().check(settings.rule)
    circuit, note = find_circuit(subject, asked, layers, removal, how, settings)
    named = [circuit.game.named[player] for player in circuit.members]
    hooks = [level.place for level in circuit.game.levels]
    g, names = graph_of(subject, asked.prompt, [(asked.target, circuit.game.pos)], named, hooks, settings)
    for player, name in zip(circuit.members, names, strict=True):
        node = g.nodes[name]
        node["effect"], node["contribution"] = float(circuit.effects[player]), float(circuit.contributions[player])
        if not math.isnan(needed := float(circuit.found.needed[player])):
            node["needed"] = needed
    g.graph["circuit"] = circuit.figures
    if (said := together(g.graph.get("note"), note)) is not None:
        g.graph["note"] = said
    return g
