"""Blocks as Markdown."""

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from depass_sae.view.blocks import (
    Bars,
    Block,
    Column,
    Feature,
    HeatMap,
    Note,
    Row,
    Section,
    Strip,
    Table,
    Token,
)
from depass_sae.view.markdown import escaped, linked, markdown

from .sample import HARM, drives, graph, heads, plain_table, sample, strip, tokens_table
from .test_terminal import everywhere


def without_graph(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    return tuple(block for block in blocks if not (isinstance(block, Section) and block.id == "graph"))


# ------------------------------------------------------------------------------------------------------- hostile texts


@given(st.text(max_size=20))
def test_escaped_text_is_on_one_line_and_ends_no_cell(text: str):
    found = escaped(text)
    assert len(found.splitlines()) <= 1
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`<>]", found)


def test_escaped_text_starts_no_list_heading_or_quotation():
    for text in ("- a", "+ a", "1. a", "12) a", "---", "===", "> a", "# a"):
        assert re.match(r"\d*\\|&gt;", escaped(text)), text
    assert [escaped(text) for text in ("-a", "1.5 %", "+1.2")] == ["-a", "1.5 %", "+1.2"]


def test_escaped_text_shows_what_turns_directions():
    assert escaped("a \u202e\x1b b") == "a \ufffd\ufffd b"


def test_hostile_texts_are_no_html_and_no_markup_in_any_place():
    harm = "<b>x</b> | `y` **z** $m$ [l](javascript:a)\n# h @me"
    text = re.sub(r"```.*?```", "", markdown(everywhere(harm)), flags=re.S)
    assert "<" not in text
    assert "javascript:" not in "".join(re.findall(r"(?<!\\)\]\((?=javascript:).*?\)", text))
    assert text.count(escaped(harm)) >= 15
    assert "<" not in re.sub(r"```.*?```", "", markdown(without_graph(sample().blocks)), flags=re.S)


def test_a_link_leads_to_a_page_or_a_file_and_to_nothing_else():
    assert linked("a", "https://example.org/x y)") == "[a](https://example.org/x%20y%29)"
    assert linked("a", "case.json") == "[a](case.json)"
    assert linked("a", "javascript:alert(1)") == linked("a", None) == linked("a", "data:text/html,x") == "a"
    assert linked("a", "http://[x") == "[a](http://%5Bx)"


# -------------------------------------------------------------------------------------------------------------- blocks


def test_every_row_of_a_table_has_as_many_cells_as_its_heading():
    tables = [part for part in markdown(without_graph(sample().blocks)).split("\n\n") if part.startswith("|")]
    assert len(tables) >= 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_table_has_its_title_its_rows_in_order_what_they_sum_to_and_its_caption():
    title, table, caption = markdown([tokens_table()]).split("\n\n")
    assert title == "**feature 17/1208, by source token**"
    assert table.splitlines()[:4] == [
        "| source token | contribution | share | when replaced |", "| --- | ---: | ---: | ---: |",
        "| **demand (6)** |  |  |  |", "| supply (4) | +2.891 | 41 % | +3.18 ± 0.20 |",
    ]  # fmt: skip
    assert "| **pre-activation** | **+6.714** |  |  |" in table
    assert caption == "rule softmax, T = 0.1; error 3e−07"


def test_a_feature_leads_to_its_page_beside_what_it_means():
    assert "| **[17/1208](https://example.org/17/1208) “economic &lt;b&gt;growth&lt;/b&gt;”** |" in markdown(
        [plain_table()]
    )
    assert "demand (2) +1.20, bias −0.30, +2 |" in markdown([drives()])


def test_a_picture_stands_for_its_block():
    def picture(block: Block) -> str | None:
        return None if isinstance(block, Bars) else f"a {type(block).__name__}.png"

    blocks = [strip(), heads(), graph(), Bars("sums", ("a",), (1.0,)), tokens_table()]
    text = markdown(blocks, picture=picture)
    assert re.findall(r"!\[(.*?)\]\((.*?)\)", text) == [
        ("What each token contributes", "a%20Strip.png"), ("Heads", "a%20HeatMap.png"), ("The graph", "a%20Graph.png"),
    ]  # fmt: skip
    assert "Rows overlap." in text
    assert "| a | +1.000 |" in text
    assert "| supply (4) | +2.891 |" in text


def test_without_pictures_what_can_be_is_a_table():
    assert "| supply (4) | +2.891 |" in markdown([strip()])
    assert "| **b (1)** | **+2.000** |" in markdown([Bars("", ("a", Token("b", 1)), (1.0, 2.0), strong=frozenset({1}))])
    assert markdown([heads()]) == ""
    assert markdown([replace(graph(), blocks=lambda: (Note("its nodes"),))]) == "its nodes"


def test_sections_have_headings_of_their_depth_with_what_the_feature_means():
    feature = Feature("17/1208", "growth", "https://example.org/x")
    inner = Section("Deeper", (Note("words"),))
    assert markdown([Section("Feature 17/1208", (inner,), feature=feature)], level=3) == (
        "### [Feature 17/1208](https://example.org/x) “growth”\n\n#### Deeper\n\nwords"
    )
    assert markdown([inner], level=9).startswith("###### Deeper")


def test_notes_say_what_they_are():
    assert markdown([Note("It fires.", "answer", ("because", "- and"))]) == "**It fires.**\n\n- because\n- \\- and"
    assert markdown([Note("It does not fit.", "warning")]) == "**It does not fit.**"
    assert markdown([Note("the numbers", "quiet", link="case.json")]) == "[the numbers](case.json)"


def test_a_command_stands_in_a_block_that_it_cannot_end():
    assert markdown([Note("a\n```\n<b>", "code")]) == "````sh\na\n```\n<b>\n````"


def test_blocks_with_nothing_in_them_are_no_mistake():
    assert markdown([Strip("", ()), HeatMap("", (), (), ()), Note(""), Section("", ())]) == ""
    assert markdown([Table("", (Column("a"),), ())]) == "| a |\n| --- |"
    assert markdown([Table("", (Column("a"),), (Row((HARM,)),))]).endswith(f"| {escaped(HARM)} |")
