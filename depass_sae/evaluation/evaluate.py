"""Attribution methods held to the live model, on any prompts: ``lm.evaluate``, ``depass-sae evaluate``.

Every method gives every source of every prompt a score (methods/), and every protocol holds the scores to what the live
model does without sources (protocols/, games.py). What is measured on a prompt is kept as a line of a file, if one is
named, so that an evaluation goes on where it was stopped, and may be asked for more prompts, methods and protocols.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._version import __version__
from ..attribution.measure import check_seed
from ..errors import UserError
from ..files import check_place, parse_json
from ..passes.settings import Settings
from ..subject import Subject
from .found import Evaluation, Record
from .games import Game, Remembered
from .methods import Method
from .prompts import Item
from .protocols import CEILING, Measured, Protocol
from .question import LeftOut, Question, ask
from .resumed import append, lines
from .sources import Source, source_named

SAMPLES = 8
MOST = 10_000


@dataclass(frozen=True)
class Asked:
    """What is to be evaluated. The settings are those of :meth:`.LM.evaluate`."""

    source: Source
    methods: Sequence[str]
    own: Mapping[str, Method]
    protocols: Sequence[Protocol]
    removal: str
    target: str | None = None
    every: bool = False
    samples: int = SAMPLES
    seed: int = 0
    against: str = "half"
    statistic: str = "mean"

    @classmethod
    def of(
        cls,
        of: str = "tokens",
        methods: Sequence[str] | None = None,
        protocols: Sequence[str] | None = None,
        own: Mapping[str, Method] | None = None,
        removal: str | None = None,
        against: str | None = None,
        **settings: Any,
    ) -> Asked:
        """Raises UserError, before any work, for what there is not."""
        from .figures import STATISTICS

        source, own = source_named(of), dict(own or {})
        if taken := [name for name in own if name in source.methods or not callable(own[name])]:
            raise UserError(f"a method of your own is a function under a new name; {taken[0]!r} is not that")
        named = source.check_methods(methods)
        every = [*named, *own]
        found = cls(
            source, named, own, [source.protocols[name] for name in source.check_protocols(protocols)],
            source.check_removal(removal), against=every[0] if against is None else against, **settings,
        )  # fmt: skip
        if found.against not in every:
            raise UserError(f"methods are compared with one of them, {', '.join(every)}, not with {against!r}")
        if not 2 <= found.samples <= MOST:
            raise UserError(f"samples are 2 to {MOST:,} of every measurement, not {found.samples}")
        if found.statistic not in STATISTICS:
            raise UserError(f"figures are a {' or a '.join(STATISTICS)} over prompts, not {found.statistic!r}")
        check_seed(found.seed)
        return found

    @property
    def scorers(self) -> dict[str, Method]:
        return {name: self.source.methods[name] for name in self.methods} | dict(self.own)

    def settings(self, subject: Subject, settings: Settings) -> dict[str, Any]:
        """What records have to have in common. The rule is a method's own."""
        allocation = asdict(settings.allocation)
        del allocation["rule"]
        return {
            "depass_sae": __version__, "model": subject.loaded.name, "dtype": subject.dtype_name,
            "saes": sorted(map(str, subject.saes)), "of": self.source.name, "removal": self.removal,
            "samples": self.samples, "seed": self.seed, **allocation,
        }  # fmt: skip


def evaluate(
    subject: Subject,
    items: Sequence[Item],
    asked: Asked,
    records: Path | None = None,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> Evaluation:
    """records: a file of JSON lines, which gets what is found; what it has is not measured again.

    Raises UserError where no prompt is left, and for a file of another evaluation.
    """
    kept = Kept.of(records, asked.settings(subject, settings))
    prompts: list[dict[str, Any]] = []
    left: list[LeftOut] = []
    found_here: list[Record] = []
    for number, item in enumerate(items, start=1):
        here = subject.asked()
        found = ask(here, item, f"prompt {number}", asked.target, asked.every, asked.removal, asked.seed, settings)
        if isinstance(found, LeftOut):
            left.append(found)
        else:
            prompts.append(found.to_dict())  # and no more: a question holds all that its prompt was recorded as
            found_here += _records(found, asked, kept)
        settings.tell("evaluating the prompts", number, len(items))
    if not prompts:
        raise UserError(f"no prompt is left: of {len(items)}, {_why(left)}")
    return Evaluation(
        settings=asked.settings(subject, settings),
        methods=tuple(asked.scorers),
        protocols=tuple(asked.protocols),
        prompts=tuple(prompts),
        left_out=tuple({**one.item.to_dict(), "why": one.why} for one in left),
        records=tuple(found_here),
        against=asked.against,
        statistic=asked.statistic,
    )


def _why(left: Sequence[LeftOut]) -> str:
    reasons = [one.why for one in left]
    return "; ".join(f"on {reasons.count(why)} {why}" for why in dict.fromkeys(reasons))


def _records(question: Question, asked: Asked, kept: Kept) -> Iterator[Record]:
    """Of all methods by all protocols on a prompt; what is kept is not done again."""
    scores: dict[str, Any] = {}
    games: dict[str | None, Game] = {}
    players = None if asked.source.players is None else asked.source.players(question)
    for protocol in asked.protocols:
        missing = [name for name in asked.scorers if name in asked.own or not kept.has(question, protocol, name)]
        measured = kept.measured(question, protocol)
        if missing or measured is None:
            if protocol.removal not in games:
                games[protocol.removal] = Remembered(asked.source.game(question, protocol))
            game = games[protocol.removal]
            if measured is None:
                measured = protocol.measure(game, asked.samples, asked.seed)
                kept.add(question, protocol, None, measured)
            for name in missing:
                if name not in scores:
                    found = asked.scorers[name](question).detach().double().cpu()
                    _check(name, found, game.players if players is None else len(question.prompt))
                    scores[name] = found if players is None else found[players]
                numbers = protocol.score(game, measured, scores[name])
                kept.add(question, protocol, name, numbers, keep=name not in asked.own)
        if CEILING in measured:
            yield Record(question.key, protocol.name, CEILING, measured[CEILING])
        for name in asked.scorers:
            yield Record(question.key, protocol.name, name, kept.numbers(question, protocol, name))


def _check(name: str, scores: Any, sources: int) -> None:
    if scores.shape != (sources,):
        raise UserError(f"the method {name!r} gave scores of shape {list(scores.shape)} for {sources} sources")
    if not scores.isfinite().all():
        raise UserError(f"the method {name!r} gave scores that are NaN or infinite")


Key = tuple[str, str, str | None]


@dataclass(frozen=True)
class Kept:
    """What is there already, by prompt, protocol and method (None: what takes no scores)."""

    file: Path | None
    known: dict[Key, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, file: Path | None, settings: Mapping[str, Any]) -> Kept:
        """Raises UserError for a file of another evaluation, or of something else."""
        kept = cls(file)
        if file is None:
            return kept
        check_place(file)
        if not file.exists() or not file.stat().st_size:
            append(file, [json.dumps({"settings": settings})])
            return kept
        try:
            head, *rest = lines(file)
            found = parse_json(head)["settings"]
            for line in rest:
                one = parse_json(line)
                kept.known[one["prompt"], one["protocol"], one["method"]] = one["found"]
        except (UserError, KeyError, TypeError, ValueError):
            raise UserError(f"{file} has no records of an evaluation; name another folder") from None
        if differ := [key for key in settings if found.get(key) != settings[key]]:
            key = differ[0]
            raise UserError(
                f"{file} is of another evaluation, whose {key} was {found.get(key)!r} and not {settings[key]!r}; name "
                "another folder"
            )
        return kept

    def has(self, question: Question, protocol: Protocol, method: str | None) -> bool:
        return (question.key, protocol.name, method) in self.known

    def measured(self, question: Question, protocol: Protocol) -> Measured | None:
        return self.known.get((question.key, protocol.name, None))

    def numbers(self, question: Question, protocol: Protocol, method: str) -> Mapping[str, Any]:
        return self.known[question.key, protocol.name, method]

    def add(
        self, question: Question, protocol: Protocol, method: str | None, found: Mapping[str, Any], keep: bool = True
    ) -> None:
        """keep: whether the file gets it, too; what a function of the user's gives may be another tomorrow."""
        found = {key: _plain(value) for key, value in found.items()}
        self.known[question.key, protocol.name, method] = found
        if self.file is not None and keep:
            one = {"prompt": question.key, "protocol": protocol.name, "method": method, "found": found}
            append(self.file, [json.dumps(one, allow_nan=False)])


def _plain(value: Any) -> Any:
    """Numbers as JSON has them: what is none is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value


# ---------------------------------------------------------------------------------------------------------- in a folder

RECORDS, DOCUMENT, PAGE = "records.jsonl", "evaluation.json", "evaluation.md"


def evaluate_into(
    subject: Subject, items: Sequence[Item], asked: Asked, folder: Path | None, settings: Settings
) -> Evaluation:
    """The same, kept in a folder: records, to go on from, and when all is done the document and the page."""
    if folder is None:
        return evaluate(subject, items, asked, None, settings)
    check_place(folder, folder=True)
    found = evaluate(subject, items, asked, folder / RECORDS, settings)
    for name in (DOCUMENT, PAGE):
        found.write(folder / name)
    return found
