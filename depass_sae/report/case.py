"""A case study: everything that is to be said of one feature, or a few, on one prompt (paper, appendix C.5).

For every feature and position it holds what the other calls return: the token attribution with its measured
replacements, the heads with their ledger by token, and the verified feature-flow graph; for every feature its card and
its activation at every token. From them the paper's table is put together, and a sentence that says what was found.
``to_dict()`` is the document: the page and the Markdown are made of it alone, so that a number on them is one in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from .._version import __version__
from ..arguments import typed
from ..attribution.answer import Asked, read
from ..attribution.components import HEADS, ComponentAttribution, attribute_components
from ..attribution.document import SCHEMA_VERSION, Heading, allocation_dict, fit_dict
from ..attribution.replace import check_replacing
from ..attribution.targets import FeatureTarget, parse_feature
from ..attribution.tokens import TokenAttribution, TokenTarget, attribute_tokens_each
from ..errors import UserError
from ..graph.build import MOST_NODES, GraphSettings, build_graph
from ..graph.grow import RULES
from ..graph.labels import graph_pages, with_labels
from ..graph.names import name_of
from ..graph.verify import verify_graph
from ..labels.files import check_labels
from ..labels.neuronpedia import feature_page
from ..models.prompt import Prompt, encode
from ..passes.forward import Allocation
from ..passes.settings import Settings
from ..passes.sinks import sinks
from ..saes import Fit, describe
from ..subject import Subject
from ..texts import visible
from .card import FeatureCard, make_card
from .sentence import Facts, HeadFact, SourceFact, UpstreamFact, gather, sentence
from .study import Study, origin

if TYPE_CHECKING:
    import networkx as nx

KIND = "case study"
LEDGER_COLUMNS = 40
"""A ledger has at most so many source tokens; the others, through which least flows, are summed."""
NAMED_HEADS, NAMED_FEATURES = 2, 2
"""How many a sentence names."""
PACKAGES = ("torch", "transformers", "sae-lens")


@dataclass(frozen=True)
class CaseSettings:
    """How a case study is made, beside the rule.

    ablate: random tokens that each source is replaced by (0: not measured). seed: of them. max_nodes: of a graph.
    verify: how many of its nodes are taken out for real. top: rows that a table names. replace_from: the file that
    random tokens are drawn from (None: the package's text).
    """

    ablate: int = 8
    seed: int = 0
    max_nodes: int = 120
    verify: int = 50
    top: int = 8
    replace_from: str | None = None

    def check(self) -> None:
        for name, least in (("ablate", 0), ("verify", 0), ("top", 1), ("max_nodes", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}, and should be {least} at least")
        if self.max_nodes > MOST_NODES:
            raise UserError(f"max_nodes is {MOST_NODES} at most, which no graph has, not {self.max_nodes}")
        check_replacing(self.ablate, self.seed)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One feature at one position. graph: None where there can be none; ``no_graph`` says why."""

    feature: str
    label: str
    tokens: TokenAttribution
    heads: ComponentAttribution
    graph: nx.DiGraph | None
    no_graph: str | None
    top: int

    @property
    def target(self) -> TokenTarget:
        return self.tokens.target

    @property
    def name(self) -> str:
        """``17/2601@7``"""
        return f"{self.feature}@{self.target.pos}"

    @property
    def slug(self) -> str:
        """For file names: ``17-2601-at-7``."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.feature) + f"-at-{self.target.pos}"

    @cached_property
    def facts(self) -> Facts:
        target, measured = self.target, self.target.measured
        sources = [
            SourceFact(
                span.pos,
                span.text,
                value,
                measured=None if measured is None else measured.mean[i],
                spread=None if measured is None else measured.spread[i],
            )
            for i, (span, value) in enumerate(zip(target.sources, target.contributions.tolist(), strict=True))
        ]
        return gather(
            feature=self.feature,
            label=self.label,
            pos=target.pos,
            token=target.token,
            activation=target.activation,
            pre_activation=target.pre_activation,
            sources=sources,
            heads=tuple(
                HeadFact(head["name"], head["value"], _largest_source(head)) for head in self.all_heads()[:NAMED_HEADS]
            ),
            upstream=() if self.graph is None else upstream(self.graph)[:NAMED_FEATURES],
            error_share=None if self.graph is None else ends_in(self.graph, "error"),
            left_out_share=None if self.graph is None else ends_in(self.graph, "remainder"),
            replacements=0 if measured is None else measured.replacements,
            rank_correlation=target.rank_correlation,
        )

    @property
    def sentence(self) -> str:
        return sentence(self.facts)

    def table(self) -> dict[str, Any]:
        """The paper's table: the largest sources by size, then what is left, row by row down to the pre-activation."""
        target, measured = self.target, self.target.measured
        values = target.contributions.tolist()
        order = sorted(range(len(values)), key=lambda i: -abs(values[i]))
        whole = target.pre_activation
        sources = [
            {
                "pos": target.sources[i].pos,
                "token": target.sources[i].text,
                "value": values[i],
                "share": values[i] / whole if whole > 0 else None,
                "measured": None
                if measured is None or measured.mean[i] is None
                else {"mean": measured.mean[i], "std": measured.spread[i]},
            }
            for i in order[: self.top]
        ]
        others = order[self.top :]
        remainder = [{"name": "other tokens", "tokens": len(others), "value": sum(values[i] for i in others)}]
        rest = [{"name": name, "tokens": 0, "value": value} for name, value in target.other.items()]
        constant = {"name": "constant", "tokens": 0, "value": target.constant}
        return {
            "token": target.token,
            "pos": target.pos,
            "activation": target.activation,
            "sources": sources,
            "remainder": [*(remainder if others else []), *rest, constant],
            "pre_activation": whole,
            "completeness_error": target.completeness_error,
            "rank_correlation": target.rank_correlation,
        }

    def ledger(self) -> dict[str, Any] | None:
        """The largest heads x the source tokens; None where heads are not split by token. A row sums to its head."""
        heads = self.all_heads()[: max(10, self.top)]
        if not heads or heads[0]["by_token"] is None:
            return None
        tokens = self.tokens.tokens
        n = len(heads[0]["by_token"])
        weight = [sum(abs(head["by_token"][pos]) for head in heads) for pos in range(n)]
        shown = sorted(sorted(range(n), key=lambda pos: -weight[pos])[:LEDGER_COLUMNS])
        return {
            "columns": [{"pos": pos, "token": tokens[pos]} for pos in shown],
            "other_tokens": n - len(shown),
            "rows": [
                {
                    "head": head["name"],
                    "value": head["value"],
                    "values": [head["by_token"][pos] for pos in shown],
                    "others": sum(head["by_token"][pos] for pos in range(n) if pos not in shown),
                    "bias": head["bias"],
                    "rest": head["rest"],
                }
                for head in heads
            ],
        }

    def layers(self) -> list[dict[str, Any]]:
        """The heat map: per layer its heads, their sum, and what the stream before brought."""
        return [
            {
                "layer": row.layer,
                "heads": row.values.tolist(),
                "sum": row.values.sum().item(),
                "rest": row.rest,
                "bias": row.bias,
            }
            for row in self.heads.target.rows
        ]

    def all_heads(self) -> list[dict[str, Any]]:
        """Every head of every layer, the largest first."""
        found: list[dict[str, Any]] = []
        for row in self.heads.target.rows:
            for i, value in enumerate(row.values.tolist()):
                by_token = None if row.by_token is None else row.by_token[i].tolist()
                *tokens, bias, rest = by_token or [0.0, 0.0]
                name = self.heads.part_name(row, i)
                split = {"by_token": tokens if by_token else None, "bias": bias, "rest": rest}
                found.append({"name": name, "value": value, "tokens": self.tokens.tokens, **split})
        return sorted(found, key=lambda head: -abs(head["value"]))

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pos": self.target.pos,
            "token": self.target.token,
            "sentence": self.sentence,
            "facts": self.facts.to_dict(),
            "table": self.table(),
            "layers": self.layers(),
            "ledger": self.ledger(),
            "graph": None if self.graph is None else self._graph_dict(self.graph),
            "no_graph": self.no_graph,
            "tokens": self.tokens.to_dict(),
            "heads": self.heads.to_dict(),
        }

    def _graph_dict(self, g: nx.DiGraph) -> dict[str, Any]:
        return {
            "file": f"graph-{self.slug}.json",
            "nodes": len(g),
            "edges": g.number_of_edges(),
            "scores": g.graph["scores"],
            "verification": g.graph.get("verification"),
        }


@dataclass(frozen=True, kw_only=True)
class FeatureStudy:
    """One feature: where it fires in the prompt, what it is, and what was found.

    activations, pre_activations: at every token; None at position 0 where it is a special token, and at attention sinks
    that are not asked about. note: what has to be said of the choice of a position.
    """

    name: str
    label: str
    sae: dict[str, Any]
    described: dict[str, Any]
    fit: Fit | None
    note: str | None
    activations: tuple[float | None, ...]
    pre_activations: tuple[float | None, ...]
    card: FeatureCard
    findings: tuple[Finding, ...]

    @property
    def neuronpedia(self) -> str | None:
        return feature_page(self.sae["neuronpedia_id"], self.described["feature"]["index"])

    def to_dict(self, prompt: Prompt) -> dict[str, Any]:
        return {
            "name": self.name,
            "label": self.label,
            **self.described,
            "sae": self.sae,
            "fit": fit_dict(self.fit),
            "note": self.note,
            "neuronpedia": self.neuronpedia,
            "activations": [
                {"pos": pos, "token": prompt.tokens[pos], "activation": activation, "pre_activation": pre}
                for pos, (activation, pre) in enumerate(zip(self.activations, self.pre_activations, strict=True))
            ],
            "findings": [finding.to_dict() for finding in self.findings],
            "card": self.card.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class CaseStudy:
    """Features on a prompt. Made by :func:`make_case_study`; ``write`` keeps it, ``to_html`` is its page.

    asked: what the shell command that makes it again says; None where the model or its SAEs were made in Python.
    """

    title: str
    heading: Heading
    allocation: Allocation
    settings: CaseSettings
    versions: dict[str, str]
    labels: dict[str, str]
    asked: Study | None
    features: tuple[FeatureStudy, ...]

    @property
    def findings(self) -> list[Finding]:
        return [finding for feature in self.features for finding in feature.findings]

    @property
    def command(self) -> str | None:
        return None if self.asked is None else self.asked.command(labelled=bool(self.labels))

    @cached_property
    def document(self) -> dict[str, Any]:
        heading = self.heading.to_dict()
        del heading["sae"]  # each feature has its own
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "title": self.title,
            **heading,
            **allocation_dict(self.allocation),
            "settings": asdict(self.settings),
            "versions": self.versions,
            "labels": self.labels,
            "command": self.command,
            "features": [feature.to_dict(self.heading.prompt) for feature in self.features],
        }

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as ``case.json`` has them."""
        return self.document

    def to_html(self) -> str:
        """The page: one file that opens offline."""
        from .page import case_page

        return case_page(self)

    @typed
    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """``index.html``, ``README.md`` with its pictures, ``case.json``, each graph and the labels; what was written.

        All of it is made before the first file is written. Raises UserError where that cannot be.
        """
        from .markdown import write_case

        return write_case(self, folder)

    @property
    def pages(self) -> dict[str, tuple[str, int]]:
        """Its features, those of its graphs and those on its cards that are on Neuronpedia, as its API is asked."""
        wanted: dict[str, tuple[str, int]] = {}
        for feature in self.features:
            wanted |= feature.card.pages
        for finding in self.findings:
            if finding.graph is not None:
                wanted |= graph_pages(finding.graph)
        return wanted

    def with_labels(self, labels: Mapping[str, str]) -> CaseStudy:
        """The same, these labels (by ``layer/index``) on its features and those of its graphs."""
        check_labels(labels)
        labels = {key: " ".join(text.split()) for key, text in labels.items()}
        shown = set()
        features = []
        for feature in self.features:
            key = f"{feature.described['feature']['layer']}/{feature.described['feature']['index']}"
            label, card = labels.get(key, ""), feature.card
            shown |= {key, *_on_card(card)}
            findings = []
            for finding in feature.findings:
                g = None if finding.graph is None else with_labels(finding.graph, labels)
                shown |= set() if g is None else {f"{layer}/{index}" for layer, index in _features_of(g)}
                findings.append(replace(finding, label=label, graph=g))
            features.append(replace(feature, label=label, findings=tuple(findings), card=card.with_labels(labels)))
        used = {key: labels[key] for key in sorted(shown, key=_by_number) if labels.get(key)}
        return replace(self, features=tuple(features), labels=used)

    def _repr_html_(self) -> str:
        from .page import in_notebook

        return in_notebook(self)

    def __repr__(self) -> str:
        return "\n\n".join(map(visible, [self.title, *(finding.sentence for finding in self.findings)]))


def _features_of(g: nx.DiGraph) -> set[tuple[int, int]]:
    return {(node["layer"], node["index"]) for _, node in g.nodes(data=True) if node["kind"] == "feature"}


def _on_card(card: FeatureCard) -> set[str]:
    """What a card's lists name, as labels are keyed."""
    document = card.to_dict()
    listed = [(card.hook.layer, other["index"]) for other in document["nearest"]]
    for flow in (document["flow"]["previous"], document["flow"]["next"]):
        listed += [] if flow is None else [(flow["layer"], other["index"]) for other in flow["features"]]
    return {f"{layer}/{index}" for layer, index in listed}


def _by_number(key: str) -> tuple[int, ...]:
    return tuple(map(int, key.split("/")))


# ----------------------------------------------------------------------------------------------------------- making it


def make_case_study(
    subject: Subject,
    prompt: Prompt,
    features: Sequence[str],
    *,
    title: str | None = None,
    case: CaseSettings = CaseSettings(),
    asked: Study | None = None,
    settings: Settings,
) -> CaseStudy:
    """Look at features of one prompt from all sides.

    features: ``"17/2601@7"``, or ``"17/2601"`` for where it is strongest; several positions of one feature share its
    strip, table and card. asked: how the command line was asked for it (None: worked out, where that can be).
    Raises UserError for a feature that is none, and a position outside the prompt.
    """
    case.check()
    check_title(title)
    if not features:
        raise UserError("name a feature: LAYER/INDEX, for example 17/1208, or 17/1208@6 for position 6")
    wanted: dict[FeatureTarget, list[int | None]] = {}
    for text in features:
        target, pos = parse_feature(subject, text)
        target.check(subject)
        wanted.setdefault(target, []).append(pos)
    subject = subject.asked()
    subject.trace(prompt, None, list(subject.saes))  # once, with all that any part of the study asks for
    made = tuple(
        _feature_study(subject, prompt, target, positions, case, settings) for target, positions in wanted.items()
    )
    return CaseStudy(
        title=title or f"What drives {_and([feature.name for feature in made])}?",
        heading=Heading.of(subject, prompt),
        allocation=settings.allocation,
        settings=case,
        versions=_versions(),
        labels={},
        asked=asked or _asked(subject, prompt, features, title, settings.allocation, case),
        features=made,
    )


def check_title(title: str | None) -> None:
    """Raises UserError for one that cannot be shown."""
    if title is not None and not title.strip():
        raise UserError("the title is empty; leave it out, or give it some words")
    if title is not None and visible(title) != title:
        raise UserError("the title has control characters or is no Unicode text; give it on one line")


def _feature_study(
    subject: Subject,
    prompt: Prompt,
    target: FeatureTarget,
    positions: Sequence[int | None],
    case: CaseSettings,
    settings: Settings,
) -> FeatureStudy:
    name = target.name.removeprefix("feature ")
    readings = [read(subject, prompt, target, pos, settings) for pos in positions]
    chosen = sorted({reading.positions[0] for reading in readings})
    readoff = readings[0].readoff
    assert readoff.activation is not None
    sunk = {pos for pos in sinks(readings[0].seen, target.place) if not prompt.special[pos]} - set(chosen)
    nowhere = sunk | ({0} if prompt.special[0] else set())

    def but_nowhere(values: Float[Tensor, "pos"]) -> tuple[float | None, ...]:
        return tuple(None if pos in nowhere else value for pos, value in enumerate(values.tolist()))

    findings = tuple(_finding(subject, prompt, target, name, pos, case, settings) for pos in chosen)
    return FeatureStudy(
        name=name,
        label="",
        sae=describe(subject.saes[target.hook]),
        described=target.describe(subject),
        fit=readoff.fit,
        note=next((note for reading in readings if (note := reading.common["note"])), None),
        activations=but_nowhere(readoff.activation),
        pre_activations=but_nowhere(readoff.pre),
        card=make_card(subject, [_as_given(subject, prompt)], name, settings=settings),
        findings=findings,
    )


def _asked(
    subject: Subject,
    prompt: Prompt,
    features: Sequence[str],
    title: str | None,
    allocation: Allocation,
    case: CaseSettings,
) -> Study | None:
    loaded = origin(subject)
    if loaded is None:
        return None
    return Study(
        prompt=_as_given(subject, prompt),
        features=list(features),
        title=title,
        rule=allocation.rule,
        temperature=allocation.temperature,
        first_token=allocation.first_token,
        **asdict(case),
        **loaded,
    )


def _as_given(subject: Subject, prompt: Prompt) -> str | list[int]:
    """The text where that gives these tokens, else the tokens."""
    if subject.loaded.tokenizer is not None and prompt.text:
        with suppress(UserError):
            if encode(subject.loaded, subject.adapter, prompt.text).token_ids == prompt.token_ids:
                return prompt.text
    return list(prompt.token_ids)


def _finding(
    subject: Subject,
    prompt: Prompt,
    target: FeatureTarget,
    name: str,
    pos: int,
    case: CaseSettings,
    settings: Settings,
) -> Finding:
    (tokens,) = attribute_tokens_each(
        subject, [Asked(prompt, target, pos)], ablate=case.ablate, seed=case.seed,
        replace_from=case.replace_from if case.ablate else None, settings=settings,
    )  # fmt: skip
    heads = attribute_components(
        subject, prompt, target, HEADS, pos=pos, by_token=settings.swept, settings=settings
    )  # fmt: skip
    g, why = None, _no_graph(target, settings.rule)
    if why is None:
        size = GraphSettings(max_nodes=case.max_nodes)
        g = build_graph(subject, prompt, [(target, pos)], size=size, settings=settings)
        if case.verify:
            g = verify_graph(
                subject, g, max_nodes=case.verify, seed=case.seed, replace_from=case.replace_from, settings=settings
            )
    return Finding(feature=name, label="", tokens=tokens, heads=heads, graph=g, no_graph=why, top=case.top)


def _no_graph(target: FeatureTarget, rule: str) -> str | None:
    """Why there is no graph for this feature; None where there is one."""
    if not target.hook.is_stream:
        return f"A graph stands on SAEs of the residual stream, and this one reads {target.hook.name}."
    if rule not in RULES:
        return f"A graph takes the rules {', '.join(RULES)}, not {rule}."
    return None


def upstream(g: nx.DiGraph) -> tuple[UpstreamFact, ...]:
    """The features that flow into the graph's target, the largest edge first."""
    target = g.graph["target"][0]["node"]
    edges = [(u, edge["weight"]) for u, _, edge in g.in_edges(target, data=True) if g.nodes[u]["kind"] == "feature"]
    return tuple(
        UpstreamFact(name_of(g, u), g.nodes[u]["label"], weight)
        for u, weight in sorted(edges, key=lambda e: (-abs(e[1]), e[0]))
    )


def ends_in(g: nx.DiGraph, kind: str) -> float | None:
    """Of the influence in the graph, what ends in roots of a kind; None where there is no SAE below the target."""
    if not any(node["kind"] == "error" for _, node in g.nodes(data=True)):
        return None
    share: float = g.graph["scores"]["pruned"]["shares"][kind]
    return share


def _largest_source(head: Mapping[str, Any]) -> SourceFact | None:
    if not head["by_token"]:
        return None
    pos = max(range(len(head["by_token"])), key=lambda p: abs(head["by_token"][p]))
    return SourceFact(pos, head["tokens"][pos], head["by_token"][pos])


def _versions() -> dict[str, str]:
    found = {"depass-sae": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # put there without its metadata
            found[package] = "unknown"
    return found


def _and(names: Sequence[str]) -> str:
    named = [f"feature {names[0]}", *names[1:]]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}".replace("feature", "features", 1)
