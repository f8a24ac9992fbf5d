"""Texts that are not ours (tokens, prompts, labels, names) where people look at them, and where they are printed.

In such a text a terminal may find orders, and a page a change of direction: what cannot be seen is made visible.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Iterable, Sequence
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
_PLAIN |= {"⟨": "<", "⟩": ">"}
_PIECE = re.compile("⟨([0-9a-f]{2}(?: [0-9a-f]{2})*)⟩")


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


def spelled(raw: bytes) -> str:
    """A token's bytes as a text: what is no whole character is spelled out, as ``⟨e2 9c⟩``."""
    text = raw.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]+", lambda m: f"⟨{m[0].encode('utf-8', 'surrogateescape').hex(' ')}⟩", text)


def joined(tokens: Iterable[str]) -> str:
    """Tokens that follow each other as one text, the characters that are cut between them whole again."""
    tokens = list(tokens)
    if not any("⟨" in token for token in tokens):
        return "".join(tokens)
    return spelled(b"".join(map(_bytes_of, tokens)))


def characters(tokens: Sequence[str]) -> list[list[int]]:
    """The positions of tokens, those together that have parts of one character."""
    groups: list[list[int]] = []
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for position, token in enumerate(tokens):
        raw = _bytes_of(token)
        if decoder.getstate()[0] and raw and 0x80 <= raw[0] < 0xC0:
            groups[-1].append(position)
        else:
            decoder.reset()
            groups.append([position])
        decoder.decode(raw)
    return groups


def is_whole(token: str) -> bool:
    """Whether a token has whole characters only."""
    return "\ufffd" not in token and _PIECE.search(token) is None


def _bytes_of(token: str) -> bytes:
    parts = _PIECE.split(token)  # texts, and between them bytes
    return b"".join(bytes.fromhex(p) if i % 2 else p.encode("utf-8", "surrogatepass") for i, p in enumerate(parts))


def together(*notes: str | None) -> str | None:
    """Notes as one, each once; None where there are none."""
    return "; ".join(dict.fromkeys(note for note in notes if note)) or None


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
