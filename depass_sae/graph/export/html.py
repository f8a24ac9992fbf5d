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
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from heapq import nlargest
from importlib import resources
from typing import TYPE_CHECKING, Any

from ...attribution.render import named, shown
from ...pages import shared
from ...texts import visible_on_page
from ..document import document_of
from ..influence import size
from ..prune import fold

if TYPE_CHECKING:
    import jinja2
    import networkx as nx
    from markupsafe import Markup

MAX_NODES = 1000
MAX_EDGES = 10000
"""What a page holds at most; the rest is folded into remainders."""

TABLE_EDGES = 200
"""So many of the strongest edges are listed in the tables that need no JavaScript."""

SCRIPTS = ("model.js", "dom.js", "panel.js", "viewer.js")
SHARES = ("token", "error", "constant", "bias", "remainder")


def to_html(g: nx.DiGraph) -> str:
    """The graph as a page of its own. The same graph gives the same text.

    Raises UserError for a value that JSON cannot hold, such as NaN.
    """
    page = limited(g, MAX_NODES, MAX_EDGES)
    data = _json(document_of(page))
    names = {node: name(node, page.nodes[node]) for node in page}
    style, script = style_and_script()
    return (
        _environment()
        .get_template("page.html")
        .render(
            style=inert(style),
            script=inert(script),
            policy=policy([style], [script]),
            data=inert(data),
            extra=inert(_json({"key": _digest(data).hex()[:16], "names": list(names.values())})),
            graph=page.graph,
            targets=_targets(page),
            strip=_strip(page),
            scores=_scores(page),
            verification=_verification(page.graph.get("verification")),
            diff=page.graph.get("diff"),
            folded=_folded(g, page),
            nodes=[(names[node], page.nodes[node]) for node in page],
            edges=[(names[u], names[v], edge) for u, v, edge in _strongest(page, TABLE_EDGES)],
        )
    )


def style_and_script() -> tuple[str, str]:
    """What every page brings along; the policy of a page that it is put into has to allow both."""
    return shared("base.css") + _asset("viewer.css"), shared("theme.js") + "".join(_asset(file) for file in SCRIPTS)


def name(node_id: str, node: Mapping[str, Any]) -> str:
    """What a node is called on the page: ``17/2601@6``, ``Paris (4)``, ``logit ␣Rome``."""
    kind, layer, pos = node["kind"], node["layer"], node.get("pos")
    if kind == "feature":
        return f"{layer}/{node['index']}@{pos}"
    if kind == "token":
        return f"{shown(node['token'])} ({pos})" + (f", layer {layer}" if layer >= 0 else "")
    if kind == "logit":
        against = f" - {named(node['against_token'])}" if "against_token" in node else ""
        return f"logit {named(node['token'])}{against}"
    if kind == "error":
        return f"error {layer}@{pos}"
    if kind in ("constant", "bias", "remainder"):
        return f"{kind} of the embeddings" if layer < 0 else f"{kind} {layer}"
    return shown(node_id.replace(":", " ", 1))


# --------------------------------------------------------------------------------------------------------------- limits


def limited(g: nx.DiGraph, max_nodes: int, max_edges: int) -> nx.DiGraph:
    """The graph with its most influential nodes and edges; the rest is folded into its level's remainder.

    Targets and remainders are always kept, so a limit below their number is not reached. Edges of heads are a second
    view of the inflow and are cut without being added anywhere. ``g`` is not changed; it is returned as it is where
    nothing is too much.
    """
    if g.number_of_nodes() <= max_nodes and g.number_of_edges() <= max_edges:
        return g
    nodes = _kept_nodes(g, max_nodes)
    share = _edge_influence(g)
    small = fold(g, nodes, [edge for edge in share if edge[0] in nodes and edge[1] in nodes])
    if small.number_of_edges() > max_edges:
        remainders = sum(1 for n in small if small.in_degree(n))  # at most one into each node that has inflow
        listed = [edge for edge in small.edges if small.edges[edge]["kind"] != "remainder"]
        kept = nlargest(max(0, max_edges - remainders), listed, key=lambda edge: (share[edge], edge))
        heads = {edge for edge in listed if small.edges[edge]["kind"] == "head"}
        small = fold(small, small, kept)
        small.remove_edges_from(heads.difference(kept))
    _weigh_remainders(small)
    return small


def _kept_nodes(g: nx.DiGraph, max_nodes: int) -> set[str]:
    always = {n for n, node in g.nodes(data=True) if node.get("target") or node["kind"] == "remainder"}
    remainders = {f"remainder:{node['layer']}" for n, node in g.nodes(data=True) if n not in always}
    room = max(0, max_nodes - len(always | remainders))
    return always | set(nlargest(room, set(g) - always, key=lambda n: (g.nodes[n]["influence"], n)))


def _edge_influence(g: nx.DiGraph) -> dict[tuple[str, str], float]:
    """What comes through each edge: its share of its target's inflow, times the target's influence."""
    inflow: dict[str, float] = defaultdict(float)
    for _, target, edge in g.edges(data=True):
        inflow[target] += size(edge)
    return {
        (source, target): g.nodes[target]["influence"] * size(edge) / (inflow[target] or 1.0)
        for source, target, edge in g.edges(data=True)
    }


def _weigh_remainders(g: nx.DiGraph) -> None:
    through = _edge_influence(g)
    for n, node in g.nodes(data=True):
        if node["kind"] == "remainder":
            node["influence"] = sum(through[edge] for edge in g.out_edges(n))


# ----------------------------------------------------------------------------------------------------- what is written


def _strongest(g: nx.DiGraph, count: int) -> list[tuple[str, str, dict[str, Any]]]:
    return nlargest(count, g.edges(data=True), key=lambda entry: (abs(entry[2]["weight"]), entry[0], entry[1]))


def _targets(g: nx.DiGraph) -> list[dict[str, Any]]:
    return [
        {**target, "text": name(target["node"], g.nodes[target["node"]]), "node": g.nodes[target["node"]]}
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
            text = ", ".join(f"{of} {v:.2f}".strip() for of, v in numbers.items())
            lines.append((key.replace("_", " "), text))
    return lines


def _folded(whole: nx.DiGraph, page: nx.DiGraph) -> dict[str, int] | None:
    nodes = sum(1 for n in whole if n not in page)
    edges = sum(1 for u, v in whole.edges if not page.has_edge(u, v))
    return {"nodes": nodes, "edges": edges} if nodes or edges else None


# ------------------------------------------------------------------------------------------------------------- the page


def _json(document: Any) -> str:
    """JSON in which nothing can end the script element or reach the HTML parser."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """A content security policy that allows these texts and nothing else."""
    allowed = [f"style-src {_hashes(styles)}", *([f"script-src {_hashes(scripts)}"] if scripts else [])]
    return "; ".join(["default-src 'none'", *allowed, "img-src data:", "base-uri 'none'", "form-action 'none'"])


def _hashes(texts: Sequence[str]) -> str:
    return " ".join(f"'sha256-{b64encode(_digest(text)).decode()}'" for text in texts)


@cache
def _asset(file: str) -> str:
    return resources.files(__package__).joinpath("viewer", file).read_text(encoding="utf-8")


def escaping(asset: Callable[[str], str]) -> jinja2.Environment:
    """Templates that escape everything and know every name; ``asset``: the text of a file by its name."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(asset), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=visible_on_page,
    )  # fmt: skip


@cache
def _environment() -> jinja2.Environment:
    environment = escaping(_asset)
    environment.filters.update(shown=shown, number=_number, signed=lambda value: _number(value, "+"))
    return environment


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    digits = ".2e" if abs(value) >= 1e5 or 0 < abs(value) < 5e-4 else ".3f"
    return format(value, sign + digits)


def inert(text: str) -> Markup:
    """Text of ours, or JSON in which nothing can end its element: not escaped again."""
    from markupsafe import Markup

    return Markup(text)
