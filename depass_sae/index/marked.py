"""A context as one text with marks: <<tokens>> at which a feature fires, [[tokens]] that make it fire elsewhere.

What the text itself has of the marks' characters is told apart from them: such a character has a backslash before it
where it stands beside its like, and so has a backslash that stands before one of them. So a doubled bracket without a
backslash is a mark, and :func:`unmarked` has the text back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import groupby

from ..texts import joined

FIRES, CAUSES = ("<<", ">>"), ("[[", "]]")
_BRACKETS = "<>[]"


def marked(tokens: Sequence[str], fires: Collection[int], causes: Collection[int]) -> tuple[str, bool]:
    """The text, and whether anything of its own is escaped. fires, causes: positions; one that is both has both marks.

    Tokens that follow each other and are marked alike are marked together.
    """
    parts: list[tuple[str, bool]] = []  # a text, and whether it is a mark
    for (fired, caused), run in groupby(range(len(tokens)), lambda pos: (pos in fires, pos in causes)):
        around = [mark for mark, there in ((CAUSES, caused), (FIRES, fired)) if there]
        parts += [(mark[0], True) for mark in around]
        parts.append((joined(tokens[pos] for pos in run), False))
        parts += [(mark[1], True) for mark in reversed(around)]
    return _escaped(parts)


def _escaped(parts: Sequence[tuple[str, bool]]) -> tuple[str, bool]:
    letters = [(char, is_mark) for text, is_mark in parts for char in text]
    found, escaped = [], False
    for i, (char, is_mark) in enumerate(letters):
        before = letters[i - 1][0] if i else ""
        after = letters[i + 1][0] if i + 1 < len(letters) else ""
        beside = char in _BRACKETS and char in (before, after)
        if not is_mark and (beside or (char == "\\" and after in (*_BRACKETS, "\\"))):
            found.append("\\")
            escaped = True
        found.append(char)
    return "".join(found), escaped


_PIECE = re.compile(r"\\([\\<>\[\]])|<<|>>|\[\[|\]\]|.", re.DOTALL)


def unmarked(text: str) -> str:
    """The text without its marks."""
    return "".join(m[1] or ("" if len(m[0]) == 2 else m[0]) for m in _PIECE.finditer(text))
