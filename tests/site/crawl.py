"""The pages of a site on disk, and what they link to."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}
"""What a browser fetches by itself, by the attribute that says where."""


@dataclass
class Page(HTMLParser):
    """What one page has: anchors that can be linked to, links, and what it loads."""

    path: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values and values.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(values[LOADED[tag]])


def crawled(site: Path) -> dict[Path, Page]:
    """Every page of a site, by its path."""
    return {path: Page(path) for path in sorted(site.resolve().rglob("*.html"))}


def dead(pages: dict[Path, Page]) -> list[str]:
    """``page -> link`` for every link within the site that leads to no file, or to no anchor of a page."""
    found = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                found.append(f"{path.name} -> {link}")
    return found


def outside(pages: dict[Path, Page]) -> list[str]:
    """``page -> address`` for whatever a page would fetch from elsewhere."""
    return [
        f"{path.name} -> {address}"
        for path, page in pages.items()
        for address in page.loads
        if address.startswith("//") or urlsplit(address).scheme in ("http", "https")
    ]
