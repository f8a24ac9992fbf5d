"""The mean of several prompts' graphs."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.graph.document import document_of, graph_of
from depass_sae.graph.export.graphml import from_graphml, to_graphml
from depass_sae.graph.influence import is_flow
from depass_sae.graph.looks import graph_blocks
from depass_sae.graph.names import name_of
from depass_sae.view.terminal import text

from ..attribution.tiny import D_MODEL, TEXT
from .test_build import adds_up, lm_with

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing
PROMPTS = [TEXT, "Mary gave John a mark.", "The price of supply, set in Rome."]
QUESTIONS: dict[str, dict[str, Any]] = {
    "a logit": {"target": "logit:5 against mean"},
    "the predictions": {},
    "rivals": {"target": "logit:5 against rivals"},
    "a feature": {"target": "2/3"},
    "a direction": {"direction": [i / D_MODEL for i in range(D_MODEL)], "layer": 1},
    "with heads, through errors": {"target": "logit:5", "heads": True, "errors": "through"},
    "softmax": {"target": "logit:5", "rule": "softmax"},
}
NUMBERS = ("weight", "effect", "magnitude", "query", "key")


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    return lm_with()


def place_of(name: str) -> str:
    """A node without its position, by its id alone."""
    return name.partition("@")[0] if "@" in name else "token:" if name.startswith("token:") else name


def by_hand(graphs: list[nx.DiGraph], key: str, sums: bool) -> dict[Any, list[float]]:
    """Of every edge or node without positions its number in each graph."""
    found: dict[Any, list[float]] = defaultdict(lambda: [0.0] * len(graphs))
    for number, g in enumerate(graphs):
        items = g.edges(data=True) if sums else ((name, name, node) for name, node in g.nodes(data=True))
        for source, target, has in items:
            found[place_of(source), place_of(target)][number] += has.get(key, 0.0)
    return found


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_average_graph_is_the_mean_of_the_single_ones(lm: ds.LM, question: str) -> None:
    asked = {"max_nodes": 40} | QUESTIONS[question]
    graphs = [lm.graph(prompt, **asked) for prompt in PROMPTS]
    mean = ds.average_graphs(graphs)
    for key in NUMBERS:
        expected = by_hand(graphs, key, sums=True)
        got = {(place_of(a), place_of(b)): edge for a, b, edge in mean.edges(data=True)}
        assert got.keys() == expected.keys()
        for pair, values in expected.items():
            assert got[pair].get(key, 0.0) == pytest.approx(np.mean(values), rel=1e-9, abs=1e-12)
            if key in ("weight", "effect"):
                assert got[pair][f"{key}_sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-12)
    for key in ("activation", "pre_activation", "constant"):
        for (name, _), values in by_hand(graphs, key, sums=False).items():
            (node,) = (node for one, node in mean.nodes(data=True) if place_of(one) == name)
            assert node.get(key, 0.0) == pytest.approx(np.mean(values), rel=1e-9, abs=1e-12)
    assert sum(target["weight"] for target in mean.graph["target"]) == pytest.approx(1)
    assert adds_up(mean, 1e-4)


@pytest.mark.parametrize("question", QUESTIONS)
def test_how_many_prompts_have_a_part_is_counted(lm: ds.LM, question: str) -> None:
    graphs = [lm.graph(prompt, **{"max_nodes": 40} | QUESTIONS[question]) for prompt in PROMPTS]
    mean = ds.average_graphs(graphs)
    for name, node in mean.nodes(data=True):
        assert node["prompts"] == sum(place_of(name) in set(map(place_of, g)) for g in graphs)
    for source, target, edge in mean.edges(data=True):
        pair = place_of(source), place_of(target)
        assert edge["prompts"] == sum(pair in {(place_of(a), place_of(b)) for a, b in g.edges} for g in graphs)
    assert {node["prompts"] for _, node in mean.nodes(data=True)} > {3}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_mean_is_written_read_and_shown_like_others(lm: ds.LM, question: str, tmp_path: Path) -> None:
    mean = lm.average_graph(PROMPTS, **{"max_nodes": 40} | QUESTIONS[question])
    assert len(mean) <= 40
    assert adds_up(mean, 1e-4)
    for back in (graph_of(document_of(mean)), from_graphml(to_graphml(mean))):
        assert (back.nodes, back.edges, back.graph) == (mean.nodes, mean.edges, mean.graph)
    for suffix in (".html", ".png"):
        ds.write_graph(mean, tmp_path / f"mean{suffix}")
    ds.write_graph(mean, tmp_path / "np.json", "neuronpedia")
    assert mean.graph["average"] == {"prompts": PROMPTS, "silent": 0}
    assert "the mean over 3 prompts: of" in (tmp_path / "mean.html").read_text()
    said = " ".join(text(graph_blocks(mean)).split())
    assert "the mean over 3 prompts: of" in said
    assert " 3 of 3 " in said
    assert "@" not in "".join(name_of(mean, name) for name, node in mean.nodes(data=True) if node["kind"] == "feature")
    assert sum(is_flow(edge) for *_, edge in mean.edges(data=True)) > 5
    assert ds.diff_graphs(mean, mean).number_of_nodes() == len(mean)


def test_prompts_on_which_no_target_fires_are_left_out(lm: ds.LM) -> None:
    reports = [lm.features(prompt, 2).layers[0] for prompt in PROMPTS]
    firing = [{i for at in report.positions[1:] for i in at.indices} for report in reports]
    some = next(i for i in range(40) if 0 < sum(i in on for on in firing) < 3)
    mean = lm.average_graph(PROMPTS, f"2/{some}", max_nodes=40)
    told = [prompt for prompt, on in zip(PROMPTS, firing, strict=True) if some in on]
    assert mean.graph["average"] == {"prompts": told, "silent": 3 - len(told)}
    lm.saes[2].threshold.data[7] += 1e4
    try:
        with pytest.raises(UserError, match="no target fires on any of the 3 prompts"):
            lm.average_graph(PROMPTS, "2/7", max_nodes=40)
    finally:
        lm.saes[2].threshold.data[7] -= 1e4


def test_progress_is_told_by_prompts(lm: ds.LM) -> None:
    told: list[tuple[str, int, int]] = []
    lm.average_graph(PROMPTS, "logit:5", max_nodes=30, progress=lambda *step: told.append(step))
    assert told == [("going through the prompts", done, 3) for done in (1, 2, 3)]


def test_what_is_no_list_of_graphs_of_one_question_is_refused(lm: ds.LM) -> None:
    g, other = (lm.graph(TEXT, "logit:5", max_nodes=30, **how) for how in ({}, {"rule": "linear"}))
    with pytest.raises(UserError, match="the graphs differ in rule"):
        ds.average_graphs([g, other])
    mean = ds.average_graphs([g])
    assert "weight_sd" not in next(iter(mean.edges.values()))
    for wrong in ([mean, g], [ds.diff_graphs(g, g)]):
        with pytest.raises(UserError, match=r"a mean is of graphs as lm.graph\(...\) makes them"):
            ds.average_graphs(wrong)
    with pytest.raises(UserError, match="name the graphs"):
        ds.average_graphs([])
    for nothing in (None, [5], g, "g.json"):
        with pytest.raises(UserError):
            ds.average_graphs(nothing)
    with pytest.raises(UserError, match="the graph is a mean over prompts; verify the graph of one of them"):
        lm.verify(mean)
    for prompts in ([], TEXT, None, [TEXT, 5]):
        with pytest.raises(UserError):
            lm.average_graph(prompts, "logit:5")
