"""What the nodes of a graph are called, by programs and by people: an id and a name are spelled here alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..models.place import HOOKS
from ..view.words import MINUS, named, place, shown

if TYPE_CHECKING:
    import networkx as nx

KINDS = ("token", "feature", "error", "constant", "bias", "remainder", "head", "logit")
"""In the order in which legends have them."""


def level_of(node: Mapping[str, Any]) -> tuple[int, str]:
    """Where a node stands: its layer, and of several dictionaries in that layer the hook of its own."""
    return node["layer"], node.get("hook", "")


def level_order(level: tuple[int, str]) -> tuple[int, int]:
    """Levels in the order in which a model computes them."""
    layer, hook = level
    return layer, HOOKS.index(hook) if hook else 0


def level_text(node: Mapping[str, Any]) -> str:
    """``17``, or ``17.mlp_out`` where the layer has several dictionaries."""
    return ".".join(map(str, filter(str, level_of(node))))


def level_words(node: Mapping[str, Any]) -> str:
    """``layer 17``, ``layer 17, mlp_out``."""
    return "layer " + ", ".join(map(str, filter(str, level_of(node))))


def feature_text(node: Mapping[str, Any]) -> str:
    """``17/1208``: a feature, wherever it fires."""
    return f"{level_text(node)}/{node['index']}"


def node_id(node: Mapping[str, Any]) -> str:
    """The id that a node's attributes amount to."""
    match node["kind"]:
        case "token":
            return f"token:{node['pos']}" if node["layer"] == -1 else f"token:{level_text(node)}@{node['pos']}"
        case "feature":
            return f"feature:{feature_text(node)}@{node['pos']}"
        case "error":
            return f"error:{level_text(node)}@{node['pos']}"
        case "logit":
            against = f"-{node['against']}" if "against" in node else ""
            return f"logit:{node['index']}{against}@{node['pos']}"
        case "head":
            return f"head:{node['layer']}.{node['index']}"
        case kind:
            return f"{kind}:{level_text(node)}"


def name_of(g: nx.DiGraph, node: str) -> str:
    """A node as people write it: ``17/1208@6``, ``Paris (4)``, ``error 17@6``, ``logit ␣Rome``."""
    attributes = g.nodes[node]
    match attributes["kind"]:
        case "feature":
            return f"{feature_text(attributes)}@{attributes['pos']}"
        case "token":
            layer = f", {level_words(attributes)}" if attributes["layer"] >= 0 else ""
            return place(attributes["token"], attributes["pos"]) + layer
        case "logit":
            return f"logit {logit_token(attributes)}"
        case "constant" | "bias" | "remainder" if attributes["layer"] < 0:
            return f"{attributes['kind']} of the embeddings"
    return shown(node.replace(":", " ", 1))


def level_name(g: nx.DiGraph, level: tuple[int, str]) -> str:
    layer, hook = level
    return {-1: "embeddings", g.graph["n_layers"]: "logits"}.get(layer, level_words({"layer": layer, "hook": hook}))


def dictionary_of(g: nx.DiGraph, node: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the graph says of the dictionary at a node's level; None at the embeddings and the logits."""
    layer, hook = level_of(node)
    found = [sae for sae in g.graph["saes"] if sae["layer"] == layer and hook in ("", sae["hook"])]
    return found[0] if len(found) == 1 else None


def page_id(g: nx.DiGraph, node: Mapping[str, Any]) -> str | None:
    """Neuronpedia's id of the dictionary that a feature is of."""
    return (dictionary_of(g, node) or {}).get("neuronpedia_id")


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
            return f"{feature_text(node)} @{shown(node['token'])}"
        case "token":
            return f"token {shown(node['token'])}" + (f", {level_words(node)}" if layer >= 0 else "")
        case "logit":
            return f"output {logit_token(node, '-')}"
        case "error":
            return f"error {level_text(node)} @{shown(node['token'])}"
        case "head":
            return f"head {layer}.{node['index']}"
    return f"{kind} of the embeddings" if layer < 0 else f"{kind} {level_text(node)}"


def unique_name(node: Mapping[str, Any]) -> str:
    """A name that no other node of the graph has: what its id says, and a word to know it by."""
    text = shown(node["label"])
    if not text and node["kind"] in ("token", "logit"):
        text = logit_token(node, "-") if node["kind"] == "logit" else shown(node["token"])
    return f"{node_id(node).removeprefix('feature:').replace(':', ' ', 1)} {text}".rstrip()
