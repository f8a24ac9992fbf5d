"""Supernodes: which features are put together, what they are called, and which groups are refused."""

from typing import Any

import networkx as nx
import pytest

from depass_sae.errors import UserError
from depass_sae.graph.document import document_of, graph_of
from depass_sae.graph.group import group_automatically, group_name, with_groups

from .sample import sample_graph


def features(*places: tuple[int, int, int]) -> nx.DiGraph:
    """Features (layer, index, pos) without edges, the first the most influential."""
    g = nx.DiGraph(**sample_graph().graph)
    numbers = {"activation": 1.0, "pre_activation": 1.0, "constant": 0.0}
    for i, (layer, index, pos) in enumerate(places):
        g.add_node(f"feature:{layer}/{index}@{pos}", kind="feature", layer=layer, index=index, pos=pos, label="",
                   token="", influence=1 / (i + 1), **numbers)  # fmt: skip
    return g


def wired(inputs: list[list[float]], outputs: list[list[float]], kind: str = "flow") -> nx.DiGraph:
    """Features 5/0, 5/1, … at position 1, with these weights from sources s0, s1, … and to targets t0, t1, …"""
    g = features(*((5, i, 1) for i in range(len(inputs))))
    for i, (coming, going) in enumerate(zip(inputs, outputs, strict=True)):
        for j, weight in enumerate(coming):
            g.add_node(f"s{j}", kind="token", layer=-1, pos=0, token="", label="", influence=0.0)
            g.add_edge(f"s{j}", f"feature:5/{i}@1", kind=kind, weight=weight, effect=0.0,
                       magnitude=abs(weight))  # fmt: skip
        for j, weight in enumerate(going):
            g.add_node(f"t{j}", kind="bias", layer=9, label="", influence=0.0)
            g.add_edge(f"feature:5/{i}@1", f"t{j}", kind="flow", weight=weight, effect=0.0)
    return g


def members(g: nx.DiGraph) -> list[list[str]]:
    return [group["nodes"] for group in group_automatically(g)]


def test_the_same_feature_at_neighbouring_positions_is_one_supernode() -> None:
    g = features((17, 1208, 5), (17, 1208, 6), (17, 1208, 7))
    assert group_automatically(g) == [{"name": "17/1208@5–7", "nodes": list(g)}]


def test_the_same_feature_further_apart_is_not_grouped() -> None:
    assert members(features((17, 1208, 5), (17, 1208, 7), (11, 1208, 6), (17, 9, 6))) == []


def test_features_wired_alike_are_one_supernode_whatever_the_signs_and_sizes() -> None:
    g = wired([[1, 2], [-2, -4.1], [2, -1]], [[1, 1], [3, 3], [1, 1]])
    assert members(g) == [["feature:5/0@1", "feature:5/1@1"]]


def test_features_alike_only_in_what_comes_in_are_not_grouped() -> None:
    assert members(wired([[1, 2], [1, 2]], [[1, 0.5], [1, -2]])) == []


def test_features_that_nothing_comes_into_or_goes_out_of_are_not_alike() -> None:
    assert members(wired([[1], [1]], [[], []])) == []
    assert members(wired([[], []], [[1], [1]])) == []


def test_what_was_pruned_makes_no_features_alike() -> None:
    assert members(wired([[1], [1]], [[1], [1]], kind="remainder")) == []


def test_groups_are_disjoint_and_the_same_for_nodes_in_any_order() -> None:
    g = sample_graph(per_level=30)
    turned = nx.DiGraph(**g.graph)
    turned.add_nodes_from(list(g.nodes(data=True))[::-1])
    turned.add_edges_from(list(g.edges(data=True))[::-1])
    found = members(g)
    assert sum(map(len, found)) == len({name for nodes in found for name in nodes})
    assert {frozenset(nodes) for nodes in found} == {frozenset(nodes) for nodes in members(turned)}


def test_a_supernode_is_named_by_its_most_influential_label() -> None:
    g = features((17, 1, 5), (17, 1, 6), (17, 1, 7))
    g.nodes["feature:17/1@7"]["label"] = "later"
    g.nodes["feature:17/1@6"]["label"] = "capitals"
    assert group_name(g, list(g)) == "capitals"


def test_a_supernode_without_labels_names_two_features_and_counts_the_others() -> None:
    assert group_name(*(2 * [features((17, 1, 5), (17, 2, 5), (17, 3, 5), (17, 1, 7))])) == "17/1@5,7, 17/2@5 + 1"


def test_a_graph_with_its_own_groups_is_a_document_and_the_first_is_left_as_it_was() -> None:
    g = sample_graph()
    pair = [name for name, node in g.nodes(data=True) if node["kind"] == "feature"][:2]
    grouped = with_groups(g, [{"name": "mine", "nodes": pair}])
    assert graph_of(document_of(grouped)).graph["groups"] == [{"name": "mine", "nodes": pair}]
    assert g.graph["groups"] == []


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"name": "a", "nodes": ["token:0", "nobody"]}], "there is no node 'nobody'"),
        ([{"name": "a", "nodes": ["token:0"]}, {"name": "b", "nodes": ["token:0"]}], "disjoint"),
        ([{"name": "a", "nodes": ["token:0", "token:0"]}], "disjoint"),
        ([{"name": "a", "nodes": []}], "at least one"),
        ([{"name": "a"}], "a name"),
        ([{"name": "a", "nodes": "token:0"}], "a list"),
        (["token:0"], "a list of mappings"),
    ],
)
def test_groups_that_do_not_fit_the_graph_are_refused_with_one_line(groups: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        with_groups(sample_graph(), groups)
    assert "\n" not in str(caught.value)
