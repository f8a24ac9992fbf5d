"""Data sets of the hub are streamed, from a local server in its format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = str(tmp_path_factory.mktemp("home"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.index.hub_session"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return read


def test_the_rows_of_all_files_of_a_split_come_in_order(found: dict[str, Any]) -> None:
    assert found["plain/texts"] == [
        ["plain/texts:train:0", "supply and demand"],
        ["plain/texts:train:1", "!it has no text"],
        ["plain/texts:train:2", "Mary gave John"],
        ["plain/texts:train:3", "price"],
    ]
    assert found["plain/texts:test"] == [["plain/texts:test:0", "Rome"]]
    assert found["two/configs/two"] == [["two/configs:train:0", "second"]]
    assert [content for _, content in found["ids"]] == ["!it is no text"] * 4


@pytest.mark.parametrize("name", ["two/configs", "no/texts", "closed/texts", "plain/texts:none", "down"])
def test_what_cannot_be_had_is_told_in_one_line(found: dict[str, Any], name: str) -> None:
    said = found[name]
    assert isinstance(said, str)
    assert said.startswith("the data set ")
    assert "cannot be read: " in said
    assert "\n" not in said
