"""A scan in shards, put together, is the scan."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.index.shards import parse_shard

from ..cli.calling import Files, Run, files, run
from .scanned import contents, lm, scanned, texts

__all__ = ["files", "run"]


def shards(folder: Path, count: int, which: Sequence[int] = (), source: Any = None, **options: Any) -> list[Path]:
    return [
        lm().scan_shard(
            texts() if source is None else source, folder / str(number), (number, count), **{"unit": 40, **options}
        )
        for number in which or range(1, count + 1)
    ]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return shards(tmp_path_factory.mktemp("two"), 2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_put_together_are_the_same_files(tmp_path: Path, count: int) -> None:
    """Five are more than there are units for."""
    plain = contents(scanned(tmp_path / "plain", full="1/3").folder)
    made = shards(tmp_path / "shards", count, full="1/3")
    before = [contents(one) for one in made]
    random.Random(0).shuffle(before)
    random.Random(0).shuffle(made)
    assert contents(ds.merge_shards(made, tmp_path / "merged").folder) == plain
    assert [contents(one) for one in made] == before


def test_a_shard_or_a_merge_that_is_stopped_anywhere_goes_on(tmp_path: Path, two: list[Path]) -> None:
    plain, folder = contents(ds.merge_shards(two, tmp_path / "plain").folder), tmp_path / "stopped"
    left = 0

    def tell(what: str, done: int, steps: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    for stop in (1, 2, 3, 4, 10**9):
        left = stop
        try:
            ds.merge_shards(two, folder, progress=tell)
        except KeyboardInterrupt:
            assert not (folder / "manifest.json").exists()
    assert contents(folder) == plain
    for stop in (3, 8, 10**9):
        left = stop
        try:
            lm().scan_shard(texts(), tmp_path / "again", "2/2", unit=40, progress=tell)
        except KeyboardInterrupt:
            assert not (tmp_path / "again" / "shard.json").exists()
    assert contents(tmp_path / "again") == contents(two[1])


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path, two: list[Path]) -> None:
    def refused(some: Sequence[Path], why: str) -> None:
        with pytest.raises(UserError, match=why):
            ds.merge_shards(some, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()

    refused([], "name the folders")
    refused(two[:1], "shards are missing: 2/2")
    refused([*two, two[0]], "named twice")
    shutil.copytree(two[0], tmp_path / "copy")
    refused([*two, tmp_path / "copy"], "named twice")
    refused([two[0], tmp_path / "nowhere"], "is no finished shard")
    refused([two[0], *shards(tmp_path / "top", 2, [2], top=3)], "different scans: top differs")
    refused([two[0], *shards(tmp_path / "three", 3, [2])], "different scans: number of shards differs")
    refused([two[0], *shards(tmp_path / "other", 2, [2], texts(seed=1))], "their corpora differ")
    damaged = json.loads((tmp_path / "copy" / "shard.json").read_text())
    del damaged["scanned"]["digest"]
    (tmp_path / "copy" / "shard.json").write_text(json.dumps(damaged))
    refused([tmp_path / "copy", two[1]], "cannot read .*shard.json")


def test_a_shard_is_one_of_so_many(tmp_path: Path, two: list[Path]) -> None:
    assert parse_shard("3/8") == (3, 8)
    for text in ("0/8", "9/8", "8", "a/b", "1/8/2", "-1/8", "1/1000000", "1/ 8", "²/8"):
        with pytest.raises(UserError, match="a shard is"):
            parse_shard(text)
    with pytest.raises(UserError, match="is a finished shard"):
        shards(two[0].parent, 2, [1])
    with pytest.raises(UserError, match="no documents"):
        shards(tmp_path, 2, [2], [""])
    assert not (tmp_path / "2").exists()


def test_the_commands_say_what_they_wrote(tmp_path: Path, run: Run, files: Files) -> None:
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n".join(texts(10)))
    for number in (1, 2):
        said = run(
            "scan", str(corpus), "--out", str(tmp_path / str(number)), "--shard", f"{number}/2", *files.options()
        )
        assert f"wrote {tmp_path / str(number)}" in said.out
    said = run("merge", str(tmp_path / "1"), str(tmp_path / "2"), "--out", str(tmp_path / "ix"))
    assert "tokens of 10 documents" in said.out
    plain = run("scan", str(corpus), "--out", str(tmp_path / "plain"), *files.options())
    assert plain.status == said.status == 0
    assert contents(tmp_path / "ix") == contents(tmp_path / "plain")
    wrong = run("merge", str(tmp_path / "1"), "--out", str(tmp_path / "other"))
    assert wrong.status == 2
    assert wrong.err.count("\n") == 1
