"""Docstrings as Markdown: settings that are told in running text get a line each, and roles become names.

A docstring of this package says ``name: what it is`` at a line's start, or ``one, other: what they are``.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

_SETTING = re.compile(r"^((?:\w+, )*\w+): (?=\S)", re.MULTILINE)
_ROLE = re.compile(r":\w+:`[.~]?([^`]+)`")


def as_markdown(docstring: str) -> str:
    """A docstring with settings as paragraphs and ``:class:`.X` `` as `X`."""
    return _SETTING.sub(r"\n**\1**: ", _ROLE.sub(r"`\1`", docstring))


class Settings(Extension):
    """What mkdocstrings reads goes through :func:`as_markdown`."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
