"""Feature-flow graphs as GraphML, which Gephi, Cytoscape, yEd and networkx open.

Every attribute is one typed key per scope (int, long, double, boolean, string). Lists and objects are JSON strings;
their keys say so in ``<desc>``. XML cannot hold control characters or lone surrogates, and its readers turn a carriage
return into a newline: in texts such a character is written as a backslash, u and four hex digits, and so is a backslash
that would otherwise read as the start of one, which makes the way back exact. A node without a label gets one that says
what it is, and each a readable ``name`` that no other has (the column that Cytoscape shows, igraph's key); both are
dropped on reading.

A GraphML file may come from anywhere: a document type declaration, and with it every entity, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree
from xml.parsers import expat

from ...errors import UserError
from ...files import parse_json
from ...texts import quoted
from ..document import KIND, GraphAttributes, Text, document_of, graph_of
from ..names import label_of, unique_name, unlabelled

if TYPE_CHECKING:
    import networkx as nx

NAMESPACE = "http://graphml.graphdrawing.org/xmlns"
JSON = "JSON"

_SPECIAL = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\\\\(?=u[0-9a-fA-F]{4})")
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_CONTAINERS = {
    name for name, field in GraphAttributes.model_fields.items() if field.annotation not in (Text, Any, int, float)
} - {"schema_version", "n_layers"}


def escape(text: str) -> str:
    """A text with every character that XML cannot hold written as ``\\uXXXX``; `unescape` is its inverse."""
    return _SPECIAL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


def to_graphml(g: nx.DiGraph) -> str:
    """A graph as a GraphML text. Raises UserError for a value that JSON cannot hold either."""
    document = document_of(g)
    nodes, edges = document["nodes"], document["edges"]
    for node in nodes:
        node.setdefault("name", unique_name(node))
        node["label"] = label_of(node)
    root = ElementTree.Element("graphml", xmlns=NAMESPACE)
    scopes = {
        "graph": _Keys(root, "graph", [document["graph"]]),
        "node": _Keys(root, "node", nodes, skip=("id",)),
        "edge": _Keys(root, "edge", edges, skip=("source", "target")),
    }
    graph = ElementTree.SubElement(root, "graph", edgedefault="directed")
    scopes["graph"].write(graph, document["graph"])
    for node in nodes:
        scopes["node"].write(ElementTree.SubElement(graph, "node", id=escape(node["id"])), node)
    for edge in edges:
        ends = {"source": escape(edge["source"]), "target": escape(edge["target"])}
        scopes["edge"].write(ElementTree.SubElement(graph, "edge", ends), edge)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def from_graphml(text: str) -> nx.DiGraph:
    """The graph of a GraphML text. Raises UserError with one line for one that is broken or does not hold together."""
    root = _parse_xml(text)
    graphs = root.findall("graph")
    if root.tag != "graphml" or len(graphs) != 1:
        raise UserError(f"not a {KIND}: a GraphML file holds one <graphml> with one <graph>")
    (graph,) = graphs
    readers = {key.get("id", ""): _Reader(key) for key in root.findall("key")}
    attributes = _data(graph, readers)
    nodes = [{"id": unescape(node.get("id", "")), **_data(node, readers)} for node in graph.findall("node")]
    g = graph_of(
        {
            "schema_version": attributes.get("schema_version"),
            "kind": KIND,
            "directed": graph.get("edgedefault") == "directed",
            "multigraph": False,
            "graph": attributes,
            "nodes": nodes,
            "edges": [
                {end: unescape(edge.get(end, "")) for end in ("source", "target")} | _data(edge, readers)
                for edge in graph.findall("edge")
            ],
        }
    )
    for _, node in g.nodes(data=True):
        if node["label"] == unlabelled(node):
            node["label"] = ""
        if "name" in node and (attributes["schema_version"] == 1 or node["name"] == unique_name(node)):
            del node["name"]  # version 1 had other names
    return g


class _Keys:
    """The <key> elements of one scope (graph, node or edge): one type per attribute, whatever values it takes."""

    def __init__(
        self, root: ElementTree.Element, scope: str, items: list[dict[str, Any]], skip: tuple[str, ...] = ()
    ) -> None:
        values: dict[str, list[Any]] = {}
        for item in items:
            for name, value in item.items():
                if name not in skip:
                    values.setdefault(name, []).append(value)
        self.writers: dict[str, tuple[str, Callable[[Any], str]]] = {}
        for name, taken in values.items():
            key_id, (xml_type, writer) = f"{scope}.{name}", _type_of(taken)
            self.writers[name] = key_id, writer
            key = ElementTree.SubElement(
                root, "key", {"id": key_id, "for": scope, "attr.name": name, "attr.type": xml_type}
            )
            if writer is json.dumps:
                ElementTree.SubElement(key, "desc").text = JSON

    def write(self, element: ElementTree.Element, item: dict[str, Any]) -> None:
        for name, value in item.items():
            if name in self.writers:
                key, writer = self.writers[name]
                ElementTree.SubElement(element, "data", key=key).text = writer(value)


def _type_of(values: Iterable[Any]) -> tuple[str, Callable[[Any], str]]:
    """The GraphML type that holds all these values, and how to write one."""
    values = list(values)
    types = {next(kind for kind in (bool, int, float, str, object) if isinstance(value, kind)) for value in values}
    if types == {bool}:
        return "boolean", lambda value: "true" if value else "false"
    if types == {int}:
        return ("int" if all(-(2**31) <= value < 2**31 for value in values) else "long"), str
    if types <= {int, float}:
        return "double", lambda value: repr(float(value))
    if types == {str}:
        return "string", escape
    return "string", json.dumps


class _Reader:
    """Reads the <data> of one <key>."""

    def __init__(self, key: ElementTree.Element) -> None:
        self.name = key.get("attr.name", key.get("id", ""))
        kind = key.get("attr.type", "string")
        # Programs that open GraphML and write it again drop <desc>.
        is_json = key.findtext("desc") == JSON or (key.get("for") == "graph" and self.name in _CONTAINERS)
        if kind not in _READERS:
            raise UserError(f"key {quoted(self.name)}: {quoted(kind)} is no GraphML type")
        self.read = _json if is_json else _READERS[kind]

    def __call__(self, text: str) -> Any:
        try:
            return self.read(text)
        except (ValueError, KeyError):  # a UserError of the JSON's among them
            raise UserError(f"attribute {quoted(self.name)}: {quoted(text)} is not of its key's type") from None


def _json(text: str) -> Any:
    return parse_json(text, finite=True)


_READERS: dict[str, Callable[[str], Any]] = {
    "boolean": lambda text: {"true": True, "false": False}[text.strip().lower()],
    "int": int,
    "long": int,
    "float": float,
    "double": float,
    "string": unescape,
}


def _data(element: ElementTree.Element, readers: dict[str, _Reader]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for data in element.findall("data"):
        key = data.get("key", "")
        if key not in readers:
            raise UserError(f"there is no key {quoted(key)}")
        if readers[key].name in values:
            raise UserError(f"attribute {quoted(readers[key].name)} is there twice in one {element.tag}")
        values[readers[key].name] = readers[key](data.text or "")
    return values


def _parse_xml(text: str) -> ElementTree.Element:
    """A tree without namespaces. Raises UserError for what is not well-formed or declares a document type."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = _no_doctype
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag.rpartition(" ")[2], attributes)
    parser.EndElementHandler = lambda tag: builder.end(tag.rpartition(" ")[2])
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        message = expat.errors.messages[error.code]
        raise UserError(f"not XML: {message} at line {error.lineno}, column {error.offset + 1}") from None
    return builder.close()


def _no_doctype(*_: Any) -> None:
    raise UserError("it declares a document type, which GraphML has no use for and which can hide entity bombs")
