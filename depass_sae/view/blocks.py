"""What a result is made of, as data: tables, strips of tokens, heat maps, bars, notes, graphs, sections of them.

A result says which blocks it has and in what order; each renderer (terminal.py, html.py, markdown.py, figures.py) draws
each kind of block once. A block knows no model and no feature. Its texts are not trusted: renderers escape them. Its
numbers may know where they stand in a JSON document (:class:`.pointer.At`), which pages repeat beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["text", "signed", "number", "percent", "count", "error"]
"""How a column's numbers are written: ``+1.234``, ``1.234``, ``12 %``, ``1,234``, ``3e-07``."""


# ------------------------------------------------------------------------------------------------------- in the cells


@dataclass(frozen=True)
class Token:
    """A token, shown with its place: ``supply (4)``. pos None: without one, the spaces at its ends made visible."""

    text: str
    pos: int | None = None
    more: str = ""
    """What else tells its place, such as ``text 2``: ``supply (4, text 2)``."""
    link: str | None = None


@dataclass(frozen=True)
class Feature:
    """A feature's name, what it means, and its page elsewhere."""

    name: str
    label: str = ""
    link: str | None = None


@dataclass(frozen=True)
class Spread:
    """A mean and a standard deviation: ``+1.23 ± 0.45``."""

    mean: float
    std: float


@dataclass(frozen=True)
class Pairs:
    """Names with a number each, in one cell: ``supply (4) +1.23  demand (6) +0.45``. more: how many are not listed."""

    entries: tuple[tuple[str | Token | Feature, float], ...]
    format: Format = "signed"
    digits: int = 2
    more: int = 0


Cell = None | str | int | float | Token | Feature | Spread | Pairs


def size(cell: Cell) -> float | None:
    """What a bar shows of a cell: None of what is no number."""
    return cell.mean if isinstance(cell, Spread) else cell if isinstance(cell, int | float) else None


# ------------------------------------------------------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Column:
    """bar: whether each number is drawn beside itself, too, as a share of the column's largest by size.

    unit: of the numbers; a picture's axis says it. link: to the same table in the order of this column, where a site
    has that; order: whether it has that order now.
    """

    name: str
    format: Format = "text"
    digits: int = 3
    unit: str = ""
    bar: bool = False
    link: str | None = None
    order: Literal["", "ascending", "descending"] = ""


@dataclass(frozen=True)
class Row:
    """role: ``ranked`` rows are what the table is about; ``aside`` ones stand apart below them and have no bar, and
    ``total`` is what all above it sum to; ``strong`` is a ranked one that is to be seen first.

    group: rows of one group stand together under its name. pos: the prompt's position that the row is about.
    """

    cells: tuple[Cell, ...]
    role: Literal["ranked", "strong", "aside", "total"] = "ranked"
    group: str | Token | None = None
    pos: int | None = None


@dataclass(frozen=True)
class Table:
    """caption: what has to be known to read it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str = ""


@dataclass(frozen=True)
class Mark:
    """A token of a strip. value None: nothing is said of it. note: what is said where a reader points at it."""

    token: str
    pos: int
    value: float | None
    note: str = ""
    aimed: bool = False


@dataclass(frozen=True)
class Strip:
    """A prompt's tokens in order, each shaded by its value; those that are asked about (``aimed``) are underlined.

    label: what tells it from others, such as its number. numbers: whether the values are written, too.
    """

    title: str
    marks: tuple[Mark, ...]
    unit: str = ""
    caption: str = ""
    label: str = ""
    numbers: bool = False


@dataclass(frozen=True)
class HeatMap:
    """values[row][column]; None where there is nothing. rows are drawn in this order, the first on top.

    down, across: what rows and columns are. totals: a number at the end of each row, under the heading ``total``.
    notes: what is said where a reader points at a cell, by row and column. positions: of a column, in the prompt.
    """

    title: str
    rows: tuple[str | Token, ...]
    columns: tuple[str | Token, ...]
    values: tuple[tuple[float | None, ...], ...]
    down: str = ""
    across: str = ""
    unit: str = ""
    caption: str = ""
    totals: tuple[float | None, ...] = ()
    total: str = ""
    notes: Callable[[int, int], str] | None = None


@dataclass(frozen=True)
class Bars:
    """Values one beside the other, in the order of what they belong to; names in ``strong`` are to be seen first."""

    title: str
    names: tuple[str | Token, ...]
    values: tuple[float | None, ...]
    unit: str = ""
    caption: str = ""
    strong: frozenset[int] = frozenset()

    def table(self) -> Table:
        """The same, where it cannot be drawn."""
        rows = [
            Row((name, value), "strong" if i in self.strong else "ranked")
            for i, (name, value) in enumerate(zip(self.names, self.values, strict=True))
        ]
        return Table(
            self.title, (Column(""), Column(self.unit or "value", "signed", bar=True)), tuple(rows), self.caption
        )


@dataclass(frozen=True)
class Note:
    """Words. ``answer``: what the question's answer is, in one line, its ``points`` below it; ``lead``: what opens a
    section; ``plain``; ``quiet``: what explains a block; ``warning``: what must not be missed; ``code``: a command."""

    text: str
    role: Literal["answer", "lead", "plain", "quiet", "warning", "code"] = "plain"
    points: tuple[str, ...] = ()
    link: str | None = None


@dataclass(frozen=True)
class Graph:
    """A feature-flow graph. name: of its files. page: the interactive page; figure: the picture; blocks: the same for
    where neither can be shown."""

    title: str
    name: str
    page: Callable[[], str]
    figure: Callable[[], Figure]
    blocks: Callable[[], Sequence[Block]]
    caption: str = ""


@dataclass(frozen=True)
class Beside:
    """Blocks that stand side by side where there is room."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Section:
    """id: what a page's contents lead to; sections without one are not listed there."""

    title: str
    blocks: tuple[Block, ...]
    id: str = ""
    feature: Feature | None = None
    """What the section is about, where that is a feature: it stands with its meaning in the heading."""


Block = Table | Strip | HeatMap | Bars | Note | Graph | Beside | Section


def arranged(blocks: Sequence[Block]) -> list[Block | list[Strip]]:
    """Blocks; strips with a label that follow each other together: they are one list of texts, on one scale."""
    found: list[Block | list[Strip]] = []
    for block in blocks:
        if not (isinstance(block, Strip) and block.label):
            found.append(block)
        elif found and isinstance(found[-1], list):
            found[-1].append(block)
        else:
            found.append([block])
    return found


@dataclass(frozen=True)
class Page:
    """A page's worth of blocks. kicker: what sort of page; byline: what it is about, in a few words each; colophon:
    how it was made. contents: whether its sections are listed beside it."""

    title: str
    blocks: tuple[Block, ...]
    kicker: str = ""
    byline: tuple[str, ...] = ()
    colophon: tuple[str, ...] = ()
    contents: bool = False
    feature: Feature | None = None
