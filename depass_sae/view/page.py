"""Pages: blocks in one self-contained file that needs no network."""

from __future__ import annotations

from .blocks import Page
from .frame import asset, escaping, framed, inert, policy
from .html import body

__all__ = ["asset", "escaping", "inert", "page", "policy"]


def page(document: Page) -> str:
    """The page. The same document gives the same text."""
    return framed(document, body(document.blocks))
