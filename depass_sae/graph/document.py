"""The JSON document of a feature-flow graph: what it must hold, and the way between it and a networkx graph.

The layout is networkx's node-link form: ``networkx.node_link_graph(document)`` reads it too. ``schema_version`` leads;
it rises when a key goes or changes its meaning. Version 1 had the edges under ``links``, and is read as well.

What comes in is checked in three steps: every value is plain and finite; every node, edge and graph attribute has the
shape of its kind (pydantic); and the graph holds together: ids say what the nodes are, nodes stand at tokens and SAEs
that exist, edges point upwards between nodes that exist, targets are features, logits or directions, groups are
disjoint, and for every feature, logit and direction (and every error node that has inflow) the weights of the incoming
flow and remainder edges + constant = pre_activation. Keys beyond the known ones are kept. Whatever is wrong is told in
one line: where and what.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from ..arguments import NUMBER
from ..errors import UserError
from ..files import DEEPEST, TOO_DEEP
from ..models.place import HOOKS, Place
from ..texts import quoted
from .names import level_of, level_text, node_id
from .ways import LOOKED, Grow

if TYPE_CHECKING:
    import networkx as nx

SCHEMA_VERSION = 2
KIND = "feature-flow graph"
TESTED = ("feature", "error", "token", "head")
"""The kinds of nodes that a verification takes out."""
TARGETS = ("feature", "logit", "direction")
"""The kinds of nodes that a graph can be grown from."""
TOLERANCE = 1e-3
"""How far a node's inflow may be from its pre-activation, as a part of the largest number in the sum."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("should be a text")
    return value


# Not str: pydantic refuses lone surrogates, which byte-level tokenizers do produce.
Text = Annotated[Any, PlainValidator(_text, json_schema_input_type=str)]
_IDS = re.compile(rf"{NUMBER}(?:,{NUMBER})*")


def _ids(value: Any) -> str:
    """Tokens in one attribute, ``7,9``."""
    if not isinstance(value, str) or not _IDS.fullmatch(value) or max(map(int, value.split(","))) >= 2**31:
        raise ValueError("should be token ids, like 7,9")
    return value


def _against(value: Any) -> int | str:
    if type(value) is int and 0 <= value < 2**31:
        return value
    if isinstance(value, str) and value in ("mean", "softmax"):
        return value
    try:
        return _ids(value)
    except ValueError:
        raise ValueError("should be a token id, several like 7,9, mean or softmax") from None


Ids = Annotated[Any, PlainValidator(_ids, json_schema_input_type=str)]
Held = Annotated[Any, PlainValidator(_against, json_schema_input_type=int | str)]
"""What a logit is held to: a token, the mean of several, ``mean`` of all, or by ``softmax``: a log-probability."""
LARGEST = 3.4e38
"""What float32 holds: sums and products of numbers up to this stay finite."""
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Amount = Annotated[float, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**31)]


Hook = Literal[
    "resid_pre", "hook_z", "attn_out", "resid_mid", "ln2_normalized", "mlp_in", "mlp_out", "resid_post"
]  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class SAE(_Part):
    layer: Count
    hook: Hook
    release: Text | None = None
    id: Text | None = None
    neuronpedia_id: Text | None = None
    d_sae: Count
    explained_variance: Number | None = None
    l0: Number | None


class Target(_Part):
    """direction: its vector, where the target is one."""

    node: Text
    name: Text
    weight: Number
    direction: list[Number] = []


class Settings(_Part):
    max_nodes: Count
    node_threshold: Number | None
    edge_threshold: Number | None
    errors: Literal["roots", "through"]
    heads: bool
    grow: Grow = "weight"  # of before there were other ways
    pairs: Count = 0


class Shares(_Part):
    token: Number
    error: Number
    constant: Number
    bias: Number
    remainder: Number


class Score(_Part):
    replacement: Number
    completeness: Number
    shares: Shares


class Scores(_Part):
    whole: Score
    pruned: Score


class Group(_Part):
    name: Text
    nodes: list[Text]


class Pair(_Part):
    """What two nodes together did to a third by where heads looked: one as part of queries, one as part of keys."""

    node: Text
    query: Text
    key: Text
    value: Number


class Tested(_Part):
    node: Text
    weight: Number
    effect: Number
    observed: Number


class Agreement(_Part):
    weight: Number | None
    effect: Number | None


class Intervals(_Part):
    weight: list[Number] | None
    effect: list[Number] | None


class Interval(_Part):
    mean: Number
    low: Number
    high: Number


class LeftShares(_Part):
    """What is left of the whole target, of logits over the mean of all. Of random sets the mean and its interval."""

    only_graph: Number
    without_graph: Number
    only_random: Interval
    without_random: Interval
    no_features: Number
    all_features: Number
    all_without_errors: Number


class Together(_Part):
    """The same in the target's own unit, of random sets the mean. random_own: how many of their features are the
    graph's own, as a share. interval: of which kind. Older graphs have but the first seven, of random sets that were
    drawn of a dictionary's features at all positions.
    """

    features: Count
    active: Count
    draws: Count
    only_graph: Number
    without_graph: Number
    only_random: Number
    without_random: Number
    no_features: Number | None = None
    all_features: Number | None = None
    all_without_errors: Number | None = None
    random_own: Share | None = None
    interval: Text | None = None
    shares: LeftShares | None = None


class Sufficiency(_Part):
    """What is left of the target where only the graph's features are kept, and where none are."""

    features: Count
    active: Count
    share: Number
    no_features: Number


class Verification(_Part):
    target: Number
    seed: int
    replacements: Count
    nodes: list[Tested]
    rank_correlation: Agreement
    ranked: Count | None = None
    rank_interval: Intervals | None = None
    sign_agreement: Agreement
    together: Together


class Played(_Part):
    """What is left of a circuit's target. first: whether the answer stays so, where that is asked."""

    value: Number
    share: Number
    first: bool | None


class RandomSets(_Part):
    draws: Count
    kept: Interval
    removed: Interval
    loses_less: Share
    overlap: Share


class Sizes(_Part):
    """How many features each order needs for the same sufficiency."""

    circuit: Count
    prefix: Count
    effect: Count
    contribution: Count


class Stability(_Part):
    seed: int
    size: Count
    jaccard: Share


class ContrastPrompt(_Part):
    prompt: Text
    tokens: list[Text]
    token_ids: list[Count]


class CircuitSettings(_Part):
    errors: Literal["keep", "hold", "zero"]
    recompute: bool
    newcomers: Literal["remove", "keep"]
    others: Literal["zero", "contrast"]
    contrast: ContrastPrompt | None
    sufficient: Share
    necessary: Share
    unusual: Share
    seconds: Amount
    draws: Count
    seed: int


class Circuit(_Part):
    size: Count
    players: Count
    measure: Text
    target: Number
    baseline: Number
    answer: bool
    kept: Played
    removed: Played
    all_features: Played
    no_features: Played
    all_without_errors: Played
    sufficient: bool
    necessary: bool
    random: RandomSets
    sizes: Sizes
    minimal: bool
    stopped: Literal["minimal", "time"]
    seconds: Amount
    stability: Stability | None
    settings: CircuitSettings


class Context(_Part):
    """A piece of a text, and what a feature does at each of its tokens. pos: of the one where it is strongest."""

    pos: Count
    tokens: list[Text]
    activations: list[Number]


class FeatureContexts(_Part):
    """count: at how many of the corpus's tokens it fires."""

    count: Annotated[int, Field(ge=0, lt=2**63)]
    max: Number
    contexts: list[Context]


class Contexts(_Part):
    """Of a corpus of so many tokens. left_out: features for which there was no room. cards: the address of pages about
    features.
    """

    tokens: Annotated[int, Field(ge=0, lt=2**63)]
    left_out: Count
    features: dict[Text, FeatureContexts]
    cards: Annotated[str, Field(pattern=r"^https?://[^\s\"'<>?#]+$")] | None = None


class Average(_Part):
    prompts: Annotated[list[Text], Field(min_length=1)]
    silent: Count = 0  # prompts that were left out, since no target fires there


class View(_Part):
    """What a reader made of the graph's page: how much is drawn (all, or how many), by what, and what is pinned.

    path: the node that all ways which are drawn lead through.
    """

    nodes: Annotated[int, Field(ge=1, lt=2**31)] | Literal["all"] | None = None
    edges: Annotated[int, Field(ge=1, lt=2**31)] | Literal["all"] | None = None
    by: Literal["weight", "effect"] = "weight"
    heads: bool = True
    path: Text | None = None
    pins: list[Text] = []


class GraphAttributes(_Part):
    schema_version: Literal[2]
    model: Text
    saes: Annotated[list[SAE], Field(min_length=1)]
    n_layers: Count
    prompt: Text
    tokens: Annotated[list[Text], Field(min_length=1)]
    token_ids: list[Count]
    dtype: Text
    rule: Text
    temperature: Number
    first_token: Text
    target: Annotated[list[Target], Field(min_length=1)]
    settings: Settings
    scores: Scores
    groups: list[Group]
    sufficiency: Sufficiency | None = None
    verification: Verification | None = None
    circuit: Circuit | None = None
    contexts: Contexts | None = None
    average: Average | None = None
    view: View | None = None
    pairs: list[Pair] = []


class _Node(_Part):
    """hook: of its dictionary, only where its layer has several. reach: by all ways that the graph was grown by."""

    id: Text
    layer: Annotated[int, Field(ge=-1, lt=2**31)]
    hook: Hook = "resid_post"
    influence: Amount
    reach: Amount = 0.0
    label: Text
    prompts: Count = 0  # of a mean: on how many it is
    activation_sd: Amount = 0.0


class _Placed(_Node):
    pos: Count
    token: Text


class TokenNode(_Placed):
    kind: Literal["token"]


class FeatureNode(_Placed):
    kind: Literal["feature"]
    index: Count
    activation: Number
    pre_activation: Number
    constant: Number
    target: bool = False
    effect: Number = 0.0  # in a circuit, as what follows: shares of the whole target
    contribution: Number = 0.0
    needed: Number = 0.0


class ErrorNode(_Placed):
    kind: Literal["error"]
    pre_activation: Number = 0.0
    constant: Number = 0.0


class LogitNode(_Placed):
    kind: Literal["logit"]
    index: Count
    activation: Number
    pre_activation: Number
    constant: Number
    probability: Share = 0.0
    target: bool = False
    against: Held = 0
    against_token: Text = ""
    plus: Ids = ""
    plus_token: Text = ""


class DirectionNode(_Placed):
    """hook: where it is read, always said. index: its number among the graph's directions."""

    kind: Literal["direction"]
    index: Count
    activation: Number
    pre_activation: Number
    constant: Number
    target: bool = False


class HeadNode(_Node):
    kind: Literal["head"]
    index: Count


class RestNode(_Node):
    """What belongs to a level as a whole: decoder constants, bias vectors, what was pruned."""

    kind: Literal["constant", "bias", "remainder"]


class _Edge(_Part):
    source: Text
    target: Text
    weight: Number
    effect: Number
    prompts: Count = 0  # of a mean, as of nodes
    weight_sd: Amount = 0.0
    effect_sd: Amount = 0.0


class FlowEdge(_Edge):
    """query, key: what the source does by where heads looked; an edge of such a kind has no weight in the sum."""

    kind: Literal["flow", "head", "query", "key"]
    query: Number = 0.0
    key: Number = 0.0


class RemainderEdge(_Edge):
    kind: Literal["remainder"]
    magnitude: Amount


Node = Annotated[
    TokenNode | FeatureNode | ErrorNode | LogitNode | DirectionNode | HeadNode | RestNode,
    Field(discriminator="kind"),
]
Edge = Annotated[FlowEdge | RemainderEdge, Field(discriminator="kind")]


class Document(_Part):
    schema_version: Literal[2]
    kind: Literal["feature-flow graph"]
    directed: Literal[True]
    multigraph: Literal[False]
    graph: GraphAttributes
    nodes: Annotated[list[Node], Field(min_length=1)]
    edges: list[Edge]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the document. Ids, levels and sums are checked beyond it."""
    return Document.model_json_schema()


def document_of(g: nx.DiGraph) -> dict[str, Any]:
    """A graph as a node-link document.

    Raises UserError for a value that JSON cannot hold: a number that is NaN or infinite, a tensor, a tuple.
    """
    document = _told(g)
    _check_plain(document)
    return document


def _told(g: nx.DiGraph) -> dict[str, Any]:
    """The same, whatever its values are."""
    nodes = [{"id": name, **data} for name, data in g.nodes(data=True)]
    edges = [{"source": source, "target": target, **data} for source, target, data in g.edges(data=True)]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "directed": True,
        "multigraph": False,
        "graph": dict(g.graph),
        "nodes": nodes,
        "edges": edges,
    }


def graph_of(document: Any) -> nx.DiGraph:
    """The graph that a document tells of, once it has passed every check. Raises UserError with one line."""
    import networkx as nx

    values = _validated(document)
    g = nx.DiGraph()
    g.graph.update(values["graph"])
    for node in values["nodes"]:
        name = node.pop("id")
        if name in g:
            raise UserError(f"two nodes have the id {quoted(name)}; ids must be unique")
        g.add_node(name, **node)
    for edge in values["edges"]:
        source, target = edge.pop("source"), edge.pop("target")
        for name in (source, target):
            if name not in g:
                raise UserError(f"{_edge(source, target)}: there is no node {quoted(name)}")
        if g.has_edge(source, target):
            raise UserError(f"{_edge(source, target)} is there twice")
        g.add_edge(source, target, **edge)
    _check_whole(g)
    return g


def check_graph(g: Any, *, whole: bool = False) -> None:
    """Raises UserError with one line for what is no feature-flow graph.

    whole: it must hold together as one that is read from a file; else it may be a part of one, or a difference.
    """
    import networkx as nx

    if not isinstance(g, nx.DiGraph) or g.is_multigraph():
        raise UserError(
            f"a feature-flow graph is a networkx.DiGraph as lm.graph(...) makes it, not a {type(g).__name__}"
        )
    try:
        if whole:
            graph_of(_told(g))
        else:
            _validated(_told(g))
    except UserError as error:
        raise UserError(f"this is no feature-flow graph as lm.graph(...) makes it: {error}") from None


def _edge(source: Any, target: Any) -> str:
    return f"edge {quoted(source)} -> {quoted(target)}"


def _validated(document: Any) -> dict[str, Any]:
    """A document's values, every one of the shape of its kind."""
    if not isinstance(document, dict):
        raise UserError(f"not a {KIND}: the document should be a JSON object")
    _check_plain(document)
    document = _upgraded(document)
    _check_heading(document)
    try:
        values: dict[str, Any] = _as_in(document, Document.model_validate(document).model_dump())
    except ValidationError as error:
        raise UserError(_first_mistake(error, document)) from None
    return values


def _upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """A document of version 1 as one of this version."""
    if type(version := document.get("schema_version")) is not int or version != 1 or document.get("kind") != KIND:
        return document
    now = {("edges" if key == "links" else key): value for key, value in document.items()}
    if isinstance(graph := now.get("graph"), dict) and graph.get("schema_version") == 1:
        now["graph"] = graph | {"schema_version": SCHEMA_VERSION}
    return now | {"schema_version": SCHEMA_VERSION}


def _check_heading(document: dict[str, Any]) -> None:
    if {"metadata", "qParams"} <= document.keys():
        raise UserError(
            "this is a Neuronpedia graph, which leaves out what a graph needs to be read back; "
            "read the .json or .graphml file of the same graph"
        )
    kind, version = document.get("kind"), document.get("schema_version")
    if kind != KIND:
        found = "has no kind" if kind is None else f"is of kind {quoted(kind)}"
        raise UserError(f"not a {KIND}: the document {found}")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            f"schema_version is {quoted(version)}, and this version of depass-sae reads {SCHEMA_VERSION}; "
            "a newer depass-sae reads it"
        )
    if type(version) is not int or version != SCHEMA_VERSION:
        raise UserError(f"schema_version should be {SCHEMA_VERSION}, and is {quoted(version)}")


def _check_plain(document: dict[str, Any]) -> None:
    """Only what JSON holds exactly: text, whole and finite numbers, true, false, null, lists, objects named by text."""
    stack: list[tuple[Any, tuple[str | int, ...]]] = [(document, ())]
    while stack:
        value, path = stack.pop()
        if value is None or isinstance(value, str | bool):
            continue
        if len(path) > DEEPEST:
            raise UserError(f"{_where(path[:3], document)}: {TOO_DEEP}")
        if isinstance(value, int):
            if value.bit_length() > 1024:  # no float holds it, and Python writes no number of thousands of digits
                raise UserError(f"{_where(path, document)}: the number is too large")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise UserError(f"{_where(path, document)}: {value} is not a finite number")
        elif isinstance(value, list):
            stack += [(item, (*path, i)) for i, item in enumerate(value)]
        elif isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str) or not key.isprintable():
                    raise UserError(f"{_where(path, document)}: {quoted(key)} cannot be the name of an attribute")
                stack.append((item, (*path, key)))
        else:
            raise UserError(
                f"{_where(path, document)}: a {type(value).__name__} cannot be written; "
                "attributes are texts, numbers, true, false, lists and objects"
            )


def _where(path: tuple[str | int, ...], document: dict[str, Any]) -> str:
    """A place in the document, nodes and edges by their names."""
    place = ""
    if len(path) >= 2 and path[0] in ("nodes", "edges") and isinstance(path[1], int):
        item = document[path[0]][path[1]]
        item = item if isinstance(item, dict) else {}
        if path[0] == "nodes":
            place = f"node {quoted(item['id'])}" if "id" in item else f"nodes[{path[1]}]"
        else:
            ends = "source" in item and "target" in item
            place = _edge(item["source"], item["target"]) if ends else f"edges[{path[1]}]"
        path = path[2:]
    inside = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    return ": ".join(part for part in (place, inside) if part) or "the document"


def _first_mistake(error: ValidationError, document: dict[str, Any]) -> str:
    mistake = error.errors(include_url=False)[0]
    path, message = mistake["loc"], mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if path[0] in ("nodes", "edges") and len(path) > 2:
        path = (*path[:2], *path[3:])  # pydantic puts the kind between the node and its attribute
    if mistake["type"] == "missing":
        message = "is missing"
    elif mistake["type"] in ("less_than_equal", "greater_than_equal"):
        ((which, limit),) = mistake["ctx"].items()
        message = f"should be at {'most' if which == 'le' else 'least'} {limit:g}, and is {quoted(mistake['input'])}"
    elif mistake["type"].startswith("union_tag"):
        found = mistake["input"].get("kind") if isinstance(mistake["input"], dict) else None
        kinds = "token, feature, error, constant, bias, remainder, logit, direction or head"
        kinds = kinds if path[0] == "nodes" else "flow, remainder, head, query or key"
        message = f"kind should be {kinds}, and is {quoted(found)}"
    elif mistake["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "should be an object"
    elif isinstance(mistake["input"], str | int | float | None):
        message = f"{message}, and is {quoted(mistake['input'])}"
    return f"{_where(path, document)}: {message}"


def _as_in(raw: Any, checked: Any) -> Any:
    """The checked values (whole numbers made fractional where they should be) under the keys of the raw ones."""
    if isinstance(raw, dict):
        return {key: _as_in(value, checked[key]) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_as_in(*pair) for pair in zip(raw, checked, strict=True)]
    return checked


def _check_whole(g: nx.DiGraph) -> None:
    n_tokens, n_layers = len(g.graph["tokens"]), g.graph["n_layers"]
    if len(g.graph["token_ids"]) != n_tokens:
        raise UserError(f"graph: {len(g.graph['token_ids'])} token_ids for {n_tokens} tokens")
    hooks = _hooks(g.graph["saes"], n_layers)
    several = Counter(layer for layer, _ in hooks)
    levels = {
        (layer, hook if several[layer] > 1 else ""): Level(_place_order(layer, hook), d_sae)
        for (layer, hook), d_sae in hooks.items()
    }
    for name, node in g.nodes(data=True):
        if name != node_id(node):
            raise UserError(f"node {quoted(name)}: its attributes make it {quoted(node_id(node))}")
        if node.get("pos", 0) >= n_tokens:
            raise UserError(f"node {quoted(name)}: pos is {node['pos']}, and there are {n_tokens} tokens")
        _check_level(name, node, levels, n_layers)
    for source, target, edge in g.edges(data=True):
        _check_edge(g, source, target, edge["kind"], levels)
    for name in g:
        _check_conservation(g, name)
    for what, entries in (
        ("target", g.graph["target"]),
        ("verification", (g.graph.get("verification") or {}).get("nodes", [])),
    ):
        for entry in entries:
            if entry["node"] not in g:
                raise UserError(f"graph.{what}: there is no node {quoted(entry['node'])}")
    for pair in g.graph.get("pairs", []):
        for key in ("node", "query", "key"):
            if pair[key] not in g:
                raise UserError(f"graph.pairs: there is no node {quoted(pair[key])}")
    names = [target["node"] for target in g.graph["target"]]
    for name in names:
        if g.nodes[name]["kind"] not in TARGETS or names.count(name) > 1:
            wrong = "is there twice" if names.count(name) > 1 else f"is no {', '.join(TARGETS[:-1])} or {TARGETS[-1]}"
            raise UserError(f"graph.target: node {quoted(name)} {wrong}")
    for target in g.graph["target"]:
        if g.nodes[target["node"]]["kind"] == "direction" and not target.get("direction"):
            raise UserError(f"graph.target: the direction of node {quoted(target['node'])} is missing")
    grouped = Counter(name for group in g.graph["groups"] for name in group["nodes"])
    for name, times in grouped.items():
        if name not in g:
            raise UserError(f"graph.groups: there is no node {quoted(name)}")
        if times > 1:
            raise UserError(f"graph.groups: node {quoted(name)} is in more than one place; groups must be disjoint")


@dataclass(frozen=True)
class Level:
    """Where a dictionary of the graph reads, in the order of the model, and how many features it has."""

    order: tuple[int, int]
    d_sae: int


Levels = Mapping[tuple[int, str], Level]


def _hooks(saes: Sequence[Mapping[str, Any]], n_layers: int) -> dict[tuple[int, str], int]:
    """How many features the dictionary at each layer and hook has."""
    hooks: dict[tuple[int, str], int] = {}
    for sae in saes:
        layer, hook = sae["layer"], sae["hook"]
        if (layer, hook) in hooks:
            raise UserError(f"graph.saes: layer {layer} has two SAEs at {hook}")
        if layer >= n_layers:
            raise UserError(f"graph.saes: layer {layer} is none of the model's, which are 0 to {n_layers - 1}")
        hooks[layer, hook] = sae["d_sae"]
    return hooks


def _place_order(layer: int, hook: str) -> tuple[int, int]:
    """What a layer is handed stands where the one before has handed it on."""
    place = Place(layer, hook).as_post
    return place.layer, HOOKS.index(place.hook)


def _check_level(name: str, node: Mapping[str, Any], levels: Levels, n_layers: int) -> None:
    """A logit stands above all layers, a head or a direction in one of them, and all else at the embeddings or a
    dictionary.
    """
    kind, layer, level = node["kind"], node["layer"], level_of(node)
    there = {
        "logit": level == (n_layers, ""),
        "head": 0 <= layer < n_layers and "hook" not in node,
        "direction": 0 <= layer < n_layers and "hook" in node,
        "feature": level in levels,
        "error": level in levels,
    }
    if not there.get(kind, level in levels or level == (-1, "")):
        texts = [level_text({"layer": at, "hook": hook}) for at, hook in sorted(levels)]
        raise UserError(
            f"node {quoted(name)}: layer {level_text(node)} is none where a {kind} can stand: the graph's SAEs are at "
            f"{', '.join(texts)} of {n_layers} layers"
        )
    if kind == "feature" and node["index"] >= (d_sae := levels[level].d_sae):
        raise UserError(f"node {quoted(name)}: the SAE of layer {level_text(node)} has {d_sae} features")


def _order(node: Mapping[str, Any], levels: Levels) -> tuple[int, int]:
    """Where a node stands in the order of the model; a head where its output is."""
    if node["kind"] == "head":
        return node["layer"], HOOKS.index("hook_z")
    if node["kind"] == "direction":
        return _place_order(node["layer"], node["hook"])
    level = levels.get(level_of(node))
    return (node["layer"], 0) if level is None else level.order


def _check_edge(g: nx.DiGraph, source: str, target: str, kind: str, levels: Levels) -> None:
    below, above = g.nodes[source], g.nodes[target]
    single = not {"head", "remainder"} & {below["kind"], above["kind"]}
    fits = {
        **dict.fromkeys(("flow", *LOOKED), single),
        "remainder": below["kind"] == "remainder",
        "head": "head" in (below["kind"], above["kind"]),
    }
    if not fits[kind]:
        raise UserError(f"{_edge(source, target)}: a {kind} edge cannot join a {below['kind']} and a {above['kind']}")
    # A head writes into its own layer, for others than heads to read.
    writes = below["kind"] == "head" != above["kind"]
    low, high = _order(below, levels), _order(above, levels)
    if low > high or (low == high and not writes and above["kind"] != "direction") or below["kind"] == "direction":
        raise UserError(f"{_edge(source, target)}: edges point upwards, from a lower layer to a higher one")


def _check_conservation(g: nx.DiGraph, name: str) -> None:
    node = g.nodes[name]
    inflow = [edge["weight"] for _, _, edge in g.in_edges(name, data=True) if edge["kind"] in ("flow", "remainder")]
    if node["kind"] not in TARGETS and not (node["kind"] == "error" and inflow):
        return
    for key in ("pre_activation", "constant"):
        if key not in node:
            raise UserError(f"node {quoted(name)}: {key} is missing")
    parts = [*inflow, node["constant"]]
    total = math.fsum(parts)
    largest = max(abs(number) for number in (*parts, node["pre_activation"]))
    if abs(total - node["pre_activation"]) > TOLERANCE * largest:
        raise UserError(
            f"node {quoted(name)}: its inflow and constant add up to {total:.6g}, "
            f"and its pre_activation is {node['pre_activation']:.6g}"
        )
