"""The documentation site, built as `make docs` builds it: whole, without the network, and found one's way in.

The reader's questions are below, each with a page that answers it; the site's own search has to name it among the first
three.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import depass_sae as ds
from depass_sae.dev.__main__ import docs
from depass_sae.dev.site.commands import reference

from ..browser import Watched, barriers
from .crawl import Page, crawled, dead, outside

pytestmark = pytest.mark.long

QUESTIONS = {
    "Which tokens made a feature fire?": "tutorials/01_which_tokens.html",
    "What is the difference between contribution and effect?": "what-the-numbers-mean.html",
    "Shapley value": "what-the-numbers-mean.html",
    "Which models are supported?": "models.html",
    "Does it work with Gemma Scope?": "public-saes.html",
    "How long will it take?": "memory-and-time.html",
    "out of memory": "troubleshooting.html",
    "completeness warning": "troubleshooting.html",
    "How do I read a graph from Neuronpedia?": "graphs.html",
    "scan a corpus": "corpus.html",
    "coming from TransformerLens": "coming-from/transformer-lens.html",
    "How do I cite depass-sae?": "cite.html",
}
MAIN = (
    "index",
    "quickstart",
    "questions",
    "method",
    "gallery",
    "commands",
    "python/load",
    "models",
    "paper",
    "troubleshooting",
    "tutorials/03_feature_flow_graph",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: whatever MkDocs warns of ends it."""
    for needed in ("mkdocs", "material", "mkdocstrings", "nbconvert", "latex2mathml"):
        pytest.importorskip(needed, reason="the site takes pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site") / "site"
    docs(("--site-dir", str(folder)))
    return folder.resolve()


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: page for path, page in crawled(site).items() if path.name != "404.html"}  # whose links need a server


def test_no_link_is_dead(pages: dict[Path, Page]) -> None:
    assert len(pages) > 40
    assert sum(len(page.links) for page in pages.values()) > 2_000
    assert not dead(pages)


def test_a_dead_link_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html">b</a> <a href="#here">here</a> <a href="c.html#x">c</a>')
    (tmp_path / "c.html").write_text('<p id="y">c</p> <img src="http://example.org/x.png">')
    assert dead(crawled(tmp_path)) == ["a.html -> b.html", "a.html -> #here", "a.html -> c.html#x"]
    assert outside(crawled(tmp_path)) == ["c.html -> http://example.org/x.png"]


def test_nothing_is_fetched_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert not outside(pages)


def test_every_public_name_and_every_command_has_its_place(pages: dict[Path, Page], site: Path) -> None:
    from depass_sae.dev.site.python import home

    named = set().union(*(page.anchors for path, page in pages.items() if path.parent.name == "python"))
    assert {home(name) for name in ds.__all__} <= named
    assert {"tokens", "heads", "graph", "circuit-of", "estimate"} <= pages[site / "commands.html"].anchors
    assert "| `--feature`" in reference()


def test_formulas_are_drawn_by_the_browser_itself(site: Path) -> None:
    text = (site / "method.html").read_text()
    assert text.count("<math") > 40
    assert "\\(" not in text
    assert "arithmatex" not in text


def test_programs_find_a_list_of_all_pages(site: Path) -> None:
    text = (site / "llms.txt").read_text()
    assert "- [What the numbers mean](what-the-numbers-mean.html): Five kinds of numbers, and five questions." in text
    assert all((site / line.split("](")[1].split(")")[0]).is_file() for line in text.splitlines() if "](" in line)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_open_from_disk_without_a_barrier_a_complaint_or_a_request(site: Path, browser: Any, scheme: str) -> None:
    for width in (1600, 400):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        watched = Watched(context)
        for name in MAIN:
            watched.page.goto((site / f"{name}.html").as_uri())
            assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (name, width)
            assert barriers(watched.page) == [], (name, width)
        assert not watched.trouble
        assert all(request.startswith(("file:", "data:", "blob:", "about:")) for request in watched.requests)
        context.close()


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *said: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def found(page: Any, site: str, question: str) -> list[str]:
    """The first three pages that the site's search names."""
    page.goto("about:blank")
    page.goto(f"{site}/index.html?q={quote(question)}")
    page.wait_for_function("/matching/.test(document.querySelector('.md-search-result__meta').textContent)")
    page.wait_for_selector(".md-search-result__item")
    links = page.eval_on_selector_all(".md-search-result__item", "all => all.map(one => one.querySelector('a').href)")
    return [link.removeprefix(f"{site}/").partition("?")[0].partition("#")[0] for link in links[:3]]


@pytest.mark.browser
def test_the_search_answers_every_question_of_a_reader(served: str, browser: Any) -> None:
    page = browser.new_page()
    named = {question: found(page, served, question) for question in QUESTIONS}
    assert not {question: pages for question, pages in named.items() if QUESTIONS[question] not in pages}
    page.close()


@pytest.mark.browser
def test_the_search_works_from_disk_too(site: Path, browser: Any) -> None:
    page = browser.new_page()
    assert "troubleshooting.html" in found(page, site.as_uri(), "out of memory")
    page.close()
