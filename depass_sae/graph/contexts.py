"""Where a graph's features fire most over a corpus: an index's contexts, beside the nodes.

``.graph["contexts"]`` has, of every feature wherever it stands, at how many of the corpus's tokens it fires and its
strongest contexts, cut around the token where each is strongest. The strongest nodes' come first, and what would be
more than ``most`` bytes of a page is left out and counted.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from ..arguments import typed
from ..errors import UserError
from ..files import same_place
from ..models.place import Place
from ..texts import quoted
from .labels import with_labels
from .names import feature_text, level_of

if TYPE_CHECKING:
    import networkx as nx

    from ..index.index import Index
    from ..index.results import Context

CONTEXTS = 8
"""Of a feature: three where a reader points at it, and five more where it is opened."""
BEFORE, BEHIND = 12, 6
"""Tokens of a context around the one where it is strongest."""
MOST = 2_000_000
"""Bytes of a page."""
ADDRESS = re.compile(r"https?://[^\s\"'<>?#]+")


@typed
def with_contexts(g: nx.DiGraph, index: Index, most: int = MOST, *, cards: str | None = None) -> nx.DiGraph:
    """A copy that has its features' strongest contexts in an index, for whoever points at them on its page.

    Features without a label get the index's. most: bytes of a page that contexts may take. cards: where the index is
    being looked at in a browser (:attr:`.Browsing.address`); the page's nodes link to their features' cards there.
    Raises UserError for an index of another model or of other SAEs, and for an address that is no web page's.
    """
    from .document import check_graph

    check_graph(g)
    check_address(cards)
    if most < 0:
        raise UserError(f"contexts take 0 bytes or more, not {most}")
    found = _features(g, index)
    names = {name: index.label(*where) for name, where in found.items()}
    kept = {feature_text(node): node["label"] for node in _nodes(g) if node["label"]}
    copy = with_labels(g, {name: label for name, label in names.items() if label} | kept)
    features: dict[str, Any] = {}
    for name, where in found.items():
        features[name] = _about(index, *where)
        most -= _size({name: features[name]})
        if most < 0:
            del features[name]
            break
    copy.graph["contexts"] = {
        "tokens": index.tokens, "left_out": len(found) - len(features), "features": features,
        **({} if cards is None else {"cards": cards.rstrip("/")}),
    }  # fmt: skip
    return copy


def check_address(cards: str | None) -> None:
    """Raises UserError for what is no web page's address."""
    if cards is not None and not ADDRESS.fullmatch(cards):
        raise UserError(
            f"cards are linked by the address of an index's browser, such as http://127.0.0.1:8000, not {quoted(cards)}"
        )


def _nodes(g: nx.DiGraph) -> list[dict[str, Any]]:
    """The features, those with most influence first."""
    nodes = [node for _, node in g.nodes(data=True) if node["kind"] == "feature"]
    return sorted(nodes, key=lambda node: (not node.get("target"), -max(node["influence"], node.get("reach", 0.0))))


def _features(g: nx.DiGraph, index: Index) -> dict[str, tuple[Place, int]]:
    """Where in the index the graph's features are, strongest first."""
    if not same_place(g.graph["model"], model := index.manifest.model["name"]):
        raise UserError(f"the graph is of {g.graph['model']!r}, and the index of {model!r}")
    hooks: dict[tuple[int, str], Place] = {}
    for sae in g.graph["saes"]:
        place = Place(sae["layer"], sae["hook"])
        width = index.saes.get(place)
        if width is None:
            continue
        if width != sae["d_sae"]:
            raise UserError(f"the graph's SAE at {place} has {sae['d_sae']} features, and the index's {width}")
        hooks |= {(place.layer, place.hook): place, (place.layer, ""): place}
    if not hooks:
        there = ", ".join(map(str, sorted(index.saes)))
        raise UserError(f"the index has none of the graph's SAEs; it has {there}")
    return {feature_text(node): (hooks[at], node["index"]) for node in _nodes(g) if (at := level_of(node)) in hooks}


def _about(index: Index, hook: Place, feature: int) -> dict[str, Any]:
    scalars = index.features(hook)
    return {
        "count": int(scalars["count"][feature]),
        "max": _rounded(float(scalars["max"][feature])),
        "contexts": [_cut(context) for context in index.contexts(hook, feature, CONTEXTS)],
    }


def _cut(context: Context) -> dict[str, Any]:
    """pos: of the token where it is strongest, among those that are left."""
    start, end = max(context.pos - BEFORE, 0), context.pos + BEHIND + 1
    return {
        "pos": context.pos - start,
        "tokens": list(context.tokens[start:end]),
        "activations": list(map(_rounded, context.activations[start:end])),
    }


def _rounded(value: float) -> float:
    """Three digits are all that a shade shows."""
    return float(f"{value:.3g}")


def _size(value: Any) -> int:
    """How many bytes of a page something takes: what HTML could stumble over is written as six characters there."""
    text = json.dumps(value, separators=(",", ":"))
    return len(text) + 5 * sum(map(text.count, "<>&"))
