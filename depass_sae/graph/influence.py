"""How much of a graph's target comes through each node, and how well the graph explains it.

As in circuit tracing (Ameisen et al. 2025): every node's inflow is taken by absolute value and normalised to sum to 1;
a node's influence is the sum of the products of these shares over all paths to the target, Σ_k Aᵏ = (I − A)⁻¹ − I,
weighted by what each target counts. A graph of cuts has no cycles, so one pass from the top gives it. What was pruned
stays in the normaliser (a remainder edge keeps its ``magnitude``); a node's own constant is no inflow and does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    import networkx as nx

ROOTS = ("token", "error", "constant", "bias", "remainder")
"""Kinds of node that nothing flows into: where influence ends."""


@dataclass(frozen=True)
class Influence:
    """nodes: each node's influence (targets: what they count for is included). edges: through each flow edge."""

    nodes: dict[str, float]
    edges: dict[tuple[str, str], float]


def influence(g: nx.DiGraph) -> Influence:
    """Of every node and edge; head edges, a second view of the same inflow, have none."""
    nodes: dict[str, float] = dict.fromkeys(g, 0.0)
    for target in g.graph["target"]:
        nodes[target["node"]] += target["weight"]
    edges = {}
    for node in downwards(g):
        inflow = [(source, edge, size(edge)) for source, _, edge in g.in_edges(node, data=True) if is_flow(edge)]
        whole = sum(magnitude for _, _, magnitude in inflow)
        for source, _, magnitude in inflow:
            edges[source, node] = nodes[node] * magnitude / whole if whole else 0.0
            nodes[source] += edges[source, node]
    return Influence(nodes, edges)


def scores(g: nx.DiGraph) -> dict[str, Any]:
    """circuit-tracer's two scores, and where the target's influence ends.

    replacement: of the influence that ends in tokens or errors, the share of tokens. completeness: the share of nodes'
    inflow that does not come from errors, each node weighted by its influence. shares: of every kind of root.
    """
    found = influence(g)
    ends = dict.fromkeys(ROOTS, 0.0)
    explained = 0.0
    for name, node in g.nodes(data=True):
        inflow = [(source, edge) for source, _, edge in g.in_edges(name, data=True) if is_flow(edge)]
        if node["kind"] in ends and not inflow:
            ends[node["kind"]] += found.nodes[name]
        whole = sum(size(edge) for _, edge in inflow)
        errors = sum(size(edge) for source, edge in inflow if g.nodes[source]["kind"] == "error")
        explained += found.nodes[name] * (1 - errors / whole if whole else 1.0)
    whole = sum(ends.values())
    given = ends["token"] + ends["error"]
    return {
        "replacement": ends["token"] / given if given else 0.0,
        "completeness": explained / sum(found.nodes.values()),
        "shares": {kind: value / whole if whole else 0.0 for kind, value in ends.items()},
    }


def downwards(g: nx.DiGraph) -> list[str]:
    """The nodes, each after everything that it flows into. Raises UserError for a graph with a cycle."""
    import networkx as nx

    try:
        return list(nx.topological_sort(g))[::-1]
    except nx.NetworkXUnfeasible:
        raise UserError(
            "the graph has a cycle: edges should point upwards, from a lower layer to a higher one"
        ) from None


def is_flow(edge: dict[str, Any]) -> bool:
    """Whether an edge is part of what sums to its target."""
    return edge["kind"] != "head"


def size(edge: dict[str, Any]) -> float:
    """An edge's absolute weight; of a remainder, of everything that it stands for."""
    return float(edge.get("magnitude", abs(edge["weight"])))
