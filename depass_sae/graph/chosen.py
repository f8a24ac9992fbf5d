"""A graph of features that somebody chose, each of them expanded; what else would be a node is in the remainders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..attribution.targets import FeatureTarget, Target
from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.settings import Settings
from ..subject import Subject
from .build import GraphSettings, build_graph
from .influence import influence, scores
from .prune import fold

if TYPE_CHECKING:
    import networkx as nx

ROOM = 100
"""Nodes beside the chosen ones: tokens, errors, and features that join the remainders."""


def graph_of(
    subject: Subject,
    prompt: Prompt,
    targets: Sequence[tuple[Target, int]],
    features: Sequence[tuple[Place, int, int]],
    hooks: Sequence[Place],
    settings: Settings,
) -> tuple[nx.DiGraph, list[str]]:
    """The graph of these targets, and the nodes of these features: (hook, index, position). hooks: of dictionaries.

    At every one of them Σ incoming weights + constant = pre-activation, as in any graph.
    """
    goals = [*targets, *((FeatureTarget(place, index), pos) for place, index, pos in features)]
    size = GraphSettings(max_nodes=len(goals) + ROOM + 3 * (len(hooks) + 1), edge_threshold=None)
    g = build_graph(subject, prompt, goals, layers=[str(hook) for hook in hooks], size=size, settings=settings)
    names = _names(g, features)
    return _alone(g, len(targets), names), names


def _names(g: nx.DiGraph, named: Sequence[tuple[Place, int, int]]) -> list[str]:
    """The nodes of features; a node says its hook where a layer has several SAEs."""
    known = {
        (node["layer"], node.get("hook"), node["index"], node["pos"]): name
        for name, node in g.nodes(data=True)
        if node["kind"] == "feature"
    }
    return [
        known.get((place.layer, None, index, pos)) or known[place.layer, place.hook, index, pos]
        for place, index, pos in named
    ]


def _alone(g: nx.DiGraph, count: int, members: Sequence[str]) -> nx.DiGraph:
    """The graph with the first so many targets alone, and these features alone; the others join the remainders."""
    targets = g.graph["target"][:count]
    whole = sum(target["weight"] for target in targets)
    kept = {*members, *(target["node"] for target in targets)}
    nodes = [name for name, node in g.nodes(data=True) if node["kind"] != "feature" or name in kept]
    g = fold(g, nodes, g.edges)
    g.graph["target"] = [target | {"weight": target["weight"] / whole} for target in targets]
    for name in set(members) - {target["node"] for target in targets}:
        g.nodes[name].pop("target", None)
    for name, value in influence(g).nodes.items():
        g.nodes[name]["influence"] = value
    g.graph["scores"] = dict.fromkeys(("whole", "pruned"), scores(g))
    return g
