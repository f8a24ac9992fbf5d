"""Answers for people: what tables say, and token texts that would break a terminal or a page."""

import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text as Line

import depass_sae as ds
from depass_sae.attribution import render
from depass_sae.attribution.heatmap import components_table
from depass_sae.attribution.render import (
    Html,
    contrast_table,
    features_table,
    named,
    place,
    shown,
    strip_line,
    table_text,
    tokens_table,
)
from depass_sae.texts import is_hidden

from ..passes.models import D_MODEL
from .tiny import HOSTILE, TEXT

HARMLESS = [shown(text) for text in HOSTILE]


class Page(HTMLParser):
    """The tags and the visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def terminal(*parts: Any) -> str:
    """What a colour terminal is sent, without our own colours."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=200, record=True)
    for part in parts:
        console.print(part)
    return console.export_text()


@pytest.fixture(scope="module")
def hostile(lm: ds.LM) -> list[ds.TokenAttribution]:
    """Answers at each of the hostile tokens, for a feature and for a hostile token's logit."""
    text = "a" + "".join(HOSTILE)
    features = [lm.attribute_tokens(text, "1/3", pos=pos) for pos in range(2, 2 + len(HOSTILE))]
    return [*features, *(lm.attribute_tokens(text, logit=token) for token in HOSTILE)]


@pytest.fixture(scope="module")
def att(lm: ds.LM) -> ds.TokenAttribution:
    return lm.attribute_tokens(TEXT, "1/3")


# ------------------------------------------------------------------------------------------------------- hostile texts


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (" supply", "supply"), (" ", "␣"), ("  ", "␣␣"), ("a b", "a b"), ("\n", "↵"), (" \n\n", "↵↵"), ("\t", "⇥"),
        ("\r", "␍"), ("\x1b[2J", "\ufffd[2J"), ("\x07", "\ufffd"), ("\u202edrow", "\ufffddrow"), ("\u2028", "\ufffd"),
        ("é東", "é東"), ("", ""), ("[red]", "[red]"), ("\ufeff", "\ufffd"),
    ],
)  # fmt: skip
def test_a_token_is_shown_on_one_line_with_nothing_a_terminal_obeys(token: str, expected: str) -> None:
    assert shown(token) == expected
    assert place(token, 4) == f"{expected} (4)"


@pytest.mark.parametrize(
    ("token", "expected"),
    [("Paris", "Paris"), (" Paris", "␣Paris"), ("a ", "a␣"), ("  a b", "␣␣a b"), (" ", "␣"), (" \n", "␣↵"), ("", "")],
)
def test_a_token_without_a_place_shows_the_space_that_tells_it_from_its_twin(token: str, expected: str) -> None:
    assert named(token) == expected


def test_no_cell_is_cut_however_narrow_the_terminal() -> None:
    table = Table()
    for name in ("feature", ""):
        table.add_column(name)
    table.add_row(Line("17.resid_post/" + "9" * 60), render.bar(1.0))
    console = Console(file=io.StringIO(), width=40)
    render.print_on(console, table)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in said
    assert said.count("9") == 60


def test_hostile_tokens_are_plain_text_in_every_table(hostile: list[ds.TokenAttribution]) -> None:
    for answer in hostile:
        for text in (str(answer.table()), repr(answer), terminal(*tokens_table(answer))):
            assert "\x1b" not in text
            lines = text.splitlines()
            for pos, harmless in enumerate(HARMLESS[: answer.target.pos - 1], start=2):
                assert any(f"{harmless} ({pos})" in line for line in lines), harmless
            assert f" at {answer.target.token and shown(answer.target.token)} ({answer.target.pos})" in lines[0]


def test_the_name_of_a_hostile_logit_is_plain_text(hostile: list[ds.TokenAttribution]) -> None:
    for token, answer in zip(HOSTILE, hostile[len(HOSTILE) :], strict=True):
        for text in (str(answer.table()), terminal(*tokens_table(answer))):
            assert text.startswith(f"logit {token!r} at ")


def test_hostile_tokens_are_plain_text_in_the_coloured_prompt(hostile: list[ds.TokenAttribution]) -> None:
    for answer in hostile:
        text = terminal(strip_line(answer, answer.target))
        assert "\x1b" not in text
        assert len(text.splitlines()) == 1
        assert "<bos>a" + "".join(HARMLESS[: answer.target.pos - 1]) in text


def test_hostile_tokens_are_plain_text_in_html(hostile: list[ds.TokenAttribution]) -> None:
    for answer in hostile:
        for html in (answer._repr_html_(), answer.plot()._repr_html_()):
            page = Page(html)
            assert set(page.tags) <= {"div", "span", "table", "caption", "thead", "tbody", "tr", "th", "td", "p"}
            assert set(page.attributes) <= {"style", "title"}
            assert "<script>alert(1)</script>" in page.text


def test_hostile_tokens_are_plain_text_in_features(lm: ds.LM) -> None:
    report = lm.features("a" + "".join(HOSTILE))
    page = Page(report._repr_html_())
    assert "script" not in page.tags
    for text in (str(report.table()), terminal(*features_table(report, 3)), page.text):
        assert "\x1b" not in text
        for pos, harmless in enumerate(HARMLESS, start=2):
            assert f"{harmless} ({pos})" in text


def test_hostile_tokens_are_plain_text_in_contrasts(lm: ds.LM) -> None:
    for pos, token in enumerate(HOSTILE, start=2):
        found = lm.contrast("a" + "".join(HOSTILE), "a" + "".join(HOSTILE[::-1]), logit=token, pos=pos)
        for text in (str(found.table()), repr(found), terminal(*contrast_table(found))):
            assert "\x1b" not in text
            assert f"{shown(token)} ({pos}), against {shown(HOSTILE[::-1][pos - 2])} ({pos})" in text.replace("\n", "")
        assert "script" not in Page(found._repr_html_()).tags


# -------------------------------------------------------------------------------------------------------------- tables


def test_a_table_has_all_sources_largest_first_and_what_they_sum_to(att: ds.TokenAttribution) -> None:
    lines = [line.strip() for line in str(att.table()).splitlines()]
    assert lines[0] == f"feature 1/3 at {place(att.target.token, att.target.pos)}"
    order = sorted(range(len(att.contributions)), key=lambda i: -abs(att.contributions[i].item()))
    for line, i in zip(lines[4:], order, strict=False):
        source = att.target.sources[i]
        assert line.startswith(f"{place(source.text, source.pos)} ")
        assert f"{att.contributions[i].item():+.3f}" in line
    for name, value in (
        ("bias", att.other["bias"]),
        ("constant", att.constant),
        ("pre-activation", att.pre_activation),
    ):
        assert any(line.startswith(name) and f"{value:+.3f}" in line for line in lines)


def test_a_short_table_sums_what_it_leaves_out(lm: ds.LM) -> None:
    att = lm.attribute_tokens(TEXT, "1/3", pos=20)
    others = sum(sorted(att.contributions.tolist(), key=abs)[:18])
    assert any("18 others" in line and f"{others:+.3f}" in line for line in att.table(top=3).splitlines())
    assert "others" not in str(att.table(top=21))


def test_a_table_says_by_which_rule_and_how_exactly(lm: ds.LM) -> None:
    for rule, said in (("softmax", "rule softmax, T = 0.1, by word"), ("half", "rule half, by word")):
        att = lm.attribute_tokens(TEXT, "1/3", rule=rule, by="word")
        text = " ".join(str(att.table()).split())
        assert said in text
        assert f"completeness error {att.completeness_error:.0e}" in text
        assert f"activation {att.activation:.3f}" in text


def test_there_is_a_table_for_every_target(lm: ds.LM) -> None:
    att = lm.attribute_tokens(TEXT, "1/3", pos="all")
    assert len(att.targets) > 1
    for target in att.targets:
        assert f"feature 1/3 at {place(target.token, target.pos)}" in str(att.table())
        assert f"feature 1/3 at {place(target.token, target.pos)}" in att._repr_html_()
        assert f"feature 1/3 at {place(target.token, target.pos)}" in att.plot()


def test_where_even_the_largest_is_shown_as_0_nothing_is_drawn(lm: ds.LM) -> None:
    rows, w = torch.eye(D_MODEL), torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))

    def drawn(size: float) -> list[bool]:
        question: Any = {"direction": size * w, "layer": 1}
        tokens = lm.attribute_tokens(TEXT, **question)
        answers = [
            tokens,
            lm.attribute_heads(TEXT, by_token=True, **question),
            lm.attribute_subspace(TEXT, subspace=ds.Subspace([rows[:3], rows[3:]], 0), **question),
        ]
        return [
            *("█" in str(answer) for answer in answers),
            "█" in str(lm.contrast(TEXT, TEXT + " apple", **question)),
            *(bool(re.search(r"rgba\([\d,]+,(0\.(?!000)|1\.0)", answer.plot())) for answer in answers[:2]),
            any("on rgb" in str(span.style) for span in strip_line(tokens, tokens.target).spans),
            any("on rgb" in str(s.style) for part in components_table(answers[1]) for s in getattr(part, "spans", [])),
        ]  # fmt: skip

    assert all(drawn(1.0))
    assert not any(drawn(1e-9))


def test_a_text_shows_itself_without_quotes(att: ds.TokenAttribution) -> None:
    assert repr(att.table()) == str(att.table())
    assert "\x1b" not in att.table()


def test_the_strip_has_a_place_and_a_value_for_every_source(att: ds.TokenAttribution) -> None:
    for source, value in zip(att.target.sources, att.contributions.tolist(), strict=True):
        assert f'title="{place(source.text, source.pos)}: {value:+.4f}"'.replace("<", "&lt;").replace(">", "&gt;") in (
            att.plot()
        )


# --------------------------------------------------------------------------------------------------------------- files


def test_a_plot_is_saved_as_a_page_of_its_own(att: ds.TokenAttribution, tmp_path: Path) -> None:
    att.plot().save(tmp_path / "strip.html")
    page = (tmp_path / "strip.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in page
    assert att.plot() in page
    assert os.listdir(tmp_path) == ["strip.html"]


def test_saving_takes_a_path_as_text_and_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("old")
    Html("<p>new</p>").save(str(tmp_path / "page.html"))
    assert "<p>new</p>" in (tmp_path / "page.html").read_text()
    assert os.listdir(tmp_path) == ["page.html"]


ORDERS = "\x1b]0;x\x07 \x9b31m \x7f \u202e\u2066\u200f \ufeff \u2028 \ud800 \b"
"""What a terminal obeys, what turns directions, and what cannot be encoded."""


def test_a_terminal_finds_no_orders_in_any_renderable_whatever_text_it_is_made_of() -> None:
    table = Table(title=Line(ORDERS), caption=ORDERS)
    table.add_column(ORDERS)
    table.add_row(Line(ORDERS))
    told = table_text(Line(ORDERS), ORDERS, table)
    assert not {char for char in told if is_hidden(char)} - {"\n"}
    assert told.count("\ufffd") >= 5 * 8


def test_a_page_finds_no_turned_directions_in_any_text_that_is_put_out() -> None:
    page = render.html("components.html", pages=[], fit=ORDERS, warning=f"<b>{ORDERS}", note=f"a\n\tb {ORDERS}")
    assert not {char for char in page if is_hidden(char)} - {"\n", "\t"}
    assert "a\n\tb" in page
    assert "&lt;b&gt;" in page


def test_a_table_is_text_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "a line" in str(table_text("a line"))
