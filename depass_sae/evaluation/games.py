"""What is taken out of the live model, and what is left of the target: tokens, heads, neurons, features as players.

Whatever the players are, a protocol plays sets of them: those that are kept run as they are, the others are taken out
by a *removal*, and a run gives the target's value, the probability of its tokens, and whether they are ahead
(question.py). Nothing is frozen.

* tokens: ``text`` (random tokens of ordinary text come in), ``delete``, ``mask:TOKEN``. Special tokens, attention sinks
  and the token at which the target is read stay.
* heads, neurons: ``zero`` (as the paper masks), ``mean`` over the prompt's ordinary positions, or ``contrast``: their
  values on the contrast prompt. At every position.
* features of the SAEs on the stream: ``zero`` or ``contrast``, position 0, attention sinks, and what SAEs miss stay
  (graph/feature_game.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.components import HEADS, NEURONS, Grain
from ..attribution.measure import BATCH_TOKENS, TextGame
from ..attribution.removal import removal_by
from ..attribution.shapley import LEAST, Within, each_once
from ..attribution.shapley import Game as Worth
from ..errors import UserError
from ..graph.feature_game import FeatureGame
from ..models.place import Place
from ..passes.frozen import Frozen
from ..passes.intervene import Edit, Inside, intervene
from ..passes.sinks import sinks
from .question import AHEAD, VALUE, Question, outcomes

ZERO, MEAN = "zero", "mean"


class Game(Worth, Protocol):
    """A game that tells more than the target's value.

    cells: of every player a number; random sets are like a given one where they have as many players of each.
    """

    @property
    def cells(self) -> Int[Tensor, "player"]: ...

    def outcomes(self, kept: Bool[Tensor, "row player"]) -> Float[Tensor, "row 3"]:
        """By the first draw; the columns are those of :func:`.outcomes`."""


@dataclass(frozen=True)
class Remembered(Within):
    """A game of which no set is run twice: methods agree on many."""

    game: Game
    known: dict[bytes, Float[Tensor, "3"]] = field(default_factory=dict)

    @property
    def cells(self) -> Int[Tensor, "player"]:
        return self.game.cells

    def outcomes(self, kept: Bool[Tensor, "row player"]) -> Float[Tensor, "row 3"]:
        keys = [row.numpy().tobytes() for row in kept]
        new = {key: row for key, row in zip(keys, kept, strict=True) if key not in self.known}
        if new:
            self.known.update(zip(new, self.game.outcomes(torch.stack(list(new.values()))), strict=True))
        return torch.stack([self.known[key] for key in keys])


# --------------------------------------------------------------------------------------------------------------- tokens


def token_players(question: Question) -> list[int]:
    """The positions of the tokens that are taken out."""
    last, special = question.pos, question.prompt.special
    stay = {last, *sinks(question.seen, question.place), *(p for p in range(last + 1) if special[p])}
    return [p for p in range(last + 1) if p not in stay]


@dataclass(frozen=True)
class Tokens(TextGame):
    """Each token on its own."""

    @property
    def cells(self) -> Int[Tensor, "player"]:
        return torch.zeros(self.players, dtype=torch.long)

    def outcomes(self, kept: Bool[Tensor, "row player"]) -> Float[Tensor, "row 3"]:
        draw = torch.zeros(len(kept), dtype=torch.long)
        return self.each(kept, draw, partial(outcomes, self.subject, self.target))


def token_game(question: Question, removal: str | None = None) -> Tokens:
    """removal: another than the question's own. Raises UserError for one that there is not."""
    groups = [[pos] for pos in token_players(question)]
    ids, by = question.prompt.ids(), removal_by(question.subject, removal or question.removal, question.seed)
    return Tokens(
        question.subject, question.target, ids, groups, by.of(ids, groups, LEAST), question.value, by.chance
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ heads, neurons


def sublayers_with(question: Question, kind: Grain) -> list[Frozen]:
    """The sublayers below the target that have heads, or neurons, in order."""
    below = (question.seen.sublayer(number) for number in range(question.place.depth))
    return [frozen for frozen in below if kind.of(frozen)]


@dataclass(frozen=True)
class Row:
    """One sublayer's units: where they are changed, how many there are, and what stands in for them."""

    at: Place | Inside
    units: int
    instead: Float[Tensor, "pos d_inner"] = field(repr=False)

    def edit(self, gone: Bool[Tensor, "row unit"]) -> Edit:
        def changed(z: Float[Tensor, "row pos d_inner"]) -> Float[Tensor, "row pos d_inner"]:
            wide = gone.repeat_interleave(z.shape[-1] // self.units, dim=1)[:, None].to(z.device)
            return torch.where(wide, self.instead.to(z), z)

        return changed


@dataclass(frozen=True)
class Units:
    """The heads, or neurons, of all sublayers below the target."""

    question: Question
    rows: Sequence[Row]
    chance = False

    @property
    def players(self) -> int:
        return sum(row.units for row in self.rows)

    @property
    def whole(self) -> float:
        return self.question.value

    @property
    def room(self) -> int:
        return max(1, BATCH_TOKENS // len(self.question.prompt))

    @property
    def cells(self) -> Int[Tensor, "player"]:
        return torch.cat([torch.full((row.units,), number) for number, row in enumerate(self.rows)])

    def play(self, kept: Bool[Tensor, "row player"], draw: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        return self.outcomes(kept)[:, VALUE]

    def outcomes(self, kept: Bool[Tensor, "row player"]) -> Float[Tensor, "row 3"]:
        return each_once(kept, self.room, self._run)

    def _run(self, kept: Bool[Tensor, "row player"]) -> Float[Tensor, "row 3"]:
        q, edits = self.question, {}
        for row, own in zip(self.rows, kept.split([row.units for row in self.rows], dim=1), strict=True):
            if not own.all():
                edits[row.at] = row.edit(~own)
        ids = q.prompt.ids().expand(len(kept), -1)
        read = intervene(q.subject.adapter, ids, edits, {q.target.place}, q.subject.trace_dtype)[q.target.place]
        return outcomes(q.subject, q.target, read)


def unit_game(question: Question, kind: Grain, where: Callable[[Frozen], Place | Inside]) -> Units:
    """Raises UserError for a model without such units below the target."""
    found = sublayers_with(question, kind)
    if not found:
        raise UserError(f"there are no {kind.name} below {question.target.name}")
    return Units(question, [Row(where(one), one.mixer.n_units, instead(question, one)) for one in found])


def instead(question: Question, frozen: Frozen) -> Float[Tensor, "pos d_inner"]:
    """What stands in for a sublayer's heads, or neurons, that are taken out."""
    z = frozen.recorded_z()
    if question.removal == ZERO:
        return torch.zeros_like(z)
    if question.removal == MEAN:
        ordinary = [p for p in range(len(z)) if not question.prompt.special[p]]
        return z[ordinary].mean(0).expand_as(z)
    there = question.subject.trace(question.with_contrast(), question.place.layer)
    return there.sublayer(frozen.sublayer.number).recorded_z()


def _at_heads(frozen: Frozen) -> Place:
    return Place(frozen.sublayer.place.layer, "hook_z")


def _at_neurons(frozen: Frozen) -> Inside:
    if getattr(frozen.sublayer.mixer, "down_module", None) is None:
        raise UserError("neurons of experts are not taken out together yet; evaluate heads, tokens or features")
    return Inside(frozen.sublayer.place.layer, "neurons")


def head_game(question: Question) -> Units:
    return unit_game(question, HEADS, _at_heads)


def neuron_game(question: Question) -> Units:
    return unit_game(question, NEURONS, _at_neurons)


# ------------------------------------------------------------------------------------------------------------- features


@dataclass(frozen=True)
class Features:
    """The active features of all SAEs on the stream below the target."""

    game: FeatureGame
    chance = False

    @property
    def players(self) -> int:
        return self.game.players

    @property
    def whole(self) -> float:
        return self.game.whole

    @property
    def room(self) -> int:
        return self.game.at_once

    @cached_property
    def cells(self) -> Int[Tensor, "player"]:
        return self.game.cells

    def play(self, kept: Bool[Tensor, "row player"], draw: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        return self.outcomes(kept)[:, VALUE]

    def outcomes(self, kept: Bool[Tensor, "row player"]) -> Float[Tensor, "row 3"]:
        return each_once(kept, self.room, self._run)

    def _run(self, kept: Bool[Tensor, "row player"]) -> Float[Tensor, "row 3"]:
        played = self.game.play(kept)
        found = torch.full((len(kept), 3), torch.nan, dtype=torch.float64)
        found[:, VALUE] = (self.game.without + played.share * (self.game.whole - self.game.without)).double().cpu()
        if self.game.answer is not None:
            found[:, AHEAD] = (played.lead > 0).double().cpu()
        return found


def feature_sets(question: Question) -> Features:
    return Features(question.features)
