"""Blocks in a terminal, and as plain text.

Token text is not trusted: whatever texts a block is made of, a terminal finds no orders in them. No cell is cut: where
room is short, texts go on in the next line, bars get shorter, and a heat map is drawn in several pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from ..texts import visible
from . import words
from .blocks import (
    Bars,
    Beside,
    Block,
    Cell,
    Column,
    Feature,
    Graph,
    HeatMap,
    Note,
    Pairs,
    Row,
    Section,
    Strip,
    Table,
    Token,
    arranged,
    size,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.measure import Measurement
    from rich.segment import Segment
    from rich.table import Table as Drawn
    from rich.text import Text as Line

UNBOUNDED = 100_000
"""The width of what no window shows: a table is as wide as its cells, and no line is wrapped."""
PLAIN = 100
"""The width of plain text."""
BAR = 24
STYLES = {"ranked": "", "strong": "bold", "aside": "dim", "total": "bold"}
NOTES = {"answer": "bold", "lead": "", "plain": "", "quiet": "dim", "warning": "bold", "code": ""}


class Text(str):
    """A text that shows itself as it is at the end of a notebook cell or on the prompt."""

    def __repr__(self) -> str:
        return str(self)


def text(blocks: Iterable[Block | RenderableType]) -> Text:
    """Blocks as plain text."""
    import io

    from rich.console import Console

    out = io.StringIO()
    # In a notebook a console would show by itself what it is asked to write.
    console = Console(
        file=out, width=PLAIN, color_system=None, force_terminal=False, force_jupyter=False, legacy_windows=False
    )
    print_on(console, blocks)
    return Text("\n".join(line.rstrip(" ") for line in out.getvalue().split("\n")).strip("\n"))


def print_on(console: Console, parts: Iterable[Block | RenderableType]) -> None:
    """Print blocks, or what is drawn already; a terminal finds no orders in either, and no cell of a table is cut."""
    from rich.table import Table as Drawn

    given = list(parts)
    drawn = renderables(given) if all(isinstance(part, Block) for part in given) else given  # type: ignore[arg-type]
    for part in drawn:
        for column in part.columns if isinstance(part, Drawn) else ():
            column.overflow = "fold"
        console.print(_Visible(part))  # type: ignore[arg-type]


class _Visible:
    def __init__(self, part: RenderableType) -> None:
        self._part = part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._part, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, keep="\n"))


def renderables(blocks: Iterable[Block]) -> list[RenderableType]:
    """What Rich prints for the blocks, with a line between them, but for notes that follow each other."""
    parts: list[RenderableType] = []
    before: Block | list[Strip] | None = None
    for block in arranged(list(blocks)):
        drawn = _drawn(block)
        if drawn and parts and not (isinstance(block, Note) and isinstance(before, Note)):
            parts.append("")
        parts += drawn
        before = block if drawn else before
    return parts


def _drawn(block: Block | list[Strip]) -> list[RenderableType]:
    match block:
        case Table():
            return _tabled(block)
        case Strip():
            return _strips([block])
        case list():
            return _strips(block)
        case HeatMap():
            return [*_titled(block.title), _Map(block), *_quiet(block.caption)]
        case Bars():
            return _tabled(block.table())
        case Note():
            return _note(block)
        case Graph():
            return renderables(block.blocks())
        case Beside():
            return renderables(block.blocks)
        case Section():
            inside = renderables(block.blocks)
            return [*_heading(block.title, block.feature), *(["", *inside] if inside else [])]


def _heading(title: str, feature: Feature | None) -> list[RenderableType]:
    if feature is None:
        return [_line(title, "bold")] if title else []
    parts = [_line(title, "bold")] if title else []
    parts += [_line(feature.name, "bold")] if feature.name not in title else []
    parts += [_line(f"“{words.shown(feature.label)}”")] if feature.label else []
    return [_line("  ").join(parts), *_quiet(feature.link or "")]


def _titled(title: str) -> list[RenderableType]:
    return [_line(title, "table.title")] if title else []


def _quiet(text: str) -> list[RenderableType]:
    return [_line(text, "dim")] if text else []


def _line(text: str, style: str = "") -> Line:
    from rich.text import Text as Line

    return Line(text, style=style)


# -------------------------------------------------------------------------------------------------------------- tables


def _tabled(block: Table) -> list[RenderableType]:
    """A table between its title and its caption, which may be wider."""
    return [*_titled(block.title), _table(block), *_quiet(block.caption)]


def _table(block: Table) -> Drawn:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Drawn

    table = Drawn(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in block.columns:
        justify: Literal["left", "right"] = "left" if column.format == "text" else "right"
        table.add_column(_line(visible(column.name)), justify=justify)
        if column.bar:
            table.add_column("")
    full = [words.drawn_full(_drawn_values(block, i), _decimals(column)) for i, column in enumerate(block.columns)]
    before: Row | None = None
    for row in block.rows:
        new_group = row.group is not None and (before is None or row.group != before.group)
        if before is not None and (new_group or (row.role == "total") > (before.role == "total")):
            table.add_section()
        if new_group:
            table.add_row(_line(words.formatted(row.group), "bold"))
        cells: list[RenderableType] = []
        for cell, column, largest in zip(row.cells, block.columns, full, strict=True):
            cells.append(_cell(cell, column))
            if column.bar:
                value = size(cell) if row.role in ("ranked", "strong") else None
                cells.append("" if value is None else _Bar(value / largest))
        table.add_row(*cells, style=STYLES[row.role])
        before = row
    return table


def _drawn_values(block: Table, i: int) -> list[float | None]:
    return [size(row.cells[i]) for row in block.rows if row.role in ("ranked", "strong")]


def _decimals(column: Column) -> int:
    return {"percent": 2, "count": 0}.get(column.format, column.digits)


def _cell(cell: Cell, column: Column | None = None) -> Line:
    match cell:
        case Feature():
            return _line(visible(cell.name), "bold") + _line(f" {words.shown(cell.label)}" if cell.label else "")
        case Pairs():
            told = [
                _line(words.formatted(name)) + _line(f" {words.formatted(value, cell.format, cell.digits)}", "bold")
                for name, value in cell.entries
            ]
            return _line("  ").join([*told, *([_line(f"+{cell.more}", "dim")] if cell.more else [])])
    return _line(words.formatted(cell, column.format, column.digits) if column else words.formatted(cell))


class _Bar:
    """A share of the column's width in one of two colours."""

    def __init__(self, share: float) -> None:
        self._share = max(-1.0, min(1.0, share))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement(1, min(BAR, options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Line]:
        length = abs(self._share) * min(BAR, options.max_width)
        drawn = "█" * int(length) + ("▌" if length - int(length) >= 0.5 else "")
        yield _line(drawn, _rgb(words.POSITIVE if self._share >= 0 else words.NEGATIVE))


# ------------------------------------------------------------------------------------------------- strips and heat maps


def _strips(blocks: Sequence[Strip]) -> list[RenderableType]:
    """Texts on one scale, under the first one's title."""
    full = words.drawn_full(mark.value for block in blocks for mark in block.marks)
    wide = max(_line(visible(block.label)).cell_len for block in blocks)
    parts = _titled(blocks[0].title)
    for block in blocks:
        label = _line(visible(block.label))
        label.pad_left(wide - label.cell_len)
        parts += [label + _line("  " if wide else "") + _strip(block, full), *_quiet(block.caption)]
    return parts


def _strip(block: Strip, full: float) -> Line:
    """The tokens as they follow each other, each on a ground of its value's colour, those asked about underlined."""
    line = _line("")
    for mark in block.marks:
        style = _ground((mark.value or 0.0) / full) + (" underline bold" if mark.aimed else "")
        line.append(visible(mark.token), style=style.strip())
        if block.numbers and mark.value:
            line.append(f" {words.signed(mark.value)}", style="dim")
    return line


def _ground(share: float) -> str:
    """The ground's strength is the share; a small one is seen to be there, and next to nothing has none."""
    if abs(share) <= 0.05:
        return ""
    return f"white on {_rgb(words.POSITIVE if share > 0 else words.NEGATIVE, 0.25 + 0.75 * min(1.0, abs(share)))}"


def _rgb(colour: tuple[int, int, int], strength: float = 1.0) -> str:
    return f"rgb({','.join(str(int(strength * part)) for part in colour)})"


def _numbered(columns: Sequence[str | Token]) -> list[str] | None:
    """What stands over the columns, where it is short enough for two of them; None where they are counted instead."""
    names = [name for name in columns if isinstance(name, str) and len(name) <= 3 and name.isalnum()]
    return names if len(names) == len(columns) else None


class _Map:
    """A heat map of two characters a cell, in as many pieces as it takes to fit the width."""

    def __init__(self, block: HeatMap) -> None:
        self._block = block
        self._full = words.drawn_full(value for row in block.values for value in row)
        self._numbered = _numbered(block.columns)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        block, coloured = self._block, console.color_system is not None
        label = max(_line(words.formatted(name)).cell_len for name in (block.down, *block.rows))
        totals = [words.signed(value) for value in block.totals]
        end = 2 + max(map(len, [block.total, *totals])) if totals else 0
        many = max(1, (options.max_width - label - 2 - end) // 2)
        for start in range(0, max(1, len(block.columns)), many):
            last = start + many >= len(block.columns)
            yield self._piece(start, start + many, totals if last else [], coloured)
        yield from _quiet(self._legend(coloured))

    def _piece(self, start: int, stop: int, totals: Sequence[str], coloured: bool) -> Drawn:
        from rich.table import Table as Drawn

        block = self._block
        table = Drawn(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        names = (self._numbered or [str(i) for i in range(len(block.columns))])[start:stop]
        table.add_column(_line(visible(block.down)), justify="right", style="dim")
        table.add_column(_line("".join(f"{name:<4}" for name in names[::2]).rstrip()), no_wrap=True)
        if totals:
            table.add_column(_line(visible(block.total)), justify="right")
        for i, (name, row) in enumerate(zip(block.rows, block.values, strict=True)):
            line = _line("")
            for value in row[start:stop]:
                style = "" if value is None else _ground(value / self._full)
                sign = "  " if value is None or coloured else _sign(value / self._full)
                line.append(sign if style or value is None else "· ", style=style or "dim")
            table.add_row(_line(words.formatted(name)), line, *([totals[i]] if totals else []))
        return table

    def _legend(self, coloured: bool) -> str:
        block = self._block
        ends = f"{visible(block.across)} across, {visible(block.down)} down; " if block.across and block.down else ""
        largest = max((abs(value) for row in block.values for value in row if value is not None), default=0.0)
        most = words.number(largest) + (f" ({visible(block.unit)})" if block.unit else "")
        signs = ("blue", "orange") if coloured else ("+", words.MINUS)
        columns = "; ".join(f"{i} {words.formatted(name)}" for i, name in enumerate(block.columns))
        twice = "" if coloured else " (twice where it is more than half of the largest)"
        said = f"{ends}{signs[0]} is positive, {signs[1]} negative{twice}; the largest is {most}"
        return said if self._numbered else f"{said}\nacross: {columns}"


def _sign(share: float) -> str:
    """A cell where there are no colours."""
    sign = "+" if share > 0 else words.MINUS
    return sign * 2 if abs(share) > 0.5 else f"{sign} "


# --------------------------------------------------------------------------------------------------------------- notes


def _note(block: Note) -> list[RenderableType]:
    style = NOTES[block.role]
    points = [_line(f"  • {point}") for point in block.points]
    return [*([_line(block.text, style)] if block.text else []), *points, *_quiet(block.link or "")]
