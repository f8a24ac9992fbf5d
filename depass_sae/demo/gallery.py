"""The gallery in graphs/: a folder for each of the three case studies, and pages that lead to them (``make gallery``).

A folder holds the case study as ``CaseStudy.write`` leaves it, and its feature-flow graph in every other format beside.
A study is made once and everything is written from it. Twice on one machine gives the same bytes: nothing in the files
says when they were made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_text
from ..saes.shipped import shipped_saes
from .cases import CASES, Case

if TYPE_CHECKING:
    from ..api import LM
    from ..report.case.case import CaseStudy

NODES_PER_SAE = 40
"""A graph has so many nodes for each SAE that it passes: enough to reach the tokens."""
GRAPH_FORMATS = (".json", ".png", ".html", ".graphml", ".neuronpedia.json")


def case_study(lm: LM, case: Case) -> CaseStudy:
    """A case's feature from all sides."""
    return lm.case_study(
        case.prompt,
        f"{case.feature}@{case.position}",
        max_nodes=max_nodes(case),
        labels={case.feature: case.name},
    )


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

    entries = [_entry(case, document) for case, document in zip(CASES, documents, strict=True)]
    pages = Environment(
        loader=PackageLoader("depass_sae.demo"), autoescape=lambda name: str(name).endswith(".html"),
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    pages.filters["escaped"] = escaped
    return {
        "index.html": pages.get_template("gallery.html").render(cases=entries),
        "README.md": pages.get_template("gallery.md").render(cases=entries),
    }


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
        "sentence": finding["sentence"],
        "graph": f"{case.name}/{finding['graph']['file'].removesuffix('.json')}",
        "nodes": finding["graph"]["nodes"],
        "edges": finding["graph"]["edges"],
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
        print(f"{out / case.name}: {study.findings[0].sentence.partition('. ')[0]}.")
    for name, text in indexes(documents).items():
        write_text(out / name, text)


if __name__ == "__main__":
    main()
