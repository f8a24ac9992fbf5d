"""The circuit of a task: one set of features for several prompts of equal structure.

The players are features at positions, (layer, index, position), of all prompts that it is learned on; on each prompt
those play that are active there. A set is sufficient for the task where on average 80 % of the targets is left (no
prompt counts for more than all of its own) and on 80 % of the prompts the answer stays first. It is learned on one half
of the prompts, every second of them, and tested on the other, beside as many features by their mean |effect|.

Of each feature it is counted on how many prompts it is *needed*: on each prompt on which the task's circuit is
sufficient, features are left out of it until none can be, and those that remain are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.document import SCHEMA_VERSION
from ..errors import UserError
from ..models.place import Place
from ..passes.settings import Settings
from ..subject import Subject
from ..view.blocks import Block
from ..view.shown import Shown
from . import circuit_looks as looks
from .circuit import Search
from .feature_game import Asked, FeatureGame, Removal, feature_game
from .masks import SUFFICIENT, WITHIN, Clock, Outcome, search, tightened

if TYPE_CHECKING:
    import pandas

LEAST_PROMPTS = 4
"""Two to learn from, and two to test on."""
TIMES = 2
"""The search for the circuit may take so many times as long as all that follows, which is one search per prompt."""
Player = tuple[Place, int, int]
"""An SAE, a feature's index and a position."""


@dataclass(frozen=True)
class TaskGame:
    """A :class:`.Game` whose outcome is that of several prompts. names: who plays."""

    games: Sequence[FeatureGame]
    names: Sequence[Player]

    @classmethod
    def of(cls, games: Sequence[FeatureGame]) -> TaskGame:
        """All who play on any of the prompts."""
        return cls(games, sorted({name for game in games for name in game.named}))

    @property
    def players(self) -> int:
        return len(self.names)

    @property
    def at_once(self) -> int:
        return min(game.at_once for game in self.games)

    @cached_property
    def places(self) -> list[Int[Tensor, "player"]]:
        """For every prompt, which of all players its own are; −1 for those that are none."""
        number = {name: n for n, name in enumerate(self.names)}
        return [torch.tensor([number.get(name, -1) for name in game.named]) for game in self.games]

    def own(self, sets: Tensor, prompt: int) -> Tensor:
        """Of sets of all players, what they are on one prompt; who is none of them is not kept there."""
        place = self.places[prompt]
        return sets[..., place.clamp(min=0)] * (place >= 0)

    def each(self, sets: Bool[Tensor, "batch player"]) -> list[Outcome]:
        """Prompt by prompt."""
        return [game.play(self.own(sets, n).bool()) for n, game in enumerate(self.games)]

    def play(self, sets: Bool[Tensor, "batch player"]) -> Outcome:
        found = self.each(sets)
        share = torch.stack([one.share.clamp(max=1) for one in found]).mean(0)
        first = torch.stack([(one.lead > 0).to(share) for one in found]).mean(0)
        return Outcome(share, first - SUFFICIENT + 2 * WITHIN)

    def slope(self, mask: Float[Tensor, "player"]) -> tuple[float, Float[Tensor, "player"]]:
        losses, gradient = 0.0, torch.zeros_like(mask)
        for n, game in enumerate(self.games):
            loss, own = game.slope(self.own(mask, n))
            here = self.places[n] >= 0
            gradient.index_add_(0, self.places[n][here], own.to(gradient)[here])
            losses += loss
        return losses / len(self.games), gradient / len(self.games)

    def mean(self, values: Sequence[Float[Tensor, "own"]]) -> Float[Tensor, "player"]:
        """Of what each prompt says of its own players; 0 where one does not play."""
        total = torch.zeros(self.players, dtype=torch.float64)
        for place, one in zip(self.places, values, strict=True):
            here = place >= 0
            total.index_add_(0, place[here], one.double().cpu()[here])
        return total / len(self.games)


@dataclass(frozen=True)
class TaskFeature:
    """needed: on how many of the prompts where the circuit is sufficient and the feature plays."""

    layer: int
    index: int
    pos: int
    needed: int
    active: int


@dataclass(frozen=True)
class Left:
    """What a set leaves of the targets of several prompts: the mean share, and on how many the answer stays first."""

    share: float
    first: int
    sufficient: int
    prompts: int

    @classmethod
    def of(cls, found: Sequence[Outcome]) -> Left:
        share = sum(min(float(one.share[0]), 1.0) for one in found) / len(found)
        first = sum(bool(one.lead > 0) for one in found)
        sufficient = sum(bool(one.sufficient) for one in found)
        return cls(share, first, sufficient, len(found))

    def to_dict(self) -> dict[str, Any]:
        return {"share": self.share, "first": self.first, "sufficient": self.sufficient, "prompts": self.prompts}


@dataclass(frozen=True)
class TaskCircuit(Shown):
    """learned, tested: what the circuit leaves on the prompts that it was learned on, and on the others; by_effect: as
    many features by their mean |effect|, on the others; none: no features, there."""

    model: str
    prompts: tuple[str, ...]
    players: int
    features: tuple[TaskFeature, ...]
    minimal: bool
    seconds: float
    learned: Left
    tested: Left
    by_effect: Left
    none: Left
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        return "The circuit of a task"

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "prompts": list(self.prompts),
            "size": len(self.features),
            "players": self.players,
            "minimal": self.minimal,
            "seconds": self.seconds,
            **{name: getattr(self, name).to_dict() for name in ("learned", "tested", "by_effect", "none")},
            "features": [
                {"layer": f.layer, "index": f.index, "pos": f.pos, "needed": f.needed, "active": f.active}
                for f in self.features
            ],
            "settings": self.settings,
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per feature."""
        import pandas

        return pandas.DataFrame(self.to_dict()["features"])

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        return looks.task_blocks(self.to_dict(), top)


def find_task_circuit(
    subject: Subject, asked: Sequence[Asked], layers: Sequence[int] | None, removal: Removal, how: Search,
    settings: Settings,
) -> TaskCircuit:  # fmt: skip
    """Learned on every second prompt from the first, tested on the others.

    Raises UserError for too few prompts, for prompts of different lengths, and where all features are not sufficient.
    """
    removal.check()
    how.check()
    check_prompts(len(asked))
    if len(lengths := {len(one.prompt) for one in asked}) > 1:
        raise UserError(
            f"prompts of a task have equal structure, token by token; these have {min(lengths)} to {max(lengths)}"
        )
    clock = Clock(how.seconds)
    games = [feature_game(subject.asked(), one, layers, removal)[0] for one in asked]
    task, rest = TaskGame.of(games[::2]), games[1::2]
    effects = task.mean([game.effects() for game in task.games])
    found = search(task, [effects], seed=how.seed, clock=clock, tell=settings.tell)
    if found is None:
        raise UserError("all features together are not sufficient on these prompts; leave SAE errors in")
    members = found.members
    by_effect = torch.zeros_like(members)
    by_effect[effects.abs().argsort(descending=True, stable=True)[: found.size]] = True
    tested = TaskGame(rest, task.names)
    needed, active = _needed(TaskGame(games, task.names), members, found.mask, how, settings)
    features = [
        TaskFeature(place.layer, index, pos, int(needed[n]), int(active[n]))
        for n, (place, index, pos) in enumerate(task.names)
        if members[n]
    ]
    return TaskCircuit(
        model=subject.loaded.name,
        prompts=tuple(one.prompt.text for one in asked),
        players=task.players,
        features=tuple(sorted(features, key=lambda f: (-f.needed, f.layer, f.pos, f.index))),
        minimal=found.minimal,
        seconds=clock.spent,
        learned=Left.of(task.each(members[None])),
        tested=Left.of(tested.each(members[None])),
        by_effect=Left.of(tested.each(by_effect[None])),
        none=Left.of(tested.each(torch.zeros_like(members)[None])),
        settings={**removal.to_dict(), "sufficient": SUFFICIENT, "seconds": how.seconds, "seed": how.seed},
    )


def check_prompts(count: int) -> None:
    """Raises UserError for too few."""
    if count < LEAST_PROMPTS:
        raise UserError(f"a task is of {LEAST_PROMPTS} prompts at least, not of {count}: half of them are tested on")


def _needed(
    task: TaskGame, members: Bool[Tensor, "player"], mask: Float[Tensor, "player"], how: Search, settings: Settings
) -> tuple[Int[Tensor, "player"], Int[Tensor, "player"]]:
    """On how many prompts each member is needed, and of how many where it plays and the circuit is sufficient."""
    needed, active = (torch.zeros(task.players, dtype=torch.long) for _ in range(2))
    seconds = how.seconds / TIMES / len(task.games)
    for n, game in enumerate(task.games):
        own, place = task.own(members, n).bool(), task.places[n]
        if bool(game.play(own[None]).sufficient):
            kept = tightened(game, own, task.own(mask, n), clock=Clock(seconds)).members
            needed[place[kept]] += 1
            active[place[own]] += 1
        settings.tell("who is needed on each prompt", n + 1, len(task.games))
    return needed, active
