"""A page of a site: links to its other pages, which files have not, and a bar, choices and steps around the blocks."""

from __future__ import annotations

import re

import pytest

from depass_sae.view.blocks import Beside, Column, Feature, Note, Page, Pairs, Row, Section, Table, Token
from depass_sae.view.frame import here
from depass_sae.view.html import fragment
from depass_sae.view.page import page, site_files, site_page
from depass_sae.view.site import Choice, Here, Site, Step, with_links

CELLS = (
    Feature("17/1", "meant"),
    Token(" a"),
    Pairs(((Token("b"), 1.0), (Feature("5/2"), 2.0), ("plain", 3.0))),
    "text",
    4,
)
TABLE = Table("all", tuple(Column(f"c{i}") for i in range(5)), (Row(CELLS),))
BLOCKS = (TABLE, Section("in", (TABLE, Beside((TABLE,)))), Note("said"))


def link(cell: Feature | Token) -> Here | None:
    return Here(f"/f/{cell.name}") if isinstance(cell, Feature) else Here("/t") if cell.text == " a" else None


def hrefs(text: str) -> list[str]:
    return re.findall(r'<a href="([^"]*)"', text)


def test_features_and_tokens_lead_to_their_pages_wherever_they_stand() -> None:
    assert hrefs(fragment(with_links(BLOCKS, link))) == ["/f/17/1", "/t", "/f/5/2"] * 3
    assert hrefs(fragment(BLOCKS)) == []


def test_a_link_that_is_there_is_kept_where_there_is_no_other() -> None:
    table = Table("", (Column("c"),), (Row((Feature("17/1", link="https://example.org/a"),)),))
    assert hrefs(fragment(with_links([table], lambda cell: None))) == ["https://example.org/a"]


@pytest.mark.parametrize(
    "address",
    ["//example.org", "/\\example.org", "javascript:alert(1)", "/a b", "/a\nb", "", "x", "https://a", "/é", '/"'],
)
def test_an_address_that_leads_off_the_site_is_no_link(address: str) -> None:
    assert here(Here(address)) is None
    assert here(Here("/a/b?c=d%20e+f&g=h")) == "/a/b?c=d%20e+f&g=h"


def test_a_path_is_no_link_unless_it_is_of_a_site() -> None:
    assert here("/etc/passwd") is None


def test_what_stands_around_the_blocks_is_escaped_and_a_file_has_none_of_it() -> None:
    site = Site(
        "<b>name", '"><script>', (Choice("list", (("all", Here("/l")), ("few", Here("/m"))), "few"),),
        (Step("<before", None), Step("next", Here("/n"))),
    )  # fmt: skip
    document = Page("title", BLOCKS)
    text = site_page(document, site)
    assert "&lt;b&gt;name" in text
    assert 'value="&#34;&gt;&lt;script&gt;"' in text
    assert text.count('rel="next"') == 2
    assert "&lt;before" in text
    assert re.findall(r'<a href="([^"]*)"( aria-current="true")?>(\w+)</a>', text)[:2] == [
        ("/l", "", "all"), ("/m", ' aria-current="true"', "few"),
    ]  # fmt: skip
    assert "<style" not in text
    assert re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL) == [""]
    assert "Content-Security-Policy" not in text  # which its server sends
    for path in re.findall(r'(?:src|<link rel="stylesheet" href)="([^"]*)"', text):
        assert path in site_files()
    alone = page(document)
    assert "<form" not in alone
    assert "/page.css" not in alone
    assert "Content-Security-Policy" in alone
