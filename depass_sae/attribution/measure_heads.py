"""What really happens to a target when heads are taken out: the measurement beside what they contribute.

A head is taken out by putting its mean in its place (mean ablation): over the prompt's own positions or those of a
reference text. The model runs on with nothing frozen; special tokens and attention sinks keep what they have. The
measures are those of tokens (:mod:`.measure`). A model has hundreds of heads, so only those that contribute most are
players; all others are there throughout, and belong to the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt, encode
from ..passes.intervene import Edit, intervene
from ..passes.record import Trace
from ..passes.settings import Settings
from ..passes.sinks import sinks
from ..subject import Subject
from .measure import BATCH_TOKENS, check_seed
from .shapley import ENUMERATED, Limits, Sampled, check_limits, each_once, played

if TYPE_CHECKING:
    from .readoff import Target

PLAYERS = 24

Head = tuple[int, int]
"""Layer and number."""


class HeadMeasures(TypedDict, total=False):
    """What may be said of a measurement beside heads' contributions.

    measure: "shapley" or "replace", each head alone. Orders are drawn (by ``seed``) until standard errors are at most
    ``measure_error`` (default 0.05) of the pre-activation, or ``measure_seconds`` (default 60) are up; a head alone is
    measured once, since nothing is random in it. measure_heads: how many of the largest heads (default 24).
    reference: a text whose mean stands in for a head; None is the prompt.
    """

    measure: str | None
    measure_error: float
    measure_seconds: float
    measure_heads: int
    reference: str | None
    seed: int


@dataclass(frozen=True)
class HeadMeasure:
    """As people say it: the fields are those of :class:`HeadMeasures`. Raises UserError for what cannot be."""

    measure: str | None = None
    measure_error: float = Limits.error
    measure_seconds: float = Limits.seconds
    measure_heads: int = PLAYERS
    reference: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_limits(self.measure, self.measure_error, self.measure_seconds)
        check_seed(self.seed)
        if self.measure_heads < 1:
            raise UserError(f"--measure-heads is how many heads are measured, 1 at least, not {self.measure_heads}")
        defaults = (Limits.error, Limits.seconds, PLAYERS, None)
        if self.measure is None and self.settings != defaults:
            raise UserError(
                "--measure-error, -seconds, -heads and --reference say how heads are measured; give --measure"
            )

    @property
    def settings(self) -> tuple[float, float, int, str | None]:
        return self.measure_error, self.measure_seconds, self.measure_heads, self.reference


@dataclass(frozen=True)
class MeasuredHeads:
    """What was measured of some heads, in units of the target's pre-activation. whole: the target with all there.

    For ``shapley`` Σ values + baseline = whole.
    """

    asked: HeadMeasure
    sampled: Sampled = field(repr=False)
    heads: tuple[Head, ...]
    whole: float

    @cached_property
    def values(self) -> dict[Head, float]:
        return dict(zip(self.heads, self.sampled.mean.tolist(), strict=False))  # a baseline is no head's

    @cached_property
    def errors(self) -> dict[Head, float]:
        """Standard errors; 0 where nothing is random."""
        return dict(zip(self.heads, self.sampled.error.tolist(), strict=False))

    @property
    def baseline(self) -> float | None:
        """The target with none of these heads: whole − Σ values. None for what sums to nothing."""
        return self.sampled.mean[-1].item() if self.asked.measure == "shapley" else None

    def to_dict(self) -> dict[str, Any]:
        values = [
            {"layer": layer, "head": head, "value": value, "error": self.errors[layer, head]}
            for (layer, head), value in self.values.items()
        ]
        return {
            "kind": self.asked.measure,
            "whole": self.whole,
            "baseline": self.baseline,
            "values": values,
            "reference": self.asked.reference,
            "orders": len(self.sampled.samples),
            "enumerated": self.asked.measure == "shapley" and len(self.heads) <= ENUMERATED,
            "stopped": self.sampled.stopped,
            "asked": {"error": self.asked.measure_error, "seconds": self.asked.measure_seconds},
            "seed": self.asked.seed,
        }


def measure_heads(
    subject: Subject,
    prompt: Prompt,
    seen: Trace,
    target: Target,
    place: Place,
    pos: int,
    whole: float,
    contributions: Mapping[Head, float],
    asked: HeadMeasure,
    settings: Settings,
) -> MeasuredHeads:
    """The heads of the largest contributions to a target at ``pos``. place: where it is read."""
    largest = sorted(contributions, key=lambda head: -abs(contributions[head]))[: asked.measure_heads]
    players = tuple(sorted(largest))
    layers = sorted({layer for layer, _ in players})
    if asked.reference is None:
        means = _means(seen, prompt, place, layers, pos + 1)
    else:
        text = encode(subject.loaded, subject.adapter, asked.reference)
        there = subject.trace(text, max(layers, default=0))
        means = _means(there, text, place, layers, len(text))
    open_ = torch.tensor(_open(seen, prompt, place, pos + 1))
    game = _Heads(subject, target, prompt.ids()[: pos + 1], players, seen, means, open_, whole)
    limits = Limits(asked.measure_error, asked.measure_seconds)

    def tell(share: float) -> None:
        settings.tell("measuring heads", round(100 * share), 100)

    assert asked.measure is not None
    return MeasuredHeads(asked, played(asked.measure, game, limits, asked.seed, tell), players, whole)


def _open(seen: Trace, prompt: Prompt, place: Place, n: int) -> list[bool]:
    """At which of the first positions heads may be taken out: not at special tokens and sinks."""
    closed = {*sinks(seen, place), *(p for p in range(n) if prompt.special[p])}
    return [p not in closed for p in range(n)]


def _means(
    seen: Trace, prompt: Prompt, place: Place, layers: Sequence[int], n: int
) -> dict[int, Float[Tensor, "d_inner"]]:
    """What a layer's heads put out on average."""
    here = torch.tensor(_open(seen, prompt, place, n))
    if not here.any():
        raise UserError("the text whose mean stands in for a head has special tokens alone")
    return {layer: _attention(seen, layer).recorded_z()[:n][here].mean(0) for layer in layers}


def _attention(seen: Trace, layer: int) -> Any:
    return next(s for s in (seen.sublayer(2 * layer), seen.sublayer(2 * layer + 1)) if s.mixer.looks_back)


@dataclass(frozen=True)
class _Heads:
    """A target of the live model as a game of heads (:class:`.shapley.Game`)."""

    subject: Subject
    target: Target
    ids: Int[Tensor, "pos"]
    heads: tuple[Head, ...]
    seen: Trace
    means: dict[int, Float[Tensor, "d_inner"]]
    open: Bool[Tensor, "pos"]
    whole: float
    chance = False

    @property
    def players(self) -> int:
        return len(self.heads)

    @property
    def room(self) -> int:
        return max(1, BATCH_TOKENS // len(self.ids))

    def play(self, kept: Bool[Tensor, "row player"], draw: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        return each_once(kept, self.room, self._run)

    def _run(self, kept: Bool[Tensor, "row player"]) -> Float[Tensor, "row"]:
        edits = {Place(layer, "hook_z"): self._edit(layer, kept) for layer in self.means}
        ids = self.ids.expand(len(kept), -1)
        place, adapter = self.target.place, self.subject.adapter
        read = intervene(adapter, ids, edits, {place}, self.subject.trace_dtype)[place]
        return self.target.live(self.subject, read).double().cpu()

    def _edit(self, layer: int, kept: Bool[Tensor, "row player"]) -> Edit:
        """The layer's heads that are not kept give way to their means, in each row its own."""
        n, mean = _attention(self.seen, layer).mixer.n_units, self.means[layer]
        gone = torch.zeros(len(kept), n, dtype=torch.bool)
        for player, (where, head) in enumerate(self.heads):
            if where == layer:
                gone[:, head] = ~kept[:, player]
        wide = gone.repeat_interleave(len(mean) // n, dim=1)[:, None] & self.open[:, None]

        def edit(z: Float[Tensor, "row pos d_inner"]) -> Float[Tensor, "row pos d_inner"]:
            return torch.where(wide.to(z.device), mean.to(z), z)

        return edit
