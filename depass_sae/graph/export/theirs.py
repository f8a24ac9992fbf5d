"""Attribution graphs that Neuronpedia or circuit-tracer made, read as feature-flow graphs: to look at, compare, label.

What such a file has is taken over: nodes, activations, weights, labels, groups. What it leaves out is not made up:

- A feature's activation is its number; its inflow in the file rarely sums to that, since edges were pruned and biases
  are in no file. The difference arrives by one visible edge from a ``remainder`` node at the embeddings.
- A logit has no number in the file: it is what flows into it.
- Effects are 0, token ids 0 where no node tells them, a dictionary as wide as the largest index that is named.
- Influence is computed of the weights that are there.

``g.graph["read_from"]`` says whose the graph is: `verify_graph` refuses it, as nothing in it is known to be exact.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...texts import quoted
from ..document import KIND, SCHEMA_VERSION, graph_of
from ..influence import influence, scores
from ..names import node_id
from .neuronpedia import from_cantor

if TYPE_CHECKING:
    import networkx as nx

HOOKS = {
    "cross layer transcoder": "mlp_out",
    "mlp reconstruction error": "mlp_out",
    "lorsa": "attn_out",
    "lorsa error": "attn_out",
}
"""Where the dictionary of a node writes, by its feature type."""
REMAINDER = "remainder:-1"
_ID = re.compile(r"(\d{1,6})_(\d{1,9})_(\d{1,9})", re.ASCII)
_TOKEN = re.compile(r"E_(\d{1,9})_(\d{1,9})", re.ASCII)
_OUTPUT = re.compile(r'Output "(.*)" \(p=[\d.]+\)', re.DOTALL)


def is_theirs(document: Any) -> bool:
    """Whether a JSON document is laid out as Neuronpedia's and circuit-tracer's graphs are."""
    return isinstance(document, dict) and {"metadata", "nodes", "links"} <= document.keys() and "kind" not in document


def graph_of_theirs(document: Mapping[str, Any]) -> nx.DiGraph:
    """The graph of such a document. Raises UserError with one line for one that does not hold together."""
    try:
        return _graph(document)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"not an attribution graph as Neuronpedia and circuit-tracer write them ({said})") from None


def _graph(document: Mapping[str, Any]) -> nx.DiGraph:
    about, tokens = document["metadata"], [str(token) for token in document["metadata"]["prompt_tokens"]]
    listed = [node for node in document["nodes"] if node["feature_type"] in {*HOOKS, "embedding", "logit"}]
    paired = about.get("schema_version") == 1
    layers = {int(node["layer"]) for node in listed if node["feature_type"] != "logit" and node["layer"] != "E"}
    n_layers = max([0, *(layer + 1 for layer in layers)])
    several = len({_hook(node) for node in listed} - {None}) > 1
    nodes = {node["node_id"]: _node(node, tokens, n_layers, paired, several) for node in listed}
    if len(nodes) < len(listed):
        raise UserError("two nodes of the file have the same node_id")
    links = [link for link in document["links"] if link["source"] in nodes and link["target"] in nodes]
    edges = [
        {"source": nodes[link["source"]]["id"], "target": nodes[link["target"]]["id"], "kind": "flow",
         "weight": float(link["weight"]), "effect": 0.0}
        for link in links
    ]  # fmt: skip
    targets = _targets(listed, {link["source"] for link in links})
    g = graph_of(
        {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "directed": True,
            "multigraph": False,
            "graph": {
                "schema_version": SCHEMA_VERSION,
                "model": str(about["scan"]),
                "saes": _dictionaries(nodes.values()),
                "n_layers": n_layers,
                "prompt": str(about["prompt"]),
                "tokens": tokens,
                "token_ids": _token_ids(listed, len(tokens)),
                "dtype": "unknown",
                "rule": "of the file",
                "temperature": 0.0,
                "first_token": "skip",
                "target": [_target(nodes[name], weight) for name, weight in targets.items()],
                "settings": _settings(document, len(nodes)),
                "scores": dict.fromkeys(("whole", "pruned"), _NO_SCORES),
                "groups": _groups(document.get("qParams") or {}, nodes),
                "read_from": {"format": "neuronpedia", "slug": str(about.get("slug", "")), **_generator(about)},
            },
            **_summed(list(nodes.values()), edges),
        }
    )
    found = influence(g)
    for name, node in g.nodes(data=True):
        node["influence"] = node["reach"] = found.nodes[name]
    g.graph["scores"] = dict.fromkeys(("whole", "pruned"), scores(g))
    return g


_NO_SCORES = {
    "replacement": 0.0,
    "completeness": 0.0,
    "shares": dict.fromkeys(("token", "error", "constant", "bias", "remainder"), 0.0),
}
"""Until there is a graph to compute them of."""


def _hook(node: Mapping[str, Any]) -> str | None:
    return HOOKS.get(node["feature_type"])


def _node(node: Mapping[str, Any], tokens: list[str], n_layers: int, paired: bool, several: bool) -> dict[str, Any]:
    """A node with the attributes of ours; numbers come with the edges. paired: features are Cantor numbers."""
    pos, kind = int(node["ctx_idx"]), node["feature_type"]
    if not 0 <= pos < len(tokens):
        raise UserError(f"node {quoted(str(node['node_id']))}: ctx_idx is {pos}, and there are {len(tokens)} tokens")
    made: dict[str, Any] = {"pos": pos, "token": tokens[pos], "label": "", "influence": 0.0, "layer": -1}
    if kind == "embedding":
        made |= {"kind": "token", "layer": -1 if node["layer"] == "E" else int(node["layer"])}
    elif kind == "logit":
        said = _OUTPUT.fullmatch(str(node.get("clerp") or ""))
        made |= {
            "kind": "logit", "layer": n_layers, "index": _vocabulary(node), "token": said[1] if said else "",
            "probability": float(node.get("token_prob") or 0.0), "activation": None, "target": True,
        }  # fmt: skip
    elif kind.endswith("error"):
        made |= {"kind": "error", "layer": int(node["layer"])}
    else:
        layer, index = _feature(node, paired)
        made |= {
            "kind": "feature", "layer": layer, "index": index, "activation": node.get("activation"),
            "label": " ".join(str(node.get("clerp") or "").split()),
        }  # fmt: skip
    if several and made["kind"] not in ("token", "logit"):
        made["hook"] = HOOKS[kind]
    return {"id": node_id(made), **made}


def _feature(node: Mapping[str, Any], paired: bool) -> tuple[int, int]:
    """Layer and index of a feature: of its id, or of its Cantor number."""
    if parts := _ID.fullmatch(str(node["node_id"])):
        return int(parts[1]), int(parts[2])
    if paired:
        return from_cantor(int(node["feature"]))
    raise UserError(f"node {quoted(str(node['node_id']))}: which feature of which layer it is, is not said")


def _vocabulary(node: Mapping[str, Any]) -> int:
    parts = _ID.fullmatch(str(node["node_id"]))
    return int(parts[2]) if parts else int(node["feature"])


def _token_ids(listed: Iterable[Mapping[str, Any]], n_tokens: int) -> list[int]:
    ids = [0] * n_tokens
    for node in listed:
        if (parts := _TOKEN.fullmatch(str(node["node_id"]))) and int(parts[2]) < n_tokens:
            ids[int(parts[2])] = int(parts[1])
    return ids


def _dictionaries(nodes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    widths: dict[tuple[int, str], int] = defaultdict(int)
    for node in nodes:
        if node["kind"] != "logit" and node["layer"] >= 0:
            at = node["layer"], node.get("hook", "mlp_out")
            widths[at] = max(widths[at], node.get("index", 0) + 1)
    return [
        {"layer": layer, "hook": hook, "d_sae": width, "l0": None} for (layer, hook), width in sorted(widths.items())
    ]


def _targets(listed: list[Mapping[str, Any]], sources: set[str]) -> dict[str, float]:
    """The logits, by their probability; without any the features that flow nowhere, alike."""
    found = {
        node["node_id"]: float(node.get("token_prob") or 0.0) for node in listed if node["feature_type"] == "logit"
    }
    if not found:
        ends = [node["node_id"] for node in listed if node["feature_type"] in ("cross layer transcoder", "lorsa")]
        found = dict.fromkeys((name for name in ends if name not in sources), 1.0)
    if not found:
        raise UserError("the file has neither a logit nor a feature that nothing follows, so it is a graph of nothing")
    whole = sum(found.values())
    return {name: weight / whole if whole else 1 / len(found) for name, weight in found.items()}


def _target(node: Mapping[str, Any], weight: float) -> dict[str, Any]:
    name = f"logit {node['token']!r}" if node["kind"] == "logit" else node["id"].partition(":")[2]
    return {"node": node["id"], "name": name, "weight": weight}


def _settings(document: Mapping[str, Any], n_nodes: int) -> dict[str, Any]:
    pruned = document["metadata"].get("pruning_settings") or {}
    thresholds = {key: pruned.get(key) for key in ("node_threshold", "edge_threshold")}
    return {"max_nodes": n_nodes, **thresholds, "errors": "roots", "heads": False, "grow": "weight"}


def _groups(view: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The supernodes; a node that is in several stays in the first."""
    taken: set[str] = set()
    groups = []
    for name, *members in view.get("supernodes") or []:
        own = [nodes[member]["id"] for member in members if member in nodes and nodes[member]["id"] not in taken]
        taken |= set(own)
        groups += [{"name": str(name), "nodes": own}] if own else []
    return groups


def _generator(about: Mapping[str, Any]) -> dict[str, str]:
    made = (about.get("info") or {}).get("generator") or {}
    return {"generator": " ".join(str(made[key]) for key in ("name", "version") if key in made)} if made else {}


def _summed(nodes: list[dict[str, Any]], edges: list[dict[str, Any]]) -> dict[str, Any]:
    """Nodes and edges, with what the file leaves out of a feature's inflow as edges from the remainder."""
    inflow: dict[str, float] = defaultdict(float)
    for edge in edges:
        inflow[edge["target"]] += edge["weight"]
    left_out = []
    for node in nodes:
        if node["kind"] not in ("feature", "logit"):
            continue
        flows = inflow[node["id"]]
        node["activation"] = flows if node["activation"] is None else float(node["activation"])
        node |= {"pre_activation": node["activation"], "constant": 0.0}
        if missing := node["activation"] - flows:
            left_out.append(
                {"source": REMAINDER, "target": node["id"], "kind": "remainder", "weight": missing, "effect": 0.0,
                 "magnitude": abs(missing)}
            )  # fmt: skip
    rest = [{"id": REMAINDER, "kind": "remainder", "layer": -1, "label": "", "influence": 0.0}] if left_out else []
    return {"nodes": nodes + rest, "edges": edges + left_out}
