"""Prompts from a file: one text a line, or JSON lines with a ``text`` each."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError
from ..files import check_unicode, parse_json, read_text


def read_prompts(path: str | os.PathLike[str]) -> list[str]:
    """The texts of a file: its lines, or the ``text`` of every line of a .jsonl file. Blank lines are skipped.

    Raises UserError with one line for a file that is missing, no UTF-8, empty, or no JSON lines.
    """
    path = Path(path)
    try:
        lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
        numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        if path.suffix.lower() == ".jsonl":
            found = [text for number, line in numbered if (text := _text(line, number)).strip()]
        else:
            found = [line for _, line in numbered]
        if not found:
            raise UserError("there is no prompt in it; it should have one text a line")
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return found


def _text(line: str, number: int) -> str:
    try:
        content = parse_json(line)
    except UserError as error:
        raise UserError(f"line {number}: {str(error).replace('line 1, ', '')}") from None
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str):
        raise UserError(f'line {number} should be an object with a text, like {{"text": "In economics, ..."}}')
    check_unicode(text, f"line {number}: its text")
    return text
