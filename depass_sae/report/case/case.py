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
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...arguments import typed
from ...attribution.components import ComponentAttribution
from ...attribution.document import SCHEMA_VERSION, Heading, allocation_dict, fit_dict
from ...attribution.looks import by_size, part_name, ranked_parts, share_of
from ...attribution.measure import Measure
from ...attribution.tokens import TokenAttribution, TokenTarget
from ...errors import UserError
from ...graph.build import MOST_NODES
from ...graph.contexts import MOST, with_contexts
from ...graph.labels import graph_pages, with_labels
from ...graph.names import name_of
from ...labels.files import check_labels
from ...labels.neuronpedia import feature_page
from ...models.prompt import Prompt
from ...passes.forward import Allocation
from ...saes import Fit
from ...texts import visible
from ...view.blocks import Block, Page
from ...view.shown import Shown
from ..card.card import FeatureCard
from .findings import Facts, HeadFact, SourceFact, UpstreamFact, answer, gather, points, sentence
from .study import Study

if TYPE_CHECKING:
    import networkx as nx

    from ...graph.downstream import Downstream
    from ...index.index import Index

KIND = "case study"
LEDGER_COLUMNS = 40
"""A ledger has at most so many source tokens; the others, through which least flows, are summed."""
NAMED_HEADS, NAMED_FEATURES = 2, 2
"""How many a sentence names."""


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

    @property
    def measure(self) -> Measure:
        """What is measured of every source. Raises UserError for what cannot be."""
        return Measure(ablate=self.ablate, seed=self.seed, replace_from=self.replace_from if self.ablate else None)

    def check(self) -> None:
        for name, least in (("ablate", 0), ("verify", 0), ("top", 1), ("max_nodes", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}, and should be {least} at least")
        if self.max_nodes > MOST_NODES:
            raise UserError(f"max_nodes is {MOST_NODES} at most, which no graph has, not {self.max_nodes}")
        _ = self.measure


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One feature at one position. graph: None where there can be none; ``no_graph`` says why.

    downstream: what it goes on to do; None where it does not fire, or where there is no graph; ``no_downstream`` says.
    """

    feature: str
    label: str
    tokens: TokenAttribution
    heads: ComponentAttribution
    graph: nx.DiGraph | None
    no_graph: str | None
    downstream: Downstream | None
    no_downstream: str | None
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
    def _token_document(self) -> dict[str, Any]:
        return self.tokens.to_dict()

    @cached_property
    def _head_document(self) -> dict[str, Any]:
        return self.heads.to_dict()

    @cached_property
    def facts(self) -> Facts:
        target, measured = self._token_document["targets"][0], self.target.measured
        return gather(
            feature=self.feature,
            label=self.label,
            **{key: target[key] for key in ("pos", "token", "activation", "pre_activation")},
            sources=[_source(source, self._token_document["special"]) for source in target["contributions"]],
            heads=tuple(map(_head, self.largest_heads()[:NAMED_HEADS])),
            upstream=() if self.graph is None else upstream(self.graph)[:NAMED_FEATURES],
            error_share=None if self.graph is None else ends_in(self.graph, "error"),
            left_out_share=None if self.graph is None else ends_in(self.graph, "remainder"),
            replacements=0 if measured is None else measured.replacements,
            agreement=self.target.agreement,
            together=None if self.graph is None else _together(self.graph),
        )

    @property
    def answer(self) -> str:
        """What was found, in a line."""
        return answer(self.facts)

    @property
    def points(self) -> tuple[str, ...]:
        """What else is to be said of it, a line each."""
        return tuple(points(self.facts))

    @property
    def sentence(self) -> str:
        """The answer and its points as one paragraph."""
        return sentence(self.facts)

    def largest_heads(self) -> list[Any]:
        """Every head of every layer, the largest first."""
        return ranked_parts(self._head_document["targets"][0]["heads"], "abs")

    def table(self) -> dict[str, Any]:
        """The largest sources by size, then what is left, row by row down to the pre-activation."""
        target = self._token_document["targets"][0]
        found, whole = target["contributions"], target["pre_activation"]
        order = by_size(source["value"] for source in found)
        others = order[self.top :]
        rest = [("other tokens", len(others), sum(found[i]["value"] for i in others))] if others else []
        rest += [(other["name"], 0, other["value"]) for other in target["other"]]
        same = ("token", "pos", "activation", "pre_activation", "completeness_error")
        return {
            **{key: target[key] for key in same},
            "sources": [
                {"measured": None, **found[i], "share": share_of(found[i]["value"], whole)} for i in order[: self.top]
            ],
            "remainder": [
                {"name": name, "tokens": tokens, "value": value}
                for name, tokens, value in (*rest, ("constant", 0, target["constant"]))
            ],
            "rank_correlation": self.target.rank_correlation,
        }

    def ledger(self) -> dict[str, Any] | None:
        """The largest heads x the source tokens; None where heads are not split by token. A row sums to its head."""
        heads = self.largest_heads()[: max(10, self.top)]
        if not heads or "by_token" not in heads[0]:
            return None
        values = [[source["value"] for source in head["by_token"]] for head in heads]
        shown = sorted(by_size(sum(map(abs, column)) for column in zip(*values, strict=True))[:LEDGER_COLUMNS])
        sources = heads[0]["by_token"]
        return {
            "columns": [{"pos": pos, "token": sources[pos]["token"]} for pos in shown],
            "other_tokens": len(sources) - len(shown),
            "rows": [
                {
                    "head": part_name(head, "heads"),
                    "value": head["value"],
                    "values": [row[pos] for pos in shown],
                    "others": sum(value for pos, value in enumerate(row) if pos not in shown),
                    **{other["name"]: other["value"] for other in head["other"]},
                }
                for head, row in zip(heads, values, strict=True)
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
                **row.other,
            }
            for row in self.heads.target.rows
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pos": self.target.pos,
            "token": self.target.token,
            "answer": self.answer,
            "points": list(self.points),
            "sentence": self.sentence,
            "facts": self.facts.to_dict(),
            "table": self.table(),
            "layers": self.layers(),
            "ledger": self.ledger(),
            "graph": None if self.graph is None else self._graph_dict(self.graph),
            "no_graph": self.no_graph,
            "downstream": None if self.downstream is None else self.downstream.to_dict(),
            "no_downstream": self.no_downstream,
            "tokens": self._token_document,
            "heads": self._head_document,
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
class CaseStudy(Shown):
    """Features on a prompt. Made by :func:`make_case_study`; ``write`` keeps it, ``to_html`` is its page.

    asked: what the shell command that makes it again says; None where the model or its SAEs were made in Python.
    """

    title: str = ""
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

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """All of it. top: how many rows tables have at most (by default as many as the study was asked for)."""
        from .looks import case_blocks

        return case_blocks(self.document, self.graphs, top)

    def page(self) -> Page:
        from .looks import case_page

        return case_page(self.document, self.graphs)

    @property
    def graphs(self) -> dict[str, nx.DiGraph]:
        """By the names of the findings."""
        return {finding.name: finding.graph for finding in self.findings if finding.graph is not None}

    @typed
    def write(self, folder: str | os.PathLike[str]) -> list[Path]:  # type: ignore[override]
        """``index.html``, ``README.md`` with its pictures, ``case.json``, each graph and the labels; what was written.

        All of it is made before the first file is written. Raises UserError where that cannot be.
        """
        from .folder import write_case

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
                onwards = finding.downstream and replace(finding.downstream, labels=labels)
                shown |= set() if onwards is None else {f"{one.layer}/{one.index}" for one in onwards.listed}
                findings.append(replace(finding, label=label, graph=g, downstream=onwards))
            features.append(replace(feature, label=label, findings=tuple(findings), card=card.with_labels(labels)))
        used = {key: labels[key] for key in sorted(shown, key=_by_number) if labels.get(key)}
        return replace(self, features=tuple(features), labels=used)

    @typed
    def with_contexts(self, index: Index) -> CaseStudy:
        """The same; the pages of its graphs have where features fire most in an index, and what it calls them is a
        label where there is none. Raises UserError for an index of another model or of other SAEs."""
        study = self.with_labels(index.all_labels() | self.labels)
        most = MOST // max(len(self.graphs), 1)  # of one page, which has all graphs
        features = (
            replace(feature, findings=tuple(_with_contexts(finding, index, most) for finding in feature.findings))
            for feature in study.features
        )
        return replace(study, features=tuple(features))

    def __repr__(self) -> str:
        return "\n\n".join(map(visible, [self.title, *(finding.sentence for finding in self.findings)]))


def _with_contexts(finding: Finding, index: Index, most: int) -> Finding:
    return finding if finding.graph is None else replace(finding, graph=with_contexts(finding.graph, index, most))


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


def _together(g: nx.DiGraph) -> dict[str, Any] | None:
    """What is left of the target without all of a verified graph's features, and without as many random ones."""
    together = g.graph.get("verification", {}).get("together", {})
    if together.get("shares") is None:
        return None
    shares = {key: together["shares"][key] for key in ("without_graph", "without_random")}
    return {"features": together["features"], "shares": shares}


def _source(source: Mapping[str, Any], special: Sequence[int]) -> SourceFact:
    lost = source.get("measured") or {}
    at = (source["pos"], source["token"], source["value"])
    return SourceFact(*at, measured=lost.get("mean"), spread=lost.get("std"), special=source["pos"] in special)


def _head(head: Mapping[str, Any]) -> HeadFact:
    largest = max(head.get("by_token", ()), key=lambda source: abs(source["value"]), default=None)
    return HeadFact(part_name(head, "heads"), head["value"], None if largest is None else _source(largest, ()))
