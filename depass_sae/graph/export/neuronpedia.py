"""Feature-flow graphs in the attribution-graph format that Neuronpedia's graph viewer takes as an upload.

What the viewer relies on beyond its JSON Schema, and this module keeps to:

- ``feature`` of a feature is the Cantor pairing of layer and index (``metadata.schema_version`` 1 says so); with
  ``scan`` and ``neuronpedia_source_set`` it leads to the feature's page, so the source set is named only where every
  SAE of the graph belongs to it.
- ``influence`` is cumulative: the part of all influence that this node and every stronger one have together. Its slider
  keeps the nodes up to a value, and logits whatever theirs. A feature that is a target is kept alike: it has 0, and its
  influence, of which its own worth is the most, is no part of the sum.
- A logit's ``clerp`` holds its token between double quotes and ``(p=...)``; both are parsed, so neither may occur in
  the token.
- The viewer needs a node at a numeric layer above 0.
- Its scores put the logits' probabilities on the last rows of a matrix whose rows are sorted by type, and types that it
  does not know come behind the logits: with a single ``bias`` node the scores are 0 and 1 whatever the graph. So, as in
  circuit-tracer, constants, bias vectors, what was pruned, and heads (a second view of the same flow) are left out;
  ``info.description`` tells their shares.
- ``qk_tracing_results`` lists what decided where the heads looked that a feature reads through, by queries and by keys,
  and its pairs where the graph was asked for them (``pairs``); every id in it is a node's.
- Optional keys are left out where there is nothing to say, never null.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from heapq import nlargest
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..._version import __version__
from ...errors import UserError
from ..document import document_of
from ..names import direction_name, label_of, logit_id

if TYPE_CHECKING:
    import networkx as nx

UPLOAD_LIMIT = 100 * 2**20
"""Bytes that Neuronpedia takes at most."""

FEATURE_TYPES = {
    "token": "embedding",
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "logit": "logit",
    "direction": "logit",
}
"""The node kinds that are written, by the viewer's names. `cross layer transcoder` is any SAE feature, `logit` whatever
is asked about that is none.
"""

LOOKED_AT = 10
"""So many queries, and keys, are listed at a feature."""

OUTPUTS = ("logit", "direction")
_NO_FEATURE = -1
_SOURCE = re.compile(r"(?P<model>[^/]+)/(?P<layer>\d+)-(?P<source_set>.+)")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_.-]+")


def cantor(layer: int, index: int) -> int:
    """One number for a feature: (layer + index)(layer + index + 1)/2 + index."""
    return (layer + index) * (layer + index + 1) // 2 + index


def from_cantor(number: int) -> tuple[int, int]:
    """Layer and index of a Cantor number."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - diagonal * (diagonal + 1) // 2
    return diagonal - index, index


def to_neuronpedia(g: nx.DiGraph, slug: str | None = None, scan: str | None = None) -> dict[str, Any]:
    """The graph as Neuronpedia's JSON document.

    ``slug`` names the graph on Neuronpedia (default: the prompt's beginning and a checksum), ``scan`` is Neuronpedia's
    id of the model, such as ``gemma-2-2b`` (default: the one that the SAEs name, else made from the model's name).
    Letters outside ``[a-zA-Z0-9_.-]`` become dashes in both.
    """
    document = document_of(g)
    model, source_set = _source(g)
    drawn = {name: node for name, node in g.nodes(data=True) if node["kind"] in FEATURE_TYPES}
    ids = {name: _id(g, node) for name, node in drawn.items()}
    targets = {target["node"] for target in g.graph["target"]}
    ranked = {
        name: node["influence"] for name, node in drawn.items() if node["kind"] not in OUTPUTS and name not in targets
    }
    influence = _cumulative(ranked) | {
        name: 0.0 for name in drawn if name in targets and drawn[name]["kind"] not in OUTPUTS
    }
    nodes = [
        _node(g, name, ids[name])
        | ({"influence": influence[name]} if name in influence else {})
        | _looked(g, name, ids)
        for name in drawn
    ]
    if not any(node["layer"].isdigit() and node["layer"] != "0" for node in nodes if node["feature_type"] != "logit"):
        nodes.append(_footing())
    return {
        "metadata": {
            "slug": _name(slug or _default_slug(document)),
            "scan": _name(scan or model or g.graph["model"].rstrip("/").rpartition("/")[2]),
            "prompt_tokens": [_clean(token) for token in g.graph["tokens"]],
            "prompt": _clean(g.graph["prompt"]),
            "schema_version": 1,
            "node_threshold": 1.0,  # the graph has been pruned already: the slider starts with all of it
            "info": {
                "description": _description(g),
                **({"neuronpedia_source_set": source_set} if source_set else {}),
                "generator": {"name": "depass-sae", "version": __version__},
            },
            "generation_settings": _known(
                {"max_feature_nodes": g.graph["settings"].get("max_nodes")}
                | {key: g.graph[key] for key in ("rule", "temperature", "first_token")}
            ),
            "pruning_settings": _known({key: g.graph["settings"].get(key) for key in _THRESHOLDS}),
        }
        | ({"feature_details": {"neuronpedia_source_set": source_set}} if source_set else {}),
        "qParams": _view(g, ids),
        "nodes": nodes,
        "links": [
            {"source": ids[source], "target": ids[target], "weight": edge["weight"]}
            for source, target, edge in g.edges(data=True)
            if edge["kind"] == "flow" and source in ids and target in ids
        ],
    }


def neuronpedia_text(g: nx.DiGraph) -> str:
    """The document as a text to upload. Raises UserError where Neuronpedia would refuse it for its size."""
    text = json.dumps(to_neuronpedia(g), allow_nan=False, separators=(",", ":"))
    if len(text) > UPLOAD_LIMIT:
        raise UserError(
            f"the Neuronpedia file would have {len(text) / 2**20:.0f} MiB and an upload may have "
            f"{UPLOAD_LIMIT / 2**20:.0f}: make the graph smaller (fewer nodes, or a lower edge threshold)"
        )
    return text


_THRESHOLDS = ("node_threshold", "edge_threshold")


def _id(g: nx.DiGraph, node: Mapping[str, Any]) -> str:
    """A node's id. Errors do not have circuit-tracer's `0_layer_pos`: a feature of layer 0 may have the same."""
    layer, pos = node["layer"], node["pos"]
    if "hook" in node:  # of several dictionaries in one layer
        layer = f"{layer}_{node['hook']}"
    match node["kind"]:
        case "feature":
            return f"{layer}_{node['index']}_{pos}"
        case "error":
            return f"{layer}_error_mlp_{pos}"
        case "logit":
            return f"{_logit_layer(g)}_{logit_id(node)}_{pos}"
        case "direction":
            return f"{_logit_layer(g)}_{layer}_{node['index']}_{pos}"
        case _:
            return f"E_{g.graph['token_ids'][pos]}_{pos}" if layer == -1 else f"{layer}_token_{pos}"


def _logit_layer(g: nx.DiGraph) -> str:
    return str(g.graph["n_layers"] + 1)


def _node(g: nx.DiGraph, name: str, node_id: str) -> dict[str, Any]:
    node = g.nodes[name]
    kind, layer, feature = node["kind"], str(node["layer"]), _NO_FEATURE
    if kind == "feature":
        feature = cantor(node["layer"], node["index"])
    elif kind in OUTPUTS:
        feature, layer = node["index"], _logit_layer(g)
    elif node["layer"] == -1:
        feature, layer = node["pos"], "E"
    probability = _probability(g, name) if kind in OUTPUTS else 0.0
    return {
        "node_id": node_id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": node["pos"],
        "feature_type": FEATURE_TYPES[kind],
        "token_prob": probability,
        "is_target_logit": kind in OUTPUTS and node.get("target", False),
        "jsNodeId": "-".join(node_id.rsplit("_", 1)),
        "clerp": _output(g, name, probability) if kind in OUTPUTS else _clean(label_of(node)),
    } | ({"activation": node["activation"]} if kind == "feature" else {})


def _looked(g: nx.DiGraph, name: str, ids: Mapping[str, str]) -> dict[str, Any]:
    """What did most by where heads looked, with its sign; nothing where the graph does not know."""

    def foremost(way: str) -> list[list[Any]]:
        found = [[ids[u], e[way]] for u, _, e in g.in_edges(name, data=True) if u in ids and e.get(way)]
        return nlargest(LOOKED_AT, found, key=lambda entry: (abs(entry[1]), entry[0]))

    queries, keys = foremost("query"), foremost("key")
    if not queries and not keys:
        return {}
    own = [pair for pair in g.graph.get("pairs", []) if pair["node"] == name]
    pairs = [[ids[p["query"]], ids[p["key"]], p["value"]] for p in own if p["query"] in ids and p["key"] in ids]
    marginal = {"top_q_marginal_contributors": queries, "top_k_marginal_contributors": keys}
    return {"qk_tracing_results": {"pair_wise_contributors": pairs, **marginal}}


def _footing() -> dict[str, Any]:
    """A node without edges at layer 1: the viewer shows no graph whose numeric layers are all 0."""
    return {
        "node_id": "1_error_mlp_0",
        "feature": _NO_FEATURE,
        "layer": "1",
        "ctx_idx": 0,
        "feature_type": FEATURE_TYPES["error"],
        "token_prob": 0.0,
        "is_target_logit": False,
        "jsNodeId": "1_error_mlp-0",
        "clerp": "error 1",
        "influence": 1.0,
    }


def _probability(g: nx.DiGraph, name: str) -> float:
    """A logit's probability; a difference of two has that of the one against the other."""
    node = g.nodes[name]
    if isinstance(node.get("against"), int):
        return 0.5 * (1 + math.tanh(node["activation"] / 2))
    weights = {target["node"]: target["weight"] for target in g.graph["target"]}
    return float(node.get("probability", weights.get(name, 0.0)))


def _output(g: nx.DiGraph, name: str, probability: float) -> str:
    """What the viewer shows of an output, and takes its token and its probability out of."""

    def legible(token: str) -> str:
        token = _clean(token).replace('"', "”").replace("(p=", "( p=")
        return "".join({"\n": "⏎", "\r": "↵", "\t": "→"}.get(char, char) for char in token)

    node = g.nodes[name]
    if node["kind"] == "direction":
        return f'Output "{legible(direction_name(g, name))}" (p={probability:.3f})'
    own = legible(node["token"]) + (f" + {legible(node['plus_token'])}" if "plus_token" in node else "")
    held = "against_token" in node and node["against"] not in ("mean", "softmax")
    against = f' - "{legible(node["against_token"])}"' if held else ""
    return f'Output "{own}"{against} (p={probability:.3f})'


def _cumulative(influence: Mapping[str, float]) -> dict[str, float]:
    """Of every node, the part of all influence that it and the stronger ones have: the strongest least, the last 1."""
    names = sorted(influence, key=lambda name: -influence[name])
    sums = list(accumulate(influence[name] for name in names))
    if not sums or sums[-1] <= 0:
        return {}
    return {name: value / sums[-1] for name, value in zip(names, sums, strict=True)}


def _view(g: nx.DiGraph, ids: Mapping[str, str]) -> dict[str, Any]:
    """What the viewer opens with: the targets, what the graph's page has pinned and the members of the groups pinned,
    the groups as supernodes.
    """
    groups = [
        [_clean(group["name"]), *(ids[name] for name in group["nodes"] if name in ids)] for group in g.graph["groups"]
    ]
    pinned = [ids[target["node"]] for target in g.graph["target"] if target["node"] in ids]
    pinned += [ids[name] for name in g.graph.get("view", {}).get("pins", []) if name in ids]
    pinned += [member for group in groups for member in group[1:]]
    return {
        "pinnedIds": list(dict.fromkeys(pinned)),
        "supernodes": [group for group in groups if len(group) > 1],
        "linkType": "both",
        "clickedId": pinned[0] if pinned else "",
        "sg_pos": "",
    }


def _source(g: nx.DiGraph) -> tuple[str | None, str | None]:
    """Neuronpedia's ids of the model and of the source set, as far as the SAEs agree on them."""
    sources = [(sae["layer"], _SOURCE.fullmatch(sae.get("neuronpedia_id") or "")) for sae in g.graph["saes"]]
    models = {source["model"] for _, source in sources if source}
    sets = {source["source_set"] if source and int(source["layer"]) == layer else None for layer, source in sources}
    model = models.pop() if len(models) == 1 else None
    return model, sets.pop() if model and len(sets) == 1 else None


def _description(g: nx.DiGraph) -> str:
    targets = ", ".join(_clean(target["name"]) for target in g.graph["target"])
    shares = ", ".join(f"{name} {share:.1%}" for name, share in g.graph["scores"]["pruned"]["shares"].items())
    scores = g.graph["scores"]["pruned"]
    differ = "so the scores that a viewer computes from what is drawn differ"
    if not any(node["kind"] in OUTPUTS for _, node in g.nodes(data=True)):
        differ += "; they count what reaches logits, and there are none here"
    return (
        f"Feature-flow graph of {_clean(g.graph['model'])} for {targets}. Replacement score "
        f"{scores['replacement']:.2f}, completeness score {scores['completeness']:.2f}. Where the target's influence "
        f"comes from: {shares}. Constants, biases and what was pruned (remainder) are not drawn, {differ}."
    )


def _default_slug(document: Mapping[str, Any]) -> str:
    """The prompt's beginning, for people, and a checksum of the graph, since a slug may be taken only once."""
    words = _NOT_IN_NAMES.sub("-", document["graph"]["prompt"])[:40].strip("-.").lower()
    return f"{words or 'graph'}-{zlib.crc32(json.dumps(document).encode()):08x}"


def _name(text: str) -> str:
    return _NOT_IN_NAMES.sub("-", text).strip("-") or "unknown"


def _clean(text: str) -> str:
    """Without what Neuronpedia's database cannot store: NUL and lone surrogates."""
    return re.sub("[\0\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
