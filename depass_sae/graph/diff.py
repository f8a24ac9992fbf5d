"""What differs between two graphs: of one prompt under two rules, or of two prompts (a minimal pair).

Positions of the second prompt are laid onto the first's: one by one where both are of the same length, by the longest
common runs of tokens (difflib) where not, with equally long replaced runs one by one. Nodes that then have the same id
are the same node. A position of the second prompt that has no counterpart is added behind the first's tokens, its nodes
marked ``~b``.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from ..arguments import typed
from ..errors import UserError
from ..files import same_place
from .document import check_graph
from .names import node_id

if TYPE_CHECKING:
    import networkx as nx

NUMBERS = ("influence", "activation", "pre_activation", "constant")
"""What a node of both graphs has from each; b's with ``_b`` behind."""


@typed
def diff_graphs(a: nx.DiGraph, b: nx.DiGraph) -> nx.DiGraph:
    """The nodes and edges of both, each with ``diff``: both, only_a or only_b.

    Nodes: ``influence`` is the larger, ``influence_a`` and ``influence_b`` what each graph has; b's activation,
    pre_activation and constant have ``_b`` behind. Edges: ``weight`` and
    ``effect`` are a's, or b's where only b has the edge; with ``_a`` and ``_b`` what each has. Everything else is a's
    where a has it. Graph attributes are a's, ``tokens`` and ``token_ids`` with b's unaligned ones at the end, and
    ``diff``: ``{"a": name, "b": name}``. Raises UserError for graphs of two models or of two SAEs of one layer.
    """
    for g in (a, b):
        check_graph(g)
        if "diff" in g.graph:
            raise UserError("one of the graphs is itself a difference of two; compare two graphs of lm.graph(...)")
    _check_comparable(a, b)
    names, nodes, added = _laid_onto(a, b)
    d = a.copy()
    for _, node in d.nodes(data=True):
        node.update(diff="only_a", influence_a=node["influence"])
    for _, _, edge in d.edges(data=True):
        edge.update(diff="only_a", weight_a=edge["weight"], effect_a=edge["effect"])
    for name, node in nodes.items():
        if name in a:
            influence = max(d.nodes[name]["influence"], node["influence"])
            of_b = {f"{key}_b": node[key] for key in NUMBERS if key in node}
            d.nodes[name].update(diff="both", influence=influence, **of_b)
        else:
            d.add_node(name, **node, diff="only_b", influence_b=node["influence"])
    for source, target, edge in b.edges(data=True):
        pair, of_b = (names[source], names[target]), {"weight_b": edge["weight"], "effect_b": edge["effect"]}
        if a.has_edge(*pair):
            d.edges[pair].update(diff="both", **of_b)
        else:
            d.add_edge(*pair, **edge, diff="only_b", **of_b)
    d.graph.update(
        diff=_names(a, b),
        tokens=[*a.graph["tokens"], *(b.graph["tokens"][pos] for pos in added)],
        token_ids=[*a.graph["token_ids"], *(b.graph["token_ids"][pos] for pos in added)],
    )
    return d


def align(a: list[str], b: list[str]) -> dict[int, int]:
    """Positions of b's tokens to positions of a's; those without a counterpart are not in it."""
    if len(a) == len(b):
        return {pos: pos for pos in range(len(b))}
    found: dict[int, int] = {}
    for tag, start_a, end_a, start_b, end_b in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag in ("equal", "replace") and end_a - start_a == end_b - start_b:
            found.update(zip(range(start_b, end_b), range(start_a, end_a), strict=True))
    return found


def _laid_onto(a: nx.DiGraph, b: nx.DiGraph) -> tuple[dict[str, str], dict[str, dict[str, Any]], list[int]]:
    """b's ids to ids among a's positions, b's nodes by these, and b's positions to add to a's tokens."""
    aligned = align(a.graph["tokens"], b.graph["tokens"])
    added = [pos for pos in range(len(b.graph["tokens"])) if pos not in aligned]
    names, nodes = {}, {}
    for name, node in b.nodes(data=True):
        new = dict(node)
        if "pos" not in node:
            names[name] = name
        elif node["pos"] in aligned:
            new["pos"] = aligned[node["pos"]]
            names[name] = node_id(new)
        else:
            new["pos"] = len(a.graph["tokens"]) + added.index(node["pos"])
            names[name] = f"{name}~b"
        nodes[names[name]] = new
    return names, nodes, added


def _names(a: nx.DiGraph, b: nx.DiGraph) -> dict[str, str]:
    """What tells the two apart: rule, prompt, or both."""
    found: dict[str, list[str]] = {"a": [], "b": []}
    for part in (_rule, _first_token, _prompt):
        if part(a) != part(b):
            found["a"].append(part(a))
            found["b"].append(part(b))
    return {which: ", ".join(parts) or which for which, parts in found.items()}


def _rule(g: nx.DiGraph) -> str:
    temperature = f", T = {g.graph['temperature']:g}" if g.graph["rule"] == "softmax" else ""
    return f"rule {g.graph['rule']}{temperature}"


def _first_token(g: nx.DiGraph) -> str:
    return f"first token: {g.graph['first_token']}"


def _prompt(g: nx.DiGraph) -> str:
    return repr(g.graph["prompt"])


def _check_comparable(a: nx.DiGraph, b: nx.DiGraph) -> None:
    if not same_place(a.graph["model"], b.graph["model"]):
        raise UserError(
            f"the graphs are of two models, {a.graph['model']!r} and {b.graph['model']!r}; compare graphs of one model"
        )
    of_a, of_b = _identities(a), _identities(b)
    for layer in of_a.keys() & of_b.keys():
        if of_a[layer] != of_b[layer]:
            raise UserError(f"the graphs have two different SAEs at layer {layer}; compare graphs of the same SAEs")


def _identities(g: nx.DiGraph) -> dict[int, set[tuple[Any, ...]]]:
    """Of each layer's dictionaries."""
    found: dict[int, set[tuple[Any, ...]]] = {}
    for sae in g.graph["saes"]:
        identity = tuple(sae.get(key) for key in ("hook", "release", "id", "d_sae"))
        found.setdefault(sae["layer"], set()).add(identity)
    return found
