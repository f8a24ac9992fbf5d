"""``circuit`` and ``circuit-of``: documents, files, and what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import depass_sae as ds

from .calling import Files, Run, assert_refused

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
TEXTS = ["In economics, supply and demand", "In economics, demand and supply", "In economics, price and demand",
         "In economics, supply and price"]  # fmt: skip


def task(folder: Path, **more: Any) -> Path:
    path = folder / "task.jsonl"
    lines = [{"text": text} | {key: value(n) for key, value in more.items()} for n, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def without_time(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "seconds"}


def test_a_tasks_circuit_is_the_one_of_the_library(run: Run, files: Files, tmp_path: Path) -> None:
    path = task(tmp_path, target=lambda n: f"logit:{5 + n % 2}", contrast=lambda n: TEXTS[n - 1])
    done = run("circuit-of", str(path), *files.options(), "--seconds", "100", "--seed", "4", "--hold", "--json")
    assert done.status == 0, done.err
    found = ds.load(files.model, saes=files.fitting).circuit_of(
        TEXTS,
        ["logit:5", "logit:6"] * 2,
        contrasts=[TEXTS[n - 1] for n in range(4)],
        recompute=False,
        seconds=100.0,
        seed=4,
    )
    assert without_time(json.loads(done.out)) == without_time(found.to_dict())


def test_it_is_shown_and_written(run: Run, files: Files, tmp_path: Path) -> None:
    path, outs = task(tmp_path), [tmp_path / f"c.{suffix}" for suffix in ("html", "md", "json", "csv")]
    named = [part for out in outs for part in ("--out", str(out))]
    done = run("circuit-of", str(path), *files.options(), "--top", "2", *named)
    assert done.status == 0, done.err
    assert "that they were not learned on" in done.out
    assert done.out.splitlines()[-4:] == [f"wrote {out}" for out in outs]
    document = json.loads(outs[2].read_text())
    assert len(outs[3].read_text().splitlines()) == document["size"] + 1
    assert "What is left of the targets".lower() in outs[1].read_text().lower()
    assert outs[0].read_text().startswith("<!doctype html>")


def test_prompts_of_different_lengths_are_refused(run: Run, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "task.txt"
    path.write_text("\n".join([*TEXTS[:3], "supply"]))
    assert_refused(run("circuit-of", str(path), *files.options()), "prompts of a task have equal structure")
