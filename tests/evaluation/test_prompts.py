"""Prompts of an evaluation are read as they are written, and a mistake is told with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from depass_sae.errors import UserError
from depass_sae.evaluation.prompts import Item, items_of


def test_shipped_prompts_have_answers_and_those_of_indirect_objects_foils_and_contrasts() -> None:
    assert items_of("facts")[0] == Item("The capital of France is", " Paris")
    for item in items_of("ioi"):
        assert item.answer and item.foil and isinstance(item.contrast, str) and isinstance(item.prompt, str)  # noqa: PT018
        assert item.contrast.count(item.answer) == item.prompt.count(item.answer) + 1


def test_a_file_of_lines_has_prompts_and_one_of_json_lines_what_they_are_asked_about(tmp_path: Path) -> None:
    plain, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_text("One.\n\nTwo.\n")
    assert items_of(plain) == [Item("One."), Item("Two.")]
    given = [{"prompt": "A", "answer": " b", "foil": " c"}, {"prompt": [1, 2], "target": "17/3@1", "contrast": [1, 3]}]
    lines.write_text("\n".join(map(json.dumps, given)))
    assert (
        items_of(str(lines))
        == [
            Item("A", " b", " c"),
            Item((1, 2), target="17/3@1", contrast=(1, 3)),
        ]
        == items_of(given)
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1 should be an object"),
        ('{"text": "A"}', "line 1 has a key 'text'; the keys are prompt, answer"),
        ('{"answer": " b"}', "line 1 should have a prompt"),
        ('{"prompt": ""}', "line 1: its prompt is empty"),
        ('{"prompt": 3}', "line 1: its prompt should be a text, not 3"),
        ('{"prompt": "A", "answer": ["b"]}', "its answer should be a text"),
        ('{"prompt": "A", "answer": " b", "target": "1/2"}', "an answer and a target"),
        ('{"prompt": "A", "foil": " b"}', "a foil and no answer"),
        ("", "there is no prompt in it"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match="cannot read") as error:
        items_of(path)
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("data", "why"),
    [("nowhere.jsonl", "none of those shipped: facts, ioi"), ({}, "or a list"), ([], "no prompt"), (3, "or a list")],
)
def test_what_is_no_data_is_said(data: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        items_of(data)
