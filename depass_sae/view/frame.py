"""The frame of every page: one file that opens offline, its style and script allowed by their hashes alone.

What stands in it is escaped by the templates. A page within a page (a graph's, in an iframe) is under the outer page's
policy, too, which therefore allows whatever the inner page's own policy does.
"""

from __future__ import annotations

import hashlib
import html
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..texts import visible_on_page
from .blocks import Block, Page, Section
from .site import Here, Site
from .words import shown

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

_SRCDOC = re.compile(r'<iframe [^>]*srcdoc="([^"]*)"')
_BESIDE = re.compile(r"[\w.][\w./-]*")
_HERE = re.compile(r"/(?!/)[\w.~%?=&+/-]*", re.ASCII)
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"')


def framed(page: Page, body: Markup, site: Site | None = None) -> str:
    """A page around what is drawn in it. site: the one that it is a page of, which has style and script as files."""
    style, script = page_style(), page_script()
    # Within the body quotes and angle brackets are escaped but for its own, so that no text looks like a frame.
    frames = [html.unescape(srcdoc) for srcdoc in _SRCDOC.findall(body)]
    return (
        environment()
        .get_template("page.html")
        .render(
            page=page, body=body, site=site, contents=_contents(page.blocks) if page.contents else [],
            style=inert(style), script=inert(script), policy=policy([style], [script], frames),
        )
    )  # fmt: skip


def page_style() -> str:
    return asset("base.css") + asset("page.css") + asset("blocks.css")


def page_script() -> str:
    return asset("theme.js") + asset("page.js")


def _contents(blocks: Sequence[Block]) -> list[tuple[Section, list[Any]]]:
    """Sections that can be led to, each with those in it."""
    found = [(block, _contents(block.blocks)) for block in blocks if isinstance(block, Section)]
    return [entry for section, inner in found for entry in ([(section, inner)] if section.id else inner)]


def policy(styles: Sequence[str], scripts: Sequence[str], frames: Sequence[str] = ()) -> str:
    """A content security policy that allows these texts, and what the pages in its frames allow; nothing else."""
    inner = [html.unescape(found[1]) for frame in frames if (found := _POLICY.search(frame))]
    allowed = [
        f"{directive} {' '.join(dict.fromkeys([*map(_hash, texts), *_allowed(directive, inner)]))}"
        for directive, texts in (("style-src", styles), ("script-src", scripts))
        if texts
    ]
    return "; ".join(["default-src 'none'", *allowed, "img-src data:", "base-uri 'none'", "form-action 'none'"])


def _allowed(directive: str, policies: Sequence[str]) -> list[str]:
    """The hashes that policies allow."""
    parts = [part.split() for text in policies for part in text.split(";")]
    return [source for part in parts if part[:1] == [directive] for source in part if source.startswith("'sha256-")]


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def asset(file: str, folder: str = "assets") -> str:
    """The text of a file that pages are made of; those of graphs are in ``viewer``."""
    return resources.files(__package__).joinpath(folder, file).read_text(encoding="utf-8")


def escaping(asset: Callable[[str], str]) -> jinja2.Environment:
    """Templates that escape everything and know every name; ``asset``: the text of a file by its name."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(asset), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=visible_on_page,
    )  # fmt: skip


@cache
def environment() -> jinja2.Environment:
    """Of all templates of this package, without what blocks need (html.py)."""
    made = escaping(asset)
    made.filters |= {"here": here, "reached": reached, "secure": secure, "shown": shown}
    made.globals["host"] = host
    return made


def reached(link: str | None) -> str | None:
    """A link to a page, or to a file beside this one."""
    return link if link and (_BESIDE.fullmatch(link) or secure(link)) else None


def here(link: str | None) -> str | None:
    """A link to another page of the same site."""
    return link if isinstance(link, Here) and _HERE.fullmatch(link) else None


def secure(link: str | None) -> str | None:
    """A link that a page may have: to a page, not to a script."""
    return link if link and link.startswith(("https://", "http://")) else None


def host(link: str) -> str:
    """Whose page a link leads to: ``neuronpedia.org``."""
    return link.split("/")[2].removeprefix("www.")


def inert(text: str) -> Markup:
    """Text of ours, or JSON in which nothing can end its element: not escaped again."""
    from markupsafe import Markup

    return Markup(text)
