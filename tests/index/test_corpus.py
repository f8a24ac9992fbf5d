"""Every document is read, in whatever a corpus lies, and what cannot be read is told of with its place."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depass_sae.errors import UserError
from depass_sae.index.corpus import corpus
from depass_sae.index.items import LONGEST, Broken, Document, Reading

TEXTS = ["supply and demand", 'a "quoted", text\nof two lines', "naïve 🙂", "Mary gave John"]


def read(source: Any, **how: str) -> list[tuple[str, Any]]:
    return [
        (item.where, item.content if isinstance(item, Document) else f"!{item.why}")
        for item in corpus(source, Reading(**how))
    ]


def contents(source: Any, **how: str) -> list[Any]:
    return [content for _, content in read(source, **how)]


def as_csv(by: str) -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=by).writerows([("id", "text"), *enumerate(TEXTS)])
    return file.getvalue().encode()


def as_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": range(4), "text": TEXTS}), file, row_group_size=2)
    return file.getvalue()


JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
FILES = {
    "a.jsonl": JSONL, "a.ndjson": JSONL, "a.csv": as_csv(","), "a.tsv": as_csv("\t"), "a.parquet": as_parquet(),
    "a.jsonl.gz": gzip.compress(JSONL), "a.jsonl.bz2": bz2.compress(JSONL), "a.jsonl.xz": lzma.compress(JSONL),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_texts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    found = corpus(tmp_path / name)
    assert [item.content for item in found if isinstance(item, Document)] == TEXTS
    assert found.size == len(FILES[name]) == found.read


def test_a_folder_is_its_files_and_several_sources_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, text in (
        ("in/b.txt", "third\n"),
        ("in/.hidden.txt", "no\n"),
        ("a.txt", "first\nsecond\n"),
        ("z.bin", "no"),
    ):
        (tmp_path / name).write_text(text)
    assert read(tmp_path) == [("a.txt:1", "first"), ("a.txt:2", "second"), ("b.txt:1", "third")]
    assert contents([tmp_path / "in", tmp_path / "a.txt"]) == ["third", "first", "second"]


def test_a_plain_text_is_cut_as_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n \ntwo\nthree\n\n\nfour")
    assert read(path) == [("a.txt:1", "one"), ("a.txt:4", "two"), ("a.txt:5", "three"), ("a.txt:8", "four")]
    assert read(path, documents="paragraph") == [("a.txt:1", "one"), ("a.txt:4", "two\nthree"), ("a.txt:8", "four")]
    assert read(path, documents="file") == [("a.txt", "one\r\n\r\n \ntwo\nthree\n\n\nfour")]


def test_texts_ids_and_mappings_are_handed_over(tmp_path: Path) -> None:
    import numpy as np
    import torch

    given = ["a", [5, 6], {"text": "b"}, torch.tensor([7]), np.array([8, 9]), {"txt": "c"}, None, 5, b"d"]
    expected = [
        "a",
        (5, 6),
        "b",
        (7,),
        (8, 9),
        "!it has no text",
        "!it has no text",
        "!it is no text",
        "!it is no text",
    ]
    assert contents(one for one in given) == expected
    assert contents([{"body": "b"}], column="body") == ["b"]


BROKEN = {
    "a.jsonl": (
        b'{"text": "one"}\n{"text": \n{"txt": "x"}\n[1]\n\xff\xfe\n{"text": 5}\n{"text": null}\n\n'
        + b'{"text": "two"}\n'
        + b"[" * 100_000 + b"\n",
        ["one", "!it is not JSON", "!it has no text", "!it is no JSON object", "!it is not UTF-8 text",
         "!it is no text", "!it has no text", "two", "!it is not JSON"],
    ),
    "a.txt": (b"one\ncaf\xe9\ntwo\n", ["one", "!it is not UTF-8 text", "two"]),
    "a.csv": (
        b'id,text\n1,one\n2\n3,caf\xe9\n4,"tw""o"\n5,"op"en\n6,three\n7,"never ends\n8,lost\n',
        ["one", "!it has another number of cells than the first row", "!it is not UTF-8 text", 'tw"o',
         "!it is no CSV (',' expected after '\"')", "three", "!it is no CSV (unexpected end of data)"],
    ),
    "b.csv": (b"id,body\n1,one\n", ["!it has no column text"]),
    "a.parquet": (b"PAR1 this is none PAR1", None),
    "a.jsonl.gz": (gzip.compress(JSONL * 2000)[:-100], None),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_told_of_and_what_follows_is_read(tmp_path: Path, name: str) -> None:
    raw, expected = BROKEN[name]
    (tmp_path / name).write_bytes(raw)
    (tmp_path / "z.txt").write_text("after\n")
    found = read(tmp_path)
    assert found[-1] == ("z.txt:1", "after")
    broken = [(where, said) for where, said in found if str(said).startswith("!")]
    assert broken
    assert all(where.startswith(name) for where, _ in broken)
    if expected is not None:
        assert [content for _, content in found[:-1]] == expected


def test_a_broken_row_group_ends_no_other(tmp_path: Path) -> None:
    raw = bytearray(as_parquet())
    first = pq.ParquetFile(io.BytesIO(bytes(raw))).metadata.row_group(0).column(1)
    begin = first.data_page_offset
    raw[begin : begin + first.total_compressed_size // 2] = b"\xff" * (first.total_compressed_size // 2)
    (tmp_path / "a.parquet").write_bytes(bytes(raw))
    found = read(tmp_path)
    assert [content for _, content in found if not content.startswith("!")] == TEXTS[2:]
    assert found[0][0] == "a.parquet:1"


def test_lines_of_a_csv_that_a_quote_took_in_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(BROKEN["a.csv"][0])
    assert read(tmp_path)[-1][0] == "a.csv:8 to 9"


def test_a_line_that_is_too_long_is_left_out_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.write(b"one\n")
        file.seek(LONGEST + 2**20)  # a hole
        file.write(b"\ntwo\n")
    assert read(path) == [("a.txt:1", "one"), ("a.txt:2", "!it is longer than 16 MiB"), ("a.txt:3", "two")]
    assert contents(path, documents="file") == ["!it is longer than 16 MiB"]
    assert contents(path, documents="paragraph") == ["one", "!it is longer than 16 MiB", "two"]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("", "an empty name"),
        ("missing.txt", "there is no missing.txt"),
        ("pyproject.toml", "does not say what it is"),
        ("a\0b", "is no path"),
        ("hf:", "a data set is written"),
        ("hf:one", "a data set is written"),
        ("hf:a/b c", "a data set is written"),
        (5, "a corpus is a path"),
        (b"text", "a corpus is a path"),
        ({"text": "a"}, "a corpus is a path"),
    ],
)
def test_what_is_no_corpus_is_told_of(source: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        corpus(source)


def test_a_broken_item_is_no_document() -> None:
    assert not isinstance(Broken("a", "b"), Document)
