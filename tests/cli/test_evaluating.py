"""``depass-sae evaluate``: tables on stdout, one document with --json, a folder that is gone on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..attribution.tiny import TEXT
from .calling import Files, Run, assert_refused

QUICK = ["--method", "half", "--method", "random", "--samples", "2"]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in (TEXT, TEXT + " or", "set the price of")))
    return str(path)


def test_tables_have_every_method_with_its_interval(run: Run, files: Files, prompts: str) -> None:
    done = run("evaluate", prompts, *QUICK, "--protocol", "replace", "--protocol", "delete", *files.options())
    assert done.status == 0, done.err
    for said in ("replace", "delete", "half", "random", "the measurement with itself", " to ", "ahead of half"):
        assert said in done.out, said
    assert "intervals of so few prompts (3) say little" in done.err


def test_the_document_alone_is_on_stdout_and_the_folder_has_it_too(
    run: Run, files: Files, prompts: str, tmp_path: Path
) -> None:
    asked = ["evaluate", prompts, *QUICK, "--of", "features", "--out", str(tmp_path / "kept"), *files.options()]
    first, again = run(*asked, "--json"), run(*asked, "--json")
    assert first.status == again.status == 0, first.err
    document = json.loads(first.out)
    assert document == json.loads(again.out) == json.loads((tmp_path / "kept" / "evaluation.json").read_text())
    assert {one["protocol"] for one in document["figures"]} == {"sets", "cpr", "cmd"}
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "evaluation.json",
        "evaluation.md",
        "records.jsonl",
    ]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["--data", "nothing"], "'nothing' is no file of prompts, and none of those shipped: facts, ioi"),
        (["--of", "words"], "tokens, heads, neurons, features"),
        (["--method", "halb"], "there is no method for tokens called 'halb'"),
        (["--protocol", "cpr"], "there is no protocol for tokens"),
        (["--of", "heads", "--removal", "text"], "zero or mean or contrast"),
        (["--against", "softmax", "--method", "half"], "compared with one of them"),
        (["--samples", "0"], "samples are 2 to"),
        (["--statistic", "mode"], "a mean or a median"),
        (["--target", "seventeen"], "'seventeen' is no feature"),
        (["--temperature", "0"], "temperature"),
        (["--seed", str(2**65)], "a seed is"),
    ],
)
def test_a_mistake_is_one_line_before_any_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], why: str
) -> None:
    monkeypatch.setattr("depass_sae.api.load", None)
    assert_refused(run("evaluate", *arguments), why)


def test_a_file_beside_data_that_comes_along_is_a_mistake(run: Run, prompts: str) -> None:
    assert_refused(run("evaluate", prompts, "--data", "facts"), "give one of them")


def test_a_folder_that_is_a_file_is_a_mistake(run: Run, prompts: str) -> None:
    assert_refused(run("evaluate", prompts, "--out", prompts), "no folder")
