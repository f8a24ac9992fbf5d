"""Blocks as pictures for a paper, by matplotlib: as wide as its column, on white, the same every time.

Pictures are of strips (a bar per token), heat maps, bars, tables that have a bar beside their numbers, and graphs,
which bring their own. Texts are written as they are: a dollar sign is no mathematics.
"""

from __future__ import annotations

import contextlib
import io
import math
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..texts import visible
from . import words
from .blocks import Bars, Beside, Block, Cell, Graph, HeatMap, Row, Section, Spread, Strip, Table, Token, arranged, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure

WIDTH = 6.5
"""Inches."""
LINE = 40
"""So many bars stand beside each other at most; more go on below."""
MOST_ROWS = 30
"""So many of a table's rows are drawn."""
NAME, ROW_NAME, TITLE_NAME = 18, 36, 100
"""Characters after which a name is cut."""
SMALL, NORMAL, TITLE = 6.5, 7.5, 8.5
LETTER = 0.06
"""Inches that a small letter is wide."""
GREY = "#666666"
RANKED = ("ranked", "strong")


def figure(block: Block) -> Figure:
    """The picture of one block. Raises UserError where it has none, and where matplotlib is missing."""
    return figures((block,))


def figures(blocks: Iterable[Block]) -> Figure:
    """All blocks that are pictures, one below the other; notebooks show it.

    A graph keeps its own size: alone it is its own figure, below others an image in theirs.
    Raises UserError where no block is a picture, and where matplotlib is missing.
    """
    check_matplotlib()
    drawn = list(_pictured(blocks))
    if not drawn:
        raise UserError("there is nothing to draw here: no bars, heat map or graph that has a value")
    if len(drawn) == 1 and isinstance(drawn[0], Graph):
        return drawn[0].figure()
    parts = [_part(block) for block in drawn]
    wide = max(part.width for part in parts)
    heights = [part.height for part in parts]
    picture = blank((wide, sum(heights)), layout="constrained")
    spaces = picture.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for space, part in zip(spaces, parts, strict=True):
        rest = wide - part.width
        part.draw(space.subfigures(1, 2, width_ratios=(part.width, rest))[0] if rest else space)
    with _quietly():
        for _ in range(2):  # bold names are measured once they are drawn
            picture.draw_without_rendering()
    picture.set_layout_engine("none")  # laid out again, it would move by a hair each time
    return picture


def has_picture(block: Block) -> bool:
    match block:
        case Strip(marks=marks):
            return any(mark.value is not None for mark in marks)
        case HeatMap(values=values):
            return any(value is not None for row in values for value in row)
        case Bars(values=values):
            return any(value is not None for value in values)
        case Table(columns=columns):
            return any(column.bar and _values(block, i) for i, column in enumerate(columns))
        case Graph():
            return True
    return False


def _pictured(blocks: Iterable[Block]) -> Iterator[Block | list[Strip]]:
    for block in arranged(list(blocks)):
        if isinstance(block, Section | Beside):
            yield from _pictured(block.blocks)
        elif any(map(has_picture, block)) if isinstance(block, list) else has_picture(block):
            yield block


def check_matplotlib() -> None:
    """Raises UserError where pictures cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'depass-sae[notebook]'") from None


def blank(size: tuple[float, float], **settings: Any) -> Figure:
    """A figure that notebooks show, with or without pyplot; it is no part of pyplot's state."""
    check_matplotlib()
    from matplotlib.figure import Figure as Plain

    class Figure(Plain):
        def _repr_png_(self) -> bytes:
            return rendered(self, "png", 120.0)

    return Figure(figsize=size, facecolor="white", **settings)


def rendered(picture: Figure, format: str, dpi: float = 300.0) -> bytes:
    """A figure as a file's content (png, svg or pdf): the same figure gives the same bytes, no date in them.

    In an SVG and a PDF texts are text, which can be searched and set in another typeface.
    """
    import matplotlib

    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format, {})
    dpi = min(dpi, 60_000 / max(picture.get_size_inches()))  # PNG's sides end at 65 536 pixels
    out = io.BytesIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "depass-sae", "svg.fonttype": "none", "pdf.fonttype": 42}),
        _quietly(),
    ):
        picture.savefig(out, format=format, dpi=dpi, metadata=metadata, facecolor="white")
    return out.getvalue()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without a warning of each character that the typeface lacks, which is drawn as a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


# ----------------------------------------------------------------------------------------------------- kinds of blocks


@dataclass(frozen=True)
class _Part:
    """How large a block's picture is, in inches, and what draws it."""

    height: float
    draw: Callable[[SubFigure], None]
    width: float = WIDTH


def _part(block: Block | list[Strip]) -> _Part:
    match block:
        case Strip():
            return _bars(block.title, [_of_tokens(block)])
        case list():
            return _bars(block[0].title, [_of_tokens(strip) for strip in block])
        case Bars():
            return _bars(block.title, [replace(block, title="")])
        case HeatMap():
            return _map(block)
        case Table():
            return _table(block)
        case Graph():
            return _image(block)
    raise AssertionError(block)


def _of_tokens(block: Strip) -> Bars:
    names = [Token(mark.token, mark.pos) if mark.aimed else words.shown(mark.token) for mark in block.marks]
    aimed = frozenset(i for i, mark in enumerate(block.marks) if mark.aimed)
    return Bars(block.label, tuple(names), tuple(mark.value for mark in block.marks), block.unit, strong=aimed)


def _bars(title: str, blocks: Sequence[Bars]) -> _Part:
    """A bar each, in their order, on as many lines as it takes; all lines have one scale."""
    limits = _limits([value for block in blocks for value in block.values], 0.05)
    many = max(math.ceil(len(block.names) / math.ceil(len(block.names) / LINE)) for block in blocks if block.names)
    lines = [(block, start) for block in blocks for start in range(0, len(block.names), many)]
    longest = max(len(_name(name)) for block in blocks for name in block.names)

    def draw(space: SubFigure) -> None:
        _title(space, title)
        for axes, (block, start) in zip(space.subplots(len(lines), 1, squeeze=False)[:, 0], lines, strict=True):
            numbers = [value or 0.0 for value in block.values[start : start + many]]
            some = range(start, start + len(numbers))
            axes.bar(some, numbers, color=[_colour(value) for value in numbers], width=0.8)
            axes.axhline(0, color=GREY, linewidth=0.6)
            axes.set(xlim=(start - 0.7, start + many - 0.3), ylim=limits)
            _ticks(axes.xaxis, some, [_name(block.names[i]) for i in some], rotation=90)
            for label, i in zip(axes.get_xticklabels(), some, strict=True):
                label.set_fontweight("bold" if i in block.strong else "normal")
            if block.title and not start:
                _write(axes, 0.0, 1.02, clean(block.title), transform=axes.transAxes, fontweight="bold")
            _label(axes.yaxis, block.unit)
            _quiet(axes)

    return _Part(_above(title) + len(lines) * (1.4 + LETTER * longest), draw)


def _map(block: HeatMap) -> _Part:
    down = [_name(name) for name in block.rows]
    across = [_name(name) for name in block.columns]
    longest = max(map(len, across))
    turned = longest > 3
    full = words.drawn_full(value for row in block.values for value in row)
    full = full if math.isfinite(full) else 1.0

    def draw(space: SubFigure) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        colours = LinearSegmentedColormap.from_list(
            "blue and orange", [_rgb(words.NEGATIVE), (1, 1, 1), _rgb(words.POSITIVE)]
        ).with_extremes(bad="#e9ebed")
        _title(space, block.title)
        axes = space.subplots()
        values = [[math.nan if value is None else value for value in row] for row in block.values]
        image = axes.imshow(values, cmap=colours, vmin=-full, vmax=full, aspect="auto", interpolation="nearest")
        _ticks(axes.yaxis, range(len(down)), down)
        room = 0.85 * (WIDTH - 1.2 - LETTER * max(map(len, down)))
        each = math.ceil(len(across) * (0.08 if turned else LETTER * (longest + 1)) / room)
        shown = range(0, len(across), each)
        _ticks(axes.xaxis, shown, [across[i] for i in shown], rotation=90 if turned else 0)
        _label(axes.yaxis, block.down)
        _label(axes.xaxis, block.across)
        if block.totals:
            beside = axes.secondary_yaxis("right")
            _ticks(beside.yaxis, range(len(down)), [words.signed(value) for value in block.totals])
            beside.tick_params(length=0)
            beside.spines["right"].set_visible(False)
            place = {"transform": axes.transAxes, "ha": "left", "va": "bottom"}
            _write(axes, 1.02, 1.0, clean(block.total), **place)
        numbers = [value for row in block.values for value in row if value is not None]
        scale = space.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=30)
        scale.ax.set_ylim(-full if min(numbers) < 0 else 0.0, full if max(numbers) > 0 else 0.0)
        scale.outline.set_linewidth(0.4)
        scale.ax.tick_params(labelsize=SMALL, length=2, width=0.4)
        _label(scale.ax.yaxis, block.unit)
        _quiet(axes, framed=True)

    row = 0.12 if len(down) > 40 else 0.17
    return _Part(_above(block.title) + 0.6 + row * len(down) + (LETTER * longest if turned else 0.0), draw)


def _table(block: Table) -> _Part:
    """Bars to the right and left, the largest on top; rows of one group below its name."""
    columns = [i for i, column in enumerate(block.columns) if column.bar and _values(block, i)]
    ranked = [row for row in block.rows if row.role in RANKED]
    first, groups = columns[0], list(dict.fromkeys(row.group for row in ranked))
    ranked.sort(key=lambda row: (groups.index(row.group), -abs(size(row.cells[first]) or 0.0)))
    lines: list[tuple[str, Row | None]] = []
    for before, row in zip([None, *ranked], ranked[:MOST_ROWS], strict=False):
        if row.group is not None and (before is None or row.group != before.group):
            lines.append((_name(row.group, ROW_NAME), None))
        lines.append((_name(row.cells[0], ROW_NAME), row))
    more = len(ranked) - MOST_ROWS

    def draw(space: SubFigure) -> None:
        _title(space, block.title)
        panels = space.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for axes, i in zip(panels, columns, strict=True):
            column = block.columns[i]
            for y, (_, row) in enumerate(lines):
                cell = None if row is None else row.cells[i]
                value = size(cell)
                if value is not None:
                    std = cell.std if isinstance(cell, Spread) else None
                    axes.barh(y, value, color=_colour(value), height=0.75, xerr=std, error_kw={"elinewidth": 0.6})
                    told = words.formatted(cell, column.format, column.digits)
                    _at_end(axes, value, y, told)
            axes.axvline(0, color=GREY, linewidth=0.6)
            axes.set(xlim=_limits(_values(block, i), 0.2), ylim=(len(lines) - 0.4, -0.6))
            _label(
                axes.xaxis, f"{column.name} ({column.unit})" if column.unit not in ("", column.name) else column.name
            )
            if column.format == "percent":
                axes.xaxis.set_major_formatter(lambda value, _: words.percent(value))
            _quiet(axes)
        _ticks(panels[0].yaxis, range(len(lines)), [name for name, _ in lines])
        for label, (_, row) in zip(panels[0].get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if row is None or row.role == "strong" else "normal")
        if more > 0:
            panels[0].set_title(f"the largest {MOST_ROWS} of {len(ranked)}", fontsize=SMALL, color=GREY, loc="left")

    return _Part(_above(block.title) + (0.2 if more > 0 else 0.0) + 0.5 + 0.17 * len(lines), draw)


def _image(block: Graph) -> _Part:
    own = block.figure()
    width, height = own.get_size_inches()

    def draw(space: SubFigure) -> None:
        from matplotlib.image import imread

        _title(space, block.title)
        axes = space.subplots()
        axes.imshow(imread(io.BytesIO(rendered(own, "png"))), interpolation="none")
        axes.set_axis_off()

    return _Part(_above(block.title) + float(height), draw, max(WIDTH, float(width)))


# -------------------------------------------------------------------------------------------------------------- details


def _values(block: Table, i: int) -> list[float]:
    """What is drawn of a column: the numbers of its ranked rows."""
    sizes = (size(row.cells[i]) for row in block.rows if row.role in RANKED)
    return [value for value in sizes if value is not None]


def _limits(values: Iterable[float | None], air: float) -> tuple[float, float]:
    """From where to where an axis goes. Where all is only rounding, it is drawn as that."""
    there = [value for value in values if value is not None]
    if not math.isfinite(words.drawn_full(there)):
        return -1.0, 1.0
    low, high = min(0.0, *there), max(0.0, *there)
    return low - air * (high - low) * (low < 0), high + air * (high - low) * (high > 0)


def _above(title: str) -> float:
    return 0.35 if title else 0.1


def _title(space: SubFigure, title: str) -> None:
    if title:
        space.suptitle(clean(title, TITLE_NAME), x=0.01, ha="left", fontsize=TITLE, parse_math=False)


def _label(axis: Axis, text: str) -> None:
    axis.set_label_text(clean(text), fontsize=NORMAL, parse_math=False)


def _ticks(axis: Axis, places: Sequence[int], names: Sequence[str], rotation: float = 0) -> None:
    axis.set_ticks(places, names, fontsize=SMALL, rotation=rotation, parse_math=False)


def _write(axes: Axes, x: float, y: float, text: str, **where: Any) -> None:
    axes.text(x, y, text, fontsize=SMALL, parse_math=False, **where)


def _at_end(axes: Axes, x: float, y: float, text: str) -> None:
    """Beside the end of a bar."""
    apart, side = (3, "left") if x >= 0 else (-3, "right")
    axes.annotate(
        text, (x, y), xytext=(apart, 0), textcoords="offset points", ha=side, va="center_baseline", fontsize=SMALL,
        color=GREY, parse_math=False,
    )  # fmt: skip


def _quiet(axes: Axes, framed: bool = False) -> None:
    axes.tick_params(labelsize=SMALL, length=2, width=0.4)
    for side, spine in axes.spines.items():
        spine.set_linewidth(0.4)
        spine.set_visible(framed or side in ("left", "bottom"))


def _name(cell: Cell, length: int = NAME) -> str:
    """A name that is not too long; of a token that is, its place is left."""
    if isinstance(cell, Token) and cell.pos is not None:
        cell = replace(cell, text=clean(words.shown(cell.text), length - 5))
    return clean(words.formatted(cell), length)


def clean(text: str, length: int = 200) -> str:
    """Text for a picture: unassigned code points (U+FFFE) may not stand in an SVG, not even in its comments."""
    text = "".join("\ufffd" if unicodedata.category(c) == "Cn" else c for c in visible(text))
    return text if len(text) <= length else text[: length - 1] + "…"


def _colour(value: float) -> tuple[float, ...]:
    return _rgb(words.POSITIVE if value >= 0 else words.NEGATIVE)


def _rgb(colour: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(part / 255 for part in colour)
