"""The pictures of the README and of docs/: there, small, and taken in the same way twice."""

import sys
from pathlib import Path
from typing import Any

import pytest

from depass_sae.demo.browser import SCALE, opened, photograph
from depass_sae.demo.browser import browser as chromium
from depass_sae.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"


def test_every_picture_of_the_pages_is_there_and_small() -> None:
    assert "docs/tokens.svg" in (DOCS.parent / "README.md").read_text(encoding="utf-8")
    home = (DOCS / "index.md").read_text(encoding="utf-8")
    for name in ("tokens.svg", "heads.svg", "case-study.png", "graph.png"):
        assert f"]({name})" in home
        assert 1_000 < (DOCS / name).stat().st_size < 400_000


def test_without_playwright_there_is_one_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(UserError, match="pip install playwright") as refused, chromium():
        pass
    assert "\n" not in str(refused.value)


@pytest.mark.browser
def test_the_same_page_gives_the_same_picture(browser: Any, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("one.png", "two.png"):
        with opened(browser, "<!doctype html><h1 style='color:#155f94'>A page</h1>", (300, 100)) as window:
            photograph(window, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert image.open(tmp_path / "one.png").size == (300 * SCALE, 100 * SCALE)
