"""Influence is circuit tracing's (I − A)⁻¹ sum, and pruning by it loses nothing of the sums."""

from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.graph.diff import diff_graphs
from depass_sae.graph.influence import influence, is_flow, scores, size, through
from depass_sae.graph.prune import fold, prune

from .sample import sample_graph


def by_matrix(g: nx.DiGraph) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, the normalised matrix [target, source], and influence, the way circuit-tracer writes it."""
    names = list(g)
    a = np.zeros((len(names), len(names)))
    for source, target, edge in g.edges(data=True):
        if is_flow(edge):
            a[names.index(target), names.index(source)] = size(edge)
    a = a / np.maximum(a.sum(1, keepdims=True), 1e-30)
    weights = np.zeros(len(names))
    for target in g.graph["target"]:
        weights[names.index(target["node"])] = target["weight"]
    return names, a, weights @ np.linalg.inv(np.eye(len(names)) - a)


@given(st.integers(0, 50))
def test_influence_is_the_sum_over_all_powers_of_the_normalised_matrix(seed: int) -> None:
    g = sample_graph(seed=seed, per_level=4)
    names, a, expected = by_matrix(g)
    found = influence(g)
    assert [found.nodes[name] for name in names] == pytest.approx(expected.tolist())
    for (source, target), share in found.edges.items():
        assert share == pytest.approx(
            expected[names.index(target)] * a[names.index(target), names.index(source)], abs=1e-12
        )


@pytest.mark.parametrize("by", ["weight", "effect"])
def test_what_comes_through_an_edge_is_its_share_of_the_inflow_times_its_heads_influence(by: str) -> None:
    g = sample_graph(seed=4)
    found = through(g, by)
    assert set(found) == set(g.edges)
    for head in g:
        inflow = {a: e.get("magnitude", abs(e["weight"])) if by == "weight" else abs(e["effect"])
                  for a, _, e in g.in_edges(head, data=True)}  # fmt: skip
        for source, number in inflow.items():
            expected = g.nodes[head]["influence"] * number / sum(inflow.values())
            assert found[source, head] == pytest.approx(expected)


def test_through_edges_comes_what_influence_says_they_have() -> None:
    g = sample_graph(seed=5)
    exact = influence(g)
    for name, share in exact.nodes.items():
        g.nodes[name]["influence"] = share
    assert through(g) == pytest.approx(exact.edges)


def test_what_is_done_by_where_heads_looked_is_a_share_of_what_flows_of_all_at_most() -> None:
    g = sample_graph(n_logits=1)
    (target,) = (node["node"] for node in g.graph["target"])
    whole = sum(size(edge) for *_, edge in g.in_edges(target, data=True))
    for source, kind, number in (("token:0", "query", -0.25 * whole), ("token:1", "key", 3 * whole)):
        g.add_edge(source, target, kind=kind, weight=0.0, effect=0.0, **{kind: number})
    before, found = g.nodes[target]["influence"], through(g)
    assert found["token:0", target] == pytest.approx(0.25 * before)
    assert found["token:1", target] == pytest.approx(before)
    assert sum(found[e] for e in g.in_edges(target) if is_flow(g.edges[e])) == pytest.approx(before)


def test_of_two_compared_graphs_the_larger_comes_through() -> None:
    a, b = sample_graph(n_logits=1), sample_graph(n_logits=1)
    (target,) = (node["node"] for node in a.graph["target"])
    first, second = [source for source, _ in a.in_edges(target) if a.edges[source, target]["kind"] == "flow"][:2]
    b.edges[second, target]["weight"] *= 50
    d = diff_graphs(a, b)
    of_a, of_b, of_both = through(a), through(b), through(d)
    assert of_both[first, target] == pytest.approx(of_a[first, target])
    assert of_both[second, target] == pytest.approx(of_b[second, target])
    assert of_b[second, target] > of_a[second, target]


def test_scores_are_circuit_tracers() -> None:
    g = sample_graph()
    names, a, found = by_matrix(g)
    kinds = np.array([g.nodes[name]["kind"] for name in names])
    tokens, errors = found[kinds == "token"].sum(), found[kinds == "error"].sum()
    assert scores(g)["replacement"] == pytest.approx(tokens / (tokens + errors))
    explained = (1 - a[:, kinds == "error"].sum(1)) * found
    assert scores(g)["completeness"] == pytest.approx(explained.sum() / found.sum())
    assert sum(scores(g)["shares"].values()) == pytest.approx(1)


def test_influence_ends_in_what_nothing_flows_into() -> None:
    g = sample_graph()
    before = scores(g)
    errors = [name for name in g if name.startswith("error:11")]
    for name in errors[:2]:  # followed further upstream
        g.add_edge("token:0", name, kind="flow", weight=1.0, effect=0.0)
    names, a, found = by_matrix(g)
    ends = dict.fromkeys(("token", "error", "constant", "bias", "remainder"), 0.0)
    for name, row, value in zip(names, a, found, strict=True):
        if not row.any() and g.nodes[name]["kind"] in ends:
            ends[g.nodes[name]["kind"]] += value
    assert scores(g)["shares"] == pytest.approx({kind: value / sum(ends.values()) for kind, value in ends.items()})
    assert scores(g)["shares"]["error"] < before["shares"]["error"]
    assert scores(g)["replacement"] == pytest.approx(ends["token"] / (ends["token"] + ends["error"]))


def adds_up(g: nx.DiGraph) -> bool:
    return all(
        node["constant"] + sum(edge["weight"] for _, _, edge in g.in_edges(name, data=True) if is_flow(edge))
        == pytest.approx(node["pre_activation"])
        for name, node in g.nodes(data=True)
        if "pre_activation" in node
    )


@given(
    seed=st.integers(0, 30),
    node_threshold=st.none() | st.floats(0.05, 1),
    edge_threshold=st.none() | st.floats(0.05, 1),
    max_nodes=st.none() | st.integers(12, 60),
)
def test_whatever_is_pruned_the_sums_hold(seed, node_threshold, edge_threshold, max_nodes) -> None:
    g = sample_graph(seed=seed)
    small = prune(g, node_threshold=node_threshold, edge_threshold=edge_threshold, max_nodes=max_nodes)
    assert adds_up(small)
    assert all(inflow(small, name, value) == pytest.approx(inflow(g, name, value)) for name in small for value in SIZES)
    assert set(small) <= {*g, "remainder:-1"}
    assert max_nodes is None or len(small) <= max_nodes
    assert all(target["node"] in small for target in g.graph["target"])
    assert all(small.out_degree(name) or small.nodes[name].get("target") for name in small) or edge_threshold is None


SIZES = ("weight", "effect", "magnitude")


def inflow(g: nx.DiGraph, name: str, value: str) -> float:
    """What flows into a node in all, pruned or not; ``magnitude`` is its size."""
    edges = [edge for _, _, edge in g.in_edges(name, data=True) if is_flow(edge)]
    return sum(size(edge) if value == "magnitude" else edge[value] for edge in edges)


def fewest(values: dict[Any, float], share: float) -> set[Any]:
    """The largest that together have a share of the sum, none of which could be left out."""
    order = sorted(values, key=lambda name: -values[name])
    sums = np.cumsum([values[name] for name in order])
    return set(order[: int(np.searchsorted(sums, share * sums[-1])) + 1])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_threshold_keeps_the_fewest_that_have_the_share(share: float) -> None:
    g = sample_graph(per_level=20)
    found = influence(g)
    pruned = ("feature", "error", "token")
    nodes = {name: found.nodes[name] for name in g if g.nodes[name]["kind"] in pruned}
    kept = {name for name in prune(g, node_threshold=share) if g.nodes.get(name, {}).get("kind") in pruned}
    assert kept == fewest(nodes, share)
    edges = {edge: found.edges[edge] for edge in g.edges if g.edges[edge]["kind"] == "flow"}
    chosen, small = fewest(edges, share), prune(g, edge_threshold=share)
    left = {edge for edge in small.edges if small.edges[edge]["kind"] == "flow"}
    assert left <= chosen
    assert all(target not in small for _, target in chosen - left)  # they led to what leads nowhere any more
    assert len(left) > 3


def test_what_leads_nowhere_any_more_goes_heads_included() -> None:
    g = sample_graph()
    (top, *_) = (target["node"] for target in g.graph["target"])
    g.add_node("head:7.0", kind="head", layer=7, index=0, influence=0.0, label="")
    g.add_node("head:7.1", kind="head", layer=7, index=1, influence=0.0, label="")
    g.add_edge("head:7.0", top, kind="head", weight=1.0, effect=1.0)
    least = min((name for name in g if name.startswith("feature:11")), key=influence(g).nodes.__getitem__)
    g.add_edge("head:7.1", least, kind="head", weight=1.0, effect=1.0)
    for small in (prune(g, edge_threshold=0.3), prune(g, node_threshold=0.5)):
        assert least not in small
        assert "head:7.1" not in small
        assert small.edges["head:7.0", top] == g.edges["head:7.0", top]
    small = prune(g, edge_threshold=0.3)
    assert all(small.out_degree(name) or small.nodes[name].get("target") for name in small)


def test_pruning_keeps_the_most_influential_nodes() -> None:
    g = sample_graph(per_level=20)
    found = influence(g).nodes
    small = prune(g, max_nodes=25)
    candidates = [name for name in g if g.nodes[name]["kind"] in ("feature", "error", "token")]
    kept, gone = [n for n in candidates if n in small], [n for n in candidates if n not in small]
    assert kept
    assert min(found[name] for name in kept) >= max(found[name] for name in gone)


def test_influence_of_what_is_left_is_what_it_was_when_only_sources_go() -> None:
    """A remainder keeps the size of what it stands for, so that the others' shares do not grow."""
    g = sample_graph()
    gone = {name for name, node in g.nodes(data=True) if node["kind"] == "token" and node["layer"] < 0}
    small = fold(g, [name for name in g if name not in gone], [e for e in g.edges if not gone & set(e)])
    before, after = influence(g).nodes, influence(small).nodes
    assert all(after[name] == pytest.approx(before[name]) for name in small if name != "remainder:-1")


def test_groups_lose_the_members_that_are_pruned() -> None:
    g = sample_graph()
    features = [name for name in g if name.startswith("feature:5")]
    g.graph["groups"] = [{"name": "a", "nodes": features[:3]}, {"name": "b", "nodes": features[3:5]}]
    kept = [name for name in g if name not in features[2:5]]
    small = fold(g, kept, [edge for edge in g.edges if edge[0] in kept and edge[1] in kept])
    assert small.graph["groups"] == [{"name": "a", "nodes": features[:2]}]


def test_a_threshold_that_is_no_share_is_refused() -> None:
    with pytest.raises(UserError, match="node_threshold is a share"):
        prune(sample_graph(), node_threshold=0.0)
    with pytest.raises(UserError, match="max_nodes 1 is too few"):
        prune(sample_graph(), max_nodes=1)
