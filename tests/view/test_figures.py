"""Blocks as pictures: whole files of the right kind, the same every time, whatever the texts hold."""

import io
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from depass_sae.errors import UserError
from depass_sae.view.blocks import (
    Bars,
    Beside,
    Block,
    Column,
    HeatMap,
    Mark,
    Note,
    Row,
    Section,
    Spread,
    Strip,
    Table,
    Token,
)
from depass_sae.view.figures import LINE, MOST_ROWS, WIDTH, blank, figure, figures, rendered

from .sample import HARM, graph, heads, ledger, plain_table, strip, texts, tokens_table
from .test_terminal import ORDERS, everywhere

PICTURES: dict[str, Callable[[], Block]] = {
    "strip": strip, "table": tokens_table, "heads": heads, "ledger": ledger,
    "bars": lambda: Bars("sums", ("a", Token("b", 1)), (1.0, -2.0), "logits", strong=frozenset({1})),
}  # fmt: skip


def words(picture: Figure) -> list[str]:
    """All texts of a picture, as an SVG has them."""
    tree = ElementTree.fromstring(rendered(picture, "svg"))
    return [element.text or "" for element in tree.iter() if element.tag.endswith("}text")]


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("format", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_a_file_of_the_format_asked_for(format: str, start: bytes):
    assert rendered(figures([strip(), heads()]), format).startswith(start)


@pytest.mark.parametrize(("name", "format"), [*((name, "svg") for name in PICTURES), ("table", "pdf")])
def test_the_same_block_gives_the_same_bytes_and_the_same_figure_each_time_too(name: str, format: str):
    picture = figure(PICTURES[name]())
    content = rendered(picture, format)
    assert content == rendered(picture, format) == rendered(figure(PICTURES[name]()), format)
    assert b"Date" not in content.replace(b"<dc:date>", b"Date")


def test_a_png_has_300_dots_an_inch_and_the_width_of_a_column():
    from matplotlib.image import imread

    height, width, _ = imread(io.BytesIO(rendered(figure(strip()), "png"))).shape
    assert width == 300 * WIDTH
    assert height < width


def test_texts_in_an_svg_are_texts():
    said = words(figure(tokens_table()))
    assert {"supply (4)", "+2.891", "−0.330", "contribution", "feature 17/1208, by source token"} <= set(said)


def test_hostile_texts_make_a_wellformed_svg_and_no_mathematics():
    for harm in (f"{ORDERS} {HARM}", "--><b>& $\\frac{ \ufffe\x01\uffff 東京"):
        drawn = [block for block in everywhere(harm) if not isinstance(block, Note)]
        said = words(figures(drawn))
        assert len(said) > 30
        assert not any(char in text for text in said for char in "\x00\x01\x1b\ufffe\uffff\u202e")
    assert "$x$" in words(figure(Bars("$x$", ("$y$", "$"), (1.0, 2.0))))


def test_notebooks_show_a_picture_without_pyplot():
    picture = figure(strip())
    assert picture._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert repr(picture).startswith("<Figure size")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"^pictures need matplotlib: pip install 'depass-sae\[notebook\]'$"):
        figure(strip())


# -------------------------------------------------------------------------------------------------------------- blocks


def test_a_strip_is_a_bar_per_token_in_its_order_the_target_bold_with_its_place():
    block = strip()
    (axes,) = figure(block).axes
    assert [bar.get_height() for bar in axes.patches] == [mark.value for mark in block.marks]
    names = axes.get_xticklabels()
    assert [name.get_text() for name in names][:7] == ["<bos>", "The", "gap", "between", "supply", "and", "demand (6)"]
    assert [name.get_fontweight() for name in names].count("bold") == 1
    assert axes.get_ylabel() == "units of the pre-activation"


def test_a_long_strip_goes_on_below_on_the_same_scale():
    marks = tuple(Mark(f"t{pos}", pos, float(pos)) for pos in range(2 * LINE + 10))
    lines = figure(Strip("", marks)).axes
    assert [len(axes.patches) for axes in lines] == [30, 30, 30]
    assert len({axes.get_ylim() for axes in lines}) == 1


def test_texts_that_follow_each_other_are_one_picture_on_one_scale():
    lines = figures(texts()).axes
    assert len(lines) == 4
    assert len({axes.get_ylim() for axes in lines}) == 1
    assert words(figures(texts())).count("Where it fires") == 1


def test_a_heat_map_has_its_rows_from_the_top_and_a_gap_where_there_is_nothing():
    block = ledger()
    axes = figure(block).axes[0]
    (image,) = axes.images
    drawn = image.get_array().filled(math.nan).tolist()
    for row, expected in zip(drawn, block.values, strict=True):
        assert [None if math.isnan(value) else value for value in row] == list(expected)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [name.get_text() for name in axes.get_yticklabels()] == list(block.rows)
    assert "supply (4)" in [name.get_text() for name in axes.get_xticklabels()]


def test_a_heat_map_says_what_its_axes_its_colours_and_its_totals_are():
    axes, scale = figure(heads()).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("head", "layer")
    assert scale.get_ylabel() == "units of the pre-activation"
    assert {"all heads", "+6.896", "0", "13"} <= set(words(figure(heads())))


def test_a_scale_has_only_the_sign_that_there_is():
    axes, scale = figure(HeatMap("", ("a",), ("b", "c"), ((1.0, 3.0),))).axes
    assert scale.get_ylim() == (0.0, 3.0)
    assert axes.images[0].get_clim() == (-3.0, 3.0)


def test_names_of_a_wide_map_are_left_out_rather_than_drawn_over_each_other():
    wide = HeatMap("", ("a",), tuple(f"token {i}" for i in range(300)), (tuple(map(float, range(300))),))
    assert 20 < len(figure(wide).axes[0].get_xticklabels()) < 80


def test_a_table_has_the_bars_of_its_ranked_rows_the_largest_on_top():
    rows = (
        Row(("small", 0.1)),
        Row(("large", -3.0), "strong"),
        Row(("others", 9.0), "aside"),
        Row(("sum", 7.0), "total"),
    )
    (axes,) = figure(Table("", (Column("source"), Column("value", "signed", unit="logits", bar=True)), rows)).axes
    assert [bar.get_width() for bar in axes.patches] == [-3.0, 0.1]
    assert [name.get_text() for name in axes.get_yticklabels()] == ["large", "small"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert axes.get_xlabel() == "value (logits)"


def test_rows_of_a_group_stand_below_its_name():
    names = [name.get_text() for name in figure(tokens_table()).axes[0].get_yticklabels()]
    assert names[:3] == ["demand (6)", "supply (4)", "demand (6)"]
    assert names.index("widened (9)", 6) == 6


def test_a_long_table_has_its_largest_rows_and_says_so():
    rows = tuple(Row((f"r{i}", float(i))) for i in range(100))
    picture = figure(Table("", (Column("source"), Column("value", "signed", bar=True)), rows))
    assert len(picture.axes[0].patches) == MOST_ROWS
    assert f"the largest {MOST_ROWS} of 100" in words(picture)


def test_shares_are_written_as_shares_and_spreads_as_bars_with_a_line():
    columns = (Column("source"), Column("share", "percent", bar=True), Column("lost", "signed", 2, bar=True))
    said = words(figure(Table("", columns, (Row(("a", 0.002, Spread(1.0, 0.25))), Row(("b", 0.4, None))))))
    assert {"<0.5 %", "40 %", "+1.00 ± 0.25"} <= set(said)


def test_a_token_that_is_too_long_keeps_its_place():
    names = [name.get_text() for name in figure(Bars("", (Token("x" * 99, 12),), (1.0,))).axes[0].get_xticklabels()]
    assert names == ["x" * 12 + "… (12)"]


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_stands_beyond_the_edge(name: str):
    picture = figure(PICTURES[name]())
    picture.draw_without_rendering()
    renderer = picture._get_renderer()  # type: ignore[attr-defined]
    for axes in picture.axes:
        box = axes.get_tightbbox(renderer)
        assert box is not None
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= picture.bbox.x1
        assert box.y1 <= picture.bbox.y1


def test_where_even_the_largest_is_shown_as_0_nothing_is_seen():
    tiny = 1e-9
    marks = (Mark("a", 0, tiny), Mark("b", 1, -tiny))
    table = Table("", (Column(""), Column("v", "signed", bar=True)), (Row(("a", tiny)),))
    picture = figures([Strip("", marks), table, HeatMap("", ("a",), ("b",), ((tiny,),))])
    bars, row, cells, _ = picture.axes
    assert (
        max(map(abs, bars.get_ylim()))
        == max(map(abs, row.get_xlim()))
        == max(map(abs, cells.images[0].get_clim()))
        == 1
    )


# ----------------------------------------------------------------------------------------------------------- several


def test_all_blocks_that_are_pictures_stand_below_each_other_wherever_they_are():
    blocks = [Note("words"), Section("a", (strip(), Beside((plain_table(), Note("more"))))), Table("", (), ())]
    whole = figures(blocks)
    assert len(whole.axes) == 2
    assert whole.get_size_inches()[1] == pytest.approx(
        sum(figure(block).get_size_inches()[1] for block in (strip(), plain_table()))
    )


def test_a_graph_alone_is_its_own_figure_and_an_image_below_others():
    own = blank((9.0, 3.0))
    own.add_subplot()
    block = replace(graph(), figure=lambda: own)
    assert figures([Section("", (block,))]) is own
    whole = figures([strip(), block])
    assert whole.get_size_inches()[0] == pytest.approx(9.0)
    assert whole.axes[1].images


def test_where_nothing_is_a_picture_it_is_told_in_one_line():
    nothing: list[Block] = [
        Note("words"), Strip("", (Mark("a", 0, None),)), HeatMap("", ("a",), ("b",), ((None,),)), Bars("", (), ()),
        Table("", (Column("a"),), (Row(("b",)),)), Strip("", (), label="1"),
    ]  # fmt: skip
    for blocks in (nothing, []):
        with pytest.raises(UserError, match=r"^there is nothing to draw here: no bars, heat map or graph"):
            figures(blocks)
