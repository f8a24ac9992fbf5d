"""What features mean, on a graph's nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..arguments import typed
from ..errors import UserError
from ..labels.files import FEATURE, check_labels, key
from .names import feature_text, page_id

if TYPE_CHECKING:
    import networkx as nx


@typed
def with_labels(g: nx.DiGraph, labels: Mapping[str, str]) -> nx.DiGraph:
    """A copy whose features have these labels; other nodes keep theirs.

    labels: ``17/1208`` to a text; features that are not in the graph may be among them. Raises UserError for a key or a
    label that is none.
    """
    from .document import check_graph

    check_graph(g)
    check_labels(labels)
    for name in labels:
        if not FEATURE.fullmatch(name):
            raise UserError(f"labels: {name!r} should be like '17/1208' (layer/index of a feature)")
    plain = {key(*name.split("/")): label for name, label in labels.items()}
    copy = g.copy()
    for _, node in copy.nodes(data=True):
        if node["kind"] == "feature":
            node["label"] = plain.get(feature_text(node), node["label"])
    return copy


def graph_pages(g: nx.DiGraph) -> dict[str, tuple[str, int]]:
    """The features of a graph that are on Neuronpedia, as :func:`.fetch_labels` takes them."""
    features = [node for _, node in g.nodes(data=True) if node["kind"] == "feature"]
    pages = {feature_text(node): (page_id(g, node), node["index"]) for node in features}
    return {name: (page, index) for name, (page, index) in pages.items() if page}
