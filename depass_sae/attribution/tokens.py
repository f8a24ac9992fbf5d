"""Which tokens activate a feature (paper §4.1 and appendix C.5).

The embeddings are split into one component per token, or per word. The components are carried to where the target is
read and projected on its direction: contribution_m = ⟨w, X̃[p, m]⟩. Under the rules ``half`` and ``linear`` the same
numbers come from one sweep back from the target, at a small part of the price. With the bias and rest components and
the constant they sum to the target's pre-activation; how nearly is computed and reported with every answer.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt, sentences, words
from ..passes.backward import Level
from ..passes.many import Aim, Batch, alike_in_length, packed_start
from ..passes.record import Trace
from ..passes.rows import BIAS, PATTERN, REST, at, on
from ..passes.settings import Settings
from ..passes.sources import Spans
from ..subject import Subject
from ..texts import joined
from ..view.blocks import Block
from . import looks
from .agreement import Agreement
from .answer import Answer, Asked, Reading, TargetAt, addends, checked, frame, read_all
from .depth import DepthLevel, by_depth, check_depth
from .document import others_dict, others_of
from .measure import Measure, Measured, Measuring
from .readoff import Target

if TYPE_CHECKING:
    import pandas

By = Literal["token", "word", "sentence"]


@dataclass(frozen=True)
class Span:
    """A source: its positions in the prompt and its text."""

    positions: tuple[int, ...]
    text: str

    @property
    def pos(self) -> int:
        return self.positions[0]

    def to_dict(self, value: float) -> dict[str, Any]:
        """With what it contributes."""
        return {"pos": self.pos, "token": self.text, "value": value}


def check_by(by: str) -> None:
    """Raises UserError for what a prompt is not split into."""
    if by not in ("token", "word", "sentence"):
        raise UserError(f"sources are tokens, words or sentences, not {by!r}; choose token, word or sentence")


def spans_of(prompt: Prompt, by: By) -> list[Span]:
    """The prompt's tokens, its words with their sub-tokens joined, or its sentences."""
    check_by(by)
    if by == "token":
        groups = [[position] for position in range(len(prompt))]
    elif by == "word":
        groups = words(prompt)
    else:
        groups = sentences(prompt)
    return [Span(tuple(group), joined(prompt.tokens[position] for position in group)) for group in groups]


@dataclass(frozen=True, kw_only=True)
class TokenTarget(TargetAt):
    """The answer at one position. All values are in units of the target's pre-activation.

    contributions: one per source that begins at or before ``pos``, in order.
    other: ``bias`` and ``rest``, and ``pattern`` where queries and keys have a share.
    Σ contributions + Σ other + constant = pre_activation, up to ``completeness_error``.
    margin: how far the pre-activation lies above what it takes to fire: the feature's threshold, or the smallest
    pre-activation that still fires there (topk).
    measured: where asked for, what taking each source out really does. by_depth: where asked for, how the contributions
    grow layer by layer.
    """

    contributions: Float[Tensor, "source"]
    other: dict[str, float]
    sources: tuple[Span, ...]
    margin: float | None = None
    measured: Measured | None = None
    by_depth: tuple[DepthLevel, ...] | None = None

    @cached_property
    def completeness_error(self) -> float:
        return self.shortfall([*self.contributions.tolist(), *self.other.values()])

    def to_dict(self) -> dict[str, Any]:
        contributions: list[dict[str, Any]] = [
            source.to_dict(value) for source, value in zip(self.sources, self.contributions.tolist(), strict=True)
        ]
        document: dict[str, Any] = {
            "pos": self.pos,
            "token": self.token,
            "activation": self.activation,
            "pre_activation": self.pre_activation,
            "margin": self.margin,
            "constant": self.constant,
            "contributions": contributions,
            "other": others_dict(self.other),
            "completeness_error": self.completeness_error,
        }
        if self.measured is not None:
            each = zip(contributions, self.measured.values, self.measured.spread, self.measured.errors, strict=True)
            for entry, mean, spread, error in each:
                entry["measured"] = None if mean is None else {"mean": mean, "std": spread, "error": error}
            document["measured"] = self.measured.to_dict(self.sources, self.contributions.tolist())
        if self.by_depth is not None:
            document["by_depth"] = [level.to_dict() for level in self.by_depth]
        return document

    @property
    def agreement(self) -> Agreement | None:
        """Of the contributions with what was measured; None without that, or with fewer than ten sources."""
        return None if self.measured is None else self.measured.agreement(self.contributions.tolist())

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, see :attr:`agreement`."""
        return None if self.agreement is None else self.agreement.rank


@dataclass(frozen=True, kw_only=True)
class TokenAttribution(Answer[TokenTarget]):
    """Which tokens make a target what it is. ``contributions`` and ``other`` are those of the strongest target."""

    question = "Which tokens drive"
    by: By

    @property
    def contributions(self) -> Float[Tensor, "source"]:
        return self.target.contributions

    @property
    def other(self) -> dict[str, float]:
        return self.target.other

    def to_dict(self) -> dict[str, Any]:
        """The document that ``depass-sae tokens --json`` prints."""
        return {**self._head(), "by": self.by, "targets": [target.to_dict() for target in self.targets]}

    def to_frame(self) -> pandas.DataFrame:
        """One row per target position and source, and one each for what is no source.

        kind: "token", "word" or "sentence"; "bias", "rest" and "constant". The contributions to each ``target_pos`` sum
        to the pre-activation there.
        """
        rows: list[dict[str, Any]] = []
        for target in self.targets:
            head = {"target_pos": target.pos, "target_token": target.token}
            sources: list[dict[str, Any]] = [
                {"kind": self.by, "pos": source.pos, "token": source.text, "contribution": value}
                for source, value in zip(target.sources, target.contributions.tolist(), strict=True)
            ]
            if target.measured is not None:
                each = zip(sources, target.measured.values, target.measured.spread, target.measured.errors, strict=True)
                for row, value, spread, error in each:
                    row.update(measured=value, spread=spread, error=error)
            rows += addends(head, sources, **target.other, constant=target.constant)
        return frame(rows, integers=["pos"])

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """Of every target its strip and its sources, largest first: all of them, or the ``top`` and the others' sum."""
        return looks.token_blocks(self.to_dict(), top)


def attribute_tokens_each(
    subject: Subject,
    questions: Sequence[Asked],
    *,
    by: By = "token",
    measure: Measure = Measure(),  # noqa: B008 (frozen)
    depth: bool = False,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> list[TokenAttribution]:
    """Contributions of each prompt's tokens, or words, to its targets; prompts of about a length share a pass.

    measure: what taking each source out does is measured, too, where that is asked for (see :mod:`.measure`). depth:
    also how the contributions grow layer by layer (see :mod:`.depth`).

    Raises UserError for a position outside the prompt, and where there is no question.
    """
    if not questions:
        raise UserError("name a target and a prompt, or several")
    check_by(by)
    for question in questions if depth else ():
        if question.target.place is not None:  # a logit's direction is one of the stream
            check_depth(question.target.place, question.target.name)
    measuring = Measuring.of(subject, measure)
    prompts = {id(question.prompt): question.prompt for question in questions}
    ids, together = list(prompts), alike_in_length([len(prompt) for prompt in prompts.values()])
    found: dict[int, TokenAttribution] = {}
    for number, group in enumerate(together):
        members = {ids[i] for i in group}
        some = [i for i, question in enumerate(questions) if id(question.prompt) in members]
        here = settings.part(number, len(together))
        answers = _together(subject, [questions[i] for i in some], by, measuring, depth, here)
        found.update(zip(some, answers, strict=True))
    return [found[i] for i in range(len(questions))]


def _together(
    subject: Subject,
    questions: Sequence[Asked],
    by: By,
    measuring: Measuring | None,
    depth: bool,
    settings: Settings,
) -> Iterator[TokenAttribution]:
    """Questions whose prompts are traced, and taken apart, in one pass."""
    readings = read_all(subject, questions, settings)
    passes = _Passes.of(readings, by, settings)
    for question, reading, whose, values in zip(questions, readings, passes.whose, passes.contributions(), strict=True):
        answers = [
            _answer(reading, position, row, passes.spans[whose])
            for position, row in zip(reading.positions, values, strict=True)
        ]
        if measuring is not None:
            answers = [_measured(subject, question.target, reading, a, measuring, settings) for a in answers]
        if depth:
            grown = by_depth(reading, passes.sources[whose], [len(a.sources) for a in answers], settings)
            answers = [replace(a, by_depth=levels) for a, levels in zip(answers, grown, strict=True)]
        shares = [a.other.get("pattern", 0.0) / a.pre_activation for a in answers if a.pre_activation > 0]
        yield checked(subject, question.target, TokenAttribution(**reading.said(shares), targets=answers, by=by))


def _answer(reading: Reading, position: int, row: Float[Tensor, "comp"], spans: list[Span]) -> TokenTarget:
    sources = tuple(span for span in spans if span.pos <= position)
    margin = reading.readoff.margin
    return TokenTarget(
        **reading.at(position),
        contributions=row[: len(sources)],
        other=others_of(row, reading.common["allocation"]),
        sources=sources,
        margin=None if margin is None else margin[position].item(),
    )


def _measured(
    subject: Subject,
    target: Target,
    reading: Reading,
    answer: TokenTarget,
    measuring: Measuring,
    settings: Settings,
) -> TokenTarget:
    readoff, pos = reading.readoff, answer.pos
    found = measuring.take(
        subject, reading.prompt, reading.seen, target.at(reading.seen, pos), readoff.place, pos,
        readoff.now[pos].item(), answer.sources, settings,
    )  # fmt: skip
    return replace(answer, measured=found)


@dataclass(frozen=True)
class _Passes:
    """Read-offs on some prompts, and the two engines that say what each source contributes to them.

    whose: which of the traces each reading is on. spans: how each trace is split; sources: the same for the engines.
    """

    traces: list[Trace]
    spans: list[list[Span]]
    sources: list[Spans]
    readings: list[Reading]
    whose: list[int]
    settings: Settings

    @classmethod
    def of(cls, readings: list[Reading], by: By, settings: Settings) -> _Passes:
        prompts = {id(reading.prompt): reading for reading in readings}
        numbers = {id_: number for number, id_ in enumerate(prompts)}
        spans = [spans_of(reading.prompt, by) for reading in prompts.values()]
        return cls(
            traces=[reading.seen for reading in prompts.values()],
            spans=spans,
            sources=[Spans([span.positions for span in own], [span.text for span in own]) for own in spans],
            readings=readings,
            whose=[numbers[id(reading.prompt)] for reading in readings],
            settings=settings,
        )

    def contributions(self) -> list[Float[Tensor, "target comp"]]:
        """Of every reading, in float64 on the host: a row per position, its last what is no source."""
        found = self.swept() if self.settings.swept else self.carried()
        return [values.double().cpu() for values in found]

    def swept(self) -> list[Float[Tensor, "target comp"]]:
        """By sweeping back to the embeddings."""
        like, aside = self.traces[0].resid_post, len(self.settings.allocation.aside)
        owners = []
        for source, trace in zip(self.sources, self.traces, strict=True):
            owner, own = source.owner(len(trace.token_ids)), len(source.groups)
            owners.append(owner.masked_fill(owner >= own, own + aside + REST))
        aims, values = [], []
        for reading, whose in zip(self.readings, self.whose, strict=True):
            readoff = reading.readoff
            aims += [Aim(readoff.place, readoff.direction.w[pos], pos, whose) for pos in reading.positions]
            values.append(like.new_zeros(len(reading.positions), len(self.sources[whose].groups) + aside))
        rows = [row for own in values for row in own]

        def visit(batch: Batch, levels: Iterator[Level]) -> None:
            lowest = deque(levels, maxlen=1).pop()
            products = (lowest.before * batch.trace.resid_pre[0]).sum(-1)  # [lane, pos]
            for going in batch.aims:
                lane, span, row = going.lane, going.span, rows[going.which]
                owner = on(like, owners[going.aim.prompt][: span.stop - span.start])
                row.zero_().index_add_(0, owner, products[lane, span])
                row[BIAS] = lowest.bias_before[lane, span].sum()
                if aside > 2:
                    row[PATTERN] = lowest.pattern_before[lane, span].sum()

        self.settings.sweep(self.traces, aims, visit)
        return values

    def carried(self) -> list[Float[Tensor, "target comp"]]:
        """By carrying all sources forward from the embeddings to where the targets are read."""
        trace = Trace.packed(self.traces)
        start = packed_start([source.start(one) for source, one in zip(self.sources, self.traces, strict=True)])
        wanted: defaultdict[Place, set[int]] = defaultdict(set)
        places = []
        for reading, whose in zip(self.readings, self.whose, strict=True):
            places.append(torch.tensor(reading.positions) + trace.starts[whose])
            wanted[reading.readoff.place] |= set(places[-1].tolist())
        reads = {point: torch.tensor(sorted(positions)) for point, positions in wanted.items()}
        found = self.settings.carry(trace, start, reads)
        values = []
        for reading, whose, place in zip(self.readings, self.whose, places, strict=True):
            readoff, own = reading.readoff, len(self.sources[whose].groups)
            w = at(readoff.direction.w, torch.tensor(reading.positions))
            rows = found[readoff.place].keep(place).project(w)
            values.append(torch.cat([rows[:, :own], rows[:, BIAS:]], dim=1))
        return values
