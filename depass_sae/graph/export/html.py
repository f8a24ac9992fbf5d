"""The interactive viewer: one HTML file that opens without a network and without anything beside it.

The graph is embedded as node-link JSON in which ``<``, ``>``, ``&`` and everything outside ASCII is escaped; the script
puts text on the page as text nodes alone. What is in the HTML itself (header, tables for readers without JavaScript) is
escaped by the template. A content security policy allows the page's own style and script by their hashes and nothing
else.

A page holds at most MAX_NODES nodes and MAX_EDGES edges. What is more is folded into the remainder of its level, so
that Σ incoming weights + constant = pre-activation holds for all that is shown.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from functools import cache, partial
from heapq import nlargest
from typing import TYPE_CHECKING, Any

from ...view import words
from ...view.frame import asset, escaping, inert, policy
from ..average import stability_line
from ..document import document_of
from ..influence import through
from ..limits import limited
from ..names import KINDS, level_words, name_of
from ..told import removal_line, sufficiency_lines

if TYPE_CHECKING:
    import jinja2
    import networkx as nx

MAX_NODES = 1000
MAX_EDGES = 10000
"""What a page holds at most; the rest is folded into remainders."""

TABLE_EDGES = 200
"""So many of the strongest edges are listed in the tables that need no JavaScript."""

SCRIPTS = ("model.js", "dom.js", "memory.js", "moving.js", "picture.js", "pinned.js", "panel.js", "viewer.js")
SHARES = ("token", "error", "constant", "bias", "remainder")


def to_html(g: nx.DiGraph) -> str:
    """The graph as a page of its own. The same graph gives the same text.

    Raises UserError for a value that JSON cannot hold, such as NaN.
    """
    page = limited(g, MAX_NODES, MAX_EDGES)
    data = _json(document_of(page))
    names = {node: name_of(page, node) for node in page}
    extra = {
        "key": hashlib.sha256(data.encode()).hexdigest()[:16],
        "names": [*names.values()],
        "kinds": KINDS,
        "through": {by: [float(f"{share:.5g}") for share in through(page, by).values()] for by in ("weight", "effect")},
    }
    style, script = style_and_script()
    return (
        _environment()
        .get_template("page.html")
        .render(
            style=inert(style),
            script=inert(script),
            policy=policy([style], [script]),
            data=inert(data),
            extra=inert(_json(extra)),
            graph=page.graph,
            dictionaries=_dictionaries(page),
            targets=_targets(page),
            strip=_strip(page),
            scores=_scores(page),
            verification=_verification(page.graph.get("verification")),
            together=[] if "diff" in page.graph else _together(page.graph),
            mean=stability_line(g),
            diff=page.graph.get("diff"),
            folded=_folded(g, page),
            contexts=page.graph.get("contexts"),
            nodes=[(names[node], page.nodes[node]) for node in page],
            edges=[(names[u], names[v], edge) for u, v, edge in _strongest(page, TABLE_EDGES)],
        )
    )


# ----------------------------------------------------------------------------------------------------- what is written


def _strongest(g: nx.DiGraph, count: int) -> list[tuple[str, str, dict[str, Any]]]:
    return nlargest(count, g.edges(data=True), key=lambda entry: (abs(entry[2]["weight"]), entry[0], entry[1]))


def _dictionaries(g: nx.DiGraph) -> list[str]:
    saes = g.graph.get("saes", [])
    several = Counter(sae["layer"] for sae in saes)
    return [level_words(sae if several[sae["layer"]] > 1 else {"layer": sae["layer"]}) for sae in saes]


def _targets(g: nx.DiGraph) -> list[dict[str, Any]]:
    return [
        {**target, "id": target["node"], "text": name_of(g, target["node"]), "node": g.nodes[target["node"]]}
        for target in g.graph.get("target", [])
        if target["node"] in g
    ]


def _strip(g: nx.DiGraph) -> list[dict[str, Any]]:
    """The prompt's tokens with the influence of their embeddings, in five steps of shade."""
    influence = {n: node["influence"] for n, node in g.nodes(data=True) if node["kind"] == "token"}
    largest = max(influence.values(), default=0.0) or 1.0
    aimed = {target["node"]["pos"] for target in _targets(g) if "pos" in target["node"]}
    return [
        {
            "pos": pos,
            "text": token,
            "aimed": pos in aimed,
            "node": f"token:{pos}" if f"token:{pos}" in influence else "",
            "shade": round(4 * influence.get(f"token:{pos}", 0.0) / largest),
        }
        for pos, token in enumerate(g.graph.get("tokens", []))
    ]


def _scores(g: nx.DiGraph) -> list[dict[str, Any]]:
    rows = []
    for which, score in g.graph.get("scores", {}).items():
        shares = {kind: score.get("shares", {}).get(kind, 0.0) for kind in SHARES}
        whole = sum(max(0.0, share) for share in shares.values()) or 1.0
        start, bars = 0.0, []
        for kind, share in shares.items():
            width = 100 * max(0.0, share) / whole
            bars.append({"kind": kind, "start": start, "width": width})
            start += width
        rows.append({"which": which, "score": score, "shares": shares, "bars": bars})
    return rows


def _verification(found: Any) -> list[tuple[str, str]]:
    """The two numbers people look for, whether they are plain or by weight and by effect."""
    lines = []
    for key in ("rank_correlation", "sign_agreement"):
        value = found.get(key) if isinstance(found, Mapping) else None
        values = value if isinstance(value, Mapping) else {"": value}
        numbers = {of: v for of, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        if numbers:
            text = ", ".join(f"{of} {words.number(v, 2)}".strip() for of, v in numbers.items())
            lines.append((key.replace("_", " "), text))
    return lines


def _together(graph: Mapping[str, Any]) -> list[str]:
    """What the features of the graph suffice for, and what the target loses without them."""
    return [*sufficiency_lines(graph), *(map(removal_line, _known_shares(graph)))]


def _known_shares(graph: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    verification = graph.get("verification")
    together = verification.get("together") if isinstance(verification, Mapping) else None
    return [together] if isinstance(together, Mapping) and isinstance(together.get("shares"), Mapping) else []


def _folded(whole: nx.DiGraph, page: nx.DiGraph) -> dict[str, int] | None:
    nodes = sum(1 for n in whole if n not in page)
    edges = sum(1 for u, v in whole.edges if not page.has_edge(u, v))
    return {"nodes": nodes, "edges": edges} if nodes or edges else None


# ------------------------------------------------------------------------------------------------------------- the page


def _json(document: Any) -> str:
    """JSON in which nothing can end the script element or reach the HTML parser."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def style_and_script() -> tuple[str, str]:
    """What every page brings along; the policy of a page that it is put into has to allow both."""
    return asset("base.css") + _viewer("viewer.css"), asset("theme.js") + "".join(map(_viewer, SCRIPTS))


_viewer = partial(asset, folder="viewer")


@cache
def _environment() -> jinja2.Environment:
    environment = escaping(_viewer)
    environment.filters.update(
        shown=words.shown, number=words.number, signed=words.signed, percent=words.percent, count=words.count
    )
    return environment
