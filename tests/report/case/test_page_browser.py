"""The page in a browser (headless Chromium, from a file, without a network)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from depass_sae.files import write_text
from depass_sae.view.words import number, signed

from ...browser import Watched, barriers
from .sample import study

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
    return opened.page.locator(f"#feature-{i + 1}")


def test_hovering_a_token_shows_its_activation_and_its_contributions(opened: Opened):
    found = study().features[0]
    pos = found.findings[0].target.pos
    feature(opened).locator(f'.strip [data-pos="{pos}"]').first.hover()
    line = opened.page.locator("#tip").inner_text()
    assert f"activation {number(found.activations[pos] or 0.0)}" in line
    for finding in found.findings:
        assert f"contributes {signed(finding.target.contributions[pos].item())} to" in line
    measured = found.findings[0].target.measured
    assert measured is not None
    assert f"which loses {number(measured.mean[pos] or 0.0)} when" in line


def test_a_token_that_is_clicked_is_marked_everywhere_and_once_more_nowhere(opened: Opened):
    here = feature(opened)
    pos = study().findings[0].facts.top.pos
    token = here.locator(f'.strip [data-pos="{pos}"]').first
    token.click()
    assert f"({pos}): activation" in here.locator(".readout").first.inner_text()
    picked = {entry.evaluate("e => e.tagName") for entry in here.locator(".picked").all()}
    assert picked >= {"SPAN", "TR", "TD"}  # in the strip, in the table, under the heads
    token.click()
    assert here.locator(".picked").count() == 0


def test_a_head_that_is_clicked_is_kept_under_the_map(opened: Opened):
    here = opened.page.locator("#heads-1 figure").first
    here.locator('.cell[data-tip^="L1H1: "]').click()
    heads = study().findings[0].to_dict()["heads"]["targets"][0]["heads"]
    value = next(head["value"] for head in heads if (head["layer"], head["head"]) == (1, 1))
    assert here.locator(".readout").inner_text().startswith(f"L1H1: {signed(value)}")


def test_the_graph_in_the_page_is_drawn_and_answers_a_click(opened: Opened):
    finding = study().findings[0]
    graph = opened.graph()
    target = f"feature:{finding.name}"
    graph.locator(f'#nodes [data-id="{target}"]').click()
    assert finding.graph is not None
    rows = graph.locator('#panel [data-list="inputs"] tbody tr').all()
    assert {row.get_attribute("data-go") for row in rows} == set(finding.graph.predecessors(target))


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


def test_the_keyboard_reaches_the_strip_and_the_maps(opened: Opened):
    page = opened.page
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    start = int(page.evaluate("document.activeElement.dataset.pos"))
    page.keyboard.press("ArrowLeft")
    assert int(page.evaluate("document.activeElement.dataset.pos")) == start - 1
    page.keyboard.press("Enter")
    assert "picked" in page.evaluate("document.activeElement.className")
    page.locator("#heads-1 .map .cell[tabindex='0']").first.focus()
    page.keyboard.press("ArrowDown")
    head = page.evaluate("document.activeElement.dataset.tip")
    page.keyboard.press("Enter")
    assert page.locator("#heads-1 .readout").first.inner_text() == head


@pytest.mark.parametrize("width", [400, 1300])
def test_the_page_is_never_wider_than_the_window(browser: Any, file: Path, width: int):
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = Opened(context, file).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_without_javascript_answers_tables_and_titles_are_there(browser: Any, file: Path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    finding = study().findings[0]
    assert page.get_by_text(finding.to_dict()["answer"]).first.is_visible()
    rows = page.locator("#tokens-1 tbody").first.locator("tr:not(.block)")
    assert signed(finding.target.pre_activation) in rows.last.inner_text()
    assert page.locator("#heads-1 .cell").first.get_attribute("title")
    assert not page.locator("#theme").is_visible()
    assert page.locator("iframe").first.content_frame.locator("#tables table").first.is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, file: Path, scheme: str):
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1300, "height": 900}, bypass_csp=True)
    assert barriers(Opened(context, file).page) == []
    context.close()
