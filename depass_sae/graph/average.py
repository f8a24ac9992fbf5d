"""One question on many prompts as one graph: the mean of theirs, its spread, and on how many prompts a part is there.

In each prompt's graph all positions are laid onto one: a feature is the same wherever it fires, all tokens are one
node, and so are the errors of a dictionary; what goes between two such nodes is summed. Of these graphs the mean is
taken, one that does not have a node or an edge counting 0: what flows there is in its remainder. All of this is linear,
so that

    Σ incoming weights + constant = pre-activation          holds for the means as it does on each prompt

and the mean is a graph like others, to be pruned, compared, drawn and written. It has no prompt to be verified on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import typed
from ..errors import UserError
from .document import check_graph
from .influence import grown_by, influence, reach, scores
from .names import node_id
from .ways import LOOKED

if TYPE_CHECKING:
    import networkx as nx

ANYWHERE = "any position"
"""The one token of a mean."""
OF_NODES = ("activation", "pre_activation", "constant")
OF_EDGES = ("weight", "effect", "magnitude", *LOOKED)
SPREAD = ("activation", "weight", "effect")
"""Of these the standard deviation over the prompts stands beside the mean, with ``_sd`` behind."""
SAME = ("model", "n_layers", "dtype", "rule", "temperature", "first_token", "settings")
"""What is alike in all graphs of a mean."""
KINDS = ("flow", "remainder", "head", *LOOKED)
"""Of an edge that is of several kinds, the first."""


@typed
def average_graphs(graphs: Sequence[nx.DiGraph]) -> nx.DiGraph:
    """The mean of the graphs of several prompts.

    Nodes and edges have ``prompts``, on how many they are, and of more than one graph ``activation_sd``, ``weight_sd``
    and ``effect_sd`` (n − 1); the one position is 0, which stands for all. ``.graph["average"]`` names the prompts.

    Raises UserError for graphs of several models, dictionaries or settings.
    """
    import networkx as nx

    if not graphs:
        raise UserError("name the graphs to take the mean of")
    for g in graphs:
        check_graph(g)
        if {"average", "diff", "circuit"} & g.graph.keys():
            raise UserError("a mean is of graphs as lm.graph(...) makes them, not of means, differences or circuits")
    first, n = graphs[0], len(graphs)
    for g in graphs[1:]:
        if wrong := [key for key in SAME if g.graph.get(key) != first.graph.get(key)]:
            raise UserError(f"the graphs differ in {wrong[0]}; a mean is of one question on several prompts")
        if any(_dictionaries(first).get(at, sae) != sae for at, sae in _dictionaries(g).items()):
            raise UserError("the graphs stand on different SAEs; a mean is of graphs of the same")
    mean = nx.DiGraph()
    nodes: dict[str, _Counted] = {}
    edges: dict[tuple[str, str], _Counted] = {}
    worth: dict[str, float] = defaultdict(float)
    told: dict[str, dict[str, Any]] = {}
    for number, g in enumerate(graphs):
        names = {}
        for name, node in g.nodes(data=True):
            new = _anywhere(node)
            names[name] = node_id(new)
            if names[name] not in nodes:
                nodes[names[name]] = _Counted(new, n)
            nodes[names[name]].add(number, node, OF_NODES)
        for source, target, edge in g.edges(data=True):
            pair = names[source], names[target]
            if pair not in edges:
                edges[pair] = _Counted({"kind": edge["kind"]}, n)
            edges[pair].add(number, edge, OF_EDGES)
        for target in g.graph["target"]:
            told.setdefault(names[target["node"]], target)
            worth[names[target["node"]]] += target["weight"] / n
    mean.add_nodes_from((name, found.told() | {"influence": 0.0}) for name, found in nodes.items())
    mean.add_edges_from((*pair, found.told()) for pair, found in edges.items())
    mean.graph |= {
        key: value for key, value in first.graph.items() if key not in ("sufficiency", "verification", "note", "pairs")
    }
    mean.graph |= {
        "saes": _saes(graphs),
        "prompt": f"the mean over {n} prompt{'s' if n > 1 else ''}",
        "tokens": [ANYWHERE],
        "token_ids": [0],
        "target": [told[name] | {"node": name, "weight": weight} for name, weight in worth.items()],
        "groups": [],
        "average": {"prompts": [g.graph["prompt"] for g in graphs]},
    }
    for name, value in influence(mean).nodes.items():
        mean.nodes[name]["influence"] = value
    if grown_by(mean) != "weight":
        for name, value in reach(mean).nodes.items():
            mean.nodes[name]["reach"] = value
    mean.graph["scores"] = dict.fromkeys(("whole", "pruned"), scores(mean))
    return mean


class _Counted:
    """A node or an edge of the mean: what it is, and its numbers on every prompt."""

    def __init__(self, about: dict[str, Any], n: int) -> None:
        self.about, self.n = about, n
        self.numbers: dict[str, np.ndarray] = {}
        self.there = np.zeros(n, dtype=bool)

    def add(self, prompt: int, found: Mapping[str, Any], keys: Sequence[str]) -> None:
        self.there[prompt] = True
        for key in keys:
            if key in found:
                self.numbers.setdefault(key, np.zeros(self.n))[prompt] += found[key]
        if found.get("target"):
            self.about["target"] = True
        if found["kind"] in KINDS and KINDS.index(found["kind"]) < KINDS.index(self.about["kind"]):
            self.about["kind"] = found["kind"]

    def told(self) -> dict[str, Any]:
        found = self.about | {key: float(values.mean()) for key, values in self.numbers.items()}
        for key in SPREAD if self.n > 1 else ():
            if key in self.numbers:
                found[f"{key}_sd"] = float(self.numbers[key].std(ddof=1))
        return found | {"prompts": int(self.there.sum())}


def _anywhere(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node without what is one prompt's."""
    kept = ("kind", "layer", "hook", "index", "label", "against", "against_token", "plus", "plus_token")
    new = {key: node[key] for key in kept if key in node}
    if "pos" in node:
        new |= {"pos": 0, "token": node["token"] if node["kind"] == "logit" else ANYWHERE}
    return new


def _dictionaries(g: nx.DiGraph) -> dict[tuple[int, str], list[Any]]:
    return {
        (sae["layer"], sae["hook"]): [sae.get(key) for key in ("release", "id", "d_sae")] for sae in g.graph["saes"]
    }


def _saes(graphs: Sequence[nx.DiGraph]) -> list[dict[str, Any]]:
    """All dictionaries, with the mean of how well they fit."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for g in graphs:
        for sae in g.graph["saes"]:
            found[sae["layer"], sae["hook"]].append(sae)
    return [
        alike[0] | {key: _mean([sae[key] for sae in alike]) for key in ("explained_variance", "l0")}
        for _, alike in sorted(found.items())
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def stability_line(g: nx.DiGraph) -> str | None:
    """How many features most prompts share, of a mean."""
    if not g.graph.get("average"):
        return None
    n = len(g.graph["average"]["prompts"])
    counts = [node.get("prompts", 0) for _, node in g.nodes(data=True) if node["kind"] == "feature"]
    most, every = sum(count > n / 2 for count in counts), sum(count == n for count in counts)
    return f"the mean over {n} prompts: of {len(counts)} features {most} are on more than half of them, {every} on all"
