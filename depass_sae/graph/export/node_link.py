"""Feature-flow graphs as JSON, in networkx's node-link form (see ``depass_sae.graph.document``).

The text is pure ASCII: control characters and lone surrogates in tokens come back as they were.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ...files import parse_json
from ..document import document_of, graph_of
from .theirs import graph_of_theirs, is_theirs

if TYPE_CHECKING:
    import networkx as nx


def to_json(g: nx.DiGraph) -> str:
    """A graph as a JSON text. Raises UserError for a value that JSON cannot hold."""
    return json.dumps(document_of(g), indent=1, allow_nan=False)


def from_json(text: str) -> nx.DiGraph:
    """The graph of a JSON text: ours, or one of Neuronpedia's or circuit-tracer's (:mod:`.theirs`).

    Raises UserError with one line for one that is broken or does not hold together.
    """
    document = parse_json(text, finite=True)
    return graph_of_theirs(document) if is_theirs(document) else graph_of(document)
