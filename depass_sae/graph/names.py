"""What the nodes of a graph are called, by programs and by people: an id and a name are spelled here alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..view.words import MINUS, named, place, shown

if TYPE_CHECKING:
    import networkx as nx

KINDS = ("token", "feature", "error", "constant", "bias", "remainder", "head", "logit")
"""In the order in which legends have them."""


def node_id(node: Mapping[str, Any]) -> str:
    """The id that a node's attributes amount to."""
    match node["kind"]:
        case "token":
            return f"token:{node['pos']}" if node["layer"] == -1 else f"token:{node['layer']}@{node['pos']}"
        case "feature":
            return f"feature:{node['layer']}/{node['index']}@{node['pos']}"
        case "error":
            return f"error:{node['layer']}@{node['pos']}"
        case "logit":
            against = f"-{node['against']}" if "against" in node else ""
            return f"logit:{node['index']}{against}@{node['pos']}"
        case "head":
            return f"head:{node['layer']}.{node['index']}"
        case kind:
            return f"{kind}:{node['layer']}"


def name_of(g: nx.DiGraph, node: str) -> str:
    """A node as people write it: ``17/1208@6``, ``Paris (4)``, ``error 17@6``, ``logit ␣Rome``."""
    attributes = g.nodes[node]
    match attributes["kind"]:
        case "feature":
            return f"{attributes['layer']}/{attributes['index']}@{attributes['pos']}"
        case "token":
            layer = f", layer {attributes['layer']}" if attributes["layer"] >= 0 else ""
            return place(attributes["token"], attributes["pos"]) + layer
        case "logit":
            return f"logit {logit_token(attributes)}"
        case "constant" | "bias" | "remainder" if attributes["layer"] < 0:
            return f"{attributes['kind']} of the embeddings"
    return shown(node.replace(":", " ", 1))


def layer_name(g: nx.DiGraph, layer: int) -> str:
    return {-1: "embeddings", g.graph["n_layers"]: "logits"}.get(layer, f"layer {layer}")


def note_of(g: nx.DiGraph) -> str | None:
    """What has to be said of a graph, in words of its own; a file may have anything under that key."""
    note = g.graph.get("note")
    return note if isinstance(note, str) else None


def logit_token(node: Mapping[str, Any], minus: str = MINUS) -> str:
    """``␣Rome``, and of a difference of two ``␣Rome − ␣Paris``."""
    return named(node["token"]) + (f" {minus} {named(node['against_token'])}" if "against_token" in node else "")


# ------------------------------------------------------------------------------------------------------- other programs


def label_of(node: Mapping[str, Any]) -> str:
    """A node's label; where it has none, what it is: programs show nothing for an empty one."""
    return str(node["label"] or unlabelled(node))


def unlabelled(node: Mapping[str, Any]) -> str:
    """Files hold these, and lose them when they are read: they stay as they are."""
    kind, layer = node["kind"], node["layer"]
    match kind:
        case "feature":
            return f"{layer}/{node['index']} @{shown(node['token'])}"
        case "token":
            return f"token {shown(node['token'])}" + (f", layer {layer}" if layer >= 0 else "")
        case "logit":
            return f"output {logit_token(node, '-')}"
        case "error":
            return f"error {layer} @{shown(node['token'])}"
        case "head":
            return f"head {layer}.{node['index']}"
    return f"{kind} of the embeddings" if layer < 0 else f"{kind} {layer}"


def unique_name(node: Mapping[str, Any]) -> str:
    """A name that no other node of the graph has: what its id says, and a word to know it by."""
    text = shown(node["label"])
    if not text and node["kind"] in ("token", "logit"):
        text = logit_token(node, "-") if node["kind"] == "logit" else shown(node["token"])
    return f"{node_id(node).removeprefix('feature:').replace(':', ' ', 1)} {text}".rstrip()
