"""Feature-flow graphs for circuit-tracer's local viewer (``circuit-tracer start-server --graph_file_dir FOLDER``).

A folder holds a ``SLUG.json`` for each graph, laid out as Neuronpedia's file, and ``graph-metadata.json``, the list of
all graphs in it that the viewer opens with: other graphs' entries stay, an older one of the same slug goes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...files import parse_json, read_text
from .neuronpedia import to_neuronpedia

if TYPE_CHECKING:
    import networkx as nx

LIST = "graph-metadata.json"


def circuit_tracer_files(g: nx.DiGraph, folder: Path) -> dict[Path, bytes]:
    """What the folder's files are to hold. Raises UserError for a list in it that circuit-tracer did not write."""
    document = to_neuronpedia(g)
    document["metadata"]["transcoder_list"] = []  # of models whose transcoders come from several places
    slug = document["metadata"]["slug"]
    graphs = [entry for entry in listed(folder) if entry["slug"] != slug] + [document["metadata"]]
    return {folder / f"{slug}.json": _json(document), folder / LIST: _json({"graphs": graphs})}


def listed(folder: Path) -> list[dict[str, Any]]:
    """The graphs that a folder lists already."""
    path = folder / LIST
    if not path.exists():
        return []
    try:
        content = parse_json(read_text(path))
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    graphs = content.get("graphs") if isinstance(content, dict) else None
    if not isinstance(graphs, list) or not all(isinstance(entry, dict) and "slug" in entry for entry in graphs):
        raise UserError(f"cannot read {path}: it should list circuit-tracer's graphs, each with its slug")
    return graphs


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()
