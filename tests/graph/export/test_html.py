"""The viewer as text: one file, nothing in it that a token could set alight, and sums that survive its size limit."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import networkx as nx
import pytest
from hypothesis import given, settings

from depass_sae.errors import UserError
from depass_sae.graph.document import graph_of
from depass_sae.graph.export.html import MAX_EDGES, MAX_NODES, to_html
from depass_sae.graph.limits import limited
from depass_sae.view.words import number, signed
from tests.graph.export.every_kind import every_kind, same, texts, with_text
from tests.graph.sample import sample_graph


class Page(HTMLParser):
    """A page's elements, with their attributes, and the text within them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.elements[-1][0] if self.elements else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text_of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag and text.strip()]


def document(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="graph">(.*?)</script>', page, re.S)[1])


def unbalanced(g: nx.DiGraph) -> list[str]:
    """The nodes whose inflow and constant do not add up to their pre-activation."""
    wrong = []
    for name, node in g.nodes(data=True):
        inflow = [edge["weight"] for *_, edge in g.in_edges(name, data=True) if edge["kind"] != "head"]
        if node["kind"] in ("feature", "logit") or (node["kind"] == "error" and inflow):
            total = math.fsum([*inflow, node["constant"]])
            if not math.isclose(total, node["pre_activation"], rel_tol=1e-9, abs_tol=1e-9):
                wrong.append(name)
    return wrong


def test_the_page_holds_the_graph_so_that_it_can_be_read_back():
    g = every_kind()
    assert same(graph_of(document(to_html(g))), g)


def test_the_same_graph_gives_the_same_page():
    assert to_html(sample_graph(seed=3)) == to_html(sample_graph(seed=3))


def test_a_page_leaves_the_graph_as_it_was():
    g, before = every_kind(), every_kind()
    to_html(g)
    assert same(g, before)


def test_the_page_refers_to_nothing_outside_it():
    page = to_html(every_kind())
    parsed = Page(page)
    assert [tag for tag, _ in parsed.elements if tag in ("img", "iframe", "object", "embed", "base", "form")] == [
        "form"
    ]
    assert not any("src" in attributes for _, attributes in parsed.elements)
    assert [attributes["href"] for _, attributes in parsed.elements if "href" in attributes] == ["data:,"]
    style = "".join(parsed.text_of("style"))
    assert "@import" not in style
    assert "url(" not in style
    addresses = set(re.findall(r"https?://[^\s\"'`$]+", page))
    assert addresses == {"https://www.neuronpedia.org/", "http://www.w3.org/2000/svg"}


def test_the_policy_allows_the_page_s_own_style_and_script_and_nothing_else():
    page = to_html(sample_graph())
    policy = next(meta["content"] for meta in Page(page).all("meta") if "http-equiv" in meta)
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        own = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.S)[1]
        assert f"{kind} 'sha256-{b64encode(sha256(own.encode()).digest()).decode()}';" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_no_element_carries_a_style_or_an_event_of_its_own():
    for _, attributes in Page(to_html(every_kind())).elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_hostile_text_starts_no_element_and_ends_none():
    hostile = "</script></title></style>--><img src=x onerror=alert(1)>\"'><svg/onload=alert(1)>{{ 7 * 7 }}"
    harmless, page = to_html(with_text("word")), to_html(with_text(hostile))
    assert [tag for tag, _ in Page(page).elements] == [tag for tag, _ in Page(harmless).elements]
    assert "<img" not in page
    assert document(page)["graph"]["model"] == hostile


@settings(deadline=None, max_examples=25)
@given(texts)
def test_any_text_makes_a_page_that_can_be_written_and_holds_it(text: str):
    page = to_html(with_text(text))
    page.encode()
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069]", page)
    assert document(page)["nodes"][0]["token"] == text


def test_the_data_are_plain_ascii_without_angle_brackets():
    page = to_html(sample_graph())
    for block in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S):
        assert not set(block) & set("<>&")
    assert document(page)["graph"]["tokens"] == sample_graph().graph["tokens"]


def test_a_number_that_is_not_finite_is_refused_with_one_line():
    g = sample_graph()
    g.nodes["token:0"]["influence"] = math.nan
    with pytest.raises(UserError, match="not a finite number") as caught:
        to_html(g)
    assert "\n" not in str(caught.value)


def test_the_tables_hold_every_node_and_the_strongest_edges_with_their_numbers():
    g = sample_graph()
    page = Page(to_html(g))
    cells = page.text_of("td") + page.text_of("bdi") + page.text_of("th")
    for _, node in g.nodes(data=True):
        assert number(node["influence"]) in cells
    for kind in ("feature", "logit"):
        for _, node in (entry for entry in g.nodes(data=True) if entry[1]["kind"] == kind):
            assert signed(node["pre_activation"]) in cells
    strongest = max((edge["weight"] for *_, edge in g.edges(data=True)), key=abs)
    assert signed(strongest) in cells


def test_the_header_has_the_targets_scores_and_verification():
    g = sample_graph()
    g.graph["verification"] = {"rank_correlation": {"weight": 0.81234, "effect": 0.9}, "sign_agreement": 0.75, "x": []}
    page = to_html(g)
    assert "rank correlation weight 0.81, effect 0.90" in page
    assert "sign agreement 0.75" in page
    for target in g.graph["target"]:
        assert signed(g.nodes[target["node"]]["pre_activation"]) in page
    assert page.count("<td>50 %</td>") == 2


def test_the_header_says_what_the_features_suffice_for_and_what_is_lost_without_them():
    page = to_html(every_kind())
    assert "keeping only its 1 of 5 active features leaves 0.75 of the target" in page
    assert "takes 0.75 of the target away; 1 random feature of the same layers and positions: 0.62 ± 0.12" in page
    assert "keeping only" not in to_html(sample_graph())


@pytest.mark.parametrize("verification", [None, [], {"rank_correlation": None}, {"sign_agreement": {"weight": "good"}}])
def test_a_verification_without_the_expected_numbers_is_passed_over(verification):
    g = sample_graph()
    if verification is not None:
        g.graph["verification"] = verification
    assert "sign agreement" not in to_html(g)


def test_a_graph_without_scores_or_groups_has_a_page():
    g = sample_graph()
    for key in ("scores", "groups", "settings", "target"):
        del g.graph[key]
    assert document(to_html(g))["nodes"]


def test_a_small_graph_is_shown_whole():
    g = sample_graph()
    assert limited(g, MAX_NODES, MAX_EDGES) is g
    assert "are folded into the remainders" not in to_html(g)


@pytest.mark.parametrize(("max_nodes", "max_edges"), [(40, 10**6), (10**6, 60), (30, 50), (0, 0)])
@pytest.mark.parametrize("make", [sample_graph, every_kind])
def test_what_is_over_the_limit_is_folded_so_that_every_sum_still_holds(make, max_nodes: int, max_edges: int):
    g = make()
    small = limited(g, max_nodes, max_edges)
    assert small.number_of_nodes() < g.number_of_nodes() or small.number_of_edges() < g.number_of_edges()
    assert not unbalanced(small)
    assert {target["node"] for target in g.graph["target"]} <= set(small)


def test_the_limits_are_kept():
    small = limited(sample_graph(per_level=40), 60, 200)
    assert small.number_of_nodes() <= 60
    assert small.number_of_edges() <= 200


def test_the_most_influential_nodes_stay():
    g = sample_graph()
    others = [n for n, node in g.nodes(data=True) if node["kind"] not in ("remainder", "logit")]
    order = sorted(others, key=lambda n: g.nodes[n]["influence"], reverse=True)
    small = limited(g, 20, 10**6)
    kept = [n for n in order if n in small]
    assert kept
    assert kept == order[: len(kept)]


def test_folded_groups_keep_the_members_that_are_left():
    g = sample_graph()
    order = sorted((n for n in g if n.startswith("feature")), key=lambda n: g.nodes[n]["influence"])
    g.graph["groups"] = [{"name": "some", "nodes": [order[0], *order[-2:]]}]
    assert limited(g, 24, 10**6).graph["groups"] == [{"name": "some", "nodes": order[-2:]}]


def test_the_page_says_how_much_is_folded():
    g = sample_graph(layers=(5, 11), n_pos=12, per_level=600)
    page = to_html(g)
    shown = graph_of(document(page))
    assert shown.number_of_nodes() <= MAX_NODES
    assert shown.number_of_edges() <= MAX_EDGES
    gone = g.number_of_nodes() - sum(1 for n in shown if n in g)
    assert f"{gone:,} nodes and " in page
    assert not unbalanced(shown)
