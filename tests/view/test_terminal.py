"""Blocks in a terminal and as plain text."""

import io
import re
from collections.abc import Sequence

import pytest
from rich.console import Console
from rich.table import Table as Drawn

from depass_sae.texts import is_hidden
from depass_sae.view.blocks import (
    Bars,
    Beside,
    Block,
    Column,
    Feature,
    HeatMap,
    Mark,
    Note,
    Pairs,
    Row,
    Section,
    Strip,
    Table,
    Token,
)
from depass_sae.view.terminal import Text, print_on, renderables, text

from .sample import drives, graph, heads, plain_table, sample, strip, texts, tokens_table

ORDERS = "\x1b]0;x\x07 \x9b31m \x7f \u202e\u2066\u200f \ufeff \u2028 \ud800 \b [red]:smile:"
"""What a terminal obeys, what turns directions, what cannot be encoded, and what Rich would take for its own."""


def everywhere(harm: str) -> list[Block]:
    """A text at every place that a block has for one."""
    token, feature = Token(harm, 3, harm), Feature(harm, harm, harm)
    table = Table(
        harm, (Column(harm), Column(harm, "signed", unit=harm, bar=True)),
        (Row((harm, 1.0), group=harm), Row((token, 2.0)), Row((feature, 0.5)), Row((Pairs(((harm, 1.0),)), 0.5))), harm,
    )  # fmt: skip
    return [
        table, Strip(harm, (Mark(harm, 0, 1.0), Mark(harm, 1, None, aimed=True)), harm, harm, harm, True),
        HeatMap(harm, (harm, token), (harm, token), ((1.0, None), (0.0, -1.0)), *[harm] * 4, (1.0, 2.0), harm),
        Bars(harm, (harm, token), (1.0, None), harm, harm), Note(harm, "answer", (harm,), harm), Note(harm, "code"),
        Section(harm, (Beside((Note(harm),)),), harm, feature),
    ]  # fmt: skip


def coloured(blocks: Sequence[Block], width: int = 200) -> list[tuple[str, str]]:
    """What a colour terminal shows: pieces of text with their styles."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=width)
    return [
        (segment.text, str(segment.style))
        for part in renderables(blocks) for segment in console.render(part) if segment.text.strip() or segment.style
    ]  # fmt: skip


def printed(blocks: Sequence[Block], width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_on(console, blocks)
    said: str = console.file.getvalue()  # type: ignore[attr-defined]
    return said


# ------------------------------------------------------------------------------------------------------- hostile texts


def test_a_terminal_finds_no_orders_in_any_block_whatever_text_stands_where():
    for said in (text(everywhere(ORDERS)), printed(everywhere(ORDERS), 80)):
        assert not {char for char in said if is_hidden(char)} - {"\n"}
        assert said.count("[red]") >= 20  # every one of them


def test_a_text_is_not_taken_for_markup_in_any_place():
    said = " ".join(text(everywhere("[bold]:smile:[/bold]")).split())
    assert said.count("[bold]:smile:[/bold]") >= 20


def test_a_terminal_finds_no_orders_in_what_was_drawn_elsewhere():
    table = Drawn(title=ORDERS)
    table.add_column(ORDERS)
    table.add_row(ORDERS)
    console = Console(file=io.StringIO(), width=100)
    print_on(console, [table, ORDERS])
    assert not {char for char in console.file.getvalue() if is_hidden(char)} - {"\n"}  # type: ignore[attr-defined]


def test_a_token_s_line_break_ends_no_row():
    lines = text([Table("t", (Column("token"),), (Row((Token("a\nb", 1),)),))]).splitlines()
    assert lines[-1].strip() == "a↵b (1)"


# -------------------------------------------------------------------------------------------------------------- widths


@pytest.mark.parametrize("width", [30, 40, 80, 300])
def test_no_cell_is_cut_however_narrow_the_terminal(width: int):
    long = Table("", (Column("feature"), Column("value", "signed", bar=True)), (Row(("17/" + "9" * 60, 1.0)),))
    said = printed([long], width)
    assert "…" not in said
    assert said.count("9") == 60
    assert max(map(len, said.splitlines())) <= width


def test_bars_get_shorter_where_room_is_short_and_keep_their_proportions():
    rows = tuple(Row((name * 20, value)) for name, value in (("a", 1.0), ("b", -0.5)))
    for width in (40, 100):
        lines = printed([Table("", (Column("source"), Column("value", "signed", bar=True)), rows)], width).splitlines()
        first, second = (
            sum(line.count("█") + 0.5 * line.count("▌") for line in lines if mark in line) for mark in "ab"
        )
        assert 0 < first <= 24
        assert second == pytest.approx(first / 2, abs=0.5)


def test_a_heat_map_wider_than_the_terminal_is_drawn_in_pieces_that_fit():
    wide = HeatMap("", ("0", "1"), tuple(map(str, range(64))), (tuple(range(64)), tuple(range(0, -64, -1))), "layer")
    said = printed([wide], 60)
    assert max(map(len, said.splitlines())) <= 60
    assert [line.split()[0] for line in said.splitlines()].count("layer") == 3
    for number in range(0, 64, 2):
        assert re.search(rf"\b{number}\b", said)


def test_lines_have_no_spaces_at_their_ends():
    assert not re.search(r" $", text(sample().blocks[:4]), re.MULTILINE)


# -------------------------------------------------------------------------------------------------------------- blocks


def test_a_table_has_its_title_its_rows_in_order_what_they_sum_to_and_its_caption():
    lines = [line.strip() for line in text([tokens_table()]).splitlines()]
    assert lines[0] == "feature 17/1208, by source token"
    assert lines[1].split() == ["source", "token", "contribution", "share", "when", "replaced"]
    assert lines[3] == "demand (6)"
    assert lines[4].split() == ["supply", "(4)", "+2.891", "█" * 24, "41", "%", "+3.18", "±", "0.20"]
    assert [line.split("  ")[0] for line in lines[9:13]] == ["8 other tokens", "constant", "", "pre-activation"]
    assert lines[-1] == "rule softmax, T = 0.1; error 3e−07"


def test_rows_that_stand_apart_are_dim_and_have_no_bar_and_totals_are_bold():
    pieces = coloured([tokens_table()])
    assert all("dim" in style for said, style in pieces if said.startswith(("8 other", "constant")))
    assert all("bold" in style for said, style in pieces if said.startswith("pre-activation"))
    assert not any(
        "█" in line for line in text([tokens_table()]).splitlines() if line.startswith(("8 o", "con", "pre"))
    )


def test_bars_have_the_colour_of_their_sign():
    pieces = [(said, style) for said, style in coloured([plain_table()]) if "█" in said]
    assert [style for _, style in pieces] == ["bold rgb(31,119,180)", "rgb(214,96,40)", "rgb(31,119,180)"]


def test_where_even_the_largest_is_shown_as_0_nothing_is_drawn():
    def drawn(size: float) -> list[bool]:
        names = ("a", "b")
        table = Table("", (Column(""), Column("v", "signed", bar=True)), (Row(("a", size)), Row(("b", -size / 2))))
        row = (size, -size / 2)
        marks = tuple(Mark(name, pos, value) for pos, (name, value) in enumerate(zip(names, row, strict=True)))
        return [
            any("█" in said for said, _ in coloured([table])),
            any("█" in said for said, _ in coloured([Bars("", names, row)])),
            any("on rgb" in style for _, style in coloured([Strip("", marks)])),
            any("on rgb" in style for _, style in coloured([HeatMap("", ("x",), names, (row,))])),
        ]  # fmt: skip

    assert all(drawn(1.0))
    assert not any(drawn(1e-9))


def test_each_token_of_a_strip_stands_on_a_ground_of_its_sign_and_the_target_is_underlined():
    pieces = dict(coloured([strip(numbers=False)]))
    assert "on rgb(31,119,180)" in pieces[" supply"]
    assert pieces[" and"] == "white on rgb(71,32,13)"  # orange, and dark
    assert "underline" in pieces[" demand"]
    assert not any("underline" in style for said, style in pieces.items() if said != " demand")
    assert pieces[" gap"].startswith("white on")
    assert not any("on rgb" in style for said, style in pieces.items() if "The" in said)  # next to nothing


def test_texts_that_follow_each_other_have_one_title_one_scale_and_a_number_each():
    one, other = (Strip("fires", (Mark("a", 0, value),), label=label) for label, value in (("1", 10.0), ("12", 1.0)))
    assert text([one, other]).splitlines() == ["fires", " 1  a", "12  a"]
    grounds = [style for said, style in coloured([one, other]) if said == "a"]
    assert grounds[0] != grounds[1]
    assert text(texts()).count("Where it fires") == 1


def test_a_heat_map_says_its_numbers_its_ends_and_its_totals_without_colours():
    lines = text([heads()]).splitlines()
    assert lines[1].split() == ["layer", *map(str, range(0, 14, 2)), "all", "heads"]
    assert len(lines) == 2 + 12 + 3
    small = HeatMap("", ("0", "1"), ("0", "1", "2"), ((4.0, -1.0, 0.0), (None, 1.0, -4.0)), "layer", "head", "logits")
    first, *rows, ends, more = text([small]).splitlines()
    assert [first, *rows] == ["layer  0   2", "    0  ++− ·", "    1    + −−"]
    assert f"{ends} {more}" == (
        "head across, layer down; + is positive, − negative (twice where it is more than half of the largest); "
        "the largest is 4.000 (logits)"
    )


def test_long_names_of_columns_are_counted_and_listed_below():
    said = text([HeatMap("", ("a",), (Token(" supply", 4), "bias"), ((1.0, 2.0),))])
    assert "across: 0 supply (4); 1 bias" in said


def test_names_with_a_number_each_stand_in_one_cell():
    assert "demand (2) +1.20  bias −0.30  +2" in printed([drives()], 200)


def test_notes_stand_together_an_answer_with_its_points():
    notes = [
        Note("It fires.", "answer", ("because", "and")),
        Note("It does not fit.", "warning"),
        Note("Aside.", "quiet"),
    ]
    assert text(notes).splitlines() == ["It fires.", "  • because", "  • and", "It does not fit.", "Aside."]
    assert [style for _, style in coloured(notes)] == ["bold", "None", "None", "bold", "dim"]


def test_a_section_s_heading_says_what_its_feature_means_once():
    feature = Feature("17/1208", "growth", "https://example.org/x")
    assert text([Section("Feature 17/1208", (Note("a"),), feature=feature)]).splitlines() == [
        "Feature 17/1208  “growth”", "https://example.org/x", "", "a"
    ]  # fmt: skip
    assert text([Section("The card", (), feature=feature)]).splitlines()[0] == "The card  17/1208  “growth”"


def test_blocks_beside_each_other_and_those_of_a_graph_stand_below_each_other():
    from dataclasses import replace

    shown = replace(graph(), blocks=lambda: (Note("its nodes"),))
    assert text([Beside((Note("a"), Note("b"))), shown]).splitlines() == ["a", "b", "", "its nodes"]


def test_blocks_with_nothing_in_them_are_no_mistake():
    assert text([]) == ""
    assert text([Strip("", ()), HeatMap("", (), (), ()), Table("", (), ()), Note(""), Section("", ())]) is not None
    assert text([Table("none found", (Column("source"),), ())]).split("\n")[:2] == ["none found", "source"]


def test_a_text_shows_itself_without_quotes():
    assert repr(Text("a\nb")) == "a\nb"


def test_blocks_are_text_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert text([Note("a line")]) == "a line"
