"""Influence is circuit tracing's (I − A)⁻¹ sum, and pruning by it loses nothing of the sums."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.graph.influence import influence, is_flow, scores, size
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


def test_scores_are_circuit_tracers() -> None:
    g = sample_graph()
    names, a, found = by_matrix(g)
    kinds = np.array([g.nodes[name]["kind"] for name in names])
    tokens, errors = found[kinds == "token"].sum(), found[kinds == "error"].sum()
    assert scores(g)["replacement"] == pytest.approx(tokens / (tokens + errors))
    explained = (1 - a[:, kinds == "error"].sum(1)) * found
    assert scores(g)["completeness"] == pytest.approx(explained.sum() / found.sum())
    assert sum(scores(g)["shares"].values()) == pytest.approx(1)


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
    assert set(small) <= {*g, "remainder:-1"}
    assert max_nodes is None or len(small) <= max_nodes
    assert all(target["node"] in small for target in g.graph["target"])
    assert all(small.out_degree(name) or small.nodes[name].get("target") for name in small) or edge_threshold is None


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
