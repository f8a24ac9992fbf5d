"""The page in a browser (headless Chromium, from a file, without a network)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from depass_sae.view.html import fragment
from depass_sae.view.page import page

from ..browser import Watched, barriers
from .sample import HARM, VALUES, sample

TABLE = "feature 17/1208, by source token"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page") / "index.html"
    made.write_text(page(sample()), encoding="utf-8")
    return made


class Opened(Watched):
    def __init__(self, context: Any, file: Path) -> None:
        super().__init__(context)
        self.page.goto(file.as_uri())

    def figure(self, title: str) -> Any:
        return self.page.locator("figure").filter(has=self.page.get_by_role("heading", name=title, exact=True)).first


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    context = browser.new_context(
        viewport={"width": 1300, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    opened = Opened(context, file)
    yield opened
    assert not opened.trouble
    assert not [url for url in opened.requests if not url.startswith(("data:", "file:", "blob:"))]
    context.close()


# -------------------------------------------------------------------------------------------------------------- picks


def test_pointing_at_a_token_or_a_cell_says_what_it_is(opened: Opened) -> None:
    tip = opened.page.locator("#tip")
    assert not tip.is_visible()
    opened.page.locator('.token[data-pos="2"]').hover()
    assert tip.inner_text() == "gap (2): +1.207 units of the pre-activation"
    opened.figure("Heads").locator(".cell").nth(15).hover()
    assert tip.inner_text().startswith("layer 10, head 1: ")
    opened.page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_a_token_that_is_clicked_is_marked_everywhere_and_once_more_nowhere(opened: Opened) -> None:
    token = opened.page.locator('.token[data-pos="4"]')
    token.click()
    marked = opened.page.locator('[data-pos="4"]')
    assert marked.count() == opened.page.locator(".picked").count() > 8
    assert {e.evaluate("e => e.tagName") for e in marked.all()} == {"SPAN", "TR", "TH", "TD"}
    assert opened.page.locator(".readout").first.inner_text() == "said of 4"
    token.click()
    assert opened.page.locator(".picked").count() == 0
    assert opened.page.locator(".readout").first.inner_text() == ""


def test_a_row_leads_to_its_token_and_says_what_it_does(opened: Opened) -> None:
    figure = opened.figure(TABLE)
    figure.locator('.pick[data-pos="2"]').first.click()
    assert "picked" in opened.page.locator('.token[data-pos="2"]').get_attribute("class")
    assert figure.locator(".readout").inner_text().startswith("gap (2): +1.207")


def test_a_cell_that_is_clicked_is_kept_alone_where_it_is_of_no_token(opened: Opened) -> None:
    figure = opened.figure("Heads")
    figure.locator(".cell").nth(15).click()
    assert figure.locator(".readout").inner_text().startswith("layer 10, head 1: ")
    assert opened.page.locator(".picked").count() == 1


# ----------------------------------------------------------------------------------------------------------- keyboard


def test_the_keyboard_reaches_everything_that_answers_to_the_mouse(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    focused = "document.activeElement.dataset.pos"
    assert page.evaluate(focused) == "6"  # the one that is asked about
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == "4"
    assert page.locator("#tip").inner_text() == "said of 4"
    page.keyboard.press("Enter")
    assert "picked" in page.evaluate("document.activeElement.className")
    page.keyboard.press("End")
    assert page.evaluate(focused) == "12"
    pick = page.locator('.pick[data-pos="9"]').first
    pick.focus()
    page.keyboard.press(" ")
    assert "picked" in page.locator('.token[data-pos="9"]').get_attribute("class")
    page.locator(".map .cell[tabindex='0']").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert opened.figure("Heads").locator(".readout").inner_text().startswith("layer 10, head 1:")


def test_one_element_of_each_strip_and_map_can_be_tabbed_to(opened: Opened) -> None:
    for selector, inner in ((".strip", ".token"), (".map", ".cell")):
        groups = opened.page.locator(selector).all()
        assert groups
        for group in groups:
            assert group.locator(f"{inner}[tabindex='0']").count() == 1


def test_arrows_go_up_and_down_straight_over_cells_that_are_missing(opened: Opened) -> None:
    figure = opened.figure("The largest heads, by token")
    figure.locator(".cell").nth(2).focus()
    opened.page.keyboard.press("ArrowDown")
    assert opened.page.locator("#tip").inner_text() == "head 1 from 2"


# ------------------------------------------------------------------------------------------------------------- tables


def test_a_table_is_copied_with_its_numbers_in_full(opened: Opened) -> None:
    opened.page.get_by_role("button", name=f"copy {TABLE}", exact=True).click()
    opened.page.get_by_text("copied", exact=True).wait_for()
    rows = [line.split("\t") for line in opened.page.evaluate("navigator.clipboard.readText()").split("\n")]
    assert rows[0] == ["group", "source token", "contribution", "share", "when replaced", ""]
    assert rows[1] == ["demand (6)", "supply (4)", "2.891", repr(2.891 / 7), repr(2.891 * 1.1), "0.2"]
    assert rows[8] == ["demand (6)", "pre-activation", repr(sum(VALUES)), "", "", ""]
    assert len(rows) == 17


def test_a_table_is_saved_as_csv_and_no_text_in_it_is_a_formula(opened: Opened, tmp_path: Path) -> None:
    with opened.page.expect_download() as found:
        opened.page.get_by_role("button", name="save Nearest by decoder as CSV").first.click()
    assert found.value.suggested_filename == "Nearest-by-decoder.csv"
    found.value.save_as(tmp_path / "t.csv")
    rows = list(csv.reader((tmp_path / "t.csv").open(encoding="utf-8", newline="")))
    assert rows == [
        ["feature", "", "cosine", "places"], ["17/1208", "economic <b>growth</b>", "0.812", "1234"],
        ["17/77", "", "-0.23", "3"], ["17/9", "'=1+1", "0.1", "3"],
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------- light, dark, frames


def test_light_and_dark_follow_the_button_and_the_choice_is_kept(opened: Opened) -> None:
    dark = "element => getComputedStyle(element).backgroundColor.match(/\\d+/g).every(x => x < 60)"
    assert not opened.page.locator("body").evaluate(dark)
    opened.page.locator("#theme").click()
    assert opened.page.locator("body").evaluate(dark)
    assert opened.page.evaluate("localStorage.getItem('depass-sae:theme')") == '"dark"'


def test_a_graph_s_page_keeps_its_style_in_its_frame_and_can_fill_the_screen(opened: Opened) -> None:
    frame = opened.page.locator("iframe")
    frame.scroll_into_view_if_needed()
    inner = frame.content_frame.locator("body")
    assert inner.inner_text().strip() == "the graph’s “page”"
    assert inner.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(1, 2, 3)"
    box, main = frame.bounding_box(), opened.page.locator("main").bounding_box()
    assert box["width"] == main["width"]
    assert box["height"] > 600
    opened.page.locator(".full").click()
    opened.page.wait_for_function("document.fullscreenElement?.tagName === 'IFRAME'")


def test_hostile_texts_stay_text(opened: Opened) -> None:
    assert opened.page.locator("img, b").count() == 0
    assert HARM[:-1] in opened.page.locator("h1").inner_text()
    assert HARM[:-1] in opened.page.locator(".strip").first.inner_text()


# -------------------------------------------------------------------------------------------------------------- widths

CUT = """() => [...document.querySelectorAll('main *')].filter(element => {
  if (element.closest('.unseen, svg, .up') || !element.getClientRects().length) return false;
  for (let outer = element.parentElement; outer; outer = outer.parentElement) {
    const style = getComputedStyle(outer);
    if (style.overflowX === 'auto') return false;
  }
  return element.getBoundingClientRect().right > innerWidth + 0.5 || element.scrollWidth > element.clientWidth + 1
    && getComputedStyle(element).overflowX === 'hidden';
}).map(element => element.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("width", [400, 800, 1200, 1600])
def test_the_page_is_never_wider_than_the_window_and_nothing_is_cut(browser: Any, file: Path, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = Opened(context, file).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT) == []
    region = page.get_by_role("region", name="What drives it")
    assert region.evaluate("e => getComputedStyle(e).overflowX") == "auto"
    assert region.evaluate("e => e.scrollWidth <= e.clientWidth") is (width >= 1200)
    context.close()


def test_on_narrow_screens_a_group_s_name_stands_over_its_rows(browser: Any, file: Path) -> None:
    for width, over in ((1200, False), (400, True)):
        context = browser.new_context(viewport={"width": width, "height": 900})
        figure = Opened(context, file).figure(TABLE)
        assert figure.locator(".block").first.is_visible() is over
        assert figure.locator("th.group").first.is_visible() is not over
        context.close()


def test_on_paper_nothing_is_scrolled_and_there_are_no_buttons(browser: Any, file: Path) -> None:
    context = browser.new_context(viewport={"width": 688, "height": 1000})
    page = Opened(context, file).page
    page.emulate_media(media="print")
    for selector in ("button", ".skip", ".readout", ".toc"):
        assert not any(e.is_visible() for e in page.locator(selector).all())
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(e => getComputedStyle(e).overflowX === 'visible')"
    )
    assert page.locator(".shade").first.evaluate("e => getComputedStyle(e).printColorAdjust") == "exact"
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    context.close()


# ------------------------------------------------------------------------------------------------- without, and with


def test_without_javascript_everything_is_there_but_what_answers(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator(".token").first.get_attribute("title")
    assert page.get_by_text("+2.891").first.is_visible()
    assert not any(e.is_visible() for e in page.locator("button").all())
    assert page.locator("[role='button'], [role='toolbar'], [role='grid']").count() == 0
    context.close()


@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, file: Path, scheme: str, width: int) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True)
    assert barriers(Opened(context, file).page) == []
    context.close()


def test_the_rules_of_a_notebook_do_not_reach_into_tables(browser: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.set_content(
        "<!doctype html><style>.out:not(.md) td, .out:not(.md) th { text-align: right } "
        f".out tbody tr:nth-child(even) {{ background: red }}</style><div class=out>{fragment(sample().blocks)}</div>"
    )
    assert page.locator(".rows tbody th").first.evaluate("e => getComputedStyle(e).textAlign") == "left"
    assert page.locator(".rows td.n").first.evaluate("e => getComputedStyle(e).textAlign") == "right"
    assert page.evaluate(
        "[...document.querySelectorAll('tr')].every(e => getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)')"
    )
    context.close()


@pytest.mark.parametrize(("ground", "ink"), [("#ffffff", "#222222"), ("#111111", "#dddddd")])
def test_axe_finds_no_serious_fault_in_a_notebook_light_or_dark(browser: Any, ground: str, ink: str) -> None:
    context = browser.new_context(viewport={"width": 900, "height": 900})
    page = context.new_page()
    page.set_content(
        f"<!doctype html><html lang=en><title>notebook</title><body style='background:{ground};color:{ink}'>"
        f"<main><h1>n</h1><h2>n</h2><h3>n</h3>{fragment(sample().blocks)}</main>"
    )
    assert barriers(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 900
    context.close()
