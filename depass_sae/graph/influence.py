"""How much of a graph's target comes through each node, and how well the graph explains it.

As in circuit tracing (Ameisen et al. 2025): every node's inflow is taken by absolute value and normalised to sum to 1;
a node's influence is the sum of the products of these shares over all paths to the target, Σ_k Aᵏ = (I − A)⁻¹ − I,
weighted by what each target counts. A graph of cuts has no cycles, so one pass from the top gives it. What was pruned
stays in the normaliser (a remainder edge keeps its ``magnitude``); a node's own constant is no inflow and does not.

What matters only by where heads looked has no influence. How far a node reaches to the target is the same over shares
of all ways that the graph was grown by (ways.py); it says which nodes belong to the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError
from .ways import LOOKED, WAYS, Grow, shares

if TYPE_CHECKING:
    import networkx as nx

Edge = Mapping[str, Any]
ROOTS = ("token", "error", "constant", "bias", "remainder")
"""Kinds of node that nothing flows into: where influence ends."""


@dataclass(frozen=True)
class Influence:
    """nodes: each node's influence (targets: what they count for is included). edges: through each edge."""

    nodes: dict[str, float]
    edges: dict[tuple[str, str], float]


def influence(g: nx.DiGraph) -> Influence:
    """Of every node and edge; head edges, a second view of the same inflow, have none."""

    def flowing(inflow: Sequence[Edge]) -> list[float]:
        sizes = list(map(size, inflow))
        whole = sum(sizes)
        return [own / whole if whole else 0.0 for own in sizes]

    return _along(g, flowing)


def reach(g: nx.DiGraph) -> Influence:
    """Of every node and edge, by the ways that the graph was grown by."""
    import numpy as np

    by = grown_by(g)

    def by_any_way(inflow: Sequence[Edge]) -> list[float]:
        numbers = {"weight": np.array([size(edge) for edge in inflow])}
        numbers |= {way: np.array([edge.get(way, 0.0) for edge in inflow]) for way in WAYS[1:]}
        return shares(numbers, {way: float(np.abs(own).sum()) for way, own in numbers.items()}, by).tolist()

    return _along(g, by_any_way)


def through(g: nx.DiGraph, by: Literal["weight", "effect"] = "weight") -> dict[tuple[str, str], float]:
    """How much of the target comes through each edge: its share of its head's inflow, times the head's influence.

    By the influence that the nodes have, so that it holds for a part of a graph, too. What is done by where heads
    looked, and what a head carries, is taken as a share of the same inflow, of all of it at most. by: effect for shares
    of the effects on the head. Of two compared graphs it is the larger.
    """
    sides = ("_a", "_b") if "diff" in g.graph else ("",)
    of_each = [_through(g, by, side) for side in sides]
    return {edge: max(found[edge] for found in of_each) for edge in g.edges}


def _through(g: nx.DiGraph, by: Literal["weight", "effect"], side: str) -> dict[tuple[str, str], float]:
    def number(edge: Edge) -> float:
        if edge["kind"] in LOOKED:
            return abs(edge[edge["kind"]])
        if by == "weight" and edge["kind"] == "remainder":
            return size(edge)
        return abs(edge.get(by + side, 0.0))

    inflow: dict[str, float] = defaultdict(float)
    for _, head, edge in g.edges(data=True):
        inflow[head] += number(edge) if is_flow(edge) else 0.0
    return {
        (source, head): g.nodes[head].get(f"influence{side}", 0.0) * min(1.0, number(edge) / inflow[head])
        if inflow[head]
        else 0.0
        for source, head, edge in g.edges(data=True)
    }


def grown_by(g: nx.DiGraph) -> Grow:
    """By which ways; graphs of before there were several grew by what flows."""
    return g.graph["settings"].get("grow", "weight")


def _along(g: nx.DiGraph, share: Callable[[Sequence[Edge]], list[float]]) -> Influence:
    """From the targets down. share: of a node's inflow, which sums to 1 at most."""
    nodes: dict[str, float] = dict.fromkeys(g, 0.0)
    for target in g.graph["target"]:
        nodes[target["node"]] += target["weight"]
    edges = {}
    for node in downwards(g):
        inflow = {source: edge for source, edge in g.pred[node].items() if edge["kind"] != "head"}
        own = nodes[node]
        for source, part in zip(inflow, share(list(inflow.values())), strict=True):
            through = edges[source, node] = own * part
            nodes[source] += through
    return Influence(nodes, edges)


def scores(g: nx.DiGraph) -> dict[str, Any]:
    """circuit-tracer's two scores, and where the target's influence ends.

    replacement: of the influence that ends in tokens or errors, the share of tokens. completeness: the share of nodes'
    inflow that does not come from errors, each node weighted by its influence. shares: of every kind of root.
    """
    found, kinds = influence(g), dict(g.nodes(data="kind"))
    ends = dict.fromkeys(ROOTS, 0.0)
    explained = 0.0
    for name, node in g.nodes(data=True):
        inflow = {source: size(edge) for source, edge in g.pred[name].items() if is_flow(edge)}
        if node["kind"] in ends and not inflow:
            ends[node["kind"]] += found.nodes[name]
        whole = sum(inflow.values())
        errors = sum(own for source, own in inflow.items() if kinds[source] == "error")
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


def is_flow(edge: Edge) -> bool:
    """Whether an edge is part of what sums to its target."""
    return edge["kind"] in ("flow", "remainder")


def size(edge: Edge) -> float:
    """An edge's absolute weight; of a remainder, of everything that it stands for."""
    return float(edge["magnitude"] if "magnitude" in edge else abs(edge["weight"]))
