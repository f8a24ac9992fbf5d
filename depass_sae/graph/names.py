"""What the nodes of a graph are called, by programs and by people: an id and a name are spelled here alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..attribution.logits import STANDARD, LogitTarget
from ..models.place import HOOKS
from ..view.words import MINUS, named, place, shown, visible

if TYPE_CHECKING:
    import networkx as nx

KINDS = ("token", "feature", "error", "constant", "bias", "remainder", "head", "logit", "direction")
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
            return f"logit:{logit_id(node)}@{node['pos']}"
        case "direction":
            return f"direction:{feature_text(node)}@{node['pos']}"
        case "head":
            return f"head:{node['layer']}.{node['index']}"
        case kind:
            return f"{kind}:{level_text(node)}"


def logit_id(node: Mapping[str, Any]) -> str:
    """``5``, ``5+9`` for a sum; held to something ``5-7``, ``5-7,9``, ``5-mean``, ``5-softmax`` (a log-probability)."""
    plus = f"+{node['plus']}" if "plus" in node else ""
    return f"{node['index']}{plus}" + (f"-{node['against']}" if "against" in node else "")


def written_ids(tokens: Iterable[int]) -> str:
    """Several tokens in one attribute: ``7,9``."""
    return ",".join(map(str, tokens))


def read_ids(written: str) -> tuple[int, ...]:
    return tuple(map(int, written.split(",")))


def logit_target(node: Mapping[str, Any]) -> LogitTarget:
    """The target that a logit node is of."""
    against = node.get("against")
    if isinstance(against, str) and against not in STANDARD:
        against = read_ids(against)
    return LogitTarget(node["index"], against, more=read_ids(node["plus"]) if "plus" in node else ())


def name_of(g: nx.DiGraph, node: str) -> str:
    """A node as people write it: ``17/1208@6``, ``Paris (4)``, ``error 17@6``, ``logit ␣Rome``."""
    attributes = g.nodes[node]
    if g.graph.get("average") and "pos" in attributes and attributes["kind"] != "logit":
        return _anywhere(g, node)
    match attributes["kind"]:
        case "feature":
            return f"{feature_text(attributes)}@{attributes['pos']}"
        case "token":
            layer = f", {level_words(attributes)}" if attributes["layer"] >= 0 else ""
            return place(attributes["token"], attributes["pos"]) + layer
        case "logit":
            return f"{_of_logits(attributes)} {logit_token(attributes)}"
        case "direction":
            return f"{direction_name(g, node)} at {level_text(attributes)}@{attributes['pos']}"
        case "constant" | "bias" | "remainder" if attributes["layer"] < 0:
            return f"{attributes['kind']} of the embeddings"
    return shown(node.replace(":", " ", 1))


def _anywhere(g: nx.DiGraph, node: str) -> str:
    """A node of a mean over prompts, which has no position: ``17/1208``, ``tokens``, ``error 17``."""
    attributes = g.nodes[node]
    match attributes["kind"]:
        case "feature":
            return feature_text(attributes)
        case "token":
            return "tokens" + (f", {level_words(attributes)}" if attributes["layer"] >= 0 else "")
        case "direction":
            return f"{direction_name(g, node)} at {level_text(attributes)}"
    return f"{attributes['kind']} {level_text(attributes)}"


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
    if "against_token" not in node or node.get("against") == "softmax":
        return logit_tokens(node)
    return f"{logit_tokens(node)} {minus} {named(node['against_token'])}"


def logit_tokens(node: Mapping[str, Any]) -> str:
    """Whose logit it is, whatever it is held to: ``␣Rome``, ``␣Rome + ␣Paris``."""
    return named(node["token"]) + (f" + {visible(node['plus_token'])}" if "plus_token" in node else "")


def _of_logits(node: Mapping[str, Any]) -> str:
    return "log-probability" if node.get("against") == "softmax" else "logit"


def direction_name(g: nx.DiGraph, node: str) -> str:
    """What a direction was called when it was asked for."""
    return next((shown(target["name"]) for target in g.graph["target"] if target["node"] == node), "direction")


def target_names(g: nx.DiGraph) -> str:
    """All targets; what several logits are held to alike is said once."""
    targets = [target["node"] for target in g.graph["target"]]
    held = {g.nodes[name].get("against_token") for name in targets}
    alike = len(targets) > 1 and all(g.nodes[name].get("against") in ("mean",) for name in targets)
    if not alike:
        return ", ".join(name_of(g, name) for name in targets)
    (what,) = held
    return ", ".join(f"logit {logit_tokens(g.nodes[name])}" for name in targets) + f", each over {visible(what)}"


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
            return f"output {'' if _of_logits(node) == 'logit' else 'log-probability '}{logit_token(node, '-')}"
        case "direction":
            return f"direction {feature_text(node)} @{shown(node['token'])}"
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
