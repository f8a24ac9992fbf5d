"""Prompts from a file: one text a line, or JSON lines with a ``text`` each, and for a task its target and contrast."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from ..files import check_unicode, parse_json, read_text

Read = TypeVar("Read")


def read_prompts(path: str | os.PathLike[str]) -> list[str]:
    """The texts of a file: its lines, or the ``text`` of every line of a .jsonl file. Blank lines are skipped.

    Raises UserError with one line for a file that is missing, no UTF-8, empty, or no JSON lines.
    """
    return _read(path, lambda line, number: _text(content_of(line, number), number), lambda line: line)


@dataclass(frozen=True)
class TaskPrompt:
    """A prompt of a task. target: as ``logit:" Paris"``; contrast: a prompt as long."""

    text: str
    target: str | None = None
    contrast: str | None = None


KEYS = ("text", "target", "contrast")


def read_task(path: str | os.PathLike[str]) -> list[TaskPrompt]:
    """The prompts of a task: a text file's lines, or of every line of a .jsonl file ``text``, ``target`` and
    ``contrast``, the latter two in all lines or in none.

    Raises UserError as :func:`read_prompts` does.
    """
    found = _read(path, _task_prompt, TaskPrompt)
    for key in KEYS[1:]:
        given = [getattr(one, key) is not None for one in found]
        if any(given) and not all(given):
            raise UserError(
                f"cannot read {Path(path)}: {sum(given)} of its {len(found)} prompts have a {key}; name all or none"
            )
    return found


def _read(
    path: str | os.PathLike[str], of_json: Callable[[str, int], Read], of_text: Callable[[str], Read]
) -> list[Read]:
    """What every line that is not blank says."""
    path = Path(path)
    try:
        numbered = numbered_lines(path)
        if path.suffix.lower() == ".jsonl":
            found = [
                of_json(line, number) for number, line in numbered if _text(content_of(line, number), number).strip()
            ]
        else:
            found = [of_text(line) for _, line in numbered]
        if not found:
            raise UserError("there is no prompt in it; it should have one text a line")
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return found


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Those that are not blank, with their numbers from 1."""
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def content_of(line: str, number: int) -> Any:
    """What a line of JSON says. Raises UserError that names the line."""
    try:
        return parse_json(line)
    except UserError as error:
        raise UserError(f"line {number}: {str(error).replace('line 1, ', '')}") from None


def _text(content: Any, number: int, key: str = "text") -> str:
    text = content.get(key) if isinstance(content, dict) else None
    if not isinstance(text, str):
        raise UserError(f'line {number} should be an object with a {key}, like {{"{key}": "In economics, ..."}}')
    check_unicode(text, f"line {number}: its {key}")
    return text


def _task_prompt(line: str, number: int) -> TaskPrompt:
    content = content_of(line, number)
    given = {key: _text(content, number, key) for key in KEYS if key == "text" or content.get(key) is not None}
    if more := [key for key in content if key not in KEYS]:
        raise UserError(f"line {number} has a key {more[0]!r}; the keys are {', '.join(KEYS)}")
    return TaskPrompt(**given)
