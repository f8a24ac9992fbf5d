"""What really happens to a target when sources are taken out: the measurement beside the decomposition.

The model runs on changed texts with nothing frozen. Two measures:

* ``replace``: what the target loses when one source alone is taken out. It sums to nothing.
* ``shapley``: what a source is worth on average over all orders in which the sources come in (shapley.py). With the
  ``baseline``, the target with no source there, the values sum to the target.

Special tokens are never taken out, nor what has to stay where it is read; under ``shapley`` attention sinks neither.
They belong to the baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.record import Trace, read_batch
from ..passes.settings import Settings
from ..passes.sinks import sinks
from ..subject import Subject
from .agreement import Agreement
from .removal import TEXT, Removal, Without, check_removal, removal_by
from .shapley import ENUMERATED, LEAST, Limits, Sampled, check_limits, each_once, played

if TYPE_CHECKING:
    from .readoff import Target
    from .tokens import Span

BATCH_TOKENS = 4096
"""About how many tokens go through the model at once."""
MOST = 10_000
"""Replacements of a source: more than any mean needs, and still a batch that fits into memory."""

Kind = Literal["shapley", "replace"]


class Measures(TypedDict, total=False):
    """What may be said of a measurement beside the contributions.

    measure: "shapley" (values that sum, with the baseline, to the target) or "replace" (each source alone). It goes on
    until standard errors are at most ``measure_error`` (default 0.05) of the pre-activation, or ``measure_seconds``
    (default 60) are up. ablate: "replace" with exactly so many random tokens for each source.
    removal: how a source is taken out: "text" (default: random tokens of ordinary text come in), "delete", or
    "mask:TOKEN" (that token comes in). seed: of the random tokens and orders. replace_from: a file of text whose tokens
    come in (default: some that comes with the package).
    """

    measure: str | None
    measure_error: float
    measure_seconds: float
    removal: str
    ablate: int
    seed: int
    replace_from: str | Path | None


@dataclass(frozen=True)
class Measure:
    """What is to be measured, as people say it: the fields are those of :class:`Measures`.

    Raises UserError for what cannot be.
    """

    measure: str | None = None
    measure_error: float = Limits.error
    measure_seconds: float = Limits.seconds
    removal: str = TEXT
    ablate: int = 0
    seed: int = 0
    replace_from: str | Path | None = None

    def __post_init__(self) -> None:
        check_limits(self.measure, self.measure_error, self.measure_seconds)
        check_seed(self.seed)
        if not 0 <= self.ablate <= MOST:
            raise UserError(
                f"--ablate takes the number of replacements, from 1 to {MOST:,}, or 0 for none, not {self.ablate}"
            )
        if self.ablate and self.measure == "shapley":
            raise UserError("--ablate is how often --measure replace replaces; leave it out for shapley")
        for name, value in (("error", self.measure_error), ("seconds", self.measure_seconds)):
            if value != getattr(Limits, name) and (not self.kind or self.ablate):
                raise UserError(
                    f"--measure-{name} says when --measure is done; "
                    + ("--ablate replaces so often and no more" if self.ablate else "give --measure, too")
                )
        check_removal(self.removal)
        if self.replace_from is not None and not self.kind:
            raise UserError("--replace-from names the text that --measure and --ablate draw from; give one, too")
        if self.replace_from is not None and self.removal != TEXT:
            raise UserError(f"--replace-from names a text to draw from, and --removal {self.removal} draws nothing")
        if self.removal != TEXT and not self.kind:
            raise UserError("--removal says how --measure takes sources out; give --measure, too")

    @property
    def kind(self) -> Kind | None:
        return "replace" if self.ablate else self.measure  # type: ignore[return-value]

    @property
    def limits(self) -> Limits:
        return Limits(self.measure_error, self.measure_seconds, self.ablate or None)


def check_seed(seed: int) -> None:
    """Raises UserError for a number that is no seed."""
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"a seed is a whole number of 64 bits, not {seed}")


@dataclass(frozen=True)
class Measuring:
    """A measure on a subject, ready to be taken on any prompt."""

    asked: Measure
    kind: Kind
    removal: Removal

    @classmethod
    def of(cls, subject: Subject, asked: Measure) -> Measuring | None:
        """None where nothing is to be measured. Raises UserError as :func:`.removal_by` does."""
        if asked.kind is None:
            return None
        return cls(asked, asked.kind, removal_by(subject, asked.removal, asked.seed, asked.replace_from))

    def take(
        self,
        subject: Subject,
        prompt: Prompt,
        seen: Trace,
        target: Target,
        place: Place,
        pos: int,
        whole: float,
        sources: Sequence[Span],
        settings: Settings,
    ) -> Measured:
        """On the sources before or at ``pos``. place: where the target is read; whole: what it is with all there."""
        kept = {p for p in range(len(prompt)) if prompt.special[p]}
        kept |= {pos} if self.removal.spares_target else set()
        kept |= set(sinks(seen, place)) if self.kind == "shapley" else set()
        players = [i for i, source in enumerate(sources) if kept.isdisjoint(source.positions)]
        groups = [[p for p in sources[i].positions if p <= pos] for i in players]
        ids, limits = prompt.ids()[: pos + 1], self.asked.limits
        without = self.removal.of(ids, groups, limits.samples or LEAST)
        game = TextGame(subject, target, ids, groups, without, whole, self.removal.chance)
        what = {"shapley": "measuring Shapley values", "replace": "replacing tokens"}[self.kind]

        def tell(share: float) -> None:
            settings.tell(what, round(100 * share), 100)

        found = played(self.kind, game, limits, self.asked.seed, tell)
        own = next((i for i, source in enumerate(sources) if pos in source.positions), None)
        return Measured(self.kind, self.asked, found, tuple(players), len(sources), own, whole)


@dataclass(frozen=True)
class TextGame:
    """A target of the live model, as a game of the sources that may be taken out (:class:`.shapley.Game`).

    groups: the positions of each source; without: how they are taken out, by chance or not.
    """

    subject: Subject
    target: Target
    ids: Int[Tensor, "pos"]
    groups: list[list[int]]
    without: Without
    whole: float
    chance: bool

    @property
    def players(self) -> int:
        return len(self.groups)

    @property
    def room(self) -> int:
        return max(1, BATCH_TOKENS // len(self.ids))

    @cached_property
    def member(self) -> Float[Tensor, "player pos"]:
        found = torch.zeros(self.players, len(self.ids))
        for row, group in zip(found, self.groups, strict=True):
            row[group] = 1
        return found

    def play(self, kept: Bool[Tensor, "row player"], draw: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        return self.each(kept, draw, lambda x: self.target.live(self.subject, x))

    def each(
        self,
        kept: Bool[Tensor, "row player"],
        draw: Int[Tensor, "row"],
        read: Callable[[Float[Tensor, "some d"]], Float[Tensor, "some *value"]],
    ) -> Float[Tensor, "row *value"]:
        """What ``read`` makes of the activation at the target's place, or the logits, in float64 on the host."""

        def run(texts: Int[Tensor, "some pos"]) -> Float[Tensor, "some *value"]:
            x = read_batch(self.subject.adapter, texts, self.target.place, self.subject.trace_dtype)
            return read(x).double().cpu()

        f = torch.empty(len(kept), dtype=torch.float64)
        if not len(kept):
            return f
        for rows, texts in self.without((~kept).to(self.member) @ self.member > 0, draw):
            found = each_once(texts, self.room, run)
            f = f if f.shape[1:] == found.shape[1:] else found.new_empty(len(kept), *found.shape[1:])
            f[rows] = found
        return f


@dataclass(frozen=True)
class Measured:
    """What was measured of the sources of one target, in units of its pre-activation.

    players: which of the ``n`` sources were taken out. own: the target's own one, if there is one. whole: the target
    with all there.
    """

    kind: Kind
    asked: Measure
    sampled: Sampled = field(repr=False)
    players: tuple[int, ...]
    n: int
    own: int | None
    whole: float

    @cached_property
    def values(self) -> tuple[float | None, ...]:
        """Of every source; None where it was not taken out."""
        return self._each(self.sampled.mean)

    @cached_property
    def errors(self) -> tuple[float | None, ...]:
        """Standard errors of the values; None for what was sampled once."""
        return self._each(self.sampled.error) if self.sampled.known else (None,) * self.n

    @cached_property
    def spread(self) -> tuple[float | None, ...]:
        """Standard deviations of what one sample says."""
        return self._each(self.sampled.samples.std(0, correction=0))

    @property
    def mean(self) -> tuple[float | None, ...]:
        """``values``, by an older name."""
        return self.values

    @property
    def baseline(self) -> float | None:
        """The target with no source there: whole − Σ values. None for what sums to nothing."""
        return self.sampled.mean[-1].item() if self.kind == "shapley" else None

    @property
    def baseline_error(self) -> float | None:
        """Its standard error, which is that of Σ values, too."""
        return self.sampled.error[-1].item() if self.kind == "shapley" and self.sampled.known else None

    @property
    def replacements(self) -> int:
        """How many samples there are: draws, or pairs of orders."""
        return len(self.sampled.samples)

    @property
    def seed(self) -> int:
        return self.asked.seed

    @property
    def enumerated(self) -> bool:
        """Whether all coalitions were played, so that nothing depends on the orders."""
        return self.kind == "shapley" and len(self.players) <= ENUMERATED

    def _each(self, of: Float[Tensor, "value"]) -> tuple[float | None, ...]:
        found: list[float | None] = [None] * self.n
        for i, value in zip(self.players, of.tolist(), strict=False):  # a baseline is no source's
            found[i] = value
        return tuple(found)

    def agreement(self, contributions: Sequence[float]) -> Agreement | None:
        """Of contributions with what was measured, over the sources that were taken out but for the target's own."""
        where = [k for k, i in enumerate(self.players) if i != self.own]
        halves = self.sampled.halves()
        return Agreement.of(
            [contributions[self.players[k]] for k in where],
            self.sampled.mean[where].tolist(),
            None if halves is None else (halves[0][where].tolist(), halves[1][where].tolist()),
        )

    def to_dict(self, sources: Sequence[Span], contributions: Sequence[float]) -> dict[str, Any]:
        """For ``shapley`` Σ value + baseline = whole: the pre-activation, or what a soft-cap makes of it."""
        agreement, asked = self.agreement(contributions), self.asked
        each = zip(sources, self.values, self.errors, strict=True)
        return {
            "kind": self.kind,
            "whole": self.whole,
            "baseline": self.baseline,
            "baseline_error": self.baseline_error,
            "values": [source.to_dict(value) | {"error": error} for source, value, error in each if value is not None],
            "removal": asked.removal,
            "replacements": self.replacements,
            "enumerated": self.enumerated,
            "stopped": self.sampled.stopped,
            "asked": None if asked.ablate else {"error": asked.measure_error, "seconds": asked.measure_seconds},
            "seed": asked.seed,
            "replace_from": None if asked.replace_from is None else str(asked.replace_from),
            "agreement": None if agreement is None else agreement.to_dict(),
            "rank_correlation": None if agreement is None else agreement.rank,
        }
