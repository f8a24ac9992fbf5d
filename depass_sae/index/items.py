"""What a corpus is made of: documents, and what could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UserError

LONGEST = 2**24
"""Bytes of a line, or of a file that is one document: what is longer is left out, and that is told."""
DOCUMENTS = ("line", "paragraph", "file")


@dataclass(frozen=True)
class Document:
    """A text, or token ids. where: its name."""

    where: str
    content: str | tuple[int, ...]


@dataclass(frozen=True)
class Broken:
    """What could not be read."""

    where: str
    why: str


Item = Document | Broken


@dataclass(frozen=True)
class Reading:
    """How files are read. documents: what of a plain text is one: a line, a paragraph (blank lines part them), a file.

    column: where the text is, in files that have columns. Raises UserError for what there is not.
    """

    documents: str = "line"
    column: str = "text"

    def __post_init__(self) -> None:
        if self.documents not in DOCUMENTS:
            known = f"{', '.join(DOCUMENTS[:-1])} or {DOCUMENTS[-1]}"
            raise UserError(f"a document of a plain text is a {known}, not {self.documents!r}")
        if not self.column.strip():
            raise UserError("the column of the texts has no name")


def of_value(value: Any, where: str) -> Item:
    """A document of what somebody calls one."""
    if isinstance(value, str):
        return Document(where, str.__str__(value))
    try:
        if value is not None and not isinstance(value, bytes):
            return Document(where, tuple(int(i.__index__()) for i in getattr(value, "tolist", lambda: value)()))
    except (AttributeError, TypeError):
        pass
    return Broken(where, "it has no text" if value is None else "it is no text")
