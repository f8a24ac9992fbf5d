"""A page: one file with its own policy, which its frames fit into; contents, headings, nothing from elsewhere."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode

from depass_sae.view.blocks import Note, Page, Section
from depass_sae.view.frame import policy
from depass_sae.view.page import page

from .sample import HARM, inner_page, sample
from .test_html import Parsed

TEXT = page(sample())
FOUND = Parsed(TEXT)


def sha256(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def said(found: Parsed) -> str:
    return next(e.attributes["content"] for e in found.all("meta") if "http-equiv" in e.attributes)


def test_the_policy_allows_the_page_s_and_its_frames_style_and_script_by_their_hashes_alone() -> None:
    style, script, inner = FOUND.one("style").text, FOUND.one("script").text, Parsed(inner_page()).one("style").text
    assert said(FOUND) == (
        f"default-src 'none'; style-src {sha256(style)} {sha256(inner)}; script-src {sha256(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def test_a_frame_brings_its_hashes_and_nothing_else_into_the_policy() -> None:
    greedy = policy(["a"], ["b"]).replace("'sha256-", "'unsafe-inline' https://example.org 'sha256-")
    frame = f'<meta http-equiv="Content-Security-Policy" content="{greedy}">'
    assert policy(["c"], ["d"], [frame]) == (
        f"default-src 'none'; style-src {sha256('c')} {sha256('a')}; script-src {sha256('d')} {sha256('b')}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert policy(["c"], ["d"], ["no policy"]) == policy(["c"], ["d"])
    assert "script-src" not in policy(["c"], [])


def test_a_text_that_looks_like_a_frame_changes_no_policy() -> None:
    allowed = policy(["evil"], ["evil"]).replace("'", "&#39;")
    inner = f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'.replace("&", "&amp;").replace(
        '"', "&quot;"
    )
    found = Parsed(page(Page("t", (Note(f'<iframe title="x" srcdoc="{inner}">'),))))
    assert "iframe" not in {e.tag for e in found.elements}
    assert sha256("evil") not in said(found)


def test_a_page_opens_with_its_language_its_title_and_a_way_past_its_head() -> None:
    assert TEXT.startswith('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">')
    assert FOUND.one("title").text == "The gap between supply and demand"
    first = next(e for e in FOUND.elements if e.tag in ("a", "button"))
    assert first.has("skip")
    assert [e.attributes["id"] for e in FOUND.all("main")] == [first.attributes["href"][1:]]
    assert FOUND.one("h1").text.startswith("The gap between supply and demand 17/1208 “growth")
    assert FOUND.one("p", "kicker").text == "Case study"
    assert [e.text for e in FOUND.all("span") if e.within("byline")] == [
        "smollm2", "rule softmax, T = 0.1", HARM[:-1] + "\ufffd", "depass-sae 0.1.0", "float32",
    ]  # fmt: skip


def test_the_contents_lead_to_every_section_that_has_an_id() -> None:
    links = [(e.attributes["href"], e.text) for e in FOUND.all("a") if any(o.has("toc") for o in e.inside)]
    assert links == [
        ("#tokens", "Which tokens"), ("#heads", "Through which heads"), ("#bars", "As bars"),
        ("#feature", "The feature 17/1208"), ("#graph", "The graph"), ("#again", "To make it again"),
    ]  # fmt: skip
    ids = [e.attributes["id"] for e in FOUND.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert {href[1:] for href, _ in links} <= set(ids)


def test_sections_without_an_id_are_not_listed_but_those_in_them_are() -> None:
    inner = Section("inner", (), "inner")
    found = Parsed(page(Page("t", (Section("outer", (inner,)),), contents=True)))
    assert [e.text for e in found.all("a") if any(o.has("toc") for o in e.inside)] == ["inner"]


def test_a_page_without_contents_has_no_list_of_them() -> None:
    assert "nav" not in {e.tag for e in Parsed(page(Page("t", ()))).elements}


def test_hostile_texts_make_no_elements_and_nothing_is_loaded_from_elsewhere() -> None:
    assert not {"img", "object", "form"} & {e.tag for e in FOUND.elements}
    assert len(FOUND.all("script")) == len(FOUND.all("style")) == 1
    assert not [key for e in FOUND.elements for key in e.attributes if key.startswith("on") or key in ("style", "src")]
    assert [e.attributes["href"] for e in FOUND.all("link")] == ["data:,"]
    assert not re.search(r"@import|url\(", FOUND.one("style").text)


def test_the_same_document_gives_the_same_page() -> None:
    assert page(sample()) == TEXT
