"""What a result can do because it is made of blocks."""

import csv
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from depass_sae.errors import UserError
from depass_sae.view.blocks import Block, Column, Note, Page, Row, Table, Token
from depass_sae.view.html import Html
from depass_sae.view.shown import FORMATS, Shown, check_out
from depass_sae.view.terminal import Text

TOKENS = (" supply", ' "a", b', " 50 % & $x_1$", "\n", " \u202eé東")


@dataclass(frozen=True, kw_only=True)
class Result(Shown):
    """With rows for a table of data."""

    values: tuple[float, ...] = (1.5, -0.25, 1e-7, 0.0, -3.0)

    @property
    def title(self) -> str:
        return "a result"

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        order = sorted(range(len(self.values)), key=lambda i: -abs(self.values[i]))
        rows = tuple(Row((Token(TOKENS[i % 5], i), self.values[i])) for i in order[:top])
        return (Table(self.title, (Column("source"), Column("value", "signed", bar=True)), rows),)

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": 1, "values": list(self.values), "tokens": list(TOKENS)}

    def to_frame(self) -> Any:
        import pandas

        return pandas.DataFrame({"pos": range(5), "token": TOKENS, "value": self.values})


class Words(Shown):
    """With neither rows nor pictures."""

    @property
    def title(self) -> str:
        return "words"

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        return (Note("nothing to draw"),)

    def to_dict(self) -> dict[str, Any]:
        return {"half of a character": "\ud800"}


# ------------------------------------------------------------------------------------------------------------- showing


def test_a_result_is_shown_as_its_table_of_ten_rows_though_it_is_a_dataclass():
    many = Result(values=tuple(float(i) for i in range(50)))
    assert repr(many) == str(many.table(10))
    assert len(repr(many).splitlines()) == 13
    assert len(many.table().splitlines()) == 53
    assert type(many.table()) is Text


def test_a_class_that_says_how_it_is_shown_is_shown_so_and_so_are_those_made_from_it():
    class Named(Result):
        def __repr__(self) -> str:
            return "named"

    @dataclass(frozen=True)
    class Special(Named):
        more: int = 0

    assert repr(Named()) == repr(Special()) == "named"


def test_a_notebook_shows_a_result_as_html():
    piece = Result().plot()
    assert type(piece) is Html
    assert Result()._repr_html_() == piece
    assert "+1.500" in piece


def test_a_result_s_page_has_its_title_and_its_blocks():
    assert Result().page() == Page("a result", Result().blocks())
    page = Result().to_html()
    assert page.startswith("<!doctype html>")
    assert "<title>a result" in page


def test_a_result_s_figure_is_that_of_its_blocks():
    pytest.importorskip("matplotlib")
    (axes,) = Result().figure().axes
    assert [bar.get_width() for bar in axes.patches] == [-3.0, 1.5, -0.25, 1e-7, 0.0]


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_result_is_written_in_every_format_the_same_each_time(suffix: str, tmp_path: Path):
    for module in FORMATS[suffix].needs:
        pytest.importorskip(module)
    one, other = tmp_path / f"one{suffix}", tmp_path / "not there yet" / f"other{suffix.upper()}"
    Result().write(one)
    Result().write(str(other))
    assert one.read_bytes() == other.read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted(["not there yet", one.name])


def test_the_json_is_the_document_and_no_number_is_none(tmp_path: Path):
    Result().write(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == Result().to_dict()
    assert '\n  "schema_version": 1' in text
    with pytest.raises(ValueError, match="not JSON compliant"):
        Result(values=(float("nan"),)).write(tmp_path / "b.json")
    assert os.listdir(tmp_path) == ["a.json"]


def test_half_of_a_character_is_escaped_in_the_json(tmp_path: Path):
    Words().write(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == Words().to_dict()


@pytest.mark.parametrize(("suffix", "by"), [(".csv", ","), (".tsv", "\t")])
def test_rows_are_read_back_from_separated_values(suffix: str, by: str, tmp_path: Path):
    pytest.importorskip("pandas")
    Result().write(tmp_path / f"a{suffix}")
    with (tmp_path / f"a{suffix}").open(encoding="utf-8", newline="") as file:
        heading, *rows = csv.reader(file, delimiter=by)
    assert heading == ["pos", "token", "value"]
    assert [row[1] for row in rows] == list(TOKENS)
    assert [float(row[2]) for row in rows] == list(Result().values)


def test_rows_are_read_back_from_parquet(tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    Result().write(tmp_path / "a.parquet")
    assert pandas.read_parquet(io.BytesIO((tmp_path / "a.parquet").read_bytes())).equals(Result().to_frame())


def test_a_latex_table_has_its_texts_escaped_and_its_numbers_as_everywhere(tmp_path: Path):
    pytest.importorskip("pandas")
    Result().write(tmp_path / "a.tex")
    text = (tmp_path / "a.tex").read_text(encoding="utf-8")
    assert r"2 & 50 \% \& \$x\_1\$ & 1.0e$-$07 \\" in text
    assert r"1 & " in text
    assert r"$-$3.000 \\" in text
    assert "\u202e" not in text
    assert text.startswith("% \\usepackage{booktabs}\n\\begin{tabular}")


def test_a_name_that_says_no_format_is_told_what_there_is(tmp_path: Path):
    for name in ("a.docx", "a", ".html"):
        with pytest.raises(UserError, match=r"let it end with \.html, \.md, \.json, .* or \.pdf$"):
            check_out(tmp_path / name)
    assert not os.listdir(tmp_path)


def test_a_result_without_rows_is_not_offered_formats_of_rows(tmp_path: Path):
    with pytest.raises(UserError, match=r"let it end with \.html, \.md, \.json, \.png, \.svg or \.pdf$"):
        Words().write(tmp_path / "a.csv")
    check_out(tmp_path / "a.csv", Result)


@pytest.mark.parametrize(
    ("suffix", "module", "install"),
    [
        (".csv", "pandas", r"'depass-sae\[notebook\]'"), (".parquet", "pyarrow", "pyarrow"),
        (".svg", "matplotlib.figure", r"'depass-sae\[notebook\]'"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_before_any_work(
    suffix: str, module: str, install: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"^\{suffix} files need {module.split('.')[0]}: pip install {install}$"):
        check_out(tmp_path / f"a{suffix}")


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.html", tmp_path):
        with pytest.raises(UserError):
            check_out(path)
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UserError, match=r"it is a folder$"):
        check_out(tmp_path / "a.json")


def test_where_nothing_is_a_picture_no_file_is_left(tmp_path: Path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="nothing to draw"):
        Words().write(tmp_path / "a.png")
    assert not os.listdir(tmp_path)
