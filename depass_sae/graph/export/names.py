"""What other programs write beside a node: they show nothing where a label is empty, and some take a name as a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...attribution.render import named, shown
from ..document import node_id


def label_of(node: Mapping[str, Any]) -> str:
    """A node's label; where it has none, what it is: ``17/2601 @change``."""
    return str(node["label"] or unlabelled(node))


def unlabelled(node: Mapping[str, Any]) -> str:
    kind, layer = node["kind"], node["layer"]
    match kind:
        case "feature":
            return f"{layer}/{node['index']} @{shown(node['token'])}"
        case "token":
            return f"token {shown(node['token'])}" + (f", layer {layer}" if layer >= 0 else "")
        case "logit":
            return f"output {_token(node)}"
        case "error":
            return f"error {layer} @{shown(node['token'])}"
        case "head":
            return f"head {layer}.{node['index']}"
        case _:
            return f"{kind} of the embeddings" if layer < 0 else f"{kind} {layer}"


def unique_name(node: Mapping[str, Any]) -> str:
    """A name that no other node of the graph has: what its id says, and a word to know it by."""
    text = shown(node["label"]) or (_token(node) if node["kind"] in ("token", "logit") else "")
    return f"{node_id(node).removeprefix('feature:').replace(':', ' ', 1)} {text}".rstrip()


def _token(node: Mapping[str, Any]) -> str:
    if node["kind"] != "logit":
        return shown(node["token"])
    return named(node["token"]) + (f" - {named(node['against_token'])}" if "against_token" in node else "")
