"""Links between files of the repository, as links between pages of the site.

A page may stand elsewhere on the site than its source does in the repository (the changelog, notebooks), and its links
are written for the repository. What has no page is named and not linked.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def relinked(markdown: str, source: str, page: str, pages: Mapping[str, str]) -> str:
    """The text of ``source`` (a path in the repository) for ``page`` (a path on the site).

    pages: where files and folders of the repository are on the site; a folder ends with a slash.
    """
    parts = _CODE.split(markdown)  # every other one is code
    parts[::2] = (_LINK.sub(lambda found: _link(found, source, page, pages), part) for part in parts[::2])
    return "".join(parts)


def _link(found: re.Match[str], source: str, page: str, pages: Mapping[str, str]) -> str:
    image, text, address = found.groups()
    if re.match(r"[a-z]+:|#", address):
        return found[0]
    text = _LINK.sub(lambda m: _link(m, source, page, pages), text)  # a picture that is a link
    path, mark, anchor = address.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    place = _place(target, pages)
    if place is None:
        return text
    return f"{image}[{text}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{mark}{anchor})"


def _place(target: str, pages: Mapping[str, str]) -> str | None:
    if target in pages:
        return pages[target]
    for folder, place in pages.items():
        if folder.endswith("/") and target.startswith(folder):
            return place + target.removeprefix(folder)
    return None
