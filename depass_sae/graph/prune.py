"""Making a graph smaller without losing anything of the sums: what is pruned arrives by a remainder edge.

Nodes go by how far they reach to the target, by the ways that the graph was grown by (of a graph that grew by what
flows: their influence), then edges by theirs, each down to the fewest that together keep a given share; what no path
leads on from goes, too. An edge that matters by where heads looked alone stays as one of kind ``query`` or ``key``, and
what flows along it is pruned. Targets, constants and biases stay. All choices are deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..arguments import typed
from ..errors import UserError
from .document import check_graph
from .influence import Influence, grown_by, influence, reach, scores, size
from .names import node_id
from .ways import LOOKED, mostly

if TYPE_CHECKING:
    import networkx as nx

ALWAYS = ("constant", "bias", "remainder", "head")
"""Kinds that stand for many and are not pruned."""


@typed
def prune(
    g: nx.DiGraph,
    *,
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
    max_nodes: int | None = None,
) -> nx.DiGraph:
    """A smaller copy in which Σ incoming weights + constant = pre-activation still holds at every node.

    node_threshold, edge_threshold: keep the fewest nodes (edges) that together have this share of all nodes' (edges')
    influence. max_nodes: keep at most so many, the most influential.
    ``scores["whole"]`` stays, ``scores["pruned"]`` is the copy's.
    """
    check_graph(g)
    check_thresholds(node_threshold, edge_threshold)
    return pruned(g, node_threshold, edge_threshold, max_nodes)


def pruned(
    g: nx.DiGraph, node_threshold: float | None, edge_threshold: float | None, max_nodes: int | None = None
) -> nx.DiGraph:
    """The same of a graph that nobody else has touched."""
    nodes = set(g)
    if node_threshold is not None or max_nodes is not None:
        nodes = _kept_nodes(g, node_threshold, max_nodes)
    small = fold(g, nodes, [edge[:2] for edge in g.edges if edge[0] in nodes and edge[1] in nodes])
    if edge_threshold is not None:
        flows = set(_largest(_listed(small, influence(small)), edge_threshold))
        reaches = [] if grown_by(small) == "weight" else _largest(_listed(small, reach(small)), edge_threshold)
        looked = {edge: kind for edge in reaches if (kind := mostly(small.edges[edge])) in LOOKED}
        small = _without_dead_ends(fold(small, small, flows.union(reaches) - (looked.keys() - flows), looked))
    if len(small) < len(g):
        small.graph.pop("sufficiency", None)  # which is of all features
    small.graph["scores"] = {**small.graph.get("scores", {"whole": scores(g)}), "pruned": scores(small)}
    return small


def check_thresholds(node_threshold: float | None, edge_threshold: float | None) -> None:
    """Raises UserError for one that is no share."""
    for name, threshold in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if threshold is not None and not 0 < threshold <= 1:
            raise UserError(f"{name} is a share, above 0 and at most 1, not {threshold}")


SUMMED = {"weight", "effect", "weight_a", "weight_b", "effect_a", "effect_b"}
"""What adds up in a remainder edge; a difference of two graphs has its numbers twice."""


def fold(
    g: nx.DiGraph,
    nodes: Collection[str],
    edges: Iterable[tuple[str, str]],
    looked: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> nx.DiGraph:
    """A copy with only these nodes and edges, the other inflow of every kept node in its remainder edge.

    looked: of other edges that stay, the kind by which they do: what flows along them is in the remainder as well.
    """
    nodes, kept = set(nodes), set(edges)
    small = g.__class__(**g.graph)
    small.add_nodes_from((name, dict(g.nodes[name])) for name in g if name in nodes)
    for source, target, edge in g.edges(data=True):
        if target not in nodes:
            continue
        pair, kind = (source, target), edge["kind"]
        if kind == "remainder" or (kind == "flow" and source not in nodes):
            _add_remainder(small, g.nodes[source], target, edge)
        elif source not in nodes:
            continue
        elif pair in kept or kind == "head":
            small.add_edge(source, target, **edge)
        elif pair in looked:
            flowing = {key: 0.0 for key in edge if key.startswith("weight")}
            small.add_edge(source, target, **{**edge, **flowing, "kind": looked[pair]})
            _add_remainder(small, g.nodes[source], target, {key: edge[key] for key in flowing})
        elif kind == "flow":
            _add_remainder(small, g.nodes[source], target, edge)
    for name in [name for name, node in small.nodes(data=True) if node["kind"] in ("remainder", "head")]:
        if not small.out_degree(name):
            small.remove_node(name)
    small.graph["groups"] = groups_within(g.graph.get("groups", []), small)
    if "pairs" in g.graph:
        small.graph["pairs"] = pairs_within(g.graph["pairs"], small)
    return small


def pairs_within(pairs: Iterable[dict[str, Any]], nodes: Collection[str]) -> list[dict[str, Any]]:
    """Pairs of which every node is left."""
    return [pair for pair in pairs if all(pair[key] in nodes for key in ("node", "query", "key"))]


def groups_within(groups: Iterable[dict[str, Any]], nodes: Collection[str]) -> list[dict[str, Any]]:
    """Supernodes with the members that are left; one alone is no group."""
    left = [{**group, "nodes": [name for name in group["nodes"] if name in nodes]} for group in groups]
    return [group for group in left if len(group["nodes"]) > 1]


def remainder_of(node: Mapping[str, Any]) -> str:
    """The id of what stands for all that is left out at a node's level."""
    return node_id({**node, "kind": "remainder"})


def _add_remainder(g: nx.DiGraph, source: Mapping[str, Any], target: str, edge: Mapping[str, Any]) -> None:
    name = remainder_of(source)
    if name not in g:
        level = {key: source[key] for key in ("layer", "hook") if key in source}
        g.add_node(name, kind="remainder", **level, influence=0.0, label="")
    if not g.has_edge(name, target):
        g.add_edge(name, target, kind="remainder", weight=0.0, effect=0.0, magnitude=0.0)
    total = g.edges[name, target]
    for key in SUMMED & edge.keys():
        total[key] = total.get(key, 0.0) + edge[key]
    total["magnitude"] += size(edge)


def _kept_nodes(g: nx.DiGraph, threshold: float | None, max_nodes: int | None) -> set[str]:
    found = reach(g).nodes
    fixed = {name for name, node in g.nodes(data=True) if node.get("target") or node["kind"] in ALWAYS}
    order = sorted((name for name in g if name not in fixed), key=lambda name: (-found[name], name))
    if threshold is not None:
        order = _largest({name: found[name] for name in order}, threshold)
    if max_nodes is not None:
        remainders = {remainder_of(node) for name, node in g.nodes(data=True) if name not in fixed}
        room = max_nodes - len(fixed | remainders)
        if room < 0:
            raise UserError(f"max_nodes {max_nodes} is too few: the targets and what stands for many nodes are "
                            f"{len(fixed | remainders)}")  # fmt: skip
        order = order[:room]
    return fixed | set(order)


def _listed(g: nx.DiGraph, found: Influence) -> dict[tuple[str, str], float]:
    """The edges that are pruned one by one."""
    return {edge: share for edge, share in found.edges.items() if g.edges[edge]["kind"] != "remainder"}


def _largest(values: dict[Any, float], threshold: float) -> list[Any]:
    """The fewest that together have a share of the sum."""
    order = sorted(values, key=lambda name: (-values[name], name))
    whole, so_far, kept = math.fsum(values.values()), 0.0, []
    for name in order:
        if so_far >= threshold * whole and threshold < 1:
            break
        kept.append(name)
        so_far += values[name]
    return kept


def _without_dead_ends(g: nx.DiGraph) -> nx.DiGraph:
    """Without the nodes that lead nowhere any more; of a feature that nothing is left of below, the remainder is."""
    while True:
        dead = {name for name, node in g.nodes(data=True) if not g.out_degree(name) and not node.get("target")}
        if not dead:
            return g
        alive = [name for name in g if name not in dead]
        g = fold(g, alive, [(a, b) for a, b in g.edges if b not in dead])
