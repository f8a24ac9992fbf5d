"""Pages: blocks in one self-contained file that needs no network."""

from __future__ import annotations

from .blocks import Page
from .frame import framed
from .html import body


def page(document: Page) -> str:
    """The page. The same document gives the same text."""
    return framed(document, body(document.blocks))
