"""The document of a feature-flow graph: what it refuses, each in one line that says where."""

import re
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.graph.document import document_of, graph_of, json_schema, node_id

from .export.every_kind import every_kind, same, verification
from .sample import sample_graph


def refused(document: Any) -> str:
    with pytest.raises(UserError) as caught:
        graph_of(document)
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message
    return message


def of_kind(document: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(node for node in document["nodes"] if node["kind"] == kind)


def test_a_graph_with_every_kind_of_node_and_edge_passes_the_checks() -> None:
    g = every_kind()
    assert same(graph_of(document_of(g)), g)


def test_networkx_reads_the_document_as_it_is() -> None:
    g = sample_graph()
    read = nx.node_link_graph(document_of(g))
    assert same(read, g)


def test_the_schema_version_leads_the_document() -> None:
    assert list(document_of(sample_graph()))[:2] == ["schema_version", "kind"]


def test_keys_that_nobody_knows_are_kept() -> None:
    g = sample_graph()
    g.graph["note"] = {"by": "hand", "n": [1, 2.5, None]}
    g.nodes["token:0"]["colour"] = "red"
    assert same(graph_of(document_of(g)), g)


def test_a_graph_that_was_not_pruned_has_no_thresholds() -> None:
    g = sample_graph()
    g.graph["settings"] |= {"node_threshold": None, "edge_threshold": None}
    g.graph["saes"][0]["explained_variance"] = None
    assert same(graph_of(document_of(g)), g)


def test_a_whole_number_where_a_fraction_belongs_becomes_one() -> None:
    document = document_of(sample_graph())
    document["nodes"][0]["influence"] = 1
    document["graph"]["target"][0]["weight"] = 1
    g = graph_of(document)
    assert isinstance(g.nodes[document["nodes"][0]["id"]]["influence"], float)
    assert isinstance(g.graph["target"][0]["weight"], float)


@pytest.mark.parametrize("document", [[], None, "text", 3, {}, {"schema_version": 1, "features": []}])
def test_what_is_no_graph_is_refused(document: Any) -> None:
    assert refused(document).startswith("not a feature-flow graph")


def test_a_newer_document_is_refused_with_its_version() -> None:
    document = document_of(sample_graph()) | {"schema_version": 3, "nodes": "of another shape"}
    assert refused(document).startswith("schema_version is 3, and this version of depass-sae reads 2")


@pytest.mark.parametrize("version", [0, True, "1", None, 1.0])
def test_a_schema_version_that_never_was_is_refused(version: Any) -> None:
    assert refused(document_of(sample_graph()) | {"schema_version": version}).startswith("schema_version should be 2")


def test_a_neuronpedia_graph_is_named_as_such() -> None:
    assert "Neuronpedia" in refused({"metadata": {}, "qParams": {}, "nodes": [], "links": []})


Change = Callable[[dict[str, Any]], object]


def huge(d: dict[str, Any]) -> None:
    """Numbers that are finite, and whose sum is not."""
    for edge in d["edges"]:
        edge["weight"] = 1.7e308


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def turned(d: dict[str, Any]) -> None:
    """Two heads of one layer that write into each other."""
    for i in range(2):
        head = {"kind": "head", "layer": 5, "index": i, "influence": 0.0, "label": ""}
        d["nodes"].append({"id": f"head:5.{i}", **head})
        d["edges"].append({"source": f"head:5.{i}", "target": f"head:5.{1 - i}", "kind": "head"} | ENDS)


ENDS = {"weight": 0.0, "effect": 0.0}

MISTAKES: dict[str, tuple[Change, str]] = {
    "no SAEs": (lambda d: d["graph"].update(saes=[]), "graph.saes: List should have at least 1 item"),
    "no targets": (lambda d: d["graph"].update(target=[]), "graph.target: List should have at least 1 item"),
    "no nodes": (lambda d: d.update(nodes=[], edges=[]), "nodes: List should have at least 1 item"),
    "no tokens": (lambda d: d["graph"].update(tokens=[], token_ids=[]), "graph.tokens: List should have at least 1"),
    "an error as the target": (
        lambda d: d["graph"]["target"][0].update(node="error:5@1"),
        'graph.target: node "error:5@1" is no feature, logit or direction',
    ),
    "a token as the target": (
        lambda d: d["graph"]["target"][0].update(node="token:1"),
        "is no feature, logit or direction",
    ),
    "a target that is there twice": (
        lambda d: d["graph"]["target"].append(dict(d["graph"]["target"][0])),
        r'graph.target: node "logit:17@5" is there twice',
    ),
    "weights whose sum overflows": (
        huge,
        r"edge .*: weight: should be at most 3.4e\+38, and is 1.7e\+308",
    ),
    "a pre-activation that is too large": (
        lambda d: of_kind(d, "feature").update(pre_activation=-1e39),
        "pre_activation: should be at least -3.4e",
    ),
    "an influence that is too large": (lambda d: d["nodes"][0].update(influence=1e300), "influence: should be at most"),
    "an attribute nested 900 deep": (
        lambda d: d["nodes"][0].update(extra=nested(900)),
        r'node "token:0": extra: lists and objects are nested too deeply \(more than 100 levels\)',
    ),
    "a graph attribute nested 900 deep": (lambda d: d["graph"].update(extra=nested(900)), "graph.extra.*too deeply"),
    "a whole number of thousands of digits": (
        lambda d: d["nodes"][0].update(extra=10**5000),
        'node "token:0": extra: the number is too large',
    ),
    "an index beyond all": (lambda d: of_kind(d, "logit").update(index=2**31), "index: should be less than 2147483648"),
    "a feature beyond the SAE's": (
        lambda d: d["graph"]["saes"][0].update(d_sae=1),
        r'node "feature:5/.*": the SAE of layer 5 has 1 features',
    ),
    "a feature where there is no SAE": (
        lambda d: d["graph"]["saes"][0].update(layer=6),
        "node .*: layer 5 is none where a .* can stand: the graph.s SAEs are at 6, 11 of 14 layers",
    ),
    "two SAEs at a layer": (lambda d: d["graph"]["saes"][1].update(layer=5), "graph.saes: layer 5 has two SAEs"),
    "an SAE above the last layer": (
        lambda d: d["graph"]["saes"][1].update(layer=14),
        "graph.saes: layer 14 is none of the model's, which are 0 to 13",
    ),
    "an SAE at no place": (lambda d: d["graph"]["saes"][0].update(hook="mlp_mid"), r"saes\[0\].hook: should"),
    "a logit below the top": (lambda d: d["graph"].update(n_layers=20), "layer 14 is none where a logit can stand"),
    "heads that write into each other": (turned, "edges point upwards"),
    "an edge to itself": (
        lambda d: d["edges"].append({"source": "token:0", "target": "token:0", "kind": "flow", **ENDS}),
        'edge "token:0" -> "token:0": edges point upwards',
    ),
    "a temperature of text": (lambda d: d["graph"].update(temperature="hot"), "graph.temperature: should be a valid n"),
    "a verification of nothing": (
        lambda d: d["graph"].update(verification={}),
        "graph.verification.target: is missing",
    ),
    "a verification of a node that is not there": (
        lambda d: d["graph"].update(verification=verification("token:99")),
        'graph.verification: there is no node "token:99"',
    ),
    "a missing part": (lambda d: d.pop("edges"), "edges: is missing"),
    "nodes that are no list": (lambda d: d.update(nodes={}), "nodes: should be a valid list"),
    "a node that is no object": (lambda d: d["nodes"].insert(0, 7), r"nodes\[0\]: should be an object"),
    "a missing attribute": (lambda d: of_kind(d, "feature").pop("index"), r'node "feature:.*": index: is missing'),
    "a text for a number": (
        lambda d: of_kind(d, "logit").update(activation="3"),
        r'node "logit:.*": activation: should be a valid number, and is "3"',
    ),
    "true for a number": (lambda d: of_kind(d, "logit").update(constant=True), "constant: .*True"),
    "null for a number": (lambda d: of_kind(d, "logit").update(probability=None), "probability: .*None"),
    "a fraction for a position": (lambda d: of_kind(d, "token").update(pos=0.5), "pos: .*0.5"),
    "a number for a text": (lambda d: of_kind(d, "error").update(token=3), "token: should be a text, and is 3"),
    "a negative influence": (lambda d: of_kind(d, "error").update(influence=-1.0), "influence: .*-1.0"),
    "a probability above 1": (lambda d: of_kind(d, "logit").update(probability=1.5), "probability: .*1.5"),
    "an unknown kind of node": (
        lambda d: of_kind(d, "bias").update(kind="neuron\n"),
        r'node "bias:.*": kind should be token, .*, and is "neuron\\n"',
    ),
    "no kind of node": (lambda d: of_kind(d, "bias").pop("kind"), "kind should be .* is None"),
    "an unknown kind of edge": (lambda d: d["edges"][0].update(kind="road"), 'edge .*: kind should be flow, .*"road"'),
    "a remainder without magnitude": (
        lambda d: next(e for e in d["edges"] if e["kind"] == "remainder").pop("magnitude"),
        "edge .*: magnitude: is missing",
    ),
    "a number that is not finite": (lambda d: d["edges"][3].update(weight=float("nan")), "edge .*: weight: nan is not"),
    "an infinite number deep inside": (
        lambda d: d["graph"]["scores"]["whole"]["shares"].update(token=float("inf")),
        r"graph\.scores\.(whole|pruned)\.shares\.token: inf is not a finite number",
    ),
    "two nodes of one id": (lambda d: d["nodes"].append(d["nodes"][0]), 'two nodes have the id "token:0"'),
    "an edge from nowhere": (lambda d: d["edges"][0].update(source="token:99"), 'edge .*: there is no node "token:99"'),
    "an edge that is there twice": (lambda d: d["edges"].append(dict(d["edges"][0])), "edge .* is there twice"),
    "an edge downwards": (
        lambda d: d["edges"][0].update(source=d["edges"][0]["target"], target=d["edges"][0]["source"]),
        "edge .*: edges point upwards",
    ),
    "a remainder edge from a token": (
        lambda d: d["edges"][0].update(kind="remainder", magnitude=1.0),
        "a remainder edge cannot join a token",
    ),
    "an id that says something else": (
        lambda d: of_kind(d, "constant").update(layer=6),
        r'node "constant:5": its attributes make it "constant:6"',
    ),
    "a position outside the tokens": (
        lambda d: (d["graph"]["tokens"].pop(), d["graph"]["token_ids"].pop()),
        "pos is 5, and there are 5 tokens",
    ),
    "tokens without ids": (lambda d: d["graph"]["token_ids"].pop(), "5 token_ids for 6 tokens"),
    "a target that is not there": (
        lambda d: d["graph"]["target"][0].update(node="logit:1@1"),
        'graph.target: there is no node "logit:1@1"',
    ),
    "a group of what is not there": (
        lambda d: d["graph"]["groups"].append({"name": "g", "nodes": ["token:99"]}),
        'graph.groups: there is no node "token:99"',
    ),
    "groups that share a node": (
        lambda d: d["graph"]["groups"].extend({"name": name, "nodes": ["token:1"]} for name in "ab"),
        'graph.groups: node "token:1" is in more than one place',
    ),
    "inflow that does not add up": (
        lambda d: of_kind(d, "feature").update(pre_activation=1000.0),
        r'node "feature:.*": its inflow and constant add up to .*, and its pre_activation is 1000',
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line_that_says_where_and_what(mistake: str) -> None:
    document = deepcopy(document_of(sample_graph()))
    change, message = MISTAKES[mistake]
    change(document)
    assert re.search(message, refused(document))


def test_an_error_with_inflow_must_add_up_too() -> None:
    g = every_kind()
    g.nodes["error:11@2"]["constant"] = 50.0
    assert refused(document_of(g)).startswith('node "error:11@2": its inflow and constant add up to 49.75')


def test_an_error_with_inflow_must_have_a_pre_activation() -> None:
    g = every_kind()
    del g.nodes["error:11@2"]["pre_activation"]
    assert refused(document_of(g)) == 'node "error:11@2": pre_activation is missing'


def test_a_difference_within_a_thousandth_of_the_largest_number_is_rounding() -> None:
    g = sample_graph()
    name = g.graph["target"][0]["node"]
    largest = max(abs(edge["weight"]) for _, _, edge in g.in_edges(name, data=True))
    g.nodes[name]["pre_activation"] += 0.9e-3 * largest
    graph_of(document_of(g))


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, object(), float("inf"), {"a\ud800": 1}])
def test_a_value_that_json_cannot_hold_is_refused_on_the_way_out(value: Any) -> None:
    g = sample_graph()
    g.nodes["token:0"]["extra"] = value
    with pytest.raises(UserError, match=r'^node "token:0": extra.*[^\n]$'):
        document_of(g)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_whatever_stands_where_something_else_should_is_taken_or_refused(data: st.DataObject) -> None:
    document = deepcopy(document_of(every_kind()))
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not place[key] or not isinstance(place[key], dict | list) or data.draw(st.integers(0, 5)) == 0:
            break
        place = place[key]
    place[key] = data.draw(st.sampled_from(ODD))
    with suppress(UserError):
        graph_of(document)


ODD: list[Any] = [None, [], {}, 0, -1, 1.5, True, "x", "\ud800\n", [None], [[]], {"kind": "token"}, 10**400, "head"]


def test_the_json_schema_knows_every_kind_of_node_and_edge() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    document = document_of(every_kind())
    jsonschema.validate(document, schema)
    document["nodes"][0] = {**document["nodes"][0], "pos": "first"}
    assert not jsonschema.Draft202012Validator(schema).is_valid(document)


def test_ids_say_what_nodes_are() -> None:
    for name, node in every_kind().nodes(data=True):
        assert node_id(node) == name


def foreign() -> dict[str, Any]:
    """What somebody may take for a graph of ours."""
    half = sample_graph()
    half.graph.clear()
    strange = sample_graph()
    strange.add_node(7)
    bare = sample_graph()
    nx.set_node_attributes(bare, None, "influence")
    return {
        "an empty one": nx.DiGraph(),
        "a graph of somebody else's": nx.path_graph(3, create_using=nx.DiGraph),
        "one without its attributes": half,
        "one with a node that says nothing": strange,
        "one whose influences are gone": bare,
        "one of another type": nx.MultiDiGraph(sample_graph()),
        "none": None,
        "a path": "graph.json",
    }


USES: dict[str, Callable[[Any, Path], object]] = {
    "write_graph as json": lambda g, path: ds.write_graph(g, path / "g.json"),
    "write_graph as html": lambda g, path: ds.write_graph(g, path / "g.html"),
    "write_graph for circuit-tracer": lambda g, path: ds.write_graph(g, path, "circuit-tracer"),
    "plot_graph": lambda g, path: ds.plot_graph(g),
    "plot_verification": lambda g, path: ds.plot_verification(g),
    "diff_graphs": lambda g, path: ds.diff_graphs(sample_graph(), g),
    "prune": lambda g, path: ds.prune(g, node_threshold=0.5),
    "with_labels": lambda g, path: ds.with_labels(g, {"5/1": "x"}),
    "with_groups": lambda g, path: ds.with_groups(g, []),
    "group_automatically": lambda g, path: ds.group_automatically(g),
}


@pytest.mark.parametrize("what", foreign())
@pytest.mark.parametrize("use", USES)
def test_what_is_no_graph_of_ours_is_one_line_wherever_a_graph_is_taken(tmp_path: Path, use: str, what: str) -> None:
    with pytest.raises(UserError) as caught:
        USES[use](foreign()[what], tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_part_of_a_graph_can_be_written_and_drawn(tmp_path: Path) -> None:
    part = sample_graph().subgraph([name for name in sample_graph() if "@" in name])
    ds.write_graph(part, tmp_path / "part.html")
    ds.write_graph(part, tmp_path / "part.json")
    ds.plot_graph(part)
    with pytest.raises(UserError, match="add up to"):
        ds.read_graph(tmp_path / "part.json")


def test_a_graph_with_a_cycle_has_no_influence_and_says_so() -> None:
    g = sample_graph()
    g.add_edge("logit:17@5", "token:1", kind="flow", weight=1.0, effect=0.0)
    g.add_edge("token:1", "logit:17@5", kind="flow", weight=1.0, effect=0.0)
    with pytest.raises(UserError, match=r"^the graph has a cycle: edges should point upwards"):
        ds.prune(g, edge_threshold=0.5)
