"""The JSON document of a feature-flow graph: what it must hold, and the way between it and a networkx graph.

The layout is networkx's node-link form, so that ``networkx.node_link_graph(document, edges="links")`` reads it too;
``schema_version`` leads. What comes in is checked in three steps: every value is plain and finite; every node, edge and
graph attribute has the shape of its kind (pydantic); and the graph holds together: ids say what the nodes are, edges
point upwards between nodes that exist, groups are disjoint, and for every feature and logit node (and every error node
that has inflow) the weights of the incoming flow and remainder edges + constant = pre_activation. Keys beyond the known
ones are kept. Whatever is wrong is told in one line: where, and what.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import networkx as nx
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PlainValidator, ValidationError

from ..errors import UserError

SCHEMA_VERSION = 1
KIND = "feature-flow graph"
TESTED = ("feature", "error", "token", "head")
"""The kinds of nodes that a verification takes out."""
TOLERANCE = 1e-3
"""How far a node's inflow may be from its pre-activation, as a part of the largest number in the sum."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("should be a text")
    return value


# Not str: pydantic refuses lone surrogates, which byte-level tokenizers do produce.
Text = Annotated[Any, PlainValidator(_text, json_schema_input_type=str)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class SAE(_Part):
    layer: NonNegativeInt
    hook: Text
    release: Text | None = None
    id: Text | None = None
    neuronpedia_id: Text | None = None
    d_sae: NonNegativeInt
    explained_variance: float | None = None
    l0: float | None


class Target(_Part):
    node: Text
    name: Text
    weight: float


class Settings(_Part):
    max_nodes: NonNegativeInt
    node_threshold: float | None
    edge_threshold: float | None
    errors: Literal["roots", "through"]
    heads: bool


class Shares(_Part):
    token: float
    error: float
    constant: float
    bias: float
    remainder: float


class Score(_Part):
    replacement: float
    completeness: float
    shares: Shares


class Scores(_Part):
    whole: Score
    pruned: Score


class Group(_Part):
    name: Text
    nodes: list[Text]


class GraphAttributes(_Part):
    schema_version: Literal[1]
    model: Text
    saes: list[SAE]
    n_layers: NonNegativeInt
    prompt: Text
    tokens: list[Text]
    token_ids: list[NonNegativeInt]
    dtype: Text
    rule: Text
    temperature: float
    first_token: Text
    target: list[Target]
    settings: Settings
    scores: Scores
    groups: list[Group]
    verification: dict[str, Any] = Field(default_factory=dict)


class _Node(_Part):
    id: Text
    layer: Annotated[int, Field(ge=-1)]
    influence: Annotated[float, Field(ge=0)]
    label: Text


class _Placed(_Node):
    pos: NonNegativeInt
    token: Text


class TokenNode(_Placed):
    kind: Literal["token"]


class FeatureNode(_Placed):
    kind: Literal["feature"]
    index: NonNegativeInt
    activation: float
    pre_activation: float
    constant: float
    target: bool = False


class ErrorNode(_Placed):
    kind: Literal["error"]
    pre_activation: float = 0.0
    constant: float = 0.0


class LogitNode(_Placed):
    kind: Literal["logit"]
    index: NonNegativeInt
    activation: float
    pre_activation: float
    constant: float
    probability: Share = 0.0
    target: bool = False
    against: NonNegativeInt = 0
    against_token: Text = ""


class HeadNode(_Node):
    kind: Literal["head"]
    index: NonNegativeInt


class RestNode(_Node):
    """What belongs to a level as a whole: decoder constants, bias vectors, what was pruned."""

    kind: Literal["constant", "bias", "remainder"]


class _Edge(_Part):
    source: Text
    target: Text
    weight: float
    effect: float


class FlowEdge(_Edge):
    kind: Literal["flow", "head"]


class RemainderEdge(_Edge):
    kind: Literal["remainder"]
    magnitude: Annotated[float, Field(ge=0)]


Node = Annotated[
    TokenNode | FeatureNode | ErrorNode | LogitNode | HeadNode | RestNode,
    Field(discriminator="kind"),
]
Edge = Annotated[FlowEdge | RemainderEdge, Field(discriminator="kind")]


class Document(_Part):
    schema_version: Literal[1]
    kind: Literal["feature-flow graph"]
    directed: Literal[True]
    multigraph: Literal[False]
    graph: GraphAttributes
    nodes: list[Node]
    links: list[Edge]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the document. Ids, levels and sums are checked beyond it."""
    return Document.model_json_schema()


def document_of(g: nx.DiGraph) -> dict[str, Any]:
    """A graph as a node-link document.

    Raises UserError for a value that JSON cannot hold: a number that is NaN or infinite, a tensor, a tuple.
    """
    nodes = [{"id": name, **data} for name, data in g.nodes(data=True)]
    links = [{"source": source, "target": target, **data} for source, target, data in g.edges(data=True)]
    document = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "directed": True,
        "multigraph": False,
        "graph": dict(g.graph),
        "nodes": nodes,
        "links": links,
    }
    _check_plain(document)
    return document


def graph_of(document: Any) -> nx.DiGraph:
    """The graph that a document tells of, once it has passed every check. Raises UserError with one line."""
    _check_heading(document)
    _check_plain(document)
    try:
        values = _as_in(document, Document.model_validate(document).model_dump())
    except ValidationError as error:
        raise UserError(_first_mistake(error, document)) from None
    g = nx.DiGraph()
    g.graph.update(values["graph"])
    for node in values["nodes"]:
        name = node.pop("id")
        if name in g:
            raise UserError(f"two nodes have the id {quoted(name)}; ids must be unique")
        g.add_node(name, **node)
    for link in values["links"]:
        source, target = link.pop("source"), link.pop("target")
        for name in (source, target):
            if name not in g:
                raise UserError(f"{_edge(source, target)}: there is no node {quoted(name)}")
        if g.has_edge(source, target):
            raise UserError(f"{_edge(source, target)} is there twice")
        g.add_edge(source, target, **link)
    _check_whole(g)
    return g


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


def quoted(value: Any) -> str:
    """A value out of a file, for a message: printable and on one line, whatever it holds."""
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 80 else text[:79] + "…"


def _edge(source: Any, target: Any) -> str:
    return f"edge {quoted(source)} -> {quoted(target)}"


def _check_heading(document: Any) -> None:
    if not isinstance(document, dict):
        raise UserError(f"not a {KIND}: the document should be a JSON object")
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
        if value is None or isinstance(value, str | bool | int):
            continue
        if isinstance(value, float):
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
    if len(path) >= 2 and path[0] in ("nodes", "links") and isinstance(path[1], int):
        item = document[path[0]][path[1]]
        item = item if isinstance(item, dict) else {}
        if path[0] == "nodes":
            place = f"node {quoted(item['id'])}" if "id" in item else f"nodes[{path[1]}]"
        else:
            ends = "source" in item and "target" in item
            place = _edge(item["source"], item["target"]) if ends else f"links[{path[1]}]"
        path = path[2:]
    inside = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    return ": ".join(part for part in (place, inside) if part) or "the document"


def _first_mistake(error: ValidationError, document: dict[str, Any]) -> str:
    mistake = error.errors(include_url=False)[0]
    path, message = mistake["loc"], mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if path[0] in ("nodes", "links") and len(path) > 2:
        path = (*path[:2], *path[3:])  # pydantic puts the kind between the node and its attribute
    if mistake["type"] == "missing":
        message = "is missing"
    elif mistake["type"].startswith("union_tag"):
        found = mistake["input"].get("kind") if isinstance(mistake["input"], dict) else None
        kinds = "token, feature, error, constant, bias, remainder, logit or head"
        message = f"kind should be {kinds if path[0] == 'nodes' else 'flow, remainder or head'}, and is {quoted(found)}"
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
    n_tokens = len(g.graph["tokens"])
    if len(g.graph["token_ids"]) != n_tokens:
        raise UserError(f"graph: {len(g.graph['token_ids'])} token_ids for {n_tokens} tokens")
    for name, node in g.nodes(data=True):
        if name != node_id(node):
            raise UserError(f"node {quoted(name)}: its attributes make it {quoted(node_id(node))}")
        if node.get("pos", 0) >= n_tokens:
            raise UserError(f"node {quoted(name)}: pos is {node['pos']}, and there are {n_tokens} tokens")
    for source, target, edge in g.edges(data=True):
        _check_edge(g, source, target, edge["kind"])
    for name in g:
        _check_conservation(g, name)
    for target in g.graph["target"]:
        if target["node"] not in g:
            raise UserError(f"graph.target: there is no node {quoted(target['node'])}")
    grouped = Counter(name for group in g.graph["groups"] for name in group["nodes"])
    for name, times in grouped.items():
        if name not in g:
            raise UserError(f"graph.groups: there is no node {quoted(name)}")
        if times > 1:
            raise UserError(f"graph.groups: node {quoted(name)} is in more than one place; groups must be disjoint")


def _check_edge(g: nx.DiGraph, source: str, target: str, kind: str) -> None:
    below, above = g.nodes[source], g.nodes[target]
    fits = {
        "flow": not {"head", "remainder"} & {below["kind"], above["kind"]},
        "remainder": below["kind"] == "remainder",
        "head": "head" in (below["kind"], above["kind"]),
    }
    if not fits[kind]:
        raise UserError(f"{_edge(source, target)}: a {kind} edge cannot join a {below['kind']} and a {above['kind']}")
    # A head writes into the stream of its own layer.
    if below["layer"] > above["layer"] or (below["layer"] == above["layer"] and kind != "head"):
        raise UserError(f"{_edge(source, target)}: edges point upwards, from a lower layer to a higher one")


def _check_conservation(g: nx.DiGraph, name: str) -> None:
    node = g.nodes[name]
    inflow = [edge["weight"] for _, _, edge in g.in_edges(name, data=True) if edge["kind"] in ("flow", "remainder")]
    if node["kind"] not in ("feature", "logit") and not (node["kind"] == "error" and inflow):
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
