"""What pages begin with: ``base.css`` (colours and first rules) and ``theme.js`` (the switch between light and dark).

A page puts them in front of its own style and script, within the same elements, so that its policy covers both.
"""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def shared(file: str) -> str:
    """The text of a file that pages share."""
    return resources.files(__package__).joinpath("templates", file).read_text(encoding="utf-8")
