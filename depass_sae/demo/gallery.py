"""The gallery in graphs/: the three case studies as feature-flow graphs (``make gallery``).

Each is grown from its feature, verified by intervention, and written in every format. Twice on one machine gives the
same bytes: nothing in the files says when they were made.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_text
from .cases import CASES, Case

if TYPE_CHECKING:
    import networkx as nx

    from ..api import LM

MAX_NODES = 70
VERIFIED = 50
SUFFIXES = (".json", ".graphml", ".html", ".png")


def case_graph(lm: LM, case: Case) -> nx.DiGraph:
    """What flows to a case's feature."""
    return lm.graph(case.prompt, f"{case.feature}@{case.position}", max_nodes=MAX_NODES)


def write_case(g: nx.DiGraph, folder: Path, name: str) -> None:
    """One graph in every format."""
    from ..graph.export import write_graph

    for suffix in SUFFIXES:
        write_graph(g, folder / f"{name}{suffix}")
    write_graph(g, folder / f"{name}.neuronpedia.json", format="neuronpedia")


def index() -> str:
    """A page that leads to the others, and opens offline."""
    from jinja2 import Environment, PackageLoader

    pages = Environment(loader=PackageLoader("depass_sae.demo"), autoescape=True)
    return pages.get_template("gallery.html").render(cases=CASES)


def main() -> None:
    """About a minute and a half on two cores."""
    parser = argparse.ArgumentParser(description="Write the case studies' graphs.")
    parser.add_argument("--out", type=Path, default=Path("graphs"))
    folder = parser.parse_args().out
    from ..api import load

    lm = load("smollm2")
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        g = lm.verify(case_graph(lm, case), max_nodes=VERIFIED)
        write_case(g, folder, case.name)
        print(f"{case.name}: {g.number_of_nodes()} nodes, {g.number_of_edges()} edges")
    write_text(folder / "index.html", index())


if __name__ == "__main__":
    main()
