"""Texts that are not ours (tokens, prompts, labels, names) where people look at them, and where they are printed.

In such a text a terminal may find orders, and a page a change of direction: what cannot be seen is made visible.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from typing import Any, TextIO

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # controls
    "\u2028\u2029"  # line and paragraph separators
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions
    "\u206a-\u206f\ufeff\ufff9-\ufffb"  # deprecated ones, a byte order mark in a text, annotations between lines
    "\ud800-\udfff]"  # halves of characters
)
"""Characters that order instead of being seen. Joiners are none of them: emoji, Persian and Hindi are written so."""
LONGEST, TAIL = 500, 200
"""Characters of a message, and of its end, where it is cut."""
_NOT_ASCII = re.compile(r"[^\n -~]")
_MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}
_PLAIN = {"█": "#", "▌": "#", "━": "-", "−": "-", "–": "-", "→": ">", "…": ".", "·": ".", "•": "*", "␣": "_", "↵": "/"}
_PLAIN |= {"“": '"', "”": '"', "‘": "'", "’": "'", "×": "x", "Σ": "S", "≥": ">", "≤": "<", "±": "~", "⇥": ">"}


def is_hidden(char: str) -> bool:
    return _HIDDEN.match(char) is not None


def visible(text: str, keep: str = "") -> str:
    """A text in which line breaks and control characters are seen, but for those that are kept."""
    if text.isprintable():
        return text
    return "".join(c if c in keep or not is_hidden(c) else _MARKS.get(c, "\ufffd") for c in text)


def visible_on_page(value: Any) -> Any:
    """What a template puts out: its texts as on a terminal, but for spaces; HTML and numbers as they are."""
    return visible(value, keep="\n\t") if type(value) is str else value


def one_line(text: str) -> str:
    """A message on one line, whatever it names; of one that is too long for people the middle is left out."""
    text = visible(" ".join(line.strip() for line in text.strip().splitlines()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - TAIL - 3]} … {text[-TAIL:]}"


def quoted(value: Any) -> str:
    """A value out of a file, for a message: printable and on one line, whatever it holds."""
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 80 else text[:79] + "…"


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
