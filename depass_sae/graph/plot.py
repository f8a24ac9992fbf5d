"""A feature-flow graph as a picture for a paper: positions across, layers upwards, as in circuit tracing's figures.

A cell is one layer at one position; its nodes stand side by side, the most influential first, in several lines where
they are many. What belongs to no position (decoder constants, biases, what was pruned) stands in a gutter on the left;
heads, a second view of the same flow, stand between the layers, below the one they write to; a supernode is one node.
A node's area is its influence; an edge's width and strength are what of the target comes through it, its colour and
dash its sign. What is too much for a picture that can be read is folded into the remainders. The same graph always
gives the same SVG.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..arguments import typed
from ..errors import UserError
from ..view import words
from ..view.figures import GREY, NORMAL, SMALL, TITLE, WIDTH, blank, clean, rendered
from .document import TESTED, check_graph
from .group import merged
from .influence import through
from .limits import foremost
from .names import feature_text, level_name, level_of, level_order, logit_token, logit_tokens
from .ways import LOOKED

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.figure import Figure

MOST = 40
"""So many nodes are drawn where nothing else is said: more cannot be read in a column."""
UNIT = 0.36
"""Inches from one node to the next in a cell."""
CELLS = (8.0, 6.0, 5.0, 4.0, 3.0)
"""Units that a line of a cell is wide at most: the one with which the picture fits best into a page's column."""
HEIGHT = 8.0
"""Inches that the column is high."""
LINE = 1.3
"""Units from one line of a cell to the next, and that heads take between layers."""
LOWEST = 0.35
"""A wide picture's rows are drawn apart until it is at least this high for its width."""
GUTTER = {"remainder": -3.0, "bias": -2.2, "constant": -1.4}
LEFT, FOOT = -5.8, 2.6
"""Units for the layers' names and the gutter, and for the tokens and the legend."""
MARKERS = {"feature": "o", "token": "s", "error": "D", "constant": "^", "bias": "v", "remainder": "X"}
FILLS = {
    "feature": "#fbd97f", "token": "#b9d7c0", "error": "#e3a6b0", "constant": "#d5d5d5", "bias": "#d5d5d5",
    "remainder": "#d5d5d5", "logit": "#ece3f4", "direction": "#ece3f4", "group": "#fbd97f", "head": "white",
}  # fmt: skip
SLOTS = {"logit": 2.4, "direction": 2.4, "group": 2.5, "head": 1.3}
"""Units of what is drawn as a box with its name in it; everything else is a marker of one unit."""
LINE_COLOUR = "#333333"
ALL_POSITIONS = 12
"""Longer prompts show only the positions at which something stands."""


Level = tuple[int, str]
"""A layer, and of several dictionaries in it the hook of one."""


@dataclass(frozen=True)
class Layout:
    """In units: where each node stands, each position's column (left, right), and each level's row (bottom, top)."""

    places: dict[str, tuple[float, float]]
    columns: dict[int, tuple[float, float]]
    rows: dict[Level, tuple[float, float]]

    @property
    def right(self) -> float:
        return max((end for _, end in self.columns.values()), default=1.0)

    @property
    def top(self) -> float:
        return max((end for _, end in self.rows.values()), default=1.0)


def picture_of(g: nx.DiGraph, format: str, max_drawn: int | None = None) -> bytes:
    """The graph's picture as a file's content. ``format``: png, svg or pdf."""
    return rendered(plot_graph(g, max_drawn=MOST if max_drawn is None else max_drawn), format)


@typed
def plot_graph(g: nx.DiGraph, *, max_drawn: int = MOST) -> Figure:
    """The graph as a matplotlib figure, with its heads and supernodes where it has them; notebooks show it.

    max_drawn: at most so many nodes at positions and heads (a quarter of them at most), the most influential and the
    targets; a supernode is one. The figure says how many are left out. ``g`` may be a part of a graph, such as
    ``g.subgraph(names)``. Raises UserError where matplotlib is missing.
    """
    check_graph(g)
    if max_drawn < 1:
        raise UserError(f"max_drawn is how many nodes a picture has, at least 1, not {max_drawn}")
    drawn = foremost(merged(g), max_drawn)
    at = layout(drawn)
    right, top = at.right, at.top + 0.1
    picture = blank(((right - LEFT) * UNIT, (top + FOOT) * UNIT))
    axes = picture.add_axes((0, 0, 1, 1))
    axes.set(xlim=(LEFT, right), ylim=(-FOOT, top))
    axes.set_axis_off()
    _draw_grid(axes, drawn, at)
    _draw_edges(axes, drawn, at)
    _draw_nodes(axes, drawn, at)
    _draw_names(axes, drawn, at)
    _draw_legend(axes, drawn, _left_out(g, drawn))
    return picture


@typed
def plot_verification(g: nx.DiGraph) -> Figure:
    """What the graph says of each node that was taken out, beside what the target really lost; notebooks show it.

    Left by weights, right by effects; on the line both are equal. Raises UserError for a graph that was not verified,
    and where matplotlib is missing.
    """
    check_graph(g, whole=True)
    found = g.graph.get("verification")
    if found is None:
        raise UserError("the graph has not been verified yet: lm.verify(graph), or depass-sae verify FILE")
    kinds = {g.nodes[target["node"]]["kind"] for target in g.graph["target"]}
    unit = (
        "logits"
        if kinds == {"logit"}
        else "activation"
        if kinds == {"feature"}
        else "the direction"
        if kinds == {"direction"}
        else "the targets' units"
    )
    picture = blank((WIDTH, 3.1), layout="constrained")
    axes = picture.subplots(1, 2, sharey=True)
    for axis, by in zip(axes, ("weight", "effect"), strict=True):
        for kind in TESTED:
            some = [node for node in found["nodes"] if g.nodes[node["node"]]["kind"] == kind]
            if some:
                said, lost = [node[by] for node in some], [node["observed"] for node in some]
                style = {"marker": MARKERS.get(kind, "P"), "color": FILLS[kind]}
                axis.scatter(said, lost, s=22, linewidths=0.5, edgecolors=LINE_COLOUR, label=kind, **style)
        axis.axline((0, 0), slope=1, color="#999999", linewidth=0.8, zorder=0)
        rank = found["rank_correlation"][by]
        axis.set_xlabel(f"loss of the target that {by}s predict ({unit})", fontsize=NORMAL)
        axis.set_title("" if rank is None else f"rank correlation {words.number(rank, 2)}", fontsize=TITLE)
        axis.tick_params(labelsize=SMALL)
    axes[0].set_ylabel(f"observed loss of the target ({unit})", fontsize=NORMAL)
    if found["nodes"]:
        axes[0].legend(fontsize=SMALL, frameon=False)
    return picture


# -------------------------------------------------------------------------------------------------------------- layout


def layout(g: nx.DiGraph) -> Layout:
    """Columns as wide and rows as high as the fullest cell in them."""

    def excess(at: Layout) -> float:
        return max((at.right - LEFT) * UNIT / WIDTH, (at.top + FOOT) * UNIT / HEIGHT)

    return min((_laid_out(g, wide) for wide in CELLS), key=excess)


def _laid_out(g: nx.DiGraph, wide: float) -> Layout:
    cells: dict[tuple[Level, int], list[str]] = defaultdict(list)
    for name, node in g.nodes(data=True):
        if "pos" in node:
            cells[level_of(node), node["pos"]].append(name)
    lines = {cell: _lines(g, names, wide) for cell, names in cells.items()}
    columns, heads = _columns(g, lines), _heads_below(g)
    rows = _rows(g, lines, heads, max((end for _, end in columns.values()), default=0.0))
    places = {}
    for (level, pos), found in lines.items():
        middle, height = sum(columns[pos]) / 2, sum(rows[level]) / 2
        for i, line in enumerate(found):
            x = middle - _width(g, line) / 2
            for name in line:
                places[name] = (x + _slot(g, name) / 2, height + LINE * ((len(found) - 1) / 2 - i))
                x += _slot(g, name)
    for name, node in g.nodes(data=True):
        if node["kind"] in GUTTER:
            places[name] = (GUTTER[node["kind"]], sum(rows[level_of(node)]) / 2)
    at = Layout(places, columns, rows)
    for level, names in heads.items():
        places |= _heads_places(g, at, level, names)
    return at


def _columns(g: nx.DiGraph, lines: dict[tuple[Level, int], list[list[str]]]) -> dict[int, tuple[float, float]]:
    """The positions' ends; what is left of a column of a page is shared out among them."""
    occupied = {pos for _, pos in lines}
    tokens = range(len(g.graph["tokens"]))
    positions = sorted(occupied | (set(tokens) if len(tokens) <= ALL_POSITIONS else set()))
    wide = {
        pos: 0.5 + max((_width(g, line) for (_, p), found in lines.items() if p == pos for line in found), default=0.0)
        for pos in positions
    }
    wide = {pos: max(1.4, width) for pos, width in wide.items()}
    stretch = max(1.0, (WIDTH / UNIT + LEFT) / max(1.0, sum(wide.values())))
    columns, x = {}, 0.0
    for pos, width in wide.items():
        columns[pos] = (x, x + width * stretch)
        x = columns[pos][1]
    return columns


def _rows(
    g: nx.DiGraph, lines: dict[tuple[Level, int], list[list[str]]], heads: dict[Level, list[str]], wide: float
) -> dict[Level, tuple[float, float]]:
    """The levels' ends, and below a level room for its heads."""
    levels = _levels(g)
    high = {level: max((len(found) for (at, _), found in lines.items() if at == level), default=1) for level in levels}
    apart = max(1.0, (LOWEST * wide - LINE * sum(high.values())) / len(levels))
    rows, y = {}, 0.0
    for level in levels:
        y += LINE * len(_head_lines(heads.get(level, []), wide))
        rows[level] = (y, y + LINE * high[level] + apart)
        y = rows[level][1]
    return rows


def _levels(g: nx.DiGraph) -> list[Level]:
    """Of all that is drawn but heads, upwards."""
    return sorted({level_of(node) for _, node in g.nodes(data=True) if node["kind"] != "head"}, key=level_order)


def _heads_below(g: nx.DiGraph) -> dict[Level, list[str]]:
    """Heads by the lowest level drawn that they write to."""
    levels = _levels(g)
    found: dict[Level, list[str]] = defaultdict(list)
    for name, node in g.nodes(data=True):
        if node["kind"] == "head":
            found[next((level for level in levels if level[0] >= node["layer"]), levels[-1])].append(name)
    return found


def _head_lines(names: Sequence[str], wide: float) -> list[Sequence[str]]:
    many = max(1, int(wide / SLOTS["head"]))
    return [names[i : i + many] for i in range(0, len(names), many)]


def _heads_places(g: nx.DiGraph, at: Layout, level: Level, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Each as near as there is room to the middle of what it writes to."""

    def wanted(name: str) -> float:
        ends = [(at.places[target][0], abs(edge["weight"])) for _, target, edge in g.out_edges(name, data=True)]
        whole = sum(weight for _, weight in ends)
        return sum(x * weight for x, weight in ends) / whole if whole else 0.0

    places: dict[str, tuple[float, float]] = {}
    slot = SLOTS["head"]
    for i, line in enumerate(_head_lines(sorted(names, key=lambda name: (wanted(name), name)), at.right)):
        x = [min(max(wanted(name), slot / 2), at.right - slot / 2) for name in line]
        for k in range(1, len(x)):
            x[k] = max(x[k], x[k - 1] + slot)
        for k in reversed(range(len(x))):
            x[k] = min(x[k], at.right - slot * (len(x) - k - 0.5))
        places |= {name: (place, at.rows[level][0] - LINE * (i + 0.5)) for name, place in zip(line, x, strict=True)}
    return places


def _lines(g: nx.DiGraph, names: Iterable[str], wide: float) -> list[list[str]]:
    """A cell's nodes in lines: features, then what no feature explains."""
    order = sorted(names, key=lambda name: (g.nodes[name]["kind"] == "error", -g.nodes[name]["influence"], name))
    lines: list[list[str]] = [[]]
    for name in order:
        if lines[-1] and _width(g, lines[-1]) + _slot(g, name) > wide:
            lines.append([])
        lines[-1].append(name)
    return lines


def _slot(g: nx.DiGraph, name: str) -> float:
    return SLOTS.get(g.nodes[name]["kind"], 1.0)


def _width(g: nx.DiGraph, line: Iterable[str]) -> float:
    return sum(_slot(g, name) for name in line)


# ------------------------------------------------------------------------------------------------------------- drawing


def _draw_grid(axes: Any, g: nx.DiGraph, at: Layout) -> None:
    for i, (level, (low, high)) in enumerate(at.rows.items()):
        if i % 2:
            axes.axhspan(low, high, color="#f6f7f8", zorder=0, linewidth=0)
        _write(axes, LEFT + 0.15, (low + high) / 2, level_name(g, level), size=SMALL, color="#444444", ha="left")
    axes.plot([LEFT, at.right], [0, 0], color="#999999", linewidth=0.6, zorder=0)
    tokens = g.graph["tokens"]
    for pos, (start, end) in at.columns.items():
        if start > 0:
            axes.plot([start, start], [0, at.top], color="#e4e6e8", linewidth=0.6, zorder=0.5)
        token = clean(words.shown(tokens[pos]), max(3, int((end - start) * UNIT / 0.07))) if pos < len(tokens) else "?"
        _write(axes, (start + end) / 2, -0.35, token, size=SMALL)
        _write(axes, (start + end) / 2, -0.8, str(pos), size=5.5, color="#777777")


def _draw_edges(axes: Any, g: nx.DiGraph, at: Layout) -> None:
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path as Curve

    # The strongest are drawn last, over the others.
    carried, most = through(g), _strongest(g)
    drawn = sorted(
        (min(1.0, carried[a, b] / most), a, b, number < 0, looked)
        for a, b, edge in g.edges(data=True)
        if carried[a, b]
        for looked in [edge["kind"] in LOOKED]
        for number in [edge[edge["kind"] if looked else "weight"]]
    )
    paths, colours, widths, dashes = [], [], [], []
    for share, source, target, negative, looked in drawn:
        (x0, y0), (x1, y1) = at.places[source], at.places[target]
        bend, kind = 0.45 * (y1 - y0), g.nodes[source]["kind"]
        paths.append(Curve([(x0, y0), (x0, y0 + bend), (x1, y1 - bend), (x1, y1)],
                           [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]))  # fmt: skip
        faint = 0.4 if kind in GUTTER else 1.0
        colours.append((*_colour(negative), faint * (0.05 + 0.85 * share**0.5)))
        widths.append(_thickness(share))
        dashes.append(BY_LOOKING if looked else _dash(kind, negative))
    axes.add_collection(
        PathCollection(paths, facecolors="none", edgecolors=colours, linewidths=widths, linestyles=dashes, zorder=1),
        autolim=False,
    )


def _colour(negative: bool) -> tuple[float, ...]:
    return tuple(part / 255 for part in (words.NEGATIVE if negative else words.POSITIVE))


def _strongest(g: nx.DiGraph) -> float:
    """What comes through the edge that is drawn widest: the strongest of a single source's."""
    carried = through(g)
    single = [share for (source, _), share in carried.items() if g.nodes[source]["kind"] not in GUTTER]
    return max(single, default=0.0) or max(carried.values(), default=0.0) or 1.0


def _thickness(share: float) -> float:
    """share: of what comes through the strongest edge."""
    return 0.3 + 4.0 * share**0.75


BY_LOOKING = (0, (4, 1.2, 1, 1.2))
"""The dash of what is done by where heads looked."""


def _dash(kind: str, negative: bool = False) -> Any:
    if kind == "head":
        return (0, (1, 1.2))
    return (0, (4, 2)) if negative else "solid"


def _draw_nodes(axes: Any, g: nx.DiGraph, at: Layout) -> None:
    shares = _shares(g)
    for kind, marker in MARKERS.items():
        names = [name for name in at.places if g.nodes[name]["kind"] == kind]
        axes.scatter(
            [at.places[name][0] for name in names], [at.places[name][1] for name in names], marker=marker,
            s=[_area(shares[name]) for name in names], c=FILLS[kind], edgecolors=LINE_COLOUR,
            linewidths=[1.8 if g.nodes[name].get("target") else 0.6 for name in names], zorder=3,
        )  # fmt: skip
    for name in at.places:
        node = g.nodes[name]
        if node["kind"] in SLOTS:
            style = "square,pad=0.25" if node["kind"] == "head" else "round,pad=0.3"
            edge = 1.8 if node.get("target") and node["kind"] == "group" else 0.6
            box = {"boxstyle": style, "facecolor": FILLS[node["kind"]], "edgecolor": LINE_COLOUR, "linewidth": edge}
            _write(axes, *at.places[name], _in_box(node), size=5.5, bbox=box, zorder=4)


def _area(share: float) -> float:
    return 16 + 130 * share


def _in_box(node: dict[str, Any]) -> str:
    match node["kind"]:
        case "head":
            return f"{node['layer']}.{node['index']}"
        case "group":
            return f"{clean(words.shown(node['label']), 12)} ({len(node['nodes'])})"
    if node["kind"] == "direction":
        return "direction"
    chance = f" {words.percent(node['probability'])}" if "probability" in node else ""
    what = logit_tokens(node) if node.get("against") in ("mean", "softmax") else logit_token(node)
    return clean(what, 13 - len(chance)) + chance


def _draw_names(axes: Any, g: nx.DiGraph, at: Layout) -> None:
    """The features' names, above and below by turns so that neighbours do not meet."""
    from matplotlib.patheffects import withStroke

    shares = _shares(g)
    columns: dict[tuple[int, float], int] = defaultdict(int)
    for name, (x, y) in at.places.items():
        node = g.nodes[name]
        if node["kind"] != "feature":
            continue
        line = (node["pos"], y)
        columns[line] += 1
        side = -1 if columns[line] % 2 else 1
        text = clean(words.shown(node["label"]), 15) if node["label"] else feature_text(node)
        gap = _area(shares[name]) ** 0.5 / 2 / 72 / UNIT + 0.19
        halo = [withStroke(linewidth=1.8, foreground="white")]
        _write(axes, x, y + side * gap, text, size=5.5, path_effects=halo, zorder=5)


def _draw_legend(axes: Any, g: nx.DiGraph, left_out: str) -> None:
    from matplotlib.lines import Line2D

    there = {node["kind"] for _, node in g.nodes(data=True)}
    names = {"remainder": "what was left out", "head": "attention head", "group": "group (members)"}
    markers = {**MARKERS, "head": "s", "group": "o", "logit": "s", "direction": "s"}
    nodes = [
        Line2D([], [], linestyle="none", marker=marker, markersize=5, markerfacecolor=FILLS[kind],
               markeredgecolor=LINE_COLOUR, markeredgewidth=0.6, label=names.get(kind, kind))
        for kind, marker in markers.items() if kind in there
    ]  # fmt: skip
    flows = [("flow", False, "positive"), ("flow", True, "negative")]
    flows += [("head", False, "the same flow by head")] if "head" in there else []
    lines = [
        Line2D([], [], color=_colour(negative), linestyle=_dash(kind, negative), linewidth=1.4, label=label)
        for kind, negative, label in flows
    ]
    if any(kind in LOOKED for *_, kind in g.edges(data="kind")):
        lines.append(Line2D([], [], color=_colour(False), linestyle=BY_LOOKING, linewidth=1.4, label="query or key"))
    whole = sum(node["influence"] for _, node in g.nodes(data=True) if node.get("target")) or 1.0
    lines += [
        Line2D([], [], color=GREY, linewidth=_thickness(share),
               label=words.percent(min(1.0, share * _strongest(g) / whole)))
        for share in (0.1, 0.4, 1)
    ]  # fmt: skip
    lines[-1].set_label(f"{lines[-1].get_label()} of the target comes through it")
    for handles, height in ((nodes, -1.05), (lines, -1.6)):
        legend = axes.legend(
            handles=handles, loc="upper center", ncols=len(handles), fontsize=SMALL, frameon=False, handletextpad=0.4,
            columnspacing=1.1, borderaxespad=0.0, borderpad=0.0, handlelength=2.0,
            bbox_to_anchor=(sum(axes.get_xlim()) / 2, height), bbox_transform=axes.transData,
        )  # fmt: skip
        axes.add_artist(legend)
    told = f"A node's area is its influence on the target. {left_out}".strip()
    _write(axes, sum(axes.get_xlim()) / 2, -2.25, told, size=SMALL, color=GREY)


def _left_out(g: nx.DiGraph, drawn: nx.DiGraph) -> str:
    """A sentence; empty where all is drawn."""
    inside = {name for group in drawn if drawn.nodes[group]["kind"] == "group" for name in drawn.nodes[group]["nodes"]}
    gone = [node["kind"] for name, node in g.nodes(data=True) if name not in drawn and name not in inside]
    heads = gone.count("head")
    parts = [f"{words.count(n)} {what}" for n, what in ((len(gone) - heads, "nodes"), (heads, "heads")) if n]
    return f"Left out: the {' and '.join(parts)} of least influence." if parts else ""


def _shares(g: nx.DiGraph) -> dict[str, float]:
    """Influence, of the largest among the targets and among all others."""
    largest: dict[bool, float] = defaultdict(float)
    for _, node in g.nodes(data=True):
        key = bool(node.get("target"))
        largest[key] = max(largest[key], node["influence"])
    return {name: node["influence"] / (largest[bool(node.get("target"))] or 1.0) for name, node in g.nodes(data=True)}


def _write(axes: Any, x: float, y: float, text: str, size: float, **style: Any) -> None:
    """Text as it is: a dollar sign is no mathematics."""
    axes.text(x, y, text, fontsize=size, **{"ha": "center", "va": "center_baseline", **style}, parse_math=False,
              usetex=False, clip_on=False)  # fmt: skip
