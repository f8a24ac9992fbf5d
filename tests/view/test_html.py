"""Blocks as HTML: what stands where, numbers with their values and pointers, texts that stay texts."""

from __future__ import annotations

import copy
import os
import pickle
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from depass_sae.texts import is_hidden
from depass_sae.view.blocks import (
    Bars,
    Column,
    Feature,
    Graph,
    HeatMap,
    Mark,
    Note,
    Page,
    Pairs,
    Row,
    Section,
    Spread,
    Strip,
    Table,
    Token,
)  # fmt: skip
from depass_sae.view.html import Html, body, fragment, scale, shade
from depass_sae.view.pointer import At

from .sample import HARM, heads, ledger, sample, strip, texts, tokens_table


class Element:
    def __init__(self, tag: str, attributes: dict[str, str], inside: tuple[Element, ...]) -> None:
        self.tag, self.attributes, self.inside, self.text = tag, attributes, inside, ""

    def has(self, name: str) -> bool:
        return name in self.attributes.get("class", "").split()

    def within(self, name: str) -> bool:
        return any(outer.has(name) for outer in self.inside)


class Parsed(HTMLParser):
    """A page's elements, each with the text in it."""

    VOID = ("meta", "link", "br", "img", "line", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs}, tuple(self._open))
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append(Element(tag, {key: value or "" for key, value in attrs}, tuple(self._open)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str = "", name: str = "") -> list[Element]:
        return [e for e in self.elements if tag in ("", e.tag) and (not name or e.has(name))]

    def one(self, tag: str = "", name: str = "") -> Element:
        (found,) = self.all(tag, name)
        return found


def parsed(*blocks: Any) -> Parsed:
    return Parsed(body(blocks))


def table(*rows: Row, columns: tuple[Column, ...] = (Column("token"), Column("value", "signed", bar=True))) -> Table:
    return Table("A table", columns, rows)


# ------------------------------------------------------------------------------------------------------------- numbers


def test_a_number_has_its_full_value_and_its_pointer() -> None:
    at = At({"a/b": [1 / 3]})
    (number,) = parsed(table(Row(("x", at["a/b"][0])))).all("data")
    assert number.attributes == {"value": repr(1 / 3), "data-at": "/a~1b/0"}
    assert number.text == "+0.333"
    (number,) = parsed(table(Row(("x", -2.0)))).all("data")
    assert number.attributes == {"value": "-2.0"}
    assert number.text == "\u22122.000"


def test_every_number_of_a_block_is_on_the_page() -> None:
    cells = (Spread(-1.5, 0.25), Pairs((("bias", 0.125), (Token("a", 1), 2.0))), 7, 0.5)
    columns = (Column("spread", "signed"), Column("pairs"), Column("n", "count"), Column("share", "percent"))
    found = parsed(Table("", columns, (Row(cells),)), heads(), strip(), Bars("", ("a",), (0.75,)))
    values = [float(e.attributes["value"]) for e in found.all("data")]
    assert values[:6] == [-1.5, 0.25, 0.125, 2.0, 7.0, 0.5]
    told = heads()
    assert {v for row in told.values for v in row} | set(told.totals) | {0.75} <= set(values)
    assert {mark.value for mark in strip().marks if mark.value} <= set(values)


# -------------------------------------------------------------------------------------------------------------- tables


def test_bars_start_from_one_zero_line_and_the_largest_fills_its_side() -> None:
    found = parsed(table(Row(("a", 3.0)), Row(("b", -1.0)), Row(("c", 1.5)), Row(("rest", 9.0), "aside")))
    bars = [{key: float(e.attributes[key]) for key in ("x", "width")} for e in found.all("rect")]
    assert bars == [{"x": 25.0, "width": 75.0}, {"x": 0.0, "width": 25.0}, {"x": 25.0, "width": 37.5}]
    assert {e.attributes["x1"] for e in found.all("line")} == {"25.00"}


def test_where_even_the_largest_is_shown_as_0_no_bar_is_drawn() -> None:
    assert not parsed(table(Row(("a", 1e-9)), Row(("b", -1e-8)))).all("rect")


def test_what_stands_apart_and_what_all_sums_to_are_told_by_their_rows() -> None:
    found = parsed(
        table(Row(("a", 1.0), "strong"), Row(("b", 1.0)), Row(("rest", 9.0), "aside"), Row(("sum", 9.0), "total"))
    )
    rows = [e.attributes["class"] for e in found.all("tr") if "class" in e.attributes]
    assert rows == ["strong", "ranked", "aside apart", "total"]


def test_rows_of_a_group_stand_together_under_its_name() -> None:
    groups = (Token(" a", 1), Token(" b", 2))
    found = parsed(table(*(Row((f"{i}", 1.0), group=groups[i % 2]) for i in range(4))))
    heads = found.all("th", "group")
    assert [(e.text, e.attributes["rowspan"]) for e in heads] == [("a (1)", "2"), ("b (2)", "2")]
    assert [e.text for e in found.all("tr", "block")] == ["a (1)", "b (2)"]
    names = [e.text for e in found.all("th") if e.attributes.get("scope") == "row"]
    assert names == ["0", "2", "1", "3"]


def test_a_row_about_a_position_leads_to_its_token() -> None:
    found = parsed(strip(), tokens_table())
    row = next(e for e in found.all("tr", "ranked") if e.attributes.get("data-pos") == "4")
    assert row.text.replace("demand (6)", "").startswith("supply (4)")
    token = next(e for e in found.all("span", "token") if e.attributes.get("data-pos") == "4")
    assert token.text.startswith("supply")


def test_a_feature_leads_to_its_page_but_to_no_script() -> None:
    rows = [Row((Feature("1/2", "a label", link),)) for link in ("https://example.org/a", "javascript:alert(1)", None)]
    found = parsed(table(*rows, columns=(Column("feature"),)), Note("a", link="data:text/html,x"))
    assert [e.attributes["href"] for e in found.all("a")] == ["https://example.org/a"]
    assert "noreferrer" in found.one("a").attributes["rel"]
    assert [e.text for e in found.all("span", "meant")] == ["a label"] * 3


def test_a_note_leads_to_a_file_beside_the_page_but_to_no_other_scheme() -> None:
    links = ("climate/index.html", "java\nscript:alert(1)", "//example.org/a", "/etc/passwd", "a b", "x:y", "#a")
    found = parsed(*(Note("a", link=link) for link in links))
    assert [e.attributes["href"] for e in found.all("a")] == ["climate/index.html"]


# -------------------------------------------------------------------------------------------------- tokens and maps


def test_a_strip_shades_by_size_and_underlines_what_is_asked_about() -> None:
    marks = (Mark("a", 0, 2.0), Mark(" b", 1, -1.0, aimed=True), Mark(" c", 2, 0.0), Mark(" d", 3, None))
    tokens = parsed(Strip("", marks)).all("span", "token")
    assert [e.attributes["class"].split()[3:] for e in tokens] == [
        ["pos", "s20"],
        ["neg", "s10", "aimed"],
        ["s0"],
        ["s0"],
    ]
    assert [e.attributes["title"] for e in tokens] == ["a (0): +2.000", "b (1): \u22121.000", "c (2): +0.000", "d (3)"]


@pytest.mark.parametrize("numbers", [True, False])
def test_a_strip_has_a_number_beneath_its_tokens_where_it_is_to(numbers: bool) -> None:
    found = parsed(strip(numbers))
    assert [e.text for e in found.all("span", "value")][:2] == (["+0.02", "+1.21"] if numbers else [])
    assert found.all("span", "token")[4].attributes["title"] == "said of 4"


def test_a_strip_without_numbers_reads_as_its_text() -> None:
    marks = tuple(Mark(token, pos, 0.0) for pos, token in enumerate(("The", "  cat", "\n", " sat", " ", ".")))
    assert parsed(Strip("", marks)).one("div", "strip").text == "The  cat↵\n sat ."


def test_numbered_texts_share_one_scale_and_one_legend() -> None:
    weak, strong = (Strip("", (Mark("a", 0, value),), "activation", label=f"{value}") for value in (1.0, 4.0))
    found = parsed(weak, strong, strip())
    assert [e.attributes["class"].split()[-1] for e in found.all("span", "token")[:2]] == ["s5", "s20"]
    assert [e.text for e in found.all("span", "which")] == ["1.0", "4.0"]
    assert len(found.all("p", "legend")) == 2
    assert "0" in found.all("p", "legend")[0].text
    assert "4.000" in found.all("p", "legend")[0].text
    # Their positions are not those of the prompt that the page is about.
    assert not [e for e in found.all("span", "token")[:2] if "data-pos" in e.attributes]


def test_a_scale_is_around_zero_and_has_the_sides_that_there_are() -> None:
    assert scale([1.0, -3.0, None]) == (-3.0, 3.0, "signed")
    assert scale([1.0, 0.0]) == (0.0, 1.0, "number")
    assert scale([-1.0]) == (-1.0, 0.0, "signed")
    assert scale([1e-9, None]) == scale([]) == (0.0, 0.0, "number")
    assert shade(None, scale([1.0])) == shade(1e-9, scale([1e-9])) == "s0"
    assert shade(-1.0, scale([1.0, -2.0])) == "neg s10"


def test_a_map_heads_its_rows_and_columns_says_its_unit_and_its_totals() -> None:
    found = parsed(heads())
    text = [e.text for e in found.all("th") if e.within("map")]
    assert text[:4] == ["head", "layer", "0", "1"]
    assert "all heads" in text
    assert "units of the pre-activation" in found.one("p", "legend").text
    cell = found.all("td", "cell")[0]
    assert cell.attributes["title"].startswith("layer 11, head 0: +0.000 units")
    largest = max(abs(v) for row in heads().values for v in row)
    assert f"+{largest:.3f}" in found.one("p", "legend").text
    assert len(found.all("td", "total")) == 12


def test_a_map_says_what_it_is_told_to_leaves_nothing_empty_and_marks_tokens() -> None:
    found = parsed(ledger())
    cells = found.all("td", "cell")
    assert cells[0].attributes["title"] == "head 0 from 0"
    assert len(cells) + len(found.all("td", "nothing")) == 6 * 11
    assert cells[4].attributes["data-pos"] == "4"


# --------------------------------------------------------------------------------------------------- words and sections


def test_an_answer_has_its_points_below_it_and_every_role_is_told() -> None:
    found = parsed(Note("So it is.", "answer", ("one", "two")), Note("run me", "code"), Note("mind", "warning"))
    assert found.one("p", "answer").text == "So it is."
    assert [e.text for e in found.all("li")] == ["one", "two"]
    assert found.one("code").text == "run me"
    assert found.one("p", "warning").text == "mind"


def test_headings_go_down_with_the_sections() -> None:
    inner = Section("inner", (strip(),))
    found = parsed(Section("outer", (inner,), "there", Feature("1/2", "meaning", "https://www.example.org/x")))
    assert [e.text for e in found.all("h2") + found.all("h3") + found.all("h4")] == [
        "outer 1/2 “meaning” example.org", "inner", "What each token contributes",
    ]  # fmt: skip
    assert found.all("section")[0].attributes == {"id": "there", "aria-labelledby": "there-h"}


def test_a_graph_is_its_page_in_a_frame() -> None:
    graph = Graph("g", "g", lambda: '<p title="a &amp; b">x\u202e</p>', lambda: None, tuple)  # type: ignore[arg-type, return-value]
    frame = parsed(graph).one("iframe")
    assert frame.attributes["srcdoc"] == '<p title="a &amp; b">x\u202e</p>'


def test_hostile_texts_are_plain_text_wherever_they_stand() -> None:
    harm = HARM + '"><b>'
    token, feature = Token(harm, 1, harm), Feature(harm, harm, "https://example.org/" + harm)
    columns = (Column(harm), Column(harm))
    blocks = (
        *(Note(harm, role, (harm,)) for role in ("answer", "lead", "plain", "quiet", "warning", "code")),
        Table(harm, columns, (Row((token, feature), group=token), Row((harm, Pairs(((harm, 1.0),))))), harm),
        Strip(harm, (Mark(harm, 0, 1.0, harm),), harm, harm, harm),
        Strip(harm, (Mark(harm, 0, 1.0),), harm, harm, "", True),
        HeatMap(harm, (harm, token), (harm, token), ((1.0, 2.0), (None, 0.0)), *[harm] * 4, (1.0, 2.0), harm),
        HeatMap(harm, (harm,), (harm,), ((1.0,),), notes=lambda r, c: harm),
        Bars(harm, (harm, token), (1.0, None), harm, harm),
        Section(harm, (), "", feature),
    )  # fmt: skip
    found = parsed(*blocks)
    assert not {"img", "b", "script"} & {e.tag for e in found.elements}
    assert not [key for e in found.elements for key in e.attributes if key.startswith("on") or key == "style"]
    assert not [c for c in body(blocks) if is_hidden(c) and c not in "\n\t"]
    assert sum(HARM[:-1] in e.text for e in found.elements) > 40


# ----------------------------------------------------------------------------------------------------------- notebooks


def test_a_notebook_gets_the_blocks_with_their_style_and_without_a_script() -> None:
    made = fragment((strip(), *texts(), heads(), tokens_table(), Note("a")), "A <title>")
    found = Parsed(made._repr_html_())
    assert found.elements[0].has("depass")
    assert "script" not in {e.tag for e in found.elements}
    assert found.all("h4")[0].text == "A <title>"
    assert not [e for e in found.elements if "id" in e.attributes or "style" in e.attributes]
    # Its rules reach no further than itself.
    style = found.one("style").text
    assert ":root" not in style
    assert "body" not in style.replace("tbody", "")


def test_a_fragment_is_saved_as_a_page_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("old")
    fragment((strip(), Note("So it is.", "answer")), "A title").save(str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<title>A title</title>" in page
    assert "So it is." in page
    assert "Content-Security-Policy" in page
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_fragment_can_be_copied_and_pickled() -> None:
    made = fragment((Note("a"),), "t")
    for other in (copy.copy(made), pickle.loads(pickle.dumps(made))):
        assert isinstance(other, Html)
        assert (str(other), other.page) == (str(made), Page("t", (Note("a"),)))


def test_every_block_of_a_page_has_html_that_closes_what_it_opens() -> None:
    assert len(Parsed(body(sample().blocks)).elements) > 500
