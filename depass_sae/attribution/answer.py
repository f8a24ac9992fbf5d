"""What the answers to all questions have in common: a target read on one prompt, at one position or several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from ..errors import SAEFitWarning, warn
from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.forward import Allocation
from ..passes.record import Trace
from ..passes.settings import Settings
from ..saes import Fit
from ..subject import Subject
from ..texts import together
from ..view.blocks import Page
from ..view.shown import Shown
from ..view.words import percent
from .document import Heading, allocation_dict, fit_dict
from .positions import Pos, choose_positions
from .readoff import Readoff, Target

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True)
class TargetAt:
    """A target at one position. activation: None where it is not a feature. constant: what no source contributes."""

    pos: int
    token: str
    pre_activation: float
    activation: float | None
    constant: float

    @property
    def completeness_error(self) -> float:
        raise NotImplementedError

    def shortfall(self, parts: Iterable[float]) -> float:
        """|Σ parts + constant − pre_activation| over the largest number among them."""
        parts = list(parts)
        size = max(abs(self.pre_activation), abs(self.constant), *map(abs, parts))
        return abs(sum(parts) + self.constant - self.pre_activation) / size if size else 0.0


At = TypeVar("At", bound=TargetAt)


@dataclass(frozen=True, kw_only=True)
class Answer(Shown, Generic[At]):
    """``targets``, in order of position, with what they were computed from.

    ``pre_activation``, ``activation``, ``constant`` and ``completeness_error`` are those of ``target``, the strongest.
    """

    heading: Heading
    target_name: str
    described: dict[str, Any]
    allocation: Allocation
    targets: list[At]
    fit: Fit | None
    note: str | None

    @property
    def target(self) -> At:
        return max(self.targets, key=lambda t: t.pre_activation if t.activation is None else abs(t.activation))

    @property
    def constant(self) -> float:
        return self.target.constant

    @property
    def pre_activation(self) -> float:
        return self.target.pre_activation

    @property
    def activation(self) -> float | None:
        return self.target.activation

    @property
    def completeness_error(self) -> float:
        return self.target.completeness_error

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.heading.prompt.tokens

    @property
    def rule(self) -> str:
        return self.allocation.rule

    question: ClassVar[str]
    """What its page is called, before the target's name."""

    @property
    def title(self) -> str:
        return f"{self.question} {self.target_name}?"

    def page(self) -> Page:
        return self.heading.page(self.title, self.blocks(), self.allocation)

    def _head(self) -> dict[str, Any]:
        """The keys that every document of an answer opens with."""
        return {
            **self.heading.to_dict(),
            **allocation_dict(self.allocation),
            **self.described,
            "name": self.target_name,
            "fit": fit_dict(self.fit),
            "note": self.note,
        }


Found = TypeVar("Found", bound=Answer)


def checked(subject: Subject, target: Target, answer: Found) -> Found:
    """The answer; with a warning where its parts miss more of the target than rounding explains."""
    worst = max(answer.targets, key=lambda target: target.completeness_error)
    subject.warn_incomplete(f"{answer.target_name} at position {worst.pos}", worst.completeness_error, _hook(target))
    return answer


def _hook(target: Target) -> Place | None:
    """Of the SAE that a target is a feature of."""
    return getattr(target, "hook", None)


def addends(head: dict[str, Any], sources: Iterable[dict[str, Any]], **other: float) -> list[dict[str, Any]]:
    """A frame's rows for one sum: its sources, then what is no source, told apart by ``kind``. head: opens each row."""
    rest = ({"kind": kind, "contribution": value} for kind, value in other.items())
    return [{**head, **row} for row in (*sources, *rest)]


def frame(rows: Iterable[Any], columns: Sequence[str] | None = None, integers: Sequence[str] = ()) -> pandas.DataFrame:
    """Rows with a ``contribution`` as a frame. integers: columns that stay integers where some rows have nothing."""
    import pandas

    made = pandas.DataFrame(rows, columns=None if columns is None else list(columns))
    return made.astype({"contribution": float, **dict.fromkeys(integers, "Int64")})


@dataclass(frozen=True)
class Reading:
    """A target read on a traced prompt, and the positions that the question is about."""

    prompt: Prompt
    seen: Trace
    readoff: Readoff
    positions: list[int]
    common: dict[str, Any]

    def said(self, shares: Sequence[float], of: str = "the pre-activation") -> dict[str, Any]:
        """The fields of :class:`Answer` that are known before its targets.

        shares: how much of each target is the component ``pattern``, where it is a share of something (a target of 0
        or less has none); of: what they are shares of.
        """
        return {
            **self.common,
            "note": together(self.common["note"], pattern_note(self.common["allocation"], shares, of)),
        }

    def at(self, position: int) -> dict[str, Any]:
        """The fields of :class:`TargetAt`."""
        activation = self.readoff.activation
        return {
            "pos": position,
            "token": self.prompt.tokens[position],
            "pre_activation": self.readoff.pre[position].item(),
            "activation": None if activation is None else activation[position].item(),
            "constant": self.readoff.direction.c[position].item(),
        }


def pattern_note(allocation: Allocation, shares: Sequence[float], of: str = "the pre-activation") -> str | None:
    """What has to be said wherever queries and keys have a share: how much no source has made."""
    if allocation.qk is None:
        return None
    low, high = (percent(end(shares)) if shares else "" for end in (min, max))
    much = "" if not shares else f" ({low if low == high else f'{low} to {high}'} of {of})"
    return f"pattern{much} is what heads move whatever stands in queries and keys: it belongs to no source"


def read(
    subject: Subject, prompt: Prompt, target: Target, pos: Pos | None, settings: Settings, deepest: int = 0
) -> Reading:
    """Trace the prompt as far as the target (and layer ``deepest``) needs, and read the target on it.

    Warns where the target's SAE cannot belong to what it reads. Raises UserError for a position outside the prompt.
    """
    return read_all(subject, [Asked(prompt, target, pos)], settings, deepest)[0]


@dataclass(frozen=True)
class Asked:
    """A target on a prompt, and the positions that are meant (see :func:`.choose_positions`)."""

    prompt: Prompt
    target: Target
    pos: Pos | None = None


def read_all(subject: Subject, questions: Sequence[Asked], settings: Settings, deepest: int = 0) -> list[Reading]:
    """Several targets on several prompts, all prompts traced in one pass, each once; see :func:`read`."""
    points = {question.target.place for question in questions}
    outputs = {point for point in points if point is not None}
    until = None if None in points else max(deepest, *(layer for layer, _ in outputs))
    prompts = {id(question.prompt): question.prompt for question in questions}
    seen = dict(zip(prompts, subject.traces(list(prompts.values()), until, outputs), strict=True))
    readoffs: dict[tuple[int, int], Readoff] = {}
    found = []
    for q in questions:
        key, trace = (id(q.prompt), id(q.target)), seen[id(q.prompt)]
        if key not in readoffs:
            readoffs[key] = q.target.read(subject, trace)
        found.append(_reading(subject, q, trace, readoffs[key], settings.allocation))
    return found


def _reading(subject: Subject, asked: Asked, seen: Trace, readoff: Readoff, allocation: Allocation) -> Reading:
    prompt, target = asked.prompt, asked.target
    chosen = choose_positions(prompt, seen, target, readoff, asked.pos)
    if readoff.fit is not None and readoff.fit.warning:
        warn(readoff.fit.warning, SAEFitWarning)
    common = {
        "heading": Heading.of(subject, prompt, _hook(target)),
        "target_name": target.name,
        "described": (target.at(seen, only[0]) if len(only := chosen.positions) == 1 else target).describe(subject),
        "allocation": allocation,
        "fit": readoff.fit,
        "note": together(chosen.note, allocation.note),
    }
    return Reading(prompt, seen, readoff, chosen.positions, common)
