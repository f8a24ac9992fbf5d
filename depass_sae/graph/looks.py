"""What a graph, its verification and a difference of two are made of: tables and words, as blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..labels.neuronpedia import feature_page
from ..view import words
from ..view.blocks import Block, Cell, Column, Feature, Graph, Note, Row, Table, Token
from ..view.pointer import At
from .average import stability_line
from .influence import grown_by, reach
from .names import name_of, page_id, target_names
from .told import sufficiency_lines, together_lines
from .ways import LOOKED, mostly

if TYPE_CHECKING:
    import networkx as nx

TOP_LOOKED = 5
"""So many of the edges that are by where heads looked are named."""
TOP = 12
"""So many nodes stand for a graph where neither its page nor its picture can be shown."""


def graph_block(g: nx.DiGraph, title: str, name: str, caption: str = "") -> Graph:
    """A graph among other blocks: its page, its picture, or its most influential nodes."""
    from .export.html import to_html
    from .plot import plot_graph

    return Graph(
        title, name, page=partial(to_html, g), figure=partial(plot_graph, g), blocks=partial(graph_blocks, g, TOP),
        caption=caption,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- a graph


def graph_blocks(g: nx.DiGraph, top: int | None = None) -> tuple[Block, ...]:
    """The nodes, those first that the targets depend on most (all, or the ``top``), what decides by where heads looked,
    and how much of the targets they explain.
    """
    targets = target_names(g)
    listed = [name for name in g if not g.nodes[name].get("target") and g.nodes[name]["kind"] != "head"]
    ways = ("influence",) if grown_by(g) == "weight" else ("influence", "reach")
    order = sorted(listed, key=lambda name: (-g.nodes[name].get(ways[-1], 0.0), name))
    where = "prompts" if g.graph.get("average") else "token"
    columns = (
        Column("node"), Column(where), Column("activation", "number", 2),
        *(Column(way, "number", bar=way == ways[-1]) for way in ways),
    )  # fmt: skip
    rows = tuple(_row(g, name, ways) for name in order[:top])
    table = Table(f"flow to {targets}", columns, rows, f"{_counts(g)}; rule {g.graph['rule']}")
    stable = [] if (line := stability_line(g)) is None else [Note(line)]
    return (table, *stable, *_looked(g), *_pairs(g), *(Note(line) for line in score_lines(g)))


def _row(g: nx.DiGraph, name: str, ways: Iterable[str]) -> Row:
    node = g.nodes[name]
    token: Cell = Token(node["token"], node["pos"]) if "pos" in node else None
    if g.graph.get("average"):
        token = f"{words.count(node.get('prompts', 0))} of {words.count(len(g.graph['average']['prompts']))}"
    numbers = (node.get(way) for way in ways)
    return Row((feature_cell(g, name), token, node.get("activation"), *numbers), pos=node.get("pos"))


def _looked(g: nx.DiGraph) -> tuple[Table, ...]:
    """What is done by where heads looked rather than by what they moved: the edges that reach the targets farthest."""
    through = reach(g).edges
    edges = [(a, b) for a, b, edge in g.edges(data=True) if edge["kind"] != "head" and mostly(edge) in LOOKED]
    if not edges:
        return ()
    order = sorted(edges, key=lambda edge: (-through[edge], edge))
    columns = (Column("from"), Column("to"), *(Column(f"by its {way}", "signed") for way in LOOKED))
    rows = tuple(
        Row((feature_cell(g, a), name_of(g, b), *(g.edges[a, b].get(way) for way in LOOKED)))
        for a, b in order[:TOP_LOOKED]
    )
    return (Table("by where heads looked, which is in no sum", columns, rows),)


def _pairs(g: nx.DiGraph) -> tuple[Table, ...]:
    """Who looked for whom, where that was asked: the largest pairs of the first nodes that have some."""
    pairs = g.graph.get("pairs", [])[:TOP_LOOKED]
    if not pairs:
        return ()
    columns = (Column("as part of a query"), Column("as part of a key"), Column("for"), Column("together", "signed"))
    rows = tuple(
        Row((feature_cell(g, pair["query"]), feature_cell(g, pair["key"]), name_of(g, pair["node"]), pair["value"]))
        for pair in pairs
    )
    return (Table("who looked for whom", columns, rows, "Of the most influential nodes; in no sum."),)


def feature_cell(g: nx.DiGraph, name: str) -> Cell:
    """A feature with its meaning and its page; what else has a label with that."""
    node, written = g.nodes[name], name_of(g, name)
    if node["kind"] != "feature":
        return Feature(written, node["label"]) if node["label"] else written
    return Feature(written, node["label"], feature_page(page_id(g, node), node["index"]))


def score_lines(g: nx.DiGraph) -> list[str]:
    """The scores, where the influence ends, and whether the features suffice, in words."""
    lines = []
    for which, found in g.graph["scores"].items():
        shares = ", ".join(f"{kind} {words.percent(share)}" for kind, share in found["shares"].items() if share)
        lines.append(
            f"{which} graph: completeness {words.number(found['completeness'], 2)}, replacement "
            f"{words.number(found['replacement'], 2)}; influence ends in {shares}"
        )
    return [*lines, *sufficiency_lines(g.graph)]


def _counts(g: nx.DiGraph) -> str:
    count = Counter(kind for _, kind in g.nodes(data="kind"))
    told = ("feature", "error", "token", "logit", "head")
    kinds = [f"{words.count(count[kind])} {kind}{'s' if count[kind] > 1 else ''}" for kind in told if count[kind]]
    return f"{words.count(len(g))} nodes ({', '.join(kinds)}), {words.count(g.number_of_edges())} edges"


# ------------------------------------------------------------------------------------------------- what a source does


def downstream_blocks(found: Mapping[str, Any], top: int | None = None) -> tuple[Block, ...]:
    """The features that a source drives, the likeliest tokens, and those that it raises and lowers most."""
    numbers = (
        Column("pre-activation", "number", 2), Column("direct", "signed"), Column("total", "signed"),
        Column("effect", "signed"),
    )  # fmt: skip
    keys = ("pre_activation", "direct", "total", "effect")
    marked = [replace(column, bar=column.name == found["sort"]) for column in numbers]
    features = tuple(
        Row(
            (
                Feature(f"{one['name']}@{one['pos']}", one.get("label") or ""),
                Token(one["token"], one["pos"]),
                *(one[key] for key in keys),
            )
        )
        for one in list(found["features"])[:top]
    )
    logits = tuple(Row((words.named(one["token"]), *(one[key] for key in keys))) for one in list(found["logits"])[:top])
    raised = tuple(
        Row((words.named(up["token"]), up["total"], words.named(down["token"]), down["total"]))
        for up, down in zip(list(found["raised"])[:top], list(found["lowered"])[:top], strict=False)
    )
    return (
        Table(f"what {found['source']['name']} drives", (Column("feature"), Column("token"), *marked), features),
        Table("the likeliest next tokens", (Column("logit"), *numbers), logits),
        Table(
            "the logits that it raises and lowers most, over the mean of all tokens",
            (Column("raises"), Column("total", "signed"), Column("lowers"), Column("total", "signed")), raised,
        ),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- a verification


def _ranked(found: Mapping[str, Any]) -> str:
    """Of how many nodes; older graphs did not leave the target's own token out."""
    if found.get("ranked") is None:
        return f"{words.count(len(found['nodes']))} nodes"
    return f"{words.count(found['ranked'])} nodes without the target's own token"


def between(found: Mapping[str, Any] | At, by: str) -> str:
    """The 95 % interval of a verification's rank correlation, where it is known: older graphs have none."""
    known = (found.get("rank_interval") or {}).get(by)
    return "" if known is None else f" (95 %: {words.number(known[0], 2)} to {words.number(known[1], 2)})"


def verification_blocks(g: nx.DiGraph, top: int | None = None) -> tuple[Block, ...]:
    """What taking nodes out really did, beside what the graph says."""
    found = g.graph["verification"]
    columns = (
        Column("node"), Column("observed", "signed", bar=True), Column("by weights", "signed"),
        Column("by effects", "signed"),
    )  # fmt: skip
    rows = tuple(
        Row((feature_cell(g, node["node"]), *(node[key] for key in ("observed", "weight", "effect"))))
        for node in found["nodes"][:top]
    )
    lines = [
        f"{what} over {over}: "
        + ", ".join(
            f"{by}s {words.number(n, 2)}{between(found, by) if key == 'rank_correlation' else ''}"
            for by, n in found[key].items()
            if n is not None
        )
        for key, what, over in (
            ("rank_correlation", "rank correlation", _ranked(found)),
            ("sign_agreement", "same sign", f"{words.count(len(found['nodes']))} nodes"),
        )
        if any(n is not None for n in found[key].values())
    ]
    lines += together_lines(found)
    table = Table("the target's loss when a node is taken out", columns, rows)
    return (table, *map(Note, lines))


# -------------------------------------------------------------------------------------------------- a difference of two


def diff_blocks(d: nx.DiGraph, top: int | None = None) -> tuple[Block, ...]:
    """How much of the two graphs is shared, and the largest changes of edges and of nodes."""
    lines = [f"{which}: {words.shown(name)}" for which, name in d.graph["diff"].items()]
    for what, marks in (("nodes", d.nodes(data="diff")), ("edges", d.edges(data="diff"))):
        count = Counter(mark for *_, mark in marks)
        both, only_a, only_b = (words.count(count[where]) for where in ("both", "only_a", "only_b"))
        lines.append(f"{what}: {both} in both, {only_a} only in a, {only_b} only in b")
    edges = [
        (f"{_in_diff(d, source)} → {_in_diff(d, target)}", edge)
        for source, target, edge in d.edges(data=True)
        if edge["kind"] != "head"
    ]
    nodes = [
        (f"{_in_diff(d, name)} {words.shown(node['label'])}".rstrip(), node)
        for name, node in d.nodes(data=True)
        if node["kind"] != "head"
    ]
    return (*map(Note, lines), _changes("edge", "weight", edges, top), _changes("node", "influence", nodes, top))


def _changes(what: str, value: str, items: list[tuple[str, dict[str, Any]]], top: int | None) -> Table:
    """The largest differences; what one graph does not have counts as 0 there."""
    sides = [(name, item.get(f"{value}_a"), item.get(f"{value}_b")) for name, item in items]
    changes = [(name, a, b, (b or 0.0) - (a or 0.0)) for name, a, b in sides]
    changes.sort(key=lambda change: (-abs(change[3]), change[0]))
    columns = (
        Column(what), Column("a", "number"), Column("b", "number"), Column(f"b {words.MINUS} a", "signed", bar=True),
    )  # fmt: skip
    rows = tuple(Row(change) for change in changes[:top] if change[3])
    return Table(f"largest changes of {value}", columns, rows)


def _in_diff(d: nx.DiGraph, name: str) -> str:
    """As people write it; at a position that only b has, by b's position."""
    if not name.endswith("~b"):
        return name_of(d, name)
    return f"{name.removesuffix('~b').replace(':', ' ', 1)} of b"
