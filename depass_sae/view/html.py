"""Blocks as HTML: each kind is drawn once, for pages and for notebooks.

Nothing needs a script: values stand in the tables, and what a page says where a reader points at something is a title.
A page's script (assets/page.js) adds to it: keyboard, tooltips, marks, buttons. Numbers that know their pointer say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_text
from . import words
from .blocks import Block, Cell, Format, HeatMap, Mark, Page, Row, Table, Token, arranged
from .frame import asset, environment, framed, inert
from .pointer import Fraction, Whole
from .words import drawn_full, formatted

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

STEPS = 20
"""So many shades a colour has (assets/blocks.css): a style of its own for every number, no policy would allow."""


class Html(str):
    """Blocks as a piece of HTML: notebooks show it, ``save`` writes them as a page."""

    page: Page

    def __new__(cls, text: str, page: Page) -> Html:
        made = super().__new__(cls, text)
        made.page = page
        return made

    def __getnewargs__(self) -> tuple[str, Page]:  # type: ignore[override]
        return str(self), self.page

    def _repr_html_(self) -> str:
        return str(self)

    def save(self, path: str | Path) -> None:
        """Write a page of its own, whole or not at all."""
        write_text(path, framed(self.page, body(self.page.blocks)))


def fragment(blocks: Sequence[Block], title: str = "") -> Html:
    """Blocks for a notebook, light or dark: with their style, without a script."""
    style = inert(asset("fragment.css") + asset("blocks.css"))
    text = _drawing().fragment(style=style, blocks=blocks, title=title)
    return Html(text.strip(), Page(title, tuple(blocks)))


def body(blocks: Sequence[Block], level: int = 2) -> Markup:
    """Blocks one below the other. level: of their headings.

    Strips with a label that follow each other are one list of texts, under the first one's title and on one scale.
    """
    return inert(_drawing().draw_all(blocks, level))


@cache
def _drawing() -> Any:
    """The macros that draw."""
    made: jinja2.Environment = environment().overlay()
    made.filters = made.filters | {"data": data, "formatted": formatted, "running": words.running}
    made.globals = made.globals | {
        "arranged": arranged, "bars": bars, "grouped": grouped, "scale": scale, "shade": shade,
        "kind": lambda block: type(block).__name__, "at_cell": at_cell, "at_mark": at_mark,
    }  # fmt: skip
    return made.get_template("blocks.html").module


# ------------------------------------------------------------------------------------------------------------- numbers


def data(value: float | None, format: Format = "signed", digits: int = 3) -> Markup:
    """A number with its full value, and its pointer if it knows it."""
    from markupsafe import Markup

    if value is None:
        return Markup("")
    exact = repr(int(value) if isinstance(value, int) else float(value))
    at = Markup(' data-at="{}"').format(value.pointer) if isinstance(value, Whole | Fraction) else ""
    return Markup('<data value="{}"{}>{}</data>').format(exact, at, formatted(value, format, digits))


def scale(values: Iterable[float | None]) -> tuple[float, float, Format]:
    """The ends of a colour scale around zero, and how its numbers are written; (0, 0) where nothing is to be seen."""
    told = [value for value in values if value is not None]
    largest = drawn_full(told)
    if largest == float("inf"):
        return 0.0, 0.0, "number"
    low, high = -largest if min(told) < 0 else 0.0, largest if max(told) > 0 else 0.0
    return low, high, "signed" if low else "number"


def shade(value: float | None, ends: tuple[float, float, Format]) -> str:
    """Classes of the style sheet: the sign, and how much of the largest it is."""
    largest = max(-ends[0], ends[1])
    if not value or not largest:
        return "s0"
    return f"{'pos' if value > 0 else 'neg'} s{round(STEPS * min(1.0, abs(value) / largest))}"


# -------------------------------------------------------------------------------------------------------------- blocks


def grouped(table: Table) -> list[tuple[str | Token | None, list[Row]]]:
    """The rows by their groups, in the order in which these come."""
    groups: dict[str | Token | None, list[Row]] = {}
    for row in table.rows:
        groups.setdefault(row.group, []).append(row)
    return list(groups.items())


def bars(table: Table) -> dict[int, tuple[float, float]]:
    """For each column with bars how far they reach below and above zero; (0, 0) where nothing is to be seen."""
    reach = {}
    for i, column in enumerate(table.columns):
        if column.bar:
            drawn = [row.cells[i] for row in table.rows if row.role in ("ranked", "strong")]
            values = [float(value) for value in drawn if isinstance(value, int | float)]
            seen = drawn_full(values, column.digits) != float("inf")
            reach[i] = (min([0.0, *values]), max([0.0, *values])) if seen else (0.0, 0.0)
    return reach


def at_cell(block: HeatMap, row: int, column: int, format: Format) -> str:
    """What is said of a cell."""
    if block.notes is not None:
        return block.notes(row, column)
    names = [_headed(block.rows[row], block.down), _headed(block.columns[column], block.across)]
    return f"{', '.join(names)}: {_said(block.values[row][column], format, block.unit)}"


def _headed(name: Cell, heading: str) -> str:
    """A name, under what it stands for where it is a mere number: ``layer 3``."""
    text = formatted(name)
    return f"{heading} {text}" if heading and text.isdecimal() else text


def at_mark(mark: Mark, format: Format, unit: str) -> str:
    """What is said of a token."""
    where = words.place(mark.token, mark.pos)
    return mark.note or (where if mark.value is None else f"{where}: {_said(mark.value, format, unit)}")


def _said(value: float | None, format: Format, unit: str) -> str:
    return "nothing" if value is None else f"{formatted(value, format)} {unit}".strip()
