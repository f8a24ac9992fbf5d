"""A feature-flow graph as a picture for a paper: positions across, layers upwards, as in circuit tracing's figures.

A cell is one layer at one position; its nodes stand side by side, the most influential first, in several lines where
they are many. What belongs to no position (decoder constants, biases, what was pruned) stands in a gutter on the left.
A node's area is its influence; an edge's width and strength are its share of its target's inflow, its colour and dash
its sign. Heads are a second view of the same flow and are left out. The same graph always gives the same SVG.
"""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..arguments import typed
from ..attribution.render import NEGATIVE, POSITIVE, named, shown
from ..errors import UserError
from .document import TESTED, check_graph
from .influence import size

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.figure import Figure

UNIT = 0.46
"""Inches from one node to the next in a cell."""
CELL = 8.0
"""Units that a line of a cell is wide at most."""
LINE = 1.3
"""Units from one line of a cell to the next."""
LOWEST = 0.35
"""A wide picture's rows are drawn apart until it is at least this high for its width."""
GUTTER = {"remainder": -3.0, "bias": -2.2, "constant": -1.4}
MARKERS = {"feature": "o", "token": "s", "error": "D", "constant": "^", "bias": "v", "remainder": "X"}
FILLS = {
    "feature": "#fbd97f", "token": "#b9d7c0", "error": "#e3a6b0", "constant": "#d5d5d5", "bias": "#d5d5d5",
    "remainder": "#d5d5d5",
}  # fmt: skip
NAMED_FEATURES = 20
MOST_EDGES = 1500
"""More lines than this are a grey ground; the ones through which least flows are left out."""
ALL_POSITIONS = 30
"""Longer prompts show only the positions at which something stands."""


@dataclass(frozen=True)
class Layout:
    """In units: where each node stands, each position's column (left, right), and each layer's row (bottom, top)."""

    places: dict[str, tuple[float, float]]
    columns: dict[int, tuple[float, float]]
    rows: dict[int, tuple[float, float]]


def picture_of(g: nx.DiGraph, format: str) -> bytes:
    """The graph's picture as a file's content. ``format``: png, svg or pdf."""
    return rendered(plot_graph(g), format)


def check_matplotlib() -> None:
    """Raises UserError where pictures cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'depass-sae[notebook]'") from None


def rendered(picture: Figure, format: str, dpi: float = 120.0) -> bytes:
    """A figure as a file's content: the same figure gives the same bytes, no date in them."""
    import matplotlib

    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format, {})
    dpi = min(dpi, 60_000 / max(picture.get_size_inches()))  # PNG's sides end at 65 536 pixels
    out = io.BytesIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "depass-sae", "svg.fonttype": "path", "pdf.fonttype": 42}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box
        picture.savefig(out, format=format, dpi=dpi, metadata=metadata, facecolor="white")
    return out.getvalue()


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
    picture = _figure((8.0, 3.6))
    axes = picture.subplots(1, 2, sharey=True)
    for axis, by in zip(axes, ("weight", "effect"), strict=True):
        for kind in TESTED:
            some = [node for node in found["nodes"] if g.nodes[node["node"]]["kind"] == kind]
            if some:
                said, lost = [node[by] for node in some], [node["observed"] for node in some]
                style = {"marker": MARKERS.get(kind, "P"), "color": FILLS.get(kind, "#9ec5dd")}
                axis.scatter(said, lost, s=26, linewidths=0.5, edgecolors="#444444", label=kind, **style)
        axis.axline((0, 0), slope=1, color="#999999", linewidth=0.8, zorder=0)
        rank = found["rank_correlation"][by]
        axis.set_xlabel(f"predicted by {by}s")
        axis.set_title("" if rank is None else f"rank correlation {rank:.2f}", fontsize=10)
    axes[0].set_ylabel("observed loss of the target")
    if found["nodes"]:
        axes[0].legend(fontsize=8, frameon=False)
    picture.tight_layout()
    return picture


@typed
def plot_graph(g: nx.DiGraph) -> Figure:
    """The graph as a matplotlib figure; notebooks show it. Raises UserError where matplotlib is missing.

    It may be a part of one, such as ``g.subgraph(names)``.
    """
    check_graph(g)
    at = layout(g)
    left, right = min(GUTTER.values()) - 2.6, max((end for _, end in at.columns.values()), default=1.0)
    bottom, top = -1.7, max((end for _, end in at.rows.values()), default=1.0) + 0.1
    picture = _figure(((right - left) * UNIT, (top - bottom) * UNIT))
    axes = picture.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    _draw_grid(axes, g, at, left, right)
    _draw_edges(axes, g, at)
    _draw_nodes(axes, g, at)
    _draw_names(axes, g, at)
    _draw_legend(axes, g)
    return picture


def _figure(size: tuple[float, float]) -> Figure:
    check_matplotlib()
    from matplotlib.figure import Figure as Plain

    class Figure(Plain):
        """One that notebooks show, with or without pyplot."""

        def _repr_png_(self) -> bytes:
            return rendered(self, "png")

    return Figure(figsize=size, facecolor="white")


def layout(g: nx.DiGraph) -> Layout:
    """Columns as wide and rows as high as the fullest cell in them."""
    cells: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, node in g.nodes(data=True):
        if "pos" in node:
            cells[node["layer"], node["pos"]].append(name)
    lines = {cell: _lines(g, names) for cell, names in cells.items()}
    occupied = {pos for _, pos in cells}
    tokens = range(len(g.graph["tokens"]))
    positions = sorted(occupied | (set(tokens) if len(tokens) <= ALL_POSITIONS else set()))
    columns, x = {}, 0.0
    for pos in positions:
        wide = max((_width(g, line) for (_, p), found in lines.items() if p == pos for line in found), default=0.0)
        columns[pos] = (x, x + max(1.5, wide + 0.5))
        x = columns[pos][1]
    layers = sorted({node["layer"] for _, node in g.nodes(data=True) if node["kind"] != "head"})
    high = {layer: max((len(found) for (at, _), found in lines.items() if at == layer), default=1) for layer in layers}
    apart = max(1.0, (LOWEST * x - LINE * sum(high.values())) / len(layers))
    rows, y = {}, 0.0
    for layer in layers:
        rows[layer] = (y, y + LINE * high[layer] + apart)
        y = rows[layer][1]
    places = {}
    for (layer, pos), found in lines.items():
        middle, height = sum(columns[pos]) / 2, sum(rows[layer]) / 2
        for i, line in enumerate(found):
            x = middle - _width(g, line) / 2
            for name in line:
                places[name] = (x + _slot(g, name) / 2, height + LINE * ((len(found) - 1) / 2 - i))
                x += _slot(g, name)
    for name, node in g.nodes(data=True):
        if node["kind"] in GUTTER:
            places[name] = (GUTTER[node["kind"]], sum(rows[node["layer"]]) / 2)
    return Layout(places, columns, rows)


def _lines(g: nx.DiGraph, names: Iterable[str]) -> list[list[str]]:
    """A cell's nodes in lines: features, then what no feature explains."""
    order = sorted(names, key=lambda name: (g.nodes[name]["kind"] == "error", -g.nodes[name]["influence"], name))
    lines: list[list[str]] = [[]]
    for name in order:
        if lines[-1] and _width(g, lines[-1]) + _slot(g, name) > CELL:
            lines.append([])
        lines[-1].append(name)
    return lines


def _slot(g: nx.DiGraph, name: str) -> float:
    return 2.0 if g.nodes[name]["kind"] == "logit" else 1.0


def _width(g: nx.DiGraph, line: Iterable[str]) -> float:
    return sum(_slot(g, name) for name in line)


# ------------------------------------------------------------------------------------------------------------- drawing


def _draw_grid(axes: Any, g: nx.DiGraph, at: Layout, left: float, right: float) -> None:
    for i, (layer, (low, high)) in enumerate(at.rows.items()):
        if i % 2:
            axes.axhspan(low, high, color="#f6f7f8", zorder=0, linewidth=0)
        name = {-1: "embeddings", g.graph["n_layers"]: "logits"}.get(layer, f"layer {layer}")
        _write(axes, left + 0.15, (low + high) / 2, name, size=7.5, color="#444444", ha="left")
    axes.plot([left, right], [0, 0], color="#999999", linewidth=0.6, zorder=0)
    for pos, (start, end) in at.columns.items():
        if start > 0:
            axes.plot([start, start], [0, max(high for _, high in at.rows.values())], color="#e4e6e8",
                      linewidth=0.6, zorder=0.5)  # fmt: skip
        token = _shortened(g.graph["tokens"][pos], int((end - start) * UNIT / 0.08)) if _has(g, pos) else "?"
        _write(axes, (start + end) / 2, -0.3, token, size=7.5)
        _write(axes, (start + end) / 2, -0.65, str(pos), size=5.5, color="#777777")


def _draw_edges(axes: Any, g: nx.DiGraph, at: Layout) -> None:
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path as Curve

    inflow: dict[str, float] = defaultdict(float)
    flows = [(a, b, edge) for a, b, edge in g.edges(data=True) if edge["kind"] != "head"]
    for _, target, edge in flows:
        inflow[target] += size(edge)
    drawn = [(min(1.0, abs(edge["weight"]) / inflow[b]), a, b, edge["weight"] < 0) for a, b, edge in flows if inflow[b]]
    drawn.sort(key=lambda line: (-line[0] * g.nodes[line[2]]["influence"], line[1], line[2]))
    drawn = sorted(drawn[:MOST_EDGES])  # the strongest are drawn last, over the others
    paths, colours, widths, dashes = [], [], [], []
    for share, source, target, negative in drawn:
        (x0, y0), (x1, y1) = at.places[source], at.places[target]
        bend = 0.45 * (y1 - y0)
        paths.append(Curve([(x0, y0), (x0, y0 + bend), (x1, y1 - bend), (x1, y1)],
                           [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]))  # fmt: skip
        faint = 0.5 if g.nodes[source]["kind"] in GUTTER else 1.0
        colours.append((*(c / 255 for c in (NEGATIVE if negative else POSITIVE)), faint * (0.12 + 0.7 * share**0.7)))
        widths.append(0.35 + 3.0 * share)
        dashes.append((0, (4, 2)) if negative else "solid")
    axes.add_collection(
        PathCollection(paths, facecolors="none", edgecolors=colours, linewidths=widths, linestyles=dashes, zorder=1),
        autolim=False,
    )


def _draw_nodes(axes: Any, g: nx.DiGraph, at: Layout) -> None:
    shares = _shares(g)
    for kind, marker in MARKERS.items():
        names = [name for name in at.places if g.nodes[name]["kind"] == kind]
        axes.scatter(
            [at.places[name][0] for name in names], [at.places[name][1] for name in names], marker=marker,
            s=[22 + 190 * shares[name] for name in names], c=FILLS[kind], edgecolors="#333333",
            linewidths=[1.8 if g.nodes[name].get("target") else 0.6 for name in names], zorder=3,
        )  # fmt: skip
    for name in at.places:
        node = g.nodes[name]
        if node["kind"] == "logit":
            chance = f" {node['probability']:.0%}" if "probability" in node else ""
            text = _shortened(named(node["token"]), 9)
            if "against_token" in node:
                text = f"{_shortened(named(node['token']), 6)} − {_shortened(named(node['against_token']), 6)}"
            box = {"boxstyle": "round,pad=0.3", "facecolor": "#ece3f4", "edgecolor": "#333333", "linewidth": 0.6}
            _write(axes, *at.places[name], text + chance, size=5.5 + 1.5 * shares[name], bbox=box, zorder=4)


def _draw_names(axes: Any, g: nx.DiGraph, at: Layout) -> None:
    """The most influential features' names, above and below by turns so that neighbours do not meet."""
    from matplotlib.patheffects import withStroke

    shares = _shares(g)
    features = [name for name in at.places if g.nodes[name]["kind"] == "feature"]
    listed = sorted(features, key=lambda name: (-g.nodes[name]["influence"], name))[:NAMED_FEATURES]
    for name in listed:
        node, (x, y) = g.nodes[name], at.places[name]
        left = sum(at.columns[node["pos"]]) / 2 - CELL
        side = 1 if round(2 * (x - left)) // 2 % 2 else -1
        text = _shortened(node["label"], 15) if node["label"] else f"{node['layer']}/{node['index']}"
        gap = (22 + 190 * shares[name]) ** 0.5 / 2 / 72 / UNIT + 0.17
        halo = [withStroke(linewidth=1.8, foreground="white")]
        _write(axes, x, y + side * gap, text, size=5.5, path_effects=halo, zorder=5)


def _draw_legend(axes: Any, g: nx.DiGraph) -> None:
    from matplotlib.lines import Line2D

    kinds = {node["kind"] for _, node in g.nodes(data=True)}
    handles = [
        Line2D([], [], linestyle="none", marker=marker, markersize=5, markerfacecolor=FILLS[kind],
               markeredgecolor="#333333", markeredgewidth=0.6, label=kind)
        for kind, marker in MARKERS.items() if kind in kinds
    ]  # fmt: skip
    for colour, dash, label in ((POSITIVE, "-", "positive flow"), (NEGATIVE, (0, (3, 1.5)), "negative flow")):
        line = Line2D([], [], color=[c / 255 for c in colour], linestyle=dash, linewidth=1.4, label=label)
        handles.append(line)
    axes.legend(
        handles=handles, loc="lower center", ncols=len(handles), fontsize=6, frameon=False, handletextpad=0.4,
        columnspacing=1.1, borderaxespad=0.3, handlelength=2.0,
    )  # fmt: skip


def _shares(g: nx.DiGraph) -> dict[str, float]:
    """Influence, of the largest among the targets and among all others."""
    largest: dict[bool, float] = defaultdict(float)
    for _, node in g.nodes(data=True):
        key = bool(node.get("target"))
        largest[key] = max(largest[key], node["influence"])
    return {name: node["influence"] / (largest[bool(node.get("target"))] or 1.0) for name, node in g.nodes(data=True)}


def _has(g: nx.DiGraph, pos: int) -> bool:
    return pos < len(g.graph["tokens"])


def _shortened(text: str, length: int) -> str:
    # Unassigned code points (U+FFFE) may not stand in an SVG, not even in its comments.
    text = "".join("\ufffd" if unicodedata.category(c) == "Cn" else c for c in shown(text))
    return text if len(text) <= length else text[: max(1, length - 1)] + "…"


def _write(axes: Any, x: float, y: float, text: str, size: float, **style: Any) -> None:
    """Text as it is: a dollar sign is no mathematics."""
    axes.text(x, y, text, fontsize=size, **{"ha": "center", "va": "center_baseline", **style}, parse_math=False,
              usetex=False, clip_on=False)  # fmt: skip
