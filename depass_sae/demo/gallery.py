"""The gallery in graphs/: a folder for each of the three case studies, and pages that lead to them (``make gallery``).

A folder holds the case study as ``CaseStudy.write`` leaves it, and its feature-flow graph in every other format beside.
A study is made once and everything is written from it. Twice on one machine gives the same bytes: nothing in the files
says when they were made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_text
from ..saes.shipped import shipped_saes
from .cases import CASES, Case

if TYPE_CHECKING:
    from ..api import LM
    from ..report.case.case import CaseStudy
    from ..view.blocks import Page, Strip

NODES_PER_SAE = 40
"""A graph has so many nodes for each SAE that it passes: enough to reach the tokens."""
GRAPH_FORMATS = (".json", ".png", ".html", ".graphml", ".neuronpedia.json")


def case_study(lm: LM, case: Case) -> CaseStudy:
    """A case's feature from all sides, with what the package's index has of the features that it meets."""
    from ..index.index import open_index

    study = lm.case_study(
        case.prompt,
        f"{case.feature}@{case.position}",
        max_nodes=max_nodes(case),
        labels={case.feature: case.name},
    )
    return study.with_contexts(open_index("smollm2"))


def max_nodes(case: Case) -> int:
    """Of a case's graph."""
    target = int(case.feature.partition("/")[0])
    return NODES_PER_SAE * sum(layer <= target for layer in shipped_saes())


def write_study(study: CaseStudy, folder: Path) -> None:
    """The study with its page, and its graphs in the formats that it does not write itself."""
    from ..graph.export import write_graph

    written = {path.name for path in study.write(folder)}
    for finding in study.findings:
        for suffix in GRAPH_FORMATS if finding.graph is not None else ():
            path = folder / f"graph-{finding.slug}{suffix}"
            if path.name not in written:
                write_graph(finding.graph, path, format="neuronpedia" if "neuronpedia" in suffix else None)


def indexes(documents: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Pages that lead to the studies: for a browser, and for GitHub. documents: the ``case.json`` of each."""
    from jinja2 import Environment, PackageLoader

    from ..view.markdown import escaped
    from ..view.page import page

    entries = [_entry(case, document) for case, document in zip(CASES, documents, strict=True)]
    pages = Environment(
        loader=PackageLoader("depass_sae.demo"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    pages.filters["escaped"] = escaped
    return {
        "index.html": page(gallery(documents)),
        "README.md": pages.get_template("gallery.md").render(cases=entries),
    }


def gallery(documents: Sequence[dict[str, Any]]) -> Page:
    """For each case what was found, on its prompt, and where all of it is."""
    from ..view.blocks import Column, Feature, Note, Page, Row, Section, Table

    sections, rows = [], []
    for case, document in zip(CASES, documents, strict=True):
        entry = _entry(case, document)
        there = {
            "case study": f"{case.name}/index.html", "numbers": f"{case.name}/case.json",
            **{suffix.removeprefix("."): f"{entry['graph']}{suffix}" for suffix in GRAPH_FORMATS},
        }  # fmt: skip
        found = Note(entry["answer"], "answer", link=f"{case.name}/index.html")
        feature = Feature(entry["feature"], case.meaning)
        sections.append(Section(case.name.capitalize(), (found, _strip(document)), feature=feature))
        rows.append(Row((case.name, *(Feature(name, link=link) for name, link in there.items()))))
    columns = ("", "study", "", *(["graph"] + [""] * (len(GRAPH_FORMATS) - 1)))
    about = (
        "The prompts of the DePass paper’s case studies on SmolLM2-135M, each with a feature that an earlier word "
        "helps to fire: which tokens, heads and upstream features drive it, and what replacing tokens for real does."
    )
    files = Table("Where all of it is", tuple(map(Column, columns)), tuple(rows), "Made by make gallery.")
    return Page("Three case studies", (Note(about, "lead"), *sections, Section("Files", (files,))))


def _strip(document: dict[str, Any]) -> Strip:
    """The prompt as far as the feature has read it, each token shaded by what it contributes."""
    from ..attribution.looks import token_strip

    tokens = document["features"][0]["findings"][0]["tokens"]
    return replace(token_strip(tokens, tokens["targets"][0]), title="", label=document["features"][0]["name"])


def _entry(case: Case, document: dict[str, Any]) -> dict[str, Any]:
    (feature,) = document["features"]
    (finding,) = feature["findings"]
    tokens, pos = document["tokens"], finding["pos"]
    return {
        "name": case.name,
        "feature": finding["name"],
        "meaning": case.meaning,
        "before": "".join(tokens[1:pos]),
        "token": tokens[pos].strip(),  # a word: all three begin with a space
        "after": "".join(tokens[pos + 1 :]),
        "answer": finding["answer"],
        "graph": f"{case.name}/{finding['graph']['file'].removesuffix('.json')}",
    }


def main() -> None:
    """About a minute on one core."""
    parser = argparse.ArgumentParser(description="Write the case studies and their graphs.")
    parser.add_argument("--out", type=Path, default=Path("graphs"))
    out = parser.parse_args().out
    from ..api import load

    lm = load("smollm2")
    documents = []
    for case in CASES:
        study = case_study(lm, case)
        write_study(study, out / case.name)
        documents.append(json.loads(json.dumps(study.to_dict())))
        print(f"{out / case.name}: {study.to_dict()['features'][0]['findings'][0]['answer']}")
    for name, text in indexes(documents).items():
        write_text(out / name, text)


if __name__ == "__main__":
    main()
