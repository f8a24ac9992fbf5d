"""The files of an index are what docs/index-format.md says, for whoever reads Parquet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest

from depass_sae.index.index import Index

from .scanned import scanned

PAGE = (Path(__file__).parents[2] / "docs" / "index-format.md").read_text()
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return scanned(tmp_path_factory.mktemp("made") / "index", full="all")


def asked(index: Index, query: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A query of the page, of the feature that fires most, and of a word of these texts."""
    monkeypatch.chdir(index.folder.parent)
    feature = index.dense(1, layer="1").features[0].feature.removeprefix("1/")
    text = query.replace("17.resid_post", "1.resid_post").replace("2601", feature).replace("climate", "mary")
    return duckdb.sql(text).fetchall()


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_every_query_of_the_page_has_an_answer(index: Index, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = asked(index, query, monkeypatch)
    assert rows
    assert all(value is not None for row in rows for value in row)


def test_queries_give_what_the_index_answers(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, contexts, marks, density, *_, lift, offsets = (asked(index, query, monkeypatch) for query in QUERIES)
    name = index.dense(1, layer="1").features[0].feature
    found = index.feature(name)
    assert [(text, count) for text, count, *_ in tokens] == [(t.token, t.count) for t in found.fires_on[:10]]
    assert [(pos, where) for _, pos, where, _ in contexts] == [(c.pos, c.document) for c in found.contexts[:5]]
    first = found.contexts[0]
    assert [(pos, text) for _, pos, text, _ in marks[: len(first.tokens)]] == list(enumerate(first.tokens))
    assert [value for *_, value in marks[: len(first.tokens)]] == pytest.approx(list(first.activations))
    assert density[0][0] == index.dead(layer="1").count
    assert {f"1/{partner}": count for partner, count, _ in lift}.items() <= {n: c for n, _, c in found.partners}.items()
    begin, end = offsets[0]
    assert end - begin == len(found.fires_on)


def test_pandas_polars_and_plain_arrow_read_all_of_it(index: Index) -> None:
    for path in sorted(index.folder.rglob("*.parquet")):
        frame = pandas.read_parquet(path)
        assert len(frame) == pq.ParquetFile(path).metadata.num_rows
        assert duckdb.sql(f"SELECT count(*) FROM '{path}'").fetchall() == [(len(frame),)]
        duckdb.sql(f"SELECT * FROM '{path}'").fetchall()
    polars = pytest.importorskip("polars")
    for path in sorted(index.folder.rglob("*.parquet")):
        assert len(polars.read_parquet(path)) == pq.ParquetFile(path).metadata.num_rows


def test_tables_are_sorted_by_feature_with_offsets_and_even_row_groups(index: Index) -> None:
    for hook, width in index.saes.items():
        offsets = pandas.read_parquet(index.folder / str(hook) / "offsets.parquet")
        assert len(offsets) == width + 1
        for name in offsets.columns:
            file = pq.ParquetFile(index.folder / str(hook) / f"{name}.parquet")
            feature = file.read(["feature"])["feature"].to_numpy()
            assert np.array_equal(offsets[name], np.searchsorted(feature, np.arange(width + 1)))
            assert (np.diff(feature) >= 0).all()
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            assert set(rows[:-1]) <= {16384, 2048}
            columns = [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]
            assert {column.compression for column in columns} == {"ZSTD"}
    activations = pq.ParquetFile(index.folder / "1.resid_post" / "activations.parquet")
    assert str(activations.schema_arrow.field("activation").type) == "halffloat"
    assert activations.metadata.row_group(0).column(3).encodings in (("PLAIN", "RLE"), ("RLE", "PLAIN"))


def test_the_manifest_says_of_what_the_index_is(index: Index) -> None:
    said = json.loads((index.folder / "manifest.json").read_text())
    assert said["schema_version"] == 1
    assert said["tokens"] == index.tokens
    assert said["full"] == {"0.resid_post": "all", "1.resid_post": "all"}
    assert all(len(sae["sha256"]) == 64 for sae in said["saes"].values())
    assert len({sae["sha256"] for sae in said["saes"].values()}) == 2
    assert said["corpus"]["documents"] == 60
    assert said["settings"]["window"] == 12


def test_an_activation_that_is_too_large_for_float16_is_kept(tmp_path: Path) -> None:
    from depass_sae.index.summary import half

    assert half(np.array([1.0, 70_000.0], np.float32)).dtype == np.float32
    assert half(np.array([1.0, 60_000.0], np.float32)).dtype == np.float16
