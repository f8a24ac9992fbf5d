"""Pages: blocks in one self-contained file that needs no network, or on a site that is served."""

from __future__ import annotations

from .blocks import Page
from .frame import asset, framed, page_script, page_style
from .html import body
from .site import Site

SITE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""The content security policy of a site's pages: no style or script but those of :func:`site_files`."""


def page(document: Page) -> str:
    """The page. The same document gives the same text."""
    return framed(document, body(document.blocks))


def site_page(document: Page, site: Site) -> str:
    """The page as one of a site."""
    return framed(document, body(document.blocks), site)


def site_files() -> dict[str, tuple[str, str]]:
    """What a site's pages ask for, by its path: its type, and its text."""
    return {
        "/page.css": ("text/css", page_style() + asset("site.css")),
        "/page.js": ("text/javascript", page_script()),
    }
