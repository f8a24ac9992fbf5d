"""An index in the browser: what is at which address, who is answered, and that no text of the corpus gives orders."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener, urlopen

import numpy as np
import pytest

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.index.browse import pages
from depass_sae.index.browse.server import Browsing
from depass_sae.index.index import Index
from depass_sae.texts import is_hidden

from ..attribution.tiny import HOSTILE
from ..browser import ALL, Watched, barriers
from .scanned import scanned, texts

ROWS = 7
LABEL = "</title><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Of texts with markup in them, and labels and a folder's name too."""
    folder = tmp_path_factory.mktemp("browse") / "ix <b>"
    made = scanned(folder, [f"{text} {' '.join(HOSTILE)}" for text in texts()])
    return ds.open_index(made.folder, labels={"1/3": LABEL, "0/1": LABEL})


@pytest.fixture(scope="module")
def site(index: Index) -> Iterator[Browsing]:
    """With so few features on a page that a small index has several."""
    with pytest.MonkeyPatch.context() as patch, index.browse() as browsing:
        patch.setattr(pages, "ROWS", ROWS)
        yield browsing


def get(site: Browsing, path: str, **headers: str) -> tuple[int, str]:
    try:
        with urlopen(Request(site.address.rstrip("/") + path, headers=headers), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def sent(site: Browsing, method: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """With these headers and no others."""
    port = int(site.address.rsplit(":", 1)[1].strip("/"))
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        answer.read()
        return answer


def links(page: str) -> list[str]:
    return [unescape(link) for link in re.findall(r'<a [^>]*?href="([^"]*)"', page)]


def listed(page: str) -> list[str]:
    """The features of a page's list, in order."""
    return [unescape(name) for name in re.findall(r'<a href="/feature/[^"]*">([^<]*)</a>', page)]


# ------------------------------------------------------------------------------------------------------------ addresses


def test_the_first_page_leads_to_every_list_every_sae_and_the_densest_and_rarest(site: Browsing, index: Index) -> None:
    status, page = get(site, "/")
    assert status == 200
    for which in ("?list=dense", "?list=rare", "?list=dead", ""):
        assert f"/features{which}" in links(page)
    for hook in index.saes:
        assert f"/features?sae={hook}" in links(page)
    assert listed(page) == [one.feature for which in (index.dense(8), index.rare(8)) for one in which.features]


def test_every_link_of_every_page_leads_somewhere(site: Browsing, index: Index) -> None:
    """From the first page on, until many are seen."""
    seen, waiting = {"/"}, ["/"]
    while waiting and len(seen) < 100:
        status, page = get(site, waiting.pop(0))
        assert status == 200
        for link in links(page):
            assert link.startswith("/") or link == "#main", link
            if link not in seen and link != "#main":
                seen.add(link)
                waiting.append(link)
    assert sum(link.startswith("/feature/") for link in seen) > 15
    assert any(link.startswith("/search") for link in seen)
    assert any("page=2" in link for link in seen)


def test_a_list_has_all_features_in_order_page_by_page(site: Browsing, index: Index) -> None:
    count = np.concatenate([index.features(hook)["count"] for hook in sorted(index.saes)])
    largest = np.concatenate([index.features(hook)["max"] for hook in sorted(index.saes)])
    names = [index.name(hook, i) for hook in sorted(index.saes) for i in range(index.saes[hook])]
    for query, keys, of in (
        ("list=all", np.arange(len(names)), np.full(len(names), True)),
        ("list=dense", -count, count > 0),
        ("list=rare", count, count > 0),
        ("list=dead", np.arange(len(names)), count == 0),
        ("list=all&sort=max", -largest, np.full(len(names), True)),
        ("list=rare&sort=max-up", largest, count > 0),
        ("list=all&sort=count", -count, np.full(len(names), True)),
        ("list=all&sort=feature", -np.arange(len(names)), np.full(len(names), True)),
    ):
        expected = [names[i] for i in np.argsort(keys, kind="stable") if of[i]]
        found: list[str] = []
        for number in range(1, max(-(-len(expected) // ROWS), 1) + 1):
            status, page = get(site, f"/features?{query}&page={number}")
            assert status == 200
            found += listed(page)
            assert ("next" in re.findall(r'rel="(\w+)"', page)) == (number * ROWS < len(expected))
        assert found == expected, query
        assert get(site, f"/features?{query}&page={number + 1}")[0] == 404


def test_a_list_of_one_sae_has_that_ones_features_alone(site: Browsing, index: Index) -> None:
    page = get(site, "/features?list=dense&sae=1.resid_post")[1]
    assert listed(page) == [one.feature for one in index.dense(ROWS, layer="1").features]
    assert {name.split("/")[0] for name in listed(page)} == {"1"}


def test_a_column_by_which_a_list_is_ordered_turns_it_round(site: Browsing) -> None:
    page = get(site, "/features?list=dense")[1]
    assert 'aria-sort="descending"' in page
    assert "/features?list=dense&sort=count-up" in links(page)
    assert "/features?list=dense&sort=max" in links(page)
    page = get(site, "/features?list=dense&sort=count-up&page=1")[1]
    assert 'aria-sort="ascending"' in page
    assert "/features?list=dense&sort=count" in links(page)


def test_a_search_finds_what_the_index_finds(site: Browsing, index: Index) -> None:
    page = get(site, f"/search?{urlencode({'q': ' supply '})}")[1]
    assert listed(page) == [hit.feature for hit in index.search("supply", pages.HITS).features]
    assert 'value="supply"' in page
    assert "no feature has" in get(site, "/search?q=unheard-of")[1]


def test_a_feature_has_its_page_with_links_to_its_partners_its_tokens_and_its_neighbours(
    site: Browsing, index: Index
) -> None:
    name = index.dense(1, layer="1").features[0].feature
    found, number = index.feature(name), int(name.split("/")[1])
    page = get(site, f"/feature/{name}")[1]
    assert found.partners
    assert f"<h1>Feature {name}" in page
    for partner, _, _ in found.partners[:20]:
        assert f"/feature/{partner}" in links(page)
    for token in found.fires_on[:20]:
        if token.token.strip():
            assert f"/search?{urlencode({'q': token.token.strip()})}" in links(page)
    for other in (number - 1, number + 1):
        assert (f"/feature/1/{other}" in links(page)) == (0 <= other < index.saes[found.hook])
    for context in found.contexts[:3]:
        assert f"{context.activation:.1f}" in page


def test_the_first_feature_has_none_before_it_and_the_last_none_behind(site: Browsing, index: Index) -> None:
    width = index.saes[index.feature("1/0").hook]
    first, last = get(site, "/feature/1/0")[1], get(site, f"/feature/1/{width - 1}")[1]
    assert re.findall(r'rel="(next|prev)"', first) == ["next"] * 2
    assert re.findall(r'rel="(next|prev)"', last) == ["prev"] * 2


class _Stay(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("path", "to"),
    [
        ("/search", "/"),
        ("/search?q=", "/"),
        ("/search?q=%20%20", "/"),
        ("/search?q=1/3", "/feature/1/3"),
        ("/search?q=1.resid_post/3", "/feature/1/3"),
        ("/feature/1.resid_post/3", "/feature/1/3"),
        ("/feature/01/03", "/feature/1/3"),
    ],
)
def test_what_is_at_another_address_is_told_so(site: Browsing, path: str, to: str) -> None:
    with pytest.raises(HTTPError) as told:
        build_opener(_Stay).open(site.address.rstrip("/") + path)
    assert (told.value.code, told.value.headers["Location"]) == (302, to)


ODD = [
    "/nothing", "/feature", "/feature/", "/feature/1", "/feature/1/99999", "/feature/9/1", "/feature/x/y", "/%00",
    "/feature/1/3/4", "/feature/1/-3", "/feature/1%2F3%00", "/features?list=x", "/features?sae=9.resid_post",
    "/features?sort=x", "/features?page=0", "/features?page=-1", "/features?page=x", "/features?page=99999",
    f"/features?page={'9' * 5000}", "/features?page=", "/../../etc/passwd", "/feature/../../manifest.json",
    "/page.css/",    "/features?" + "&".join(f"a{i}=1" for i in range(50)), "/" + quote("<script>alert(1)</script>"),
]  # fmt: skip


@pytest.mark.parametrize("path", ODD)
def test_an_odd_address_is_a_page_that_says_so(site: Browsing, path: str) -> None:
    status, page = get(site, path)
    assert status == 404
    assert "There is no such page" in page
    assert "alert" not in page
    assert "Traceback" not in page


def test_an_index_that_is_taken_away_meanwhile_is_told(tmp_path: Path) -> None:
    index = scanned(tmp_path / "ix")
    with index.browse() as site:
        (tmp_path / "ix").rename(tmp_path / "away")
        status, page = get(site, "/search?q=supply")
        assert status == 500
        assert "The index cannot be read" in page
        assert get(site, "/features")[0] == 200


# --------------------------------------------------------------------------------------------------- who is answered


def test_who_asks_by_another_name_is_refused(site: Browsing) -> None:
    port = site.address.rsplit(":", 1)[1].strip("/")
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        assert sent(site, "GET", "/", {"Host": host}).status == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{int(port) - 1}", "", f"[::1]:{port}",
                 f"localhost.evil.example:{port}", f"127.0.0.1:{port}@evil.example"):  # fmt: skip
        for path in ("/", "/page.css", "/nothing"):
            assert sent(site, "GET", path, {"Host": host}).status == 403, host
    assert sent(site, "GET", "/", {}).status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "NONSENSE"])
def test_what_is_no_get_is_refused(site: Browsing, method: str) -> None:
    host = site.address.removeprefix("http://").strip("/")
    answer = sent(site, method, "/", {"Host": host})
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")


def test_every_answer_is_guarded(site: Browsing) -> None:
    host = {"Host": site.address.removeprefix("http://").strip("/")}
    for answer in (
        sent(site, "GET", "/", host), sent(site, "GET", "/page.js", host), sent(site, "GET", "/nothing", host),
        sent(site, "POST", "/", host), sent(site, "GET", "/", {}), sent(site, "GET", "/search", host),
    ):  # fmt: skip
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Access-Control-Allow-Origin"] is None
        assert answer.headers["Server"] == "depass-sae"


def test_only_this_machine_can_reach_it(site: Browsing) -> None:
    port = int(site.address.rsplit(":", 1)[1].strip("/"))
    assert site.address.startswith("http://127.0.0.1:")
    with closing(socket.socket()) as other:  # another address of the loopback, which 0.0.0.0 would answer at
        other.settimeout(5)
        with pytest.raises(OSError):
            other.connect(("127.0.0.2", port))


# ----------------------------------------------------------------------------------------------------- hostile texts


class _Tags(HTMLParser):
    """Elements, and attributes that could run something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.orders: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.orders += [name for name, value in attrs if name.startswith("on") or name == "style"]
        self.orders += [str(value) for name, value in attrs if name in ("href", "src", "action") and ":" in str(value)]


def test_texts_of_corpus_labels_and_query_give_no_orders(site: Browsing, index: Index) -> None:
    token = next(one.feature for hook in index.saes for one in index.search("alert(1)").features if hook)
    hostile = "\"><script>alert(3)</script>\x1b[31m\u202e'"
    paths = [
        "/", "/features", f"/features?sae={next(iter(index.saes))}", "/feature/1/3", "/feature/0/1",
        f"/feature/{token}",
        f"/search?{urlencode({'q': hostile})}", f"/search?{urlencode({'q': 'alert(1)'})}",
        f"/search?{urlencode({'q': '<script>'})}", "/search?q=%ff%fe%00",
    ]  # fmt: skip
    for path in paths:
        status, page = get(site, path)
        assert status == 200, path
        found = _Tags(page)
        assert found.tags.count("script") == 1, path
        assert not {"img", "b", "style", "iframe"} & set(found.tags), path
        assert [order for order in found.orders if order != "data:,"] == [], path
        assert not [c for c in set(page) - {"\n", "\t"} if is_hidden(c)], path
    assert "alert(1)" in get(site, "/feature/1/3")[1]


def test_a_page_in_a_file_has_no_links(index: Index) -> None:
    assert links(index.feature("1/3").to_html()) == ["#main"]
    assert links(index.dense(5).to_html()) == ["#main"]


# ------------------------------------------------------------------------------------------------------- from and to


def test_many_readers_at_once_get_the_same(site: Browsing, index: Index) -> None:
    paths = [f"/feature/1/{i}" for i in range(3)] + ["/search?q=supply", "/features?list=dense"]
    alone = [get(site, path) for path in paths]
    found: dict[int, list[tuple[int, str]]] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: [get(site, path) for path in paths]})) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[n] == alone for n in range(4))


def test_it_ends_and_its_port_is_free_again(index: Index) -> None:
    browsing = index.browse()
    port = int(browsing.address.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(UserError, match=f"cannot listen on port {port}: it is taken"):
        index.browse(port)
    assert browsing.address in repr(browsing)
    browsing.close()
    with pytest.raises(OSError):
        get(browsing, "/")
    with index.browse(port) as again:
        assert get(again, "/")[0] == 200
    for wrong in (-1, 65536, "80", 80.5, True):
        with pytest.raises(UserError):
            index.browse(wrong)  # type: ignore[arg-type]


def test_the_command_says_where_it_is_and_ends_with_ctrl_c(index: Index) -> None:
    command = [sys.executable, "-m", "depass_sae", "browse", str(index.folder), "--no-open"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stderr is not None
        address = running.stdout.readline().strip()
        with urlopen(address, timeout=20) as answer:
            assert answer.status == 200
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0
        assert (running.stdout.read(), running.stderr.read()) == ("", "Ctrl-C ends it\n")


# ------------------------------------------------------------------------------------------------------ in a browser


@pytest.mark.browser
def test_a_reader_finds_a_feature_its_partner_and_the_next(browser: Any, site: Browsing, index: Index) -> None:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    watched = Watched(context)
    page = watched.page
    page.goto(site.address)
    assert page.locator("#theme").is_visible()  # the script runs
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.site')).position") == "sticky"
    )  # and the style is on
    page.get_by_role("searchbox").fill("supply")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=supply")
    first = page.locator("tbody th a").first
    name = first.inner_text()
    assert name == index.search("supply", 1).features[0].feature
    first.click()
    page.wait_for_url(f"**/feature/{name}")
    assert page.locator("h1").inner_text().startswith(f"Feature {name}")
    page.locator(".token.above, .token.pos").first.hover()
    assert "activation" in page.locator("#tip").inner_text()
    partner = page.get_by_role("region", name="Features of the same SAE").locator("a").first
    other = partner.inner_text()
    partner.click()
    page.wait_for_url(f"**/feature/{other}")
    page.locator(".site [rel=next], .site [rel=prev]").first.click()
    page.wait_for_function(
        "other => !document.querySelector('h1').innerText.startsWith(`Feature ${other} `)", arg=other
    )
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") in ("dark", "light")
    page.goto(f"{site.address}features?list=all")
    page.get_by_role("link", name="max").click()
    page.wait_for_url("**sort=max")
    for path in ("", "features?list=all", "feature/1/3", "search?q=supply", "nothing"):
        page.goto(site.address + path)
        found = barriers(page, ALL)
        assert [one for one in found if one[0] != "empty-table-header"] == [], path  # a token of this model is empty
    watched.trouble = [said for said in watched.trouble if "404" not in said]
    for width in (1600, 1200, 400):
        page.set_viewport_size({"width": width, "height": 900})
        for path in ("", "features?list=all", "feature/1/3", f"search?{urlencode({'q': HOSTILE[0]})}"):
            page.goto(site.address + path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.trouble == []
    assert all(url.startswith((site.address, "data:")) for url in watched.requests)
    context.close()
