"""What a page has where it is one of a site that is served, and a file has not: a bar, choices, steps, and links."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .blocks import Beside, Block, Cell, Feature, Pairs, Section, Table, Token


class Here(str):
    """An address on the same site, from its path on. In a file, which has none, a path would lead into a disk."""

    __slots__ = ()


Links = Callable[[Feature | Token], Here | None]
"""The page of a feature or a token on a site, where it has one."""


@dataclass(frozen=True)
class Step:
    """To the page before, or the one behind. link None: there is none."""

    text: str
    link: Here | None


@dataclass(frozen=True)
class Choice:
    """options: a text, and the link to the same page with it; ``chosen`` is what this page has."""

    name: str
    options: tuple[tuple[str, Here], ...]
    chosen: str = ""


@dataclass(frozen=True)
class Site:
    """name: of the site, which leads to its first page. query: what was searched for."""

    name: str
    query: str = ""
    choices: tuple[Choice, ...] = ()
    steps: tuple[Step, ...] = ()


def with_links(blocks: Sequence[Block], links: Links) -> tuple[Block, ...]:
    """The same blocks; features and tokens in their tables lead to their pages."""
    return tuple(_block(block, links) for block in blocks)


def _block(block: Block, links: Links) -> Block:
    match block:
        case Table():
            rows = (replace(row, cells=tuple(_cell(cell, links) for cell in row.cells)) for row in block.rows)
            return replace(block, rows=tuple(rows))
        case Section() | Beside():
            return replace(block, blocks=with_links(block.blocks, links))
    return block


def _cell(cell: Cell, links: Links) -> Cell:
    match cell:
        case Feature() | Token():
            return replace(cell, link=links(cell) or cell.link)
        case Pairs():
            entries = (
                (replace(n, link=links(n) or n.link) if not isinstance(n, str) else n, v) for n, v in cell.entries
            )
            return replace(cell, entries=tuple(entries))
    return cell
