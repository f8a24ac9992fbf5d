"""The pages of an index: which address is which, what stands on it, and where its features and tokens lead.

``/`` is what the index is of, ``/features?list=dense&sae=17.resid_post&sort=max&page=2`` a list, ``/search?q=climate``
a search, and ``/feature/17/2601`` a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode

from ...arguments import whole_in
from ...errors import UserError
from ...texts import visible
from ...view import words
from ...view.blocks import Column, Feature, Note, Page, Section, Table, Token
from ...view.site import Choice, Here, Site, Step, with_links
from .. import looks
from ..lists import ORDERS, TITLES, FeatureList, Order, listed
from ..settings import named_feature

if TYPE_CHECKING:
    from ..index import Index

ROWS, FEW, HITS = 50, 8, 50
"""Features on a page of a list, of each list on the first page, and of a search."""
ALL = "all"
SORTS: Mapping[str, Order] = {
    f"{by}{'-up' if ascending else ''}": Order(by, ascending)
    for by in ("feature", "count", "max")
    for ascending in (False, True)
}  # fmt: skip
"""How an address says in which order a list is."""
COLUMNS = {"feature": "feature", "density": "count", "max": "max"}
"""By which columns of a list it can be ordered."""


class NoSuchPageError(Exception):
    """There is nothing at this address."""


@dataclass(frozen=True)
class Found:
    """A page, and what it has around it."""

    page: Page
    site: Site


@dataclass(frozen=True)
class Elsewhere:
    """What was asked for is at another address."""

    address: Here


def answer(index: Index, target: str) -> Found | Elsewhere:
    """What is at an address, from its path on.

    Raises NoSuchPageError, and UserError where it cannot be had.
    """
    path, _, query = target.partition("#")[0].partition("?")
    try:
        asked = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise NoSuchPageError from None
    if path.startswith("/feature/"):
        return _feature(index, unquote(path.removeprefix("/feature/")))
    pages: dict[str, Callable[[Index, dict[str, str]], Found | Elsewhere]]
    pages = {"/": _home, "/features": _list, "/search": _search}
    if path not in pages:
        raise NoSuchPageError
    return pages[path](index, asked)


def trouble(index: Index, title: str, said: str) -> Found:
    """A page that says what is wrong."""
    return Found(Page(title, (Note(said), Note("To the first page", link=Here("/")))), _site(index))


def feature_address(name: str) -> Here:
    return Here(f"/feature/{quote(name, safe='/')}")


def search_address(text: str) -> Here:
    return Here(f"/search?{urlencode({'q': text}, errors='replace')}")


@dataclass(frozen=True)
class ListAddress:
    """sort: of :data:`SORTS`; empty: as the list is by itself. page: from 1."""

    list: str = ALL
    sae: str = ALL
    sort: str = ""
    page: int = 1

    @classmethod
    def of(cls, index: Index, asked: Mapping[str, str]) -> ListAddress:
        """Raises NoSuchPageError for what there is not."""
        page = whole_in(asked.get("page", "1"))
        made = cls(asked.get("list", ALL), asked.get("sae", ALL), asked.get("sort", ""), page or 0)
        saes = (ALL, *map(str, index.saes))
        if made.list not in TITLES or made.sae not in saes or made.sort not in ("", *SORTS) or not page:
            raise NoSuchPageError
        return made

    @property
    def link(self) -> Here:
        given = {key: value for key, value in vars(self).items() if value != getattr(type(self), key)}
        return Here("/features" + (f"?{urlencode(given)}" if given else ""))

    @property
    def order(self) -> Order:
        return SORTS[self.sort] if self.sort else ORDERS[self.list]


# ----------------------------------------------------------------------------------------------------------- the pages


def _home(index: Index, _: Mapping[str, str]) -> Found:
    overview = index.overview().to_dict()
    said, saes, *left = looks.overview(overview, None)
    assert isinstance(saes, Table)  # what follows puts links into it
    rows = tuple(replace(row, cells=(_sae_cell(str(row.cells[0])), *row.cells[1:])) for row in saes.rows)
    lists = [_short(index, which) for which in ("dense", "rare")]
    page = Page(
        f"Features of {visible(overview['model']['name'])}",
        with_links((said, replace(saes, rows=rows), *lists, *left), link_of),
        kicker="Over a corpus",
        byline=(visible(str(index.folder)),),
    )
    return Found(page, _site(index, choices=(_lists(ListAddress(), ""),)))


def _sae_cell(hook: str) -> Feature:
    return Feature(hook, link=ListAddress(sae=hook).link)


def _short(index: Index, which: str) -> Section:
    found = listed(index, which, FEW)
    _, table = found.blocks()
    assert isinstance(table, Table)
    title = f"The first {len(found.features)} of {words.count(found.count)}: {which}"
    return Section(found.title, (replace(table, title=title), Note("The whole list", link=ListAddress(which).link)))


def _list(index: Index, asked: Mapping[str, str]) -> Found:
    at = ListAddress.of(index, asked)
    start = (at.page - 1) * ROWS
    found = listed(index, at.list, ROWS, None if at.sae == ALL else at.sae, at.order, start)
    if not found.features and at.page > 1:
        raise NoSuchPageError
    steps = (
        Step("‹ before", replace(at, page=at.page - 1).link if at.page > 1 else None),
        Step(_place(start, found), None),
        Step("next ›", replace(at, page=at.page + 1).link if start + ROWS < found.count else None),
    )
    saes = ((name, replace(at, sae=name, page=1).link) for name in (ALL, *map(str, sorted(index.saes))))
    said, table = found.blocks()
    assert isinstance(table, Table)
    shown = replace(table, title="", columns=tuple(_ordered(column, at) for column in table.columns))
    page = Page(found.title, with_links((said, shown) if found.features else (said,), link_of), kicker="Features")
    choices = (_lists(at, at.list), Choice("SAE", tuple(saes), at.sae))
    return Found(page, _site(index, choices=choices, steps=steps))


def _lists(at: ListAddress, chosen: str) -> Choice:
    return Choice(
        "list", tuple((which, ListAddress(which, at.sae).link) for which in (ALL, *list(TITLES)[:-1])), chosen
    )


def _place(start: int, found: FeatureList) -> str:
    last = start + len(found.features)
    return f"{words.count(start + 1 if last else 0)}–{words.count(last)} of {words.count(found.count)}"


def _ordered(column: Column, at: ListAddress) -> Column:
    """A column by which a list can be ordered: what it is ordered by already, the other way round."""
    by = COLUMNS.get(column.name)
    if by is None:
        return column
    now = at.order.by == by
    first_up = by == "feature"
    up = (not at.order.ascending) if now else first_up
    link = replace(at, sort=f"{by}{'-up' if up else ''}", page=1).link
    return replace(column, link=link, order=("ascending" if at.order.ascending else "descending") if now else "")


def _search(index: Index, asked: Mapping[str, str]) -> Found | Elsewhere:
    query = asked.get("q", "").strip()
    if not query:
        return Elsewhere(Here("/"))
    if (name := _named(index, query)) is not None:
        return Elsewhere(feature_address(name))
    found = index.search(query, HITS)
    page = Page(found.title, with_links(found.blocks(), link_of), kicker="Search")
    return Found(page, _site(index, query=found.query))


def _named(index: Index, text: str) -> str | None:
    """The feature that a text names."""
    try:
        return index.name(*named_feature(text, index.saes))
    except UserError:
        return None


def _feature(index: Index, name: str) -> Found | Elsewhere:
    try:
        hook, number = named_feature(name, index.saes)
    except UserError:
        raise NoSuchPageError from None
    if (own := index.name(hook, number)) != name:
        return Elsewhere(feature_address(own))
    page = index.feature(name).page()
    before, behind = (
        index.name(hook, other) if 0 <= other < index.saes[hook] else "" for other in (number - 1, number + 1)
    )
    steps = (
        Step(f"‹ {before or 'none'}", feature_address(before) if before else None),
        Step(f"{behind or 'none'} ›", feature_address(behind) if behind else None),
    )
    return Found(replace(page, blocks=with_links(page.blocks, link_of)), _site(index, steps=steps))


# --------------------------------------------------------------------------------------------------------- around them


def _site(index: Index, *, query: str = "", choices: tuple[Choice, ...] = (), steps: tuple[Step, ...] = ()) -> Site:
    return Site(visible(index.folder.resolve().name) or "index", query, choices, steps)


def link_of(cell: Feature | Token) -> Here | None:
    """A feature leads to its page, a token to what else fires on it."""
    if isinstance(cell, Feature):
        return cell.link if isinstance(cell.link, Here) else feature_address(cell.name)
    return search_address(cell.text.strip()) if cell.text.strip() else None
