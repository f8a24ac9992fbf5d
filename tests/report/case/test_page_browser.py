"""The page in a browser (headless Chromium, from a file, without a network)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from depass_sae.report.html import written

from depass_sae.files import write_text

from ...browser import Watched
from .sample import study

AXE = Path(__file__).parents[2] / "data" / "axe" / "axe.min.js"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("case") / "index.html"
    write_text(made, study().to_html())
    return made


class Opened(Watched):
    """The page of the study."""

    def __init__(self, context: Any, file: Path) -> None:
        super().__init__(context)
        self.page.goto(file.as_uri())

    def graph(self, i: int = 0) -> Any:
        """The document in a graph's frame, once it is drawn."""
        frame = self.page.locator("iframe").nth(i)
        frame.scroll_into_view_if_needed()
        content = frame.content_frame
        content.locator("#nodes .node").first.wait_for()
        return content


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    opened = Opened(context, file)
    yield opened
    assert not opened.trouble
    assert not [url for url in opened.requests if not url.startswith(("data:", "file:"))]
    assert [url for url in opened.requests if url.startswith("file:")] == [file.as_uri()]
    context.close()


def feature(opened: Opened, i: int = 0) -> Any:
    return opened.page.locator(".feature").nth(i)


def test_hovering_a_token_shows_its_activation_and_its_contributions(opened: Opened):
    found = study().features[0]
    pos = found.findings[0].target.pos
    feature(opened).locator(f'.strip [data-pos="{pos}"]').hover()
    line = opened.page.locator("#tip").inner_text()
    assert f"activation {written(found.activations[pos] or 0.0)}" in line
    for finding in found.findings:
        assert f"contributes {written(finding.target.contributions[pos].item(), '+')} to" in line
    measured = found.findings[0].target.measured
    assert measured is not None
    assert f"which loses {written(measured.mean[pos] or 0.0)} when" in line


def test_hovering_a_head_shows_its_contribution(opened: Opened):
    for head in study().findings[0].to_dict()["heads"]["targets"][0]["heads"][:3]:
        opened.page.locator(f'[data-head="L{head["layer"]}H{head["head"]}"]').first.hover()
        shown = opened.page.locator("#tip").inner_text()
        assert shown.startswith(f"L{head['layer']}H{head['head']}: {written(head['value'], '+')}")


def test_clicking_a_token_keeps_its_line_and_marks_it_everywhere_and_again_takes_it_away(opened: Opened):
    here = feature(opened)
    pos = study().findings[0].table()["sources"][0]["pos"]
    token = here.locator(f'.strip [data-pos="{pos}"]')
    token.click()
    assert f"({pos}): activation" in here.locator(".readout").first.inner_text() or pos == 0
    marked = here.locator(f'[data-pos="{pos}"]')
    assert marked.count() > 2
    assert all("picked" in entry.get_attribute("class") for entry in marked.all() if not _is_button_in_table(entry))
    assert feature(opened, 1).locator(".picked").count() == 0
    token.click()
    assert here.locator(".picked").count() == 0
    assert here.locator(".readout").first.inner_text() == ""


def _is_button_in_table(entry: Any) -> bool:
    return "pick" in (entry.get_attribute("class") or "").split()


def test_a_source_in_the_table_leads_to_its_token(opened: Opened):
    here = feature(opened)
    button = here.locator(".pick").first
    pos = button.get_attribute("data-pos")
    button.click()
    assert "picked" in here.locator(f'.strip [data-pos="{pos}"]').get_attribute("class")


def test_clicking_a_head_keeps_its_line_under_the_map(opened: Opened):
    cell = opened.page.locator('[data-head="L1H1"]').first
    cell.click()
    value = next(h["value"] for h in study().findings[0].all_heads() if h["name"] == "L1H1")
    assert opened.page.locator(".heads .readout").first.inner_text().startswith(f"L1H1: {written(value, '+')}")


def test_the_graph_in_the_page_is_drawn_and_answers_a_click(opened: Opened):
    finding = study().findings[0]
    graph = opened.graph()
    target = f"feature:{finding.name}"
    graph.locator(f'#nodes [data-id="{target}"]').click()
    assert finding.graph is not None
    rows = graph.locator('#panel [data-list="inputs"] tbody tr').all()
    assert {row.get_attribute("data-go") for row in rows} == set(finding.graph.predecessors(target))


def test_the_graph_can_fill_the_screen(opened: Opened):
    opened.graph()
    opened.page.locator(".full").first.click()
    opened.page.wait_for_function("document.fullscreenElement?.tagName === 'IFRAME'")


def test_light_and_dark_follow_the_button_in_the_graphs_too_and_the_choice_is_kept(opened: Opened):
    graph = opened.graph()
    dark = "element => getComputedStyle(element).backgroundColor.match(/\\d+/g).every(x => x < 60)"
    assert not opened.page.locator("body").evaluate(dark)
    opened.page.locator("#theme").click()
    assert opened.page.locator("body").evaluate(dark)
    opened.page.wait_for_timeout(100)
    assert graph.locator("body").evaluate(dark)
    opened.page.evaluate("localStorage.getItem('depass-sae:theme') === '\"dark\"' || alert('not kept')")


def test_hostile_texts_stay_text(opened: Opened):
    opened.graph()
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 1
    assert "</script><img src=x onerror=alert(1)>" in opened.page.locator("h1").inner_text()
    assert "<script>alert(1)</script>" in feature(opened).locator(".strip").inner_text()


def test_the_keyboard_reaches_everything_that_answers_to_the_mouse(opened: Opened):
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    focused = "document.activeElement.dataset"
    start = int(page.evaluate(focused)["pos"])
    page.keyboard.press("ArrowLeft")
    assert int(page.evaluate(focused)["pos"]) == start - 1
    page.keyboard.press("Enter")
    assert "picked" in page.evaluate("document.activeElement.className")
    page.locator(".map .cell[tabindex='0']").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    head = page.evaluate(focused)["head"]
    page.keyboard.press("Enter")
    assert page.locator(".heads .readout").first.inner_text().startswith(f"{head}:")


def test_one_element_of_each_strip_and_map_can_be_tabbed_to(opened: Opened):
    for selector, inner in ((".strip", ".token"), (".map", ".cell")):
        for group in opened.page.locator(selector).all():
            assert group.locator(f"{inner}[tabindex='0']").count() == 1


@pytest.mark.parametrize("width", [400, 1300])
def test_the_page_is_never_wider_than_the_window(browser: Any, file: Path, width: int):
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = Opened(context, file).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_without_javascript_tables_sentences_and_titles_are_there(browser: Any, file: Path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    finding = study().findings[0]
    assert page.get_by_text(finding.sentence[:60]).first.is_visible()
    table = finding.table()
    rows = page.locator(".paper tbody").first.locator("tr:not(.block)")
    assert rows.count() == len(table["sources"]) + sum(bool(r["value"]) for r in table["remainder"]) + 1
    assert written(table["pre_activation"], "+") in rows.last.inner_text()
    assert page.locator("[data-head]").first.get_attribute("title")
    assert not page.locator("#theme").is_visible()
    assert page.locator("iframe").first.content_frame.locator("#tables table").first.is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, file: Path, scheme: str):
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1300, "height": 900}, bypass_csp=True)
    page = Opened(context, file).page
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run(document, {iframes: false, resultTypes: ['violations']})")
    serious = [
        (fault["id"], fault["nodes"][0]["html"][:160], fault["nodes"][0]["failureSummary"])
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []
    context.close()
