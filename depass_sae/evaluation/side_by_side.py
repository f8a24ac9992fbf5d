"""The paper's numbers beside ours: what :mod:`.llama_scope` finds, as a document, a page and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..attribution.document import SCHEMA_VERSION, allocation_dict, fit_dict
from ..attribution.looks import by_size, fit_sentence, gives, others_of
from ..attribution.tokens import TokenAttribution, TokenTarget
from ..view.blocks import Block, Cell, Column, Note, Page, Row, Section, Table, Token
from ..view.shown import Shown
from ..view.words import number, place
from .paper_cases import Analysed, Case, Family, PaperCase

if TYPE_CHECKING:
    import pandas

PAPER = "DePass (Hong et al., NeurIPS 2025), appendix C.5"
UNLISTED = 3
"""So many sources that the paper does not list are shown by name, beside those that it does."""
ALONE = 8
"""So many, where the paper lists none."""
GIB = 2**30


@dataclass(frozen=True)
class Spent:
    """What a part of the work took.

    peak_memory: of the process so far, in bytes (None where the system does not tell); peak_device_memory: of an
    accelerator (None without one).
    """

    seconds: float
    peak_memory: int | None
    peak_device_memory: int | None


@dataclass(frozen=True)
class CaseFound:
    """A case's answers, for each rule one per target, in the order of the case's targets."""

    case: Case
    answers: Mapping[str, tuple[TokenAttribution, ...]]

    @property
    def first(self) -> TokenAttribution:
        """Of the answers, which have the prompt, the SAE and its fit in common."""
        return next(iter(self.answers.values()))[0]

    def to_dict(self) -> dict[str, Any]:
        first, case = self.first, self.case
        head = first.to_dict()
        paper = case.targets if isinstance(case, PaperCase) else [None] * len(next(iter(self.answers.values())))
        return {
            "name": case.name,
            "source": f"{PAPER}, {case.table}" if isinstance(case, PaperCase) else None,
            "meaning": case.meaning if isinstance(case, PaperCase) else None,
            **{key: head[key] for key in ("prompt", "tokens", "token_ids", "special", "sae", "feature")},
            "fit": fit_dict(first.fit),
            "notes": list(dict.fromkeys(a.note for each in self.answers.values() for a in each if a.note)),
            "targets": [
                _target(printed, {rule: answers[i].target for rule, answers in self.answers.items()})
                for i, printed in enumerate(paper)
            ],
        }


def _target(printed: Analysed | None, found: Mapping[str, TokenTarget]) -> dict[str, Any]:
    documents = {rule: target.to_dict() for rule, target in found.items()}
    one = next(iter(documents.values()))
    return {
        **{key: one[key] for key in ("pos", "token", "activation", "pre_activation", "constant")},
        "paper": printed and {
            "activation": printed.activation,
            "contributions": [
                {"pos": source.pos, "token": source.token, "value": source.contribution} for source in printed.sources
            ],
        },
        "rules": {
            rule: {key: document[key] for key in ("contributions", "other", "completeness_error")}
            for rule, document in documents.items()
        },
    }  # fmt: skip


@dataclass(frozen=True)
class SideBySide(Shown):
    """Every case of a family that was asked, with what the asking took."""

    family: Family
    model: str
    device: str
    dtype: str
    cases: tuple[CaseFound, ...]
    loading: Spent
    asking: Spent

    @property
    def title(self) -> str:
        return self.family.title

    def to_dict(self) -> dict[str, Any]:
        allocations = [answers[0].allocation for answers in self.cases[0].answers.values()]
        return {
            "schema_version": SCHEMA_VERSION,
            "version": __version__,
            "model": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "rules": [allocation_dict(allocation) for allocation in allocations],
            "cases": [case.to_dict() for case in self.cases],
            "agreement": {allocation.rule: self.agreement(allocation.rule) for allocation in allocations},
            "spent": {"loading": asdict(self.loading), "asking": asdict(self.asking)},
        }

    def agreement(self, rule: str) -> dict[str, Any] | None:
        """Of our contributions under a rule with the paper's; None where it has none.

        Keys: contributions (how many it prints), rank_correlation (Spearman's), largest_difference.
        """
        pairs = [
            (printed.contribution, answer.target.contributions[printed.pos].item())
            for found in self.cases
            if isinstance(found.case, PaperCase)
            for target, answer in zip(found.case.targets, found.answers[rule], strict=True)
            for printed in target.sources
        ]
        if not pairs:
            return None
        from scipy.stats import spearmanr

        constant = len({ours for _, ours in pairs}) < 2  # which has no ranks
        return {
            "contributions": len(pairs),
            "rank_correlation": None if constant else float(spearmanr(*zip(*pairs, strict=True)).statistic),
            "largest_difference": max(abs(theirs - ours) for theirs, ours in pairs),
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per target and source token, a column per rule. paper: NaN where the paper prints no number."""
        import pandas

        return pandas.DataFrame(
            {
                "case": case["name"],
                "feature": f"{case['feature']['layer']}/{case['feature']['index']}",
                "target_pos": target["pos"],
                "target_token": target["token"],
                "pos": pos,
                "token": token,
                "paper": printed,
                **ours,
            }
            for case in self.to_dict()["cases"]
            for target in case["targets"]
            for pos, token, printed, ours in _sources(target)
        )

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """top: how many sources are shown by name that the paper does not list."""
        document = self.to_dict()
        return (
            _answer(document),
            *(_section(case, document["dtype"], top) for case in document["cases"]),
            _spent(document),
        )

    def page(self) -> Page:
        rules = " and ".join(next(iter(self.cases)).answers)
        colophon = (f"depass-sae {__version__}", self.dtype, self.device)
        return Page(self.title, self.blocks(), byline=(self.model, rules), colophon=colophon, contents=True)


# --------------------------------------------------------------------------------------------------------------- looks


def _sources(target: Mapping[str, Any]) -> list[tuple[int, str, float | None, dict[str, float]]]:
    """Position, token, the paper's number, and ours by rule, of every source."""
    printed = {source["pos"]: source["value"] for source in (target["paper"] or {"contributions": []})["contributions"]}
    found = {rule: target["rules"][rule]["contributions"] for rule in target["rules"]}
    return [
        (source["pos"], source["token"], printed.get(source["pos"]), {rule: found[rule][i]["value"] for rule in found})
        for i, source in enumerate(next(iter(found.values())))
    ]


def _answer(document: Mapping[str, Any]) -> Note:
    """How near ours come to the paper's; where it has none, what gives most."""
    lines = [
        f"{rule}: rank correlation {number(found['rank_correlation'], 2)} with the paper over {found['contributions']} "
        f"contributions, largest difference {number(found['largest_difference'])}"
        for rule, found in document["agreement"].items()
        if found is not None
    ]
    if not lines:
        lines = [_strongest(case, target) for case in document["cases"] for target in case["targets"]]
    return Note(lines[0], "answer", tuple(lines[1:]))


def _strongest(case: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    told = []
    for rule, found in target["rules"].items():
        sources = [source for source in found["contributions"] if source["pos"] not in case["special"]]
        first = sources[by_size(source["value"] for source in sources)[0]]
        told.append(f"{gives(place(first['token'], first['pos']), first['value'], target['pre_activation'])} by {rule}")
    return f"{_name(case)} at {place(target['token'], target['pos'])}: {', '.join(told)}"


def _name(case: Mapping[str, Any]) -> str:
    return f"feature {case['feature']['layer']}/{case['feature']['index']}"


def _section(case: Mapping[str, Any], dtype: str, top: int | None) -> Section:
    if case["source"]:
        said = f"“{case['meaning']}” ({case['source']})"
    else:
        said = "The feature is the most specific one at the word; the paper has no case on this model to compare with"
    return Section(
        f"{case['name']}, {_name(case)}",
        (
            Note(case["prompt"], "lead"),
            Note(said, "quiet"),
            _targets(case["targets"], dtype),
            _contributions(case, top),
            *([Note(fit_sentence(case["fit"]), "quiet")] if case["fit"] else []),
            *(Note(text, "warning") for text in [(case["fit"] or {}).get("warning"), *case["notes"]] if text),
        ),
        id=case["name"],
    )


def _targets(targets: Sequence[Mapping[str, Any]], dtype: str) -> Table:
    compared = any(target["paper"] for target in targets)
    rules = list(targets[0]["rules"])
    columns = [
        Column("target token"),
        *([Column("activation, paper", "number")] if compared else []),
        Column("activation, ours", "number"),
        Column("pre-activation", "signed"),
        *(Column(f"completeness error, {rule}", "error") for rule in rules),
    ]
    rows = [
        Row((
            Token(target["token"], target["pos"]),
            *([target["paper"]["activation"]] if compared else []),
            target["activation"],
            target["pre_activation"],
            *(target["rules"][rule]["completeness_error"] for rule in rules),
        ))
        for target in targets
    ]  # fmt: skip
    caption = f"The completeness error is the rounding of {dtype}; a trace dtype of float32 takes it away."
    rounded = dtype in ("bfloat16", "float16")
    return Table("Where the feature fires", tuple(columns), tuple(rows), caption if rounded else "")


def _contributions(case: Mapping[str, Any], top: int | None) -> Table:
    compared = any(target["paper"] for target in case["targets"])
    rules = list(case["targets"][0]["rules"])
    columns = [
        Column("source token"),
        *([Column("paper", "signed", 4, bar=True)] if compared else []),
        *(Column(rule, "signed", 4, bar=True) for rule in rules),
    ]
    rows = [row for target in case["targets"] for row in _rows(case, target, compared, top)]
    caption = "A cell is empty where the paper prints no number. Where it put the SAE's constant it does not say."
    return Table("Which tokens activate it", tuple(columns), tuple(rows), caption if compared else "")


def _rows(case: Mapping[str, Any], target: Mapping[str, Any], compared: bool, top: int | None) -> Iterable[Row]:
    """What sums to the pre-activation under each rule: the paper's sources in its order, then what it does not list."""
    group = Token(target["token"], target["pos"])
    sources = {source[0]: source for source in _sources(target)}

    def row(name: Cell, printed: float | None, ours: Iterable[float], role: Any) -> Row:
        return Row((name, *([printed] if compared else []), *ours), role, group)

    listed = [source["pos"] for source in target["paper"]["contributions"]] if target["paper"] else []
    special = [pos for pos in sources if pos in case["special"] and pos not in listed]
    rest = [pos for pos in sources if pos not in (*listed, *special)]
    order = by_size(max(map(abs, sources[pos][3].values())) for pos in rest)
    shown = (UNLISTED if listed else ALONE) if top is None else top
    named, others = [rest[i] for i in order[:shown]], [rest[i] for i in order[shown:]]
    for role, positions in (("ranked", [*listed, *named]), ("aside", special)):
        for pos in positions:
            _, token, printed, ours = sources[pos]
            yield row(Token(token, pos), printed, ours.values(), role)
    found = target["rules"].values()
    if others:
        sums = [sum(sources[pos][3][rule] for pos in others) for rule in target["rules"]]
        yield row(others_of(len(others)), None, sums, "aside")
    for i, other in enumerate(next(iter(found))["other"]):
        values = [each["other"][i]["value"] for each in found]
        if any(values):
            yield row(other["name"], None, values, "aside")
    yield row("constant", None, [target["constant"]] * len(found), "aside")
    yield row("pre-activation", None, [target["pre_activation"]] * len(found), "total")


def _spent(document: Mapping[str, Any]) -> Section:
    def gib(size: int | None) -> float | None:
        return None if size is None else size / GIB

    rows = [
        Row((what, spent["seconds"], gib(spent["peak_memory"]), gib(spent["peak_device_memory"])))
        for what, spent in document["spent"].items()
    ]
    columns = (
        Column("", "text"),
        Column("seconds", "number", 1),
        Column("peak memory, GiB", "number", 2),
        Column("peak device memory, GiB", "number", 2),
    )
    rules = [
        f"{rule['rule']} (T = {number(rule['temperature'], 1)}, first token: {rule['first_token']})"
        if rule["rule"] == "softmax"
        else rule["rule"]
        for rule in document["rules"]
    ]
    saes = [
        f"{sae['id'] or sae['architecture']} at {sae['hook']}" for sae in (case["sae"] for case in document["cases"])
    ]
    told = f"{document['model']} in {document['dtype']} on {document['device']}; SAEs {', '.join(dict.fromkeys(saes))}"
    return Section(
        "What it took",
        (
            Note(f"{told}; rules {', '.join(rules)}", "quiet"),
            Table("", columns, tuple(rows), "Peaks are those of the process up to then."),
        ),
        id="spent",
    )
