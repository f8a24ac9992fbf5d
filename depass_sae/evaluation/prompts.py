"""The prompts of an evaluation: each with what is to be explained on it, from a file, a list, or one of those shipped.

A line of a .jsonl file is one of

    {"prompt": "The capital of France is", "answer": " Paris"}                        its logit over the mean logit
    {"prompt": "... John gave a drink to", "answer": " Mary", "foil": " John"}        the difference of two logits
    {"prompt": "Climate change ...", "target": "17/2601@6"}                           any target as it is written
    {"prompt": "..."}                                                                 the predicted token's logit

and may have a ``contrast``: a prompt of the same length, whose values stand in for what is taken out. A prompt is a
text or a list of token ids. Of any other file each line is a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..arguments import told
from ..errors import UserError
from ..files import check_unicode, expanded
from ..report.prompts import content_of, numbered_lines
from .facts import FACTS
from .ioi import sentences

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """One prompt. answer, foil: tokens, by their texts; target: as it is written elsewhere, instead of an answer."""

    prompt: str | Ids
    answer: str | None = None
    foil: str | None = None
    target: str | None = None
    contrast: str | Ids | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> Item:
        """Raises UserError, which says where, for what is no prompt, and for keys that mean nothing."""
        if more := [key for key in given if key not in cls.__annotations__]:
            raise UserError(f"{where} has a key {more[0]!r}; the keys are {', '.join(cls.__annotations__)}")
        found = {key: value for key, value in given.items() if value is not None}
        if "prompt" not in found:
            raise UserError(f'{where} should have a prompt, like {{"prompt": "The capital of France is"}}')
        for key, value in found.items():
            ids = isinstance(value, list | tuple) and all(type(each) is int for each in value)
            if key in ("prompt", "contrast") and ids:
                found[key] = tuple(value)
            elif not isinstance(value, str):
                raise UserError(f"{where}: its {key} should be a text, not {told(value)}")
            else:
                check_unicode(value, f"{where}: its {key}")
            if not found[key]:
                raise UserError(f"{where}: its {key} is empty")
        item = cls(**found)
        if item.target is not None and item.answer is not None:
            raise UserError(f"{where} has an answer and a target; name one of them")
        if item.foil is not None and item.answer is None:
            raise UserError(f"{where} has a foil and no answer that it is the foil of")
        return item

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def facts() -> list[Item]:
    """37 facts that SmolLM2-135M completes with the right token."""
    return [Item(fact.prompt, fact.answer) for fact in FACTS]


def indirect_objects() -> list[Item]:
    """24 sentences with an indirect object, and the same with the giver's name exchanged as their contrast."""
    return [Item(one.text, one.indirect_object, one.subject, contrast=one.exchanged) for one in sentences()]


SHIPPED = {"facts": facts, "ioi": indirect_objects}


def read_items(path: Path) -> list[Item]:
    """The prompts of a file. Raises UserError with one line for one that is missing, empty, or broken."""
    try:
        numbered = numbered_lines(path)
        if path.suffix.lower() == ".jsonl":
            found = [Item.of(_object(content_of(line, n), n), f"line {n}") for n, line in numbered]
        else:
            found = [Item(line) for _, line in numbered]
        if not found:
            raise UserError(
                'there is no prompt in it; it should have one a line, like {"prompt": "...", "answer": "..."}'
            )
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return found


def _object(content: Any, number: int) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise UserError(f'line {number} should be an object, like {{"prompt": "...", "answer": " Paris"}}')
    return content


def items_of(data: str | Path | Iterable[str | Mapping[str, Any] | Sequence[int]]) -> list[Item]:
    """Prompts as people give them: a name of :data:`SHIPPED`, a file, or a list of texts, ids or mappings.

    Raises UserError for what is none of these.
    """
    if isinstance(data, str) and data in SHIPPED:
        return SHIPPED[data]()
    if isinstance(data, str | Path):
        path = expanded(data)
        if isinstance(data, str) and not path.exists():
            raise UserError(f"{data!r} is no file of prompts, and none of those shipped: {', '.join(SHIPPED)}")
        return read_items(path)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise UserError(f"prompts are a file, {' or '.join(SHIPPED)}, or a list, not {told(data)}")
    found = [
        Item.of(given if isinstance(given, Mapping) else {"prompt": given}, f"prompt {number}")
        for number, given in enumerate(data, start=1)
    ]
    if not found:
        raise UserError("there is no prompt to evaluate on")
    return found
