"""Prompts from files: lines, or JSON lines; one line for what is wrong."""

from pathlib import Path

import pytest

from depass_sae.errors import UserError
from depass_sae.report.prompts import read_prompts


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_line_is_a_prompt_and_blank_ones_are_none(tmp_path: Path) -> None:
    path = written(tmp_path, "texts.txt", "\ufefffirst\r\n\n   \n second, with its spaces \nthird\u2028goes on\n")
    assert read_prompts(path) == ["first", " second, with its spaces ", "third\u2028goes on"]


def test_json_lines_have_a_text_each(tmp_path: Path) -> None:
    path = written(tmp_path, "texts.jsonl", '{"text": "one\\ntwo", "id": 3}\n\n{"text": " "}\n{"text": "three"}')
    assert read_prompts(path) == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", b"\xff\xfe", "it is not UTF-8 text (byte 0)"),
        ("a.txt", "\n \n", "there is no prompt in it"),
        ("a.jsonl", "{", "line 1: not JSON"),
        ("a.jsonl", '{"text": "x"}\n3', "line 2 should be an object with a text"),
        ("a.jsonl", '{"text": 3}', "line 1 should be an object with a text"),
        ("a.jsonl", "[" * 100_000, "line 1: lists and objects are nested too deeply"),
        ("a.jsonl", '{"text": "x"}\n{"text": "half \\ud800"}', "line 2: its text is not valid Unicode at character 5"),
        ("a.jsonl", '{"text": "x", "text": "y"}', 'line 1: it names "text" twice in one object'),
        ("a.jsonl", f'{{"text": "x", "n": {"9" * 5000}}}', "line 1: it holds a number of too many digits"),
        ("a.jsonl", '{"text": ""}', "there is no prompt in it"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, name: str, content: str | bytes, why: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(UserError, match=r"cannot read .*") as error:
        read_prompts(path)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match=f"cannot read {path}: "):
            read_prompts(path)
