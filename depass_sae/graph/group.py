"""Supernodes: features that say the same thing, drawn as one.

Two relations make features one: being the same feature at neighbouring positions, and being wired alike, that is, at
the same layer with the weights that come in and the weights that go out both pointing the same or the opposite way
(|cosine| at least 0.9 over flow edges). A supernode is a connected component of these, as people group by hand in
circuit tracing (Ameisen et al. 2025); it is a proposal to look at, not a finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..arguments import typed
from ..errors import UserError
from .names import feature_text, level_of, level_order
from .prune import SUMMED, groups_within

if TYPE_CHECKING:
    import networkx as nx
    import numpy as np

ALIKE = 0.9
"""The least |cosine| of two features' weights, both ways."""
NAMED = 2
"""How many features a supernode without a label is named after."""


@typed
def group_automatically(g: nx.DiGraph) -> list[dict[str, Any]]:
    """Supernodes as ``{"name", "nodes"}``: disjoint, at least two members, members and groups in the graph's order."""
    import networkx as nx

    from .document import check_graph

    check_graph(g)
    alike = nx.Graph()
    features = [name for name, node in g.nodes(data=True) if node["kind"] == "feature"]
    alike.add_nodes_from(features)
    alike.add_edges_from(_neighbours(g, features))
    for level in sorted({level_of(g.nodes[name]) for name in features}, key=level_order):
        alike.add_edges_from(_wired_alike(g, [name for name in features if level_of(g.nodes[name]) == level]))
    order = {name: i for i, name in enumerate(features)}
    groups = [sorted(found, key=order.__getitem__) for found in nx.connected_components(alike) if len(found) > 1]
    return [
        {"name": group_name(g, nodes), "nodes": nodes} for nodes in sorted(groups, key=lambda group: order[group[0]])
    ]


@typed
def with_groups(g: nx.DiGraph, groups: Iterable[Mapping[str, Any]]) -> nx.DiGraph:
    """A copy with these supernodes instead of its own.

    groups: ``{"name", "nodes"}`` each. Raises UserError where one is not of that form or is empty, names a node that is
    not in the graph, or shares a node with another.
    """
    from .document import check_graph

    check_graph(g)
    checked = [_checked(group) for group in groups]
    for name, times in Counter(name for group in checked for name in group["nodes"]).items():
        if name not in g:
            raise UserError(f"groups: there is no node {name!r}")
        if times > 1:
            raise UserError(f"groups: node {name!r} is in more than one place; groups must be disjoint")
    copy = g.copy()
    copy.graph["groups"] = checked
    return copy


def merged(g: nx.DiGraph) -> nx.DiGraph:
    """A copy in which every supernode is one node of kind ``group``, where its most influential member stands.

    Its edges are the sums of its members'; those within it are gone. Members that stand at no position stay apart.
    """
    groups = groups_within(g.graph.get("groups", []), {name for name, node in g.nodes(data=True) if "pos" in node})
    stands = {name: f"group:{group['nodes'][0]}" for group in groups for name in group["nodes"]}
    small = g.__class__(**{**g.graph, "groups": []})
    for name, node in g.nodes(data=True):
        if name not in stands:
            small.add_node(name, **node)
    for group in groups:
        members = [g.nodes[name] for name in group["nodes"]]
        first = max(members, key=lambda node: node["influence"])
        place = {key: first[key] for key in ("layer", "hook", "pos", "token") if key in first}
        small.add_node(
            stands[group["nodes"][0]], kind="group", **place,
            label=group["name"], nodes=group["nodes"], influence=sum(node["influence"] for node in members),
            target=any(node.get("target") for node in members),
        )  # fmt: skip
    for source, target, edge in g.edges(data=True):
        ends = stands.get(source, source), stands.get(target, target)
        if small.has_edge(*ends):
            for key in {*SUMMED, "magnitude"} & edge.keys():
                small.edges[ends][key] = small.edges[ends].get(key, 0.0) + edge[key]
        elif ends[0] != ends[1]:
            small.add_edge(*ends, **edge)
    return small


def group_name(g: nx.DiGraph, nodes: Iterable[str]) -> str:
    """The most influential member's label; without labels what the members are: ``17/1208@5–6``."""
    order = sorted(nodes, key=lambda name: (-g.nodes[name]["influence"], name))
    for name in order:
        if g.nodes[name]["label"]:
            return str(g.nodes[name]["label"])
    positions: dict[str, list[int]] = {}
    for name in order:
        node = g.nodes[name]
        positions.setdefault(feature_text(node), []).append(node["pos"])
    names = [f"{feature}@{_spans(found)}" for feature, found in positions.items()]
    more = f" + {len(names) - NAMED}" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _spans(positions: Iterable[int]) -> str:
    """5, 6, 7 and 9 as ``5–7,9``."""
    spans: list[list[int]] = []
    for pos in sorted(positions):
        if spans and pos == spans[-1][1] + 1:
            spans[-1][1] = pos
        else:
            spans.append([pos, pos])
    return ",".join(f"{first}" if first == last else f"{first}–{last}" for first, last in spans)


def _neighbours(g: nx.DiGraph, features: Iterable[str]) -> list[tuple[str, str]]:
    """The same feature at one position and the next."""

    def key(name: str) -> tuple[tuple[int, int], int, int]:
        node = g.nodes[name]
        return level_order(level_of(node)), node["index"], node["pos"]

    pairs = pairwise(sorted(features, key=key))
    return [(a, b) for a, b in pairs if key(a)[:2] == key(b)[:2] and key(b)[2] == key(a)[2] + 1]


def _wired_alike(g: nx.DiGraph, features: list[str]) -> list[tuple[str, str]]:
    """Pairs of one level's features with flow edges both ways."""
    import numpy as np

    inputs = [{a: edge["weight"] for a, _, edge in g.in_edges(name, data=True) if _counts(edge)} for name in features]
    outputs = [{b: edge["weight"] for _, b, edge in g.out_edges(name, data=True) if _counts(edge)} for name in features]
    both = (_cosines(inputs) >= ALIKE) & (_cosines(outputs) >= ALIKE)
    return [(features[i], features[j]) for i, j in np.argwhere(np.triu(both, 1)).tolist()]


def _counts(edge: Mapping[str, Any]) -> bool:
    return bool(edge["kind"] == "flow" and edge["weight"])


def _cosines(vectors: list[dict[str, float]]) -> np.ndarray:
    """|cos| of all pairs of sparse vectors; of an empty one with any, 0."""
    import numpy as np

    column = {name: i for i, name in enumerate(dict.fromkeys(name for vector in vectors for name in vector))}
    dense = np.zeros((len(vectors), len(column)))
    for row, vector in zip(dense, vectors, strict=True):
        row[[column[name] for name in vector]] = list(vector.values())
    lengths = np.linalg.norm(dense, axis=1, keepdims=True)
    dense /= np.where(lengths > 0, lengths, 1.0)
    return np.abs(dense @ dense.T)


def _checked(group: Mapping[str, Any]) -> dict[str, Any]:
    whole = isinstance(group, Mapping) and {"name", "nodes"} <= set(group)
    if not whole or not isinstance(group["name"], str) or not isinstance(group["nodes"], list | tuple):
        raise UserError("groups: each should have a name (a text) and nodes (a list of node ids)")
    if not group["nodes"] or not all(isinstance(name, str) for name in group["nodes"]):
        raise UserError(f"groups: {group['name']!r} should have node ids, and at least one")
    return {**group, "nodes": list(group["nodes"])}
