"""Texts that are not ours (tokens, prompts, labels, names) where people look at them, and where they are printed.

In such a text a terminal may find orders, and a page a change of direction: what cannot be seen is made visible.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
import unicodedata
from typing import Any, TextIO

from .errors import UserError

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that order instead of being seen: controls, directions, halves, breaks."""
_NOT_ASCII = re.compile(r"[^\n -~]")
_MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}
_PLAIN = {"█": "#", "▌": "#", "━": "-", "−": "-", "–": "-", "→": ">", "…": ".", "·": ".", "•": "*", "␣": "_", "↵": "/"}
_PLAIN |= {"“": '"', "”": '"', "‘": "'", "’": "'", "×": "x", "Σ": "S", "≥": ">", "≤": "<", "±": "~", "⇥": ">"}


def is_hidden(char: str) -> bool:
    return unicodedata.category(char) in _HIDDEN


def visible(text: str, keep: str = "") -> str:
    """A text in which line breaks and control characters are seen, but for those that are kept."""
    if text.isprintable():
        return text
    return "".join(c if c in keep or not is_hidden(c) else _MARKS.get(c, "\ufffd") for c in text)


def visible_on_page(value: Any) -> Any:
    """What a template puts out: its texts as on a terminal, but for spaces; HTML and numbers as they are."""
    return visible(value, keep="\n\t") if type(value) is str else value


def quoted(value: Any) -> str:
    """A value out of a file, for a message: printable and on one line, whatever it holds."""
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 80 else text[:79] + "…"


def check_unicode(text: str, what: str) -> None:
    """Raises UserError for half of a character: no file and no page can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} is not valid Unicode at character {error.start}") from None


def json_text(document: Any, stream: TextIO) -> str:
    """A document for a stream: as it is where the stream takes UTF-8, else in ASCII. Hidden characters are escaped."""
    if not is_utf_8(stream):
        return json.dumps(document, allow_nan=False, indent=2)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2)
    return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1] if is_hidden(match[0]) else match[0], text)


def is_utf_8(stream: TextIO) -> bool:
    try:
        return codecs.lookup(stream.encoding or "utf-8").name == "utf-8"
    except (AttributeError, LookupError):  # a stream without bytes takes whatever there is
        return True


def make_printable() -> None:
    """Let stdout and stderr take any text: of what their encoding lacks something alike, or ``?``."""
    codecs.register_error("depass_sae", _alike)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="depass_sae")


def _alike(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, "?") for c in text), error.end
