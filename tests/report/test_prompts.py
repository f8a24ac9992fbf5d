"""Prompts from files: lines, or JSON lines; one line for what is wrong."""

from pathlib import Path

import pytest

from depass_sae.errors import UserError
from depass_sae.report.prompts import TaskPrompt, read_prompts, read_task


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


def test_prompts_of_a_task_have_targets_and_contrasts(tmp_path: Path) -> None:
    lines = (
        '{"text": "a b", "target": "logit:5", "contrast": "c b"}\n\n{"text": "d b", "target": "1/3", "contrast": "e b"}'
    )
    assert read_task(written(tmp_path, "task.jsonl", lines)) == [
        TaskPrompt("a b", "logit:5", "c b"), TaskPrompt("d b", "1/3", "e b")
    ]  # fmt: skip
    assert read_task(written(tmp_path, "task.txt", "a b\n c\n")) == [TaskPrompt("a b"), TaskPrompt(" c")]
    assert read_task(written(tmp_path, "t.jsonl", '{"text": "a", "target": null}')) == [TaskPrompt("a")]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"text": "a", "target": "logit:5"}\n{"text": "b"}', "1 of its 2 prompts have a target; name all or none"),
        ('{"text": "a", "contrast": "x"}\n{"text": "b"}', "1 of its 2 prompts have a contrast; name all or none"),
        ('{"text": "a", "target": 5}', "line 1 should be an object with a target"),
        ('{"text": "a", "answer": "x"}', "line 1 has a key 'answer'; the keys are text, target, contrast"),
        ('{"text": "a", "contrast": "half \\ud800"}', "line 1: its contrast is not valid Unicode"),
        ('{"target": "logit:5"}', "line 1 should be an object with a text"),
    ],
)
def test_what_is_wrong_with_a_task_is_said_in_one_line(tmp_path: Path, content: str, why: str) -> None:
    with pytest.raises(UserError, match=r"cannot read .*task\.jsonl: ") as error:
        read_task(written(tmp_path, "task.jsonl", content))
    assert why in str(error.value)
