"""As much of a graph as a page or a picture can show, the most influential; the rest is folded into the remainders.

So Σ incoming weights + constant = pre-activation holds for all that is shown. Targets and what stands for many nodes
are always kept. Edges of heads are a second view of the inflow and are cut without being added anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nlargest
from typing import TYPE_CHECKING

from .influence import through
from .prune import fold, remainder_of

if TYPE_CHECKING:
    import networkx as nx


def limited(g: nx.DiGraph, max_nodes: int, max_edges: int) -> nx.DiGraph:
    """At most so many nodes and edges; a limit below the number of targets and remainders is not reached.

    ``g`` is not changed; it is returned as it is where nothing is too much.
    """
    if g.number_of_nodes() <= max_nodes and g.number_of_edges() <= max_edges:
        return g
    always = {n for n, node in g.nodes(data=True) if node.get("target") or node["kind"] == "remainder"}
    remainders = {remainder_of(node) for n, node in g.nodes(data=True) if n not in always}
    nodes = always | set(_largest(g, set(g) - always, max_nodes - len(always | remainders)))
    share = through(g)
    small = fold(g, nodes, [edge for edge in share if edge[0] in nodes and edge[1] in nodes])
    if small.number_of_edges() > max_edges:
        inflows = sum(1 for n in small if small.in_degree(n))  # at most one remainder into each node that has inflow
        listed = [edge for edge in small.edges if small.edges[edge]["kind"] != "remainder"]
        kept = nlargest(max(0, max_edges - inflows), listed, key=lambda edge: (share[edge], edge))
        heads = {edge for edge in listed if small.edges[edge]["kind"] == "head"}
        small = fold(small, small, kept)
        small.remove_edges_from(heads.difference(kept))
    _weigh_remainders(small)
    return small


def foremost(g: nx.DiGraph, most: int) -> nx.DiGraph:
    """At most so many of the nodes that stand at a position, and of heads, which are a quarter of them at most."""
    at_place = {n for n, node in g.nodes(data=True) if "pos" in node and not node.get("target")}
    heads = {n for n, kind in g.nodes(data="kind") if kind == "head"}
    targets = {n for n, node in g.nodes(data=True) if node.get("target")}
    share = through(g)
    carried = {n: sum(share[edge] for edge in g.out_edges(n)) for n in heads}
    strongest = nlargest(most // 4, heads, key=lambda n: (carried[n], n))
    kept = set(g) - at_place - heads | set(strongest)
    kept |= set(_largest(g, at_place, most - len(targets) - len(strongest)))
    if len(kept) == len(g):
        return g
    small = fold(g, kept, [edge for edge in g.edges if edge[0] in kept and edge[1] in kept])
    _weigh_remainders(small)
    return small


def _largest(g: nx.DiGraph, names: Iterable[str], count: int) -> list[str]:
    return nlargest(max(0, count), names, key=lambda n: (max(g.nodes[n]["influence"], g.nodes[n].get("reach", 0.0)), n))


def _weigh_remainders(g: nx.DiGraph) -> None:
    share = through(g)
    for n, node in g.nodes(data=True):
        if node["kind"] == "remainder":
            node["influence"] = sum(share[edge] for edge in g.out_edges(n))
