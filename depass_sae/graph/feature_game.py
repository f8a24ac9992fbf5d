"""A prompt's active features as players of a game: what is left of the target where only some of them are kept.

The model runs live. At every SAE below the target, features that are kept are what the edited model makes of them, and
all others are set to 0, or to their values on a contrast prompt of the same length: those that were active, and those
that become active where others are gone. SAE errors and constants stay; position 0 and attention sinks are left alone.

The outcome is the share of the target that is left: of a logit over the mean of all logits, of a difference of two
logits, or of a feature's activation; with a contrast prompt, of how far the two prompts lie apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.live import SAEErrors, Setting, check_errors, copies_at_once, no_errors, run_set
from ..attribution.logits import LogitTarget
from ..attribution.positions import Pos, choose_positions
from ..attribution.readoff import Target
from ..attribution.targets import FeatureTarget
from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt, token_text
from ..passes import DEFAULT_RULE
from ..passes.backward import sweep
from ..passes.choices import CONTRIBUTION
from ..passes.record import Trace
from ..passes.sinks import sinks
from ..saes import live_activations, live_pre_activation, written
from ..subject import Subject
from .masks import Outcome
from .standing import graph_hooks, is_whole

Newcomers = Literal["remove", "keep"]
SAME = 1e-4
"""Two prompts' activations of a feature are the same where they differ by less, as a part of the larger."""
LEAST = 1e-3
"""A target that is smaller, or two prompts that are closer, leave nothing to explain."""


@dataclass(frozen=True)
class Removal:
    """How features are removed.

    errors: what becomes of the SAEs' errors (:data:`.SAEErrors`). recompute: whether kept features are what the edited
    model makes of them, or held at what they were. newcomers: whether features that become active where others are gone
    are removed, or may stay.
    """

    errors: SAEErrors = "keep"
    recompute: bool = True
    newcomers: Newcomers = "remove"

    def check(self) -> None:
        """Raises UserError for what cannot be."""
        check_errors(self.errors)
        if self.newcomers not in (ways := get_args(Newcomers)):
            raise UserError(f"newcomers are {' or '.join(ways)}, not {self.newcomers!r}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Level:
    """The players at one SAE, and what all its features are set to where they do not play.

    recorded: in the untouched model. value: what a removed feature is set to. others: what is kept of those that are no
    players. error: of the untouched model.
    """

    place: Place
    pos: Int[Tensor, "player"]
    index: Int[Tensor, "player"]
    recorded: Float[Tensor, "pos d_sae"] = field(repr=False)
    value: Float[Tensor, "pos d_sae"] = field(repr=False)
    others: Float[Tensor, "pos d_sae"] = field(repr=False)
    touched: Bool[Tensor, "pos"]
    error: Float[Tensor, "pos d"] = field(repr=False)

    @property
    def players(self) -> int:
        return len(self.pos)


@dataclass(frozen=True)
class FeatureGame:
    """A :class:`.Game`. whole: the target in the untouched model; without: on the contrast prompt, else 0.

    answer: the token that has to stay first; None where nobody asks. wrong: what the other prompts' features say.
    """

    subject: Subject
    target: Target
    ids: Int[Tensor, "pos"]
    levels: Sequence[Level]
    removal: Removal
    whole: float
    without: float
    answer: int | None

    @property
    def pos(self) -> int:
        """The target's, the last that runs."""
        return len(self.ids) - 1

    @property
    def players(self) -> int:
        return sum(level.players for level in self.levels)

    @property
    def at_once(self) -> int:
        return min(copies_at_once(len(self.ids), level.recorded.shape[1]) for level in self.levels)

    @property
    def named(self) -> list[tuple[Place, int, int]]:
        """Of every player its SAE, index and position."""
        return [
            (level.place, index, pos)
            for level in self.levels
            for index, pos in zip(level.index.tolist(), level.pos.tolist(), strict=True)
        ]

    @property
    def cells(self) -> Int[Tensor, "player"]:
        """Of every player a number for its layer and position."""
        return torch.cat([n * len(self.ids) + level.pos.cpu() for n, level in enumerate(self.levels)])

    def play(self, sets: Bool[Tensor, "batch player"]) -> Outcome:
        """What is left where each set is kept, nothing else."""
        with torch.no_grad():
            found = [self._outcome(some.double(), gradients=False) for some in sets.split(self.at_once)]
        return Outcome(torch.cat([one.share for one in found]), torch.cat([one.lead for one in found]))

    def value(self, share: float) -> float:
        """A share of the whole in the target's own unit."""
        return self.without + share * (self.whole - self.without)

    def slope(self, mask: Float[Tensor, "player"]) -> tuple[float, Float[Tensor, "player"]]:
        """The loss where each player is kept by a share, and its gradient."""
        return self._slope(mask, "loss")

    def effects(self) -> Float[Tensor, "player"]:
        """To first order, by how much of the whole the target falls where a player is removed from the whole model."""
        return self._slope(torch.ones(self.players, dtype=torch.float64), "share")[1]

    def _slope(self, mask: Float[Tensor, "player"], of: str) -> tuple[float, Float[Tensor, "player"]]:
        with torch.enable_grad():
            mask = mask.detach().clone().requires_grad_()
            value = getattr(self._outcome(mask[None], gradients=True), of)[0]
            (gradient,) = torch.autograd.grad(value, mask, allow_unused=True)
        return float(value.detach()), torch.zeros_like(mask) if gradient is None else gradient

    def contributions(self, seen: Trace, rule: str) -> Float[Tensor, "player"]:
        """By how much of the whole each player's part moves the target under a frozen network (``half`` where the rule
        is no linear map)."""
        read = self.target.read(self.subject, seen)
        w = read.direction.w[self.pos]
        seeds = torch.zeros(1, len(seen.resid_post), len(w)).to(w)
        seeds[0, self.pos] = w
        lowest = min(level.place.depth for level in self.levels)
        choices = CONTRIBUTION.get(rule, CONTRIBUTION[DEFAULT_RULE])
        at: dict[int, Tensor] = {}
        for step in sweep(seen, {read.place: seeds}, choices, down_to=max(lowest - 1, 0)):
            at.setdefault(step.number + 1, step.after[0])
            at[step.number] = step.before[0]
        found = []
        for level in self.levels:
            change = torch.zeros_like(level.recorded)
            change[level.pos, level.index] = (level.recorded - level.value)[level.pos, level.index]
            gradient = at[level.place.depth]
            found.append(_along(self.subject.saes[level.place], seen.at(level.place), level, change, gradient))
        return torch.cat(found).double().cpu() / ((self.whole - self.without) or 1.0)

    def _outcome(self, masks: Float[Tensor, "batch player"], *, gradients: bool) -> Outcome:
        settings, start = {}, 0
        for level in self.levels:
            own = masks[:, start : start + level.players]
            start += level.players
            settings[level.place] = self._setting(level, own)
        read = run_set(self.subject, self.ids, settings, self.target.place, gradients=gradients)
        size = self.whole - self.without
        value = measure(self.subject, self.target, read, gradients=gradients)
        lead = torch.full_like(value, torch.inf)
        if self.answer is not None:
            others = read.clone()
            others[:, self.answer] = -torch.inf
            lead = (read[:, self.answer] - others.amax(-1)) / abs(size)
        return Outcome((value - self.without) / size, lead)

    def _setting(self, level: Level, masks: Float[Tensor, "batch player"]) -> Setting:
        kept = level.others.expand(len(masks), -1, -1).clone()
        kept[:, level.pos, level.index] = masks.to(kept)
        errors = {"keep": None, "hold": level.error, "zero": no_errors(level.error)}
        return Setting(
            self.subject.saes[level.place], kept, level.value, level.touched,
            held=None if self.removal.recompute else level.recorded, error=errors[self.removal.errors],
        )  # fmt: skip


def measure(
    subject: Subject, target: Target, read: Float[Tensor, "batch d"], *, gradients: bool = False
) -> Float[Tensor, "batch"]:
    """What a circuit is to keep: a logit over the mean logit, a difference of logits, a feature's activation.

    gradients: of a feature, its pre-activation, which has a slope where it does not fire.
    """
    if isinstance(target, FeatureTarget):
        sae = subject.saes[target.hook]
        if gradients:
            return live_pre_activation(sae, read, target.index)
        return live_activations(sae, read)[:, target.index]
    return target.live(subject, read)


def measured_as(target: Target) -> str:
    """In words."""
    if isinstance(target, FeatureTarget):
        return "activation"
    assert isinstance(target, LogitTarget)
    if isinstance(target.against, tuple):
        return "logit over the mean of others"
    return "logit over the mean logit" if target.against == "mean" else "logit difference"


# ---------------------------------------------------------------------------------------------------------- setting up


@dataclass(frozen=True)
class Asked:
    """A prompt with its target and the contrast prompt, if one is given."""

    prompt: Prompt
    target: Target
    pos: Pos | None = None
    contrast: Prompt | None = None


def feature_game(
    subject: Subject, asked: Asked, layers: Sequence[int] | None, removal: Removal
) -> tuple[FeatureGame, Trace, str | None]:
    """The game of one prompt, its trace, and what has to be said of the target's position.

    Raises UserError for a target or a contrast prompt that leaves nothing to explain.
    """
    target, prompt = asked.target, asked.prompt
    if not isinstance(target, FeatureTarget | LogitTarget):
        raise UserError(f"a circuit's target is a feature or a logit, not a {target.name}")
    if isinstance(target, LogitTarget):
        target = target.over_mean()
    hooks = _below(subject, target, layers)
    until = None if target.place is None else target.place.layer
    seen = subject.trace(prompt, until)
    chosen = choose_positions(prompt, seen, target, target.read(subject, seen), asked.pos)
    if len(chosen.positions) > 1:
        raise UserError("a circuit is of one position; name it with --pos (pos=)")
    target = target.at(seen, chosen.positions[0])
    ids = prompt.ids(subject.adapter.device)[: chosen.positions[0] + 1]
    other = None if asked.contrast is None else _contrast_trace(subject, prompt, asked.contrast, until)
    levels = [_level(subject, seen, other, hook, len(ids), removal) for hook in hooks]
    if not any(level.players for level in levels):
        raise UserError("no feature is active below the target, away from position 0; there is nothing to choose from")
    read = run_set(subject, ids, {}, target.place)
    whole, without = float(measure(subject, target, read)), 0.0
    if asked.contrast is not None:
        there = run_set(subject, asked.contrast.ids(subject.adapter.device)[: len(ids)], {}, target.place)
        without = float(measure(subject, target, there))
    if abs(whole - without) < LEAST:
        why = "on this prompt" if asked.contrast is None else "more than on the contrast prompt"
        raise UserError(f"{target.name} has a {measured_as(target)} of {whole:.3g}, which is nothing {why}")
    named = isinstance(target, LogitTarget) and not target.more
    answer = target.token if named and int(read[0].argmax()) == target.token else None  # type: ignore[union-attr]
    return FeatureGame(subject, target, ids, levels, removal, whole, without, answer), seen, chosen.note


def predicted_logit(subject: Subject, prompt: Prompt) -> LogitTarget:
    """Of the token that the model predicts behind a prompt."""
    seen = subject.trace(prompt, None)
    assert seen.logits is not None
    token = int(seen.logits[-1].argmax())
    return LogitTarget(token, name=f"logit {token_text(subject.loaded.tokenizer, token)!r}")


def _below(subject: Subject, target: Target, layers: Sequence[int] | None) -> list[Place]:
    """The SAEs on the stream below the target."""
    chosen = list(graph_hooks(subject, layers))
    hooks = [hook for hook in chosen if is_whole(subject, hook)]
    if beside := [hook for hook in chosen if hook not in hooks and (layers is not None or not hooks)]:
        raise UserError(f"a circuit is of features of SAEs on the residual stream, and {beside[0]} is beside it")
    place = target.place
    found = hooks if place is None else [hook for hook in hooks if hook.depth < place.behind]
    if not found:
        raise UserError(f"there is no SAE below {place}: a circuit is of the features that a target is made of")
    return found


def _contrast_trace(subject: Subject, prompt: Prompt, contrast: Prompt, until: int | None) -> Trace:
    if len(contrast) != len(prompt):
        raise UserError(
            f"the contrast prompt has {len(contrast)} tokens and the prompt {len(prompt)}; a contrast is of the same "
            "length, token by token"
        )
    if contrast.token_ids == prompt.token_ids:
        raise UserError("the contrast prompt is the prompt itself; let it differ in what is asked about")
    return subject.trace(contrast, until)


def _level(subject: Subject, seen: Trace, other: Trace | None, hook: Place, n: int, removal: Removal) -> Level:
    """The players at one SAE: what is active, or differs from the contrast prompt."""
    here = subject.encoding(seen, hook)
    recorded = here.activations[:n].detach()
    value = torch.zeros_like(recorded) if other is None else subject.encoding(other, hook).activations[:n].detach()
    alone = {0, *sinks(seen, hook), *([] if other is None else sinks(other, hook))}
    touched = torch.tensor([pos not in alone for pos in range(n)], device=recorded.device)
    plays = (recorded - value).abs() > SAME * torch.maximum(recorded.abs(), value.abs())
    pos, index = (plays & touched[:, None]).nonzero(as_tuple=True)
    others = torch.full_like(recorded, 1.0 if removal.newcomers == "keep" else 0.0)
    error = here.parts.error
    assert error is not None  # SAEs of the residual stream are no transcoders
    return Level(hook, pos, index, recorded, value, others, touched, error[:n].to(recorded))


def _along(
    sae: Any,
    x: Float[Tensor, "pos d"],
    level: Level,
    change: Float[Tensor, "pos d_sae"],
    gradient: Float[Tensor, "pos d"],
) -> Float[Tensor, "player"]:
    """⟨gradient, part⟩ of every player: what writing is worth along the gradient, by activation."""
    n = len(change)
    with torch.enable_grad():
        acts = torch.zeros_like(change).requires_grad_()
        worth = (written(sae, x[:n], acts) * gradient[:n]).sum()
        (unit,) = torch.autograd.grad(worth, acts)
    return (unit * change)[level.pos, level.index]
