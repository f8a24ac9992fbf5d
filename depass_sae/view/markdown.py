"""Blocks as Markdown that GitHub shows; all texts in it are escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import quote

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
)

DEEPEST = 6
"""Markdown has no headings below this level."""
_SPECIAL = re.compile(r"([\\`*_\[\]|~$#@!]|:(?=\S))")
_START = re.compile(r"^(\d*)([-=+.)])(?=[\s=-]|$)")
"""What would make a line a list or a heading."""
_ELSEWHERE = re.compile(r"(?!https?:)[\w+.-]*:", re.IGNORECASE)
"""What a link begins with that leads neither to a page nor to a file."""

Picture = Callable[[Block], str | None]
"""The name of the file that shows a block, where there is one."""


def markdown(blocks: Iterable[Block], level: int = 2, picture: Picture | None = None) -> str:
    """Blocks below each other. level: of a section's heading.

    A block for which ``picture`` names a file is that picture. Without one, strips, bars and tables are tables, a graph
    is the blocks that stand for it, and a heat map is left out.
    """
    return "\n\n".join(_parts(blocks, level, picture or (lambda _: None)))


def _parts(blocks: Iterable[Block], level: int, picture: Picture) -> list[str]:
    parts = []
    for block in blocks:
        match block:
            case Strip() | HeatMap() | Bars() | Graph() if (file := picture(block)) is not None:
                alone = [f"![{escaped(block.title)}]({quote(file)})", escaped(block.caption)]
                parts += [part for part in alone if part]
            case _:
                parts += _drawn(block, level, picture)
    return parts


def _drawn(block: Block, level: int, picture: Picture) -> list[str]:
    match block:
        case Table():
            return _table(block)
        case Strip(title=title, marks=marks, unit=unit, caption=caption):
            rows = [Row((Token(mark.token, mark.pos), mark.value)) for mark in marks if mark.value]
            return _table(Table(title, (Column("token"), Column(unit, "signed")), tuple(rows), caption)) if rows else []
        case Bars():
            return _table(block.table())
        case HeatMap():
            return []
        case Graph():
            return _parts(block.blocks(), level, picture)
        case Note():
            return _note(block)
        case Beside():
            return _parts(block.blocks, level, picture)
        case Section():
            heading = _heading(block.title, block.feature)
            inside = _parts(block.blocks, level + 1, picture)
            return [*([f"{'#' * min(level, DEEPEST)} {heading}"] if heading else []), *inside]


def _table(block: Table) -> list[str]:
    names = [escaped(column.name) for column in block.columns]
    rule = ["---" if column.format == "text" else "---:" for column in block.columns]
    lines = [names, rule]
    before: str | Token | None = None
    for row in block.rows:
        if row.group is not None and row.group != before:
            lines.append([_bold(_cell(row.group)), *[""] * (len(names) - 1)])
        before = row.group
        cells = [_cell(cell, column) for cell, column in zip(row.cells, block.columns, strict=True)]
        lines.append([_bold(cell) for cell in cells] if row.role in ("strong", "total") else cells)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return [part for part in (_bold(escaped(block.title)), table, escaped(block.caption)) if part]


def _cell(cell: Cell, column: Column | None = None) -> str:
    match cell:
        case Feature():
            return _feature(cell)
        case Pairs():
            told = [f"{_cell(name)} {words.formatted(value, cell.format, cell.digits)}" for name, value in cell.entries]
            return ", ".join([*told, *([f"+{cell.more}"] if cell.more else [])])
    return escaped(words.formatted(cell, column.format, column.digits) if column else words.formatted(cell))


def _feature(feature: Feature | None) -> str:
    if feature is None:
        return ""
    label = f" “{escaped(words.shown(feature.label))}”" if feature.label else ""
    return linked(feature.name, feature.link) + label


def _heading(title: str, feature: Feature | None) -> str:
    if feature is None or feature.name not in title:
        return " ".join(part for part in (escaped(title), _feature(feature)) if part)
    return linked(title, feature.link) + (f" “{escaped(words.shown(feature.label))}”" if feature.label else "")


def _note(block: Note) -> list[str]:
    if block.role == "code":
        longest = max(map(len, re.findall("`+", block.text)), default=0)
        fence = "`" * max(3, longest + 1)
        return [f"{fence}sh\n{visible(block.text, keep=chr(10))}\n{fence}"]
    text = linked(block.text, block.link)
    points = "\n".join(f"- {escaped(point)}" for point in block.points)
    return [part for part in (_bold(text) if block.role in ("answer", "warning") else text, points) if part]


def _bold(text: str) -> str:
    return f"**{text}**" if text else ""


def linked(text: str, link: str | None) -> str:
    """A text that leads to a page or to a file beside it; to nothing else."""
    if not link or _ELSEWHERE.match(link):
        return escaped(text)
    return f"[{escaped(text)}]({quote(link, safe='/:?&=#%@+,;~')})"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no cell that ends early, all on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = visible(" ".join(_SPECIAL.sub(r"\\\1", text).split()))
    return _START.sub(r"\1\\\2", text)
