"""How small circuits are on SmolLM2, and what they are worth (``make circuits``): docs/circuits.md.

Prompts of four kinds: sentences with an indirect object (ioi.py), for the name's logit; the same against a contrast
prompt in which the giver's name is exchanged, for the difference of the two names' logits; facts that the model knows
(facts.py); and the features of the three case studies. Of each prompt a circuit is searched for, and beside it stands
how many features |effect| and |contribution| need for the same, and what random sets do. Other models are measured the
same way (``--model``, ``--sae``), such as one that was taught just that (``make circuits-taught``).

Single results are kept as JSON lines, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from ..attribution.targets import make_target
from ..errors import UserError
from ..files import read_text, write_text
from ..graph.circuit import Circuit, Search, find_circuit
from ..graph.feature_game import Asked, Removal, feature_game
from ..graph.task import find_task_circuit
from ..loading import load_subject
from ..models.prompt import encode, token_id
from ..passes.settings import Settings
from ..subject import Subject
from .facts import FACTS
from .ioi import Sentence, of_one_structure, sentences
from .paper_cases import PAPER_CASES
from .resumed import LEVEL, Record, measure_all, median, typed
from .rules import one_subject

MADE = "make circuits"
"""The command for SmolLM2, as it is by default."""
WORK, OUT = Path(".demo/circuits.jsonl"), Path("docs/circuits.md")
SECONDS = 30.0
"""What a search may take, by default."""
FEATURES = {"climate": "17/2601@7", "simplicity": "11/1393@8", "economics": "11/223@6"}
"""Of the paper's prompts: the features of the case studies on SmolLM2."""
OBJECTS, CONTRAST, FACT, STUDY = "indirect object", "indirect object, contrast", "fact", "case study"
TASK, TASK_PROMPTS = "task", 16
"""Circuits of a task, of so many sentences of one structure: number 0 is of logits, number 1 against contrasts."""


@dataclass(frozen=True)
class Of:
    """What is measured: by default SmolLM2 with the SAEs shipped for it."""

    model: str = "smollm2"
    sae: str | None = None

    @property
    def name(self) -> str:
        model = "SmolLM2-135M" if self.model == Of.model else self.model
        return f"{model} and {'the SAEs shipped for it' if self.sae is None else f'the SAEs of {self.sae}'}"

    def has(self, kind: str) -> bool:
        """The features of the case studies are those of the SAEs that are shipped."""
        return kind != STUDY or self == Of()

    def subject(self) -> Subject:
        return one_subject() if self == Of() else _subject(self)


@cache
def _subject(of: Of) -> Subject:
    """One model per worker process."""
    torch.set_num_threads(1)
    return load_subject(of.model, saes=of.sae)


# ----------------------------------------------------------------------------------------------------------- measuring


def asked(subject: Subject, kind: str, number: int) -> Asked | None:
    """A prompt of a kind; None where the model does not say what is asked for."""
    if kind in (OBJECTS, CONTRAST):
        return _of_sentence(subject, sentences()[number], kind == CONTRAST)
    if kind == FACT:
        return _known(subject, FACTS[number].prompt, FACTS[number].answer)
    name, feature = list(FEATURES.items())[number]
    text = next(case.prompt for case in PAPER_CASES if case.name == name)
    return Asked(encode(subject.loaded, subject.adapter, text), *make_target(subject, feature=feature))


def _of_sentence(subject: Subject, sentence: Sentence, contrast: bool) -> Asked | None:
    known = _known(subject, sentence.text, sentence.indirect_object)
    if known is None or not contrast:
        return known
    if not _is_token(subject, sentence.subject):
        return None
    target, _ = make_target(subject, logit_diff=(sentence.indirect_object, sentence.subject))
    return replace(known, target=target, contrast=encode(subject.loaded, subject.adapter, sentence.exchanged))


def _known(subject: Subject, text: str, answer: str) -> Asked | None:
    if not _is_token(subject, answer):
        return None
    prompt = encode(subject.loaded, subject.adapter, text)
    target, _ = make_target(subject, logit=answer)
    return Asked(prompt, target) if _says(subject, prompt, answer) else None


def _is_token(subject: Subject, text: str) -> bool:
    """Whether a tokenizer has it in one piece."""
    try:
        token_id(subject.loaded, text)
    except UserError:
        return False
    return True


def _says(subject: Subject, prompt: Any, answer: str) -> bool:
    found, _ = make_target(subject, logit=answer)
    seen = subject.trace(prompt, None)
    assert seen.logits is not None
    return int(seen.logits[-1].argmax()) == getattr(found, "token", None)


COUNTS: dict[str, int] = {
    OBJECTS: len(sentences()), CONTRAST: len(sentences()), FACT: len(FACTS), STUDY: len(FEATURES), TASK: 2,
}  # fmt: skip
"""So many prompts there are of each kind."""


def measured(subject: Subject, kind: str, number: int, how: Search) -> Record:
    """What a circuit of one prompt is. ``asked`` is false where the model does not know the answer."""
    subject = subject.asked()
    if kind == TASK:
        return measured_task(subject, number, how)
    question, start = asked(subject, kind, number), time.monotonic()
    record: Record = {"kind": kind, "number": number, "asked": question is not None}
    if question is None:
        return record
    record |= {"prompt": question.prompt.text, "target": question.target.name}
    try:
        record["players"] = feature_game(subject, question, None, Removal())[0].players
    except UserError as error:
        return record | {"asked": False, "why": str(error)}
    try:
        found, _ = find_circuit(subject, question, None, Removal(), how, Settings.of())
    except UserError as error:
        return record | {"unsolved": str(error)}
    record |= {key: value for key, value in found.figures.items() if key != "settings"}
    return record | {"as_many": as_many(found), "spent": time.monotonic() - start}


def as_many(circuit: Circuit) -> dict[str, dict[str, float]]:
    """What is left with as many features as the circuit has, the largest by effect and by contribution, and without."""
    found = {}
    for name, size in (("effect", circuit.effects), ("contribution", circuit.contributions)):
        largest = torch.zeros_like(circuit.found.members)
        largest[size.abs().argsort(descending=True, stable=True)[: circuit.found.size]] = True
        kept, removed = circuit.game.play(torch.stack([largest, ~largest])).share.tolist()
        found[name] = {"kept": kept, "removed": removed}
    return found


def measured_task(subject: Subject, number: int, how: Search, count: int = TASK_PROMPTS) -> Record:
    """What one circuit for many prompts is. The search may take as long as one for each of them."""
    found = [_of_sentence(subject, sentence, contrast=number == 1) for sentence in of_one_structure(count)]
    questions = [question for question in found if question is not None]
    search = replace(how, seconds=how.seconds * max(len(questions), 1))
    try:
        circuit = find_task_circuit(subject, questions, None, Removal(), search, Settings.of()).to_dict()
    except UserError as error:
        return {"kind": TASK, "number": number, "asked": False, "why": str(error)}
    needed = [feature["needed"] / feature["active"] for feature in circuit["features"] if feature["active"]]
    features = {"always": sum(share == 1 for share in needed), "half": sum(share >= 0.5 for share in needed)}
    return {"kind": TASK, "number": number, "asked": True, **circuit, "features": features}


def run(out: Path, count: int, how: Search, workers: int, of: Of = Of()) -> list[Record]:
    """Measure at most ``count`` prompts of every kind; what ``out`` (JSON lines) holds is not measured again."""
    wanted = [(kind, n) for kind, most in COUNTS.items() if of.has(kind) for n in range(min(count, most))]
    return measure_all(out, wanted, ("kind", "number"), partial(_work, how=how, of=of), "looking for circuits", workers)


def _work(kind: str, number: int, how: Search, of: Of) -> Record:
    return measured(of.subject(), kind, number, how)


# ---------------------------------------------------------------------------------------------------------- the page

HEAD = """# How small circuits are

Made by `{command}` on {of}, with {seconds:g} s a prompt for the search. A
*circuit* is a set of active features that is *sufficient*: with all other active features removed in the live model, in
every layer that has an SAE, the answer stays first and 80 % of the target is left. SAE errors and constants stay,
position 0 is left alone, kept features are what the edited model makes of them, and what becomes active where others
are gone is removed.

- *indirect object*: "... John gave a drink to" → " Mary". The target is the name's logit over the mean logit; removed
  features are set to 0. *Contrast*: the giver's name is exchanged; the target is the difference of the two names'
  logits, shares are of how far the prompts lie apart, and removed features take the other prompt's values.
- *fact*: "The capital of France is" → " Paris", as the indirect object. *Case study*: a feature's activation.
- *effect*, *contribution*: how many features it takes in these orders for the same. *Necessary*: without the circuit
  half of the target is lost, and more than in 95 % of random sets with as many features at every layer and position.
- *minimal*: on so many prompts nothing can be left out of the circuit; on the others the time was over.

Medians over the prompts that the model answers as asked, with {level:.0%} intervals (prompts drawn again with
replacement); where no circuit is found all active features count.
"""


def page(records: Sequence[Record], seconds: float, of: Of = Of(), about: str = "", command: str = MADE) -> str:
    """Markdown: sizes, what they keep, and what is lost without them, by kind.

    about: a paragraph on the model. command: what was typed.
    """
    head = HEAD.format(seconds=seconds, level=LEVEL, of=of.name, command=command)
    parts = [head, *([f"\n{about.strip()}\n"] if about else [])]
    tasks = sorted(
        (record for record in records if record["kind"] == TASK and record["asked"]),
        key=lambda record: record["number"],
    )
    used = [record for record in records if record["asked"] and record["kind"] != TASK]
    kinds = [(kind, [r for r in used if r["kind"] == kind]) for kind in COUNTS]
    kinds, lost = [(kind, some) for kind, some in [*kinds, ("all", used)] if some], []
    parts.append(
        "\n## How many features\n\n| | prompts | active | circuit | effect | contribution | circuit : effect | "
        "minimal | seconds of the search | in all |\n|---|---|---|---|---|---|---|---|---|---|\n"
    )
    for kind, some in kinds:
        sizes = [[_size(record, order) for record in some] for order in ("circuit", "effect", "contribution")]
        ratios = [circuit / effect for circuit, effect in zip(*sizes[:2], strict=True) if effect]
        cells = [
            kind, str(len(some)), median([_players(record) for record in some], 0),
            *(median(numbers, 0) for numbers in sizes), median(ratios, 2),
            f"{sum(record.get('minimal', False) for record in some)}",
            *(median([record[key] for record in some if key in record], 0) for key in ("seconds", "spent")),
        ]  # fmt: skip
        parts.append(f"| {' | '.join(cells)} |\n")
    parts.append(LEFT)
    for kind, some in kinds:
        solved = [record for record in some if "kept" in record]
        again = [record["stability"]["jaccard"] for record in solved if record["stability"]]
        sets: dict[str, Callable[[Record], float]] = {
            "the circuit": lambda r: r["kept"]["share"], "by effect": lambda r: r["as_many"]["effect"]["kept"],
            "by contribution": lambda r: r["as_many"]["contribution"]["kept"],
            "random": lambda r: r["random"]["kept"]["mean"],
            "no features": lambda r: r["no_features"]["share"],
            "no errors": lambda r: r["all_without_errors"]["share"],
        }  # fmt: skip
        cells = [median([share(record) for record in solved], 2) for share in sets.values()]
        parts.append(f"| {kind} | {len(solved)} | {' | '.join([*cells, _of(solved, 'sufficient', len(some))])} |\n")
        gone: list[Callable[[Record], float]] = [
            lambda r: r["removed"]["share"], lambda r: r["as_many"]["effect"]["removed"],
            lambda r: r["as_many"]["contribution"]["removed"], lambda r: r["random"]["removed"]["mean"],
        ]  # fmt: skip
        cells = [median([share(record) for record in solved], 2) for share in gone]
        lost.append(
            f"| {kind} | {len(solved)} | {' | '.join(cells)} | {_of(solved, 'necessary', len(some))} | "
            f"{median(again, 2)} |\n"
        )
    parts += [LOST, *lost]
    return "".join([*parts, *([_tasks(tasks)] if tasks else [])])


LEFT = """
## What is left

Shares of the target with the circuit alone, and with as many features: the largest by |effect| and by |contribution|,
and random ones of the same layers and positions; with no features; and with all of them but no SAE errors.

| | circuits | the circuit | by effect | by contribution | random | no features | no errors | sufficient |
|---|---|---|---|---|---|---|---|---|
"""
LOST = """
## What is lost without it

Shares of the target that are left without the circuit, and without as many others; and how much of the circuit is the
same from another seed (features in both, of those in either).

| | circuits | the circuit | by effect | by contribution | random | necessary | same from another seed |
|---|---|---|---|---|---|---|---|
"""
TASKS = """
## One circuit for many prompts

Sentences of one structure that the model answers as asked, the circuit learned on every second of them and tested on
the others; beside it as many features by their mean |effect|, and none. Shares of the targets (of no prompt more than
all of it), and on how many prompts the answer stays first. *Learned*: the same on the prompts that it was learned on;
what is left of that on the others says how far one set of features is the task's, and how far those prompts'. *Needed*:
how many of the features no prompt can spare, and how many not half of those on which they are active.

| | prompts tested | active | features | learned | circuit | by effect | none | needed by all | by half |
|---|---|---|---|---|---|---|---|---|---|
"""


def _tasks(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        left = [record[name] for name in ("learned", "tested", "by_effect", "none")]
        cells = [
            (OBJECTS, CONTRAST)[record["number"]], str(record["tested"]["prompts"]), f"{record['players']:,}",
            f"{record['size']:,}", *(f"{one['share']:.2f}, {one['first']} first" for one in left),
            str(record["features"]["always"]), str(record["features"]["half"]),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |\n")
    return TASKS + "".join(rows)


def _players(record: Record) -> float:
    return float(record.get("players", math.nan))


def _size(record: Record, order: str) -> float:
    """All active features where it is not solved."""
    size = record.get("sizes", {}).get(order)
    return _players(record) if size is None else float(size)


def _of(solved: Sequence[Record], key: str, count: int) -> str:
    return f"{sum(record[key] for record in solved)} of {count}"


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from None


def main(arguments: list[str] | None = None) -> None:
    """One to two minutes of one core per prompt; a stopped run goes on where it was."""
    parser = argparse.ArgumentParser(description="Look for circuits on SmolLM2.")
    parser.add_argument("--prompts", type=int, default=10, help="of every kind, at most; there are 24 sentences")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that each search may take")
    parser.add_argument(
        "--stability", action=argparse.BooleanOptionalAction, default=True, help="from another seed, too"
    )
    parser.add_argument("--model", default=Of.model, help="another, with the SAEs of --sae")
    parser.add_argument("--sae", default=None, help="SAEs on the residual stream, as the command line takes them")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, default=WORK, help="where results are kept, of one model")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--about", type=Path, default=None, help="a text file on the model, which the page then has")
    args = parser.parse_args(arguments)
    how, of = Search(seconds=args.seconds, stability=args.stability), Of(args.model, args.sae)
    try:
        if of != Of() and (args.work == WORK or args.out == OUT):
            raise UserError(f"{WORK} and {OUT} are SmolLM2's and its SAEs'; name others with --work and --out")
        about = "" if args.about is None else _read(args.about)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    records = run(args.work, args.prompts, how, args.workers, of)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, page(records, args.seconds, of, about, _command(args, parser, of)))


def _command(args: argparse.Namespace, parser: argparse.ArgumentParser, of: Of) -> str:
    """What was typed, but for where SmolLM2's results are kept and how many work at once."""
    module, aside = "depass_sae.evaluation.circuits", ("workers", "work", "out") if of == Of() else ("workers",)
    command = typed(module, args, parser, but=aside)
    return MADE if command == f"python -m {module}" else command


if __name__ == "__main__":
    main()
