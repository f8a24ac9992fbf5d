"""A corpus cut into windows, and these into units of work: the same ones whoever does them, from wherever they begin.

A long document is cut into windows, each with its start token where it has one. A unit is the windows that follow until
there are so many tokens; a document may go on in the next unit. A unit that is done already is passed over without
being tokenized, once it is sure that the documents up to its end are those that it was made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

from ..errors import UserError
from ..models.adapter import Adapter
from ..models.load import Loaded
from ..models.prompt import begins_with_start, special_ids, text_ids
from .items import Broken, Document, Item

if TYPE_CHECKING:
    from .schema import LeftOutPlace

MOST_LISTED = 1000
"""So many things that were left out are listed by their places; all are counted."""


@dataclass(frozen=True)
class Window:
    """document: its number. number: of the window in it. start: how many of the document's tokens stand before it.

    special: whether the first token is a special one, where no feature counts.
    """

    document: int
    number: int
    name: str
    start: int
    token_ids: tuple[int, ...]
    special: bool

    @property
    def counted(self) -> int:
        """How many positions count."""
        return len(self.token_ids) - self.special


@dataclass(frozen=True)
class Entry:
    """What is written down of a unit. tokens: at which features count.

    begun: how many documents of the corpus had begun at its end. ahead: how many windows of the last of them had been
    taken by then; 0: all. digest: of these documents.
    """

    number: int
    windows: int
    tokens: int
    begun: int
    ahead: int
    digest: str


@dataclass(frozen=True)
class Unit:
    entry: Entry
    windows: tuple[Window, ...]


@dataclass
class Left:
    """What was left out of a corpus: how often and why, and the first places."""

    why: dict[str, int] = field(default_factory=dict)
    first: list[LeftOutPlace] = field(default_factory=list)

    def add(self, where: str, why: str) -> None:
        self.why[why] = self.why.get(why, 0) + 1
        if len(self.first) < MOST_LISTED:
            self.first.append({"where": where, "why": why})


class Cutter:
    """Reads a corpus once; what it has counted by the end is of all of it.

    window: tokens, the start token among them. unit: tokens. limit: of the corpus; None: all of it.
    """

    def __init__(self, loaded: Loaded, adapter: Adapter, window: int, unit: int, limit: int | None = None) -> None:
        self._loaded, self._vocabulary, self._special = loaded, adapter.vocab_size, special_ids(loaded)
        self._window, self._unit, self._limit = window, unit, limit
        self._hash = blake2b(digest_size=32)
        self.left = Left()
        self.documents = self.tokens = 0

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def units(self, items: Iterable[Item], done: Mapping[int, Entry]) -> Iterator[Unit]:
        """Those that are not done. Raises UserError where those that are were made of another corpus."""
        number, pending, size = 0, list[Window](), 0

        def ended(ahead: int) -> Unit:
            nonlocal number, size
            tokens = sum(window.counted for window in pending)
            unit = Unit(Entry(number, len(pending), tokens, self.documents, ahead, self.digest), tuple(pending))
            pending.clear()
            number, size = number + 1, 0
            return unit

        for document in self._documents(items):
            at, windows = 0, None
            while True:
                if number in done:
                    passed = done[number]
                    if self.documents < passed.begun:
                        break
                    self._check(passed)
                    self.tokens += passed.tokens
                    number, at = number + 1, passed.ahead
                    if at:
                        continue
                    break
                windows = self._cut(document) if windows is None else windows
                while at < len(windows) and size < self._unit and not self._enough:
                    pending.append(windows[at])
                    size, at = size + len(windows[at].token_ids), at + 1
                    self.tokens += windows[at - 1].counted
                if size >= self._unit:
                    yield ended(at if at < len(windows) else 0)
                if at == len(windows) or self._enough:
                    break
            if self._enough:
                break
        if pending:
            yield ended(0)

    @property
    def _enough(self) -> bool:
        return self._limit is not None and self.tokens >= self._limit

    def _documents(self, items: Iterable[Item]) -> Iterator[Document]:
        for item in items:
            why = item.why if isinstance(item, Broken) else self._wrong(item)
            if why is not None or isinstance(item, Broken):
                self.left.add(item.where, str(why))
                continue
            ids = isinstance(item.content, tuple)
            raw = " ".join(map(str, item.content)).encode() if ids else str(item.content).encode()
            self._hash.update(b"%c%d:%b" % (b"i" if ids else b"t", len(raw), raw))
            self.documents += 1
            yield item

    def _wrong(self, document: Document) -> str | None:
        """What is wrong with a document, as far as that is seen without tokenizing it."""
        if isinstance(document.content, tuple):
            if not document.content:
                return "it is empty"
            known = all(0 <= i < self._vocabulary for i in document.content)
            return None if known else f"it has token ids that are not in the vocabulary (0 to {self._vocabulary - 1})"
        if self._loaded.tokenizer is None:
            return f"it is a text, and {self._loaded.name} came without a tokenizer"
        if not document.content.strip():
            return "it is empty"
        try:
            document.content.encode()
        except UnicodeEncodeError:
            return "it is not valid Unicode"
        return None

    def _cut(self, document: Document) -> list[Window]:
        given = document.content
        ids = given if isinstance(given, tuple) else tuple(text_ids(self._loaded, given))
        start = ids[: begins_with_start(self._loaded, ids)]
        rest, room = ids[len(start) :], self._window - len(start)
        return [
            Window(self.documents - 1, n, document.where, begin, found, found[0] in self._special)
            for n, begin in enumerate(range(0, len(rest), room))
            if (found := (*start, *rest[begin : begin + room]))
        ]

    def _check(self, passed: Entry) -> None:
        if passed.digest != self.digest:
            raise UserError(
                "the corpus is not the one that this scan began with: other documents stand where it has been already; "
                "name another folder with --out to scan it from its beginning"
            )
