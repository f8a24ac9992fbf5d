"""Graphs of Neuronpedia's and circuit-tracer's, read: what they say is there, and nothing else is made up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

import depass_sae as ds
from depass_sae.graph.document import check_graph
from depass_sae.graph.export.neuronpedia import to_neuronpedia

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "tests/data/neuronpedia/example.json"


@pytest.fixture
def theirs() -> nx.DiGraph:
    return ds.read_graph(EXAMPLE)


def test_nodes_edges_and_numbers_are_the_files(theirs: nx.DiGraph) -> None:
    said = json.loads(EXAMPLE.read_text())
    assert theirs.graph["tokens"] == said["metadata"]["prompt_tokens"]
    assert theirs.graph["token_ids"] == [2, 651, 4401]
    assert theirs.nodes["feature:1/77@2"]["activation"] == 3.25
    assert theirs.nodes["logit:10139@2"]["token"] == " sat"
    assert theirs.nodes["logit:10139@2"]["probability"] == 0.62
    flow = [(u, v, e["weight"]) for u, v, e in theirs.edges(data=True) if e["kind"] == "flow"]
    assert len(flow) == len(said["links"])
    assert ("feature:1/77@2", "logit:10139@2", 5.1) in flow
    check_graph(theirs, whole=True)


def test_what_the_file_leaves_out_of_a_feature_is_seen_and_named(theirs: nx.DiGraph) -> None:
    known = 0.05 + 2.2 - 0.4
    assert theirs.edges["remainder:-1", "feature:1/77@2"]["weight"] == pytest.approx(3.25 - known)
    assert not theirs.has_edge("remainder:-1", "logit:10139@2")  # which has no number of its own there
    assert theirs.graph["read_from"] == {"format": "neuronpedia", "slug": "tiny-example", "generator": "my-tool 0.1"}


def test_it_is_drawn_labelled_compared_and_written(theirs: nx.DiGraph, tmp_path: Path) -> None:
    named = ds.with_labels(theirs, {"1/77": "cats"})
    assert named.nodes["feature:1/77@2"]["label"] == "cats"
    ds.write_graph(named, tmp_path / "g.html")
    ds.write_graph(named, tmp_path / "g.json")
    again = ds.read_graph(tmp_path / "g.json")
    assert again.nodes["feature:1/77@2"]["label"] == "cats"
    assert again.graph["read_from"] == theirs.graph["read_from"]
    differ = ds.diff_graphs(theirs, again)
    assert {node["diff"] for _, node in differ.nodes(data=True)} == {"both"}


def test_our_own_graph_comes_back_from_their_format_with_its_features_and_weights(tmp_path: Path) -> None:
    ours = ds.read_graph(ROOT / "graphs/climate/graph-17-2601-at-7.json")
    (tmp_path / "theirs.json").write_text(json.dumps(to_neuronpedia(ours)))
    back = ds.read_graph(tmp_path / "theirs.json")
    features = {name for name, node in ours.nodes(data=True) if node["kind"] == "feature"}
    assert features == {name for name, node in back.nodes(data=True) if node["kind"] == "feature"}
    assert [target["node"] for target in back.graph["target"]] == ["feature:17/2601@7"]
    weights = {(u, v): e["weight"] for u, v, e in ours.edges(data=True) if e["kind"] == "flow" and {u, v} <= {*back}}
    assert len(weights) > 500
    assert {edge: back.edges[edge]["weight"] for edge in weights} == pytest.approx(weights)


def test_a_graph_of_another_program_is_not_verified(theirs: nx.DiGraph) -> None:
    from depass_sae.graph.verify import verify_graph

    with pytest.raises(ds.UserError, match="another program"):
        verify_graph(None, theirs)  # type: ignore[arg-type]  # it is refused before the model is looked at


def _without_tokens(document: dict[str, Any]) -> None:
    del document["metadata"]["prompt_tokens"]


def _beyond_the_prompt(document: dict[str, Any]) -> None:
    document["nodes"][3]["ctx_idx"] = 9


def _twice(document: dict[str, Any]) -> None:
    document["nodes"].append(document["nodes"][3])


def _downwards(document: dict[str, Any]) -> None:
    document["links"].append({"source": "1_77_2", "target": "0_253_1", "weight": 1.0})


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (_without_tokens, "prompt_tokens"),
        (_beyond_the_prompt, "ctx_idx is 9"),
        (_twice, "same node_id"),
        (_downwards, "edges point upwards"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(
    broken: Callable[[dict[str, Any]], None], said: str, tmp_path: Path
) -> None:
    document = json.loads(EXAMPLE.read_text())
    broken(document)
    (tmp_path / "broken.json").write_text(json.dumps(document))
    with pytest.raises(ds.UserError, match=said) as refused:
        ds.read_graph(tmp_path / "broken.json")
    assert "\n" not in str(refused.value)
