"""The viewer in a browser (headless Chromium, from a file, without a network)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from depass_sae.files import write_text
from depass_sae.graph.export import read_graph
from depass_sae.graph.export.html import MAX_EDGES, MAX_NODES, to_html
from depass_sae.graph.influence import through
from depass_sae.graph.limits import limited
from depass_sae.view.words import number, signed
from tests.browser import Watched
from tests.graph.export.every_kind import every_kind, with_text
from tests.graph.sample import sample_graph

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")

pytestmark = pytest.mark.browser

GALLERY = Path(__file__).parents[3] / "graphs"


class Viewer(Watched):
    """A page with a graph in it."""

    def __init__(self, context: Any, folder: Path) -> None:
        super().__init__(context)
        self.folder = folder

    def open(self, g: nx.DiGraph, fragment: str = "nodes=all&edges=all") -> Viewer:
        """With everything drawn, if nothing else is said."""
        file = self.folder / "graph.html"
        write_text(file, to_html(g))
        self.page.goto("about:blank")
        self.page.goto(file.as_uri() + (f"#{fragment}" if fragment else ""))
        self.page.wait_for_selector("#nodes .node")
        return self

    def node(self, name: str) -> Any:
        return self.page.locator(f'#nodes [data-id="{name}"]')

    def rows(self, title: str) -> dict[str, list[str]]:
        """A table of the panel: the cells with numbers, by the node at the other end."""
        rows = self.page.locator(f'#panel [data-list="{title}"] tbody tr').all()
        return {row.get_attribute("data-go"): row.locator("td.n").all_inner_texts() for row in rows}

    def drawn_edges(self) -> int:
        return int(self.page.locator("#edge-count").inner_text().split(" of ")[0].replace(",", ""))

    def group(self, names: list[str], called: str) -> None:
        for name in names:
            self.node(name).click(modifiers=["Shift"])
        self.page.keyboard.press("g")
        self.page.locator("#group-name").fill(called)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#groups")


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    yield context
    context.close()


@pytest.fixture
def viewer(context: Any, tmp_path: Path) -> Iterator[Viewer]:
    viewer = Viewer(context, tmp_path)
    yield viewer
    assert viewer.trouble == []


def feature_with_inflow(g: nx.DiGraph) -> str:
    return max((n for n in g if n.startswith("feature:11")), key=g.in_degree)


def most_influential(g: nx.DiGraph) -> str:
    return max((n for n in g if n.startswith("feature")), key=lambda n: g.nodes[n]["influence"])


def test_every_node_is_drawn(viewer: Viewer):
    g = sample_graph()
    viewer.open(g)
    assert {node.get_attribute("data-id") for node in viewer.page.locator("#nodes .node").all()} == set(g)
    assert viewer.drawn_edges() == g.number_of_edges()


def test_a_drawing_that_is_a_little_too_wide_is_shown_whole_and_a_wider_one_at_its_target(viewer: Viewer):
    stage = viewer.page.locator("#stage")
    seen = set()
    for width in (1400, 1250, 1080, 650, 500):  # of the page; a drawing is 720 wide at least
        viewer.page.set_viewport_size({"width": width, "height": 900})
        viewer.open(sample_graph(), "")
        room, drawn, left = stage.evaluate("stage => [stage.clientWidth, stage.scrollWidth, stage.scrollLeft]")
        whole = 1.25 * room >= 720
        assert (drawn == room, left == 0) == (whole, whole), width
        seen.add((whole, room < 720))
    assert seen == {(True, False), (True, True), (False, True)}


def test_the_canvas_is_not_empty(viewer: Viewer):
    viewer.open(sample_graph())
    painted = """() => { const c = document.querySelector("#edges");
        return c.getContext("2d").getImageData(0, 0, c.width, c.height).data.filter(x => x).length }"""
    assert viewer.page.evaluate(painted) > 1000


def test_a_click_shows_the_inputs_and_outputs_with_their_numbers(viewer: Viewer):
    g = sample_graph()
    name = feature_with_inflow(g)
    viewer.open(g).node(name).click()
    expected = {u: [signed(e["weight"]), signed(e["effect"])] for u, _, e in g.in_edges(name, data=True)}
    assert viewer.rows("inputs") == expected
    expected = {v: [signed(e["weight"]), signed(e["effect"])] for _, v, e in g.out_edges(name, data=True)}
    assert viewer.rows("outputs") == expected
    order = [abs(g.edges[u, name]["weight"]) for u in viewer.rows("inputs")]
    assert order == sorted(order, reverse=True)


def test_the_panel_shows_what_adds_up_to_the_pre_activation(viewer: Viewer):
    g = sample_graph()
    name = feature_with_inflow(g)
    viewer.open(g).node(name).click()
    node, inflow = g.nodes[name], sum(edge["weight"] for *_, edge in g.in_edges(name, data=True))
    line = " ".join(viewer.page.locator("#panel .sum").inner_text().split())
    numbers = signed(inflow), signed(node["constant"]), signed(node["pre_activation"])
    assert line == "Σ inputs {} + constant {} = pre-activation {}".format(*numbers)


def test_a_row_leads_on_to_its_node(viewer: Viewer):
    g = sample_graph()
    name = feature_with_inflow(g)
    viewer.open(g).node(name).click()
    source = next(iter(viewer.rows("inputs")))
    viewer.page.locator(f'#panel [data-list="inputs"] [data-go="{source}"] td.n').first.click()
    assert name in viewer.rows("outputs")


def with_pieces() -> tuple[nx.DiGraph, str, list[dict[str, Any]]]:
    """A graph, one of its features, and the eight pieces of text where that fires most, all different."""
    g = sample_graph()
    name = feature_with_inflow(g)
    texts = ["<b>bold</b>", " a word", "\u202eback", " line\n"]
    pieces = [
        {"pos": 1, "tokens": [*texts, f" number {i}"], "activations": [0.0, 8.0 - i, -2.0, 1.0, 0.0]} for i in range(8)
    ]
    about = {"count": 1234, "max": 8.0, "contexts": pieces}
    key = name.removeprefix("feature:").partition("@")[0]
    g.graph["contexts"] = {"tokens": 20000, "left_out": 0, "features": {key: about}}
    return g, name, pieces


def test_pointing_at_a_feature_shows_where_it_fires_most_and_a_click_shows_more(viewer: Viewer):
    g, name, pieces = with_pieces()
    viewer.open(g).node(name).hover()
    shown = viewer.page.locator("#tooltip .contexts li")
    assert [text.split("number ")[1] for text in shown.all_inner_texts()] == ["0", "1", "2"]
    assert shown.first.text_content() == "<b>bold</b> a word\ufffdback line↵ number 0"
    assert shown.first.locator("b").count() == 0
    shades = [
        piece.evaluate("e => [e.className, e.style.getPropertyValue('--s')]")
        for piece in shown.nth(2).locator("span").all()
    ]
    share = f"{55 * pieces[2]['activations'][1] / 8:.0f}%"
    assert shades == [
        ["piece", ""],
        ["piece above peak", share],
        ["piece below", "14%"],
        ["piece above", "7%"],
        ["piece", ""],
    ]
    viewer.node(name).click()
    panel = viewer.page.locator("#panel")
    assert "1,234 of 20,000 tokens" in panel.inner_text()
    listed = panel.locator(".contexts li")
    assert listed.count() == 3
    panel.get_by_role("button", name="5 more").click()
    assert [text.split("number ")[1] for text in listed.all_inner_texts()] == list("01234567")
    assert panel.get_by_role("button", name="5 more").count() == 0


def test_a_node_of_which_no_index_knows_anything_shows_none(viewer: Viewer):
    g, name, _ = with_pieces()
    other = next(n for n in g if n.startswith("feature:") and n != name)
    viewer.open(g).node(other).hover()
    assert viewer.page.locator("#tooltip dl").is_visible()
    assert viewer.page.locator(".contexts").count() == 0
    viewer.node(other).click()
    assert viewer.page.locator(".contexts").count() == 0
    assert "where it fires most" not in viewer.page.locator("#panel").inner_text()


def test_hovering_lights_up_the_edges_of_a_node_and_tells_its_numbers(viewer: Viewer):
    g = sample_graph()
    name = feature_with_inflow(g)
    viewer.open(g).node(name).hover()
    lit = viewer.page.locator("#lit .edge")
    ends = {(e.get_attribute("data-source"), e.get_attribute("data-target")) for e in lit.all()}
    assert ends == set(g.in_edges(name)) | set(g.out_edges(name))
    assert number(g.nodes[name]["influence"]) in viewer.page.locator("#tooltip").inner_text()
    viewer.page.mouse.move(5, 5)
    assert lit.count() == 0


def test_a_negative_edge_is_dashed(viewer: Viewer):
    g = sample_graph()
    name = feature_with_inflow(g)
    viewer.open(g).node(name).hover()
    for edge in viewer.page.locator("#lit .edge").all():
        weight = g.edges[edge.get_attribute("data-source"), edge.get_attribute("data-target")]["weight"]
        assert (edge.get_attribute("stroke-dasharray") is not None) == (weight < 0)


def test_the_edge_slider_hides_what_little_comes_through_and_says_how_many_are_left(viewer: Viewer):
    g = sample_graph()
    viewer.open(g).page.locator("#edge-slider").fill("30")
    playwright.expect(viewer.page.locator("#edge-count")).to_have_text(f"30 of {len(g.edges)}")
    share = through(g)
    weakest = sorted(share.values())[-30]
    drawn = viewer.page.evaluate("page.drawn()")
    assert len(drawn) == 30
    assert all(share[source, target] >= 0.999 * weakest for source, target, *_ in drawn)


@pytest.mark.parametrize("by", ["weight", "effect"])
def test_an_edge_is_as_wide_and_strong_as_what_of_the_target_comes_through_it(viewer: Viewer, by: str):
    g = sample_graph()
    share = through(g, by)
    drawn = viewer.open(g, f"nodes=all&edges=all&by={by}").page.evaluate("page.drawn()")
    assert {(source, target) for source, target, *_ in drawn} == set(g.edges)
    many = ("remainder", "constant", "bias")
    single = [entry for entry in drawn if g.nodes[entry[0]]["kind"] not in many]
    order = sorted(single, key=lambda entry: share[entry[0], entry[1]])
    for numbers in zip(*[entry[2:] for entry in order], strict=True):  # widths, opacities
        assert list(numbers) == sorted(numbers)
        assert numbers[-1] > 3 * numbers[0]
    assert max(entry[2] for entry in drawn) == max(entry[2] for entry in single)  # nothing drowns a single source


def test_the_page_opens_at_the_most_influential_nodes_in_the_window_and_all_have_captions(viewer: Viewer):
    g = sample_graph(per_level=40)
    viewer.open(g, "")
    assert viewer.page.locator("#node-count").inner_text() == f"25 of {len(g)}"
    shown = {node.get_attribute("data-id") for node in viewer.page.locator("#nodes .node").all()}
    targets = {target["node"] for target in g.graph["target"]}
    others = sorted(set(g) - targets, key=lambda name: g.nodes[name]["influence"], reverse=True)
    assert shown == targets | set(others[: 25 - len(targets)])
    assert viewer.page.locator("#nodes .node text").count() == 25
    stage = viewer.page.locator("#stage").bounding_box()
    assert all(within(node.bounding_box(), stage) for node in viewer.page.locator("#nodes .node .body").all())


def test_in_the_climate_case_the_first_screen_leads_from_climate_to_the_target(viewer: Viewer):
    g = read_graph(GALLERY / "climate" / "graph-17-2601-at-7.json")
    drawn = viewer.open(g, "").page.evaluate("page.drawn()")
    first_screen = nx.DiGraph([(source, target) for source, target, *_ in drawn])
    (target,) = (target["node"] for target in g.graph["target"])
    widths = {}
    for source, _, width, *_ in drawn:
        if (token := g.nodes[source]).get("kind") == "token" and token["layer"] == -1:
            widths[token["token"]] = max(width, widths.get(token["token"], 0))
    climate = next(name for name in first_screen if g.nodes[name].get("token") == " climate")
    assert nx.has_path(first_screen, climate, target)
    assert max(widths, key=widths.__getitem__) == " climate"
    loudest = max(drawn, key=lambda entry: entry[2])
    assert g.nodes[loudest[0]].get("token") != " the"


def test_the_node_slider_asks_for_more_by_their_number(viewer: Viewer):
    g = sample_graph(per_level=40)
    viewer.open(g, "").page.locator("#node-slider").fill("60")
    playwright.expect(viewer.page.locator("#node-count")).to_have_text(f"60 of {len(g)}")
    playwright.expect(viewer.page.locator("#nodes .node")).to_have_count(60)
    viewer.page.locator("#node-slider").fill(str(len(g)))
    playwright.expect(viewer.page.locator("#nodes .node")).to_have_count(len(g))


def test_the_node_slider_hides_what_has_little_influence_but_no_target(viewer: Viewer):
    g = sample_graph()
    viewer.open(g).page.locator("#node-slider").fill("9")
    playwright.expect(viewer.page.locator("#nodes .node")).to_have_count(9)
    names = {node.get_attribute("data-id") for node in viewer.page.locator("#nodes .node").all()}
    assert {target["node"] for target in g.graph["target"]} <= names
    others = [g.nodes[name]["influence"] for name in names if not g.nodes[name].get("target")]
    assert min(others) > max(node["influence"] for name, node in g.nodes(data=True) if name not in names)


def test_no_node_that_has_an_edge_stands_alone_at_first(viewer: Viewer):
    g = sample_graph()
    drawn = viewer.open(g, "nodes=30").page.evaluate("page.drawn()")
    shown = {node.get_attribute("data-id") for node in viewer.page.locator("#nodes .node").all()}
    connected = {name for edge in g.subgraph(shown).edges for name in edge}
    assert {name for edge in drawn for name in edge[:2]} == connected
    assert len(drawn) < g.subgraph(shown).number_of_edges()


def test_the_switch_to_effects_sorts_and_draws_by_them(viewer: Viewer):
    g = sample_graph()
    name = feature_with_inflow(g)
    viewer.open(g).node(name).click()
    viewer.page.get_by_text("effect", exact=True).first.click()
    viewer.page.wait_for_selector('#panel th[aria-sort]:has-text("effect")')
    order = [abs(g.edges[u, name]["effect"]) for u in viewer.rows("inputs")]
    assert order == sorted(order, reverse=True)
    for edge in viewer.page.locator("#lit .edge").all():
        effect = g.edges[edge.get_attribute("data-source"), edge.get_attribute("data-target")]["effect"]
        assert ("negative" in edge.get_attribute("class").split()) == (effect < 0)


def test_a_feature_links_to_neuronpedia(viewer: Viewer):
    g = sample_graph()
    name = feature_with_inflow(g)
    viewer.open(g).node(name).click()
    link = viewer.page.locator("#panel a")
    assert link.get_attribute("href") == f"https://www.neuronpedia.org/tiny/11-res/{g.nodes[name]['index']}"
    assert "noopener" in link.get_attribute("rel").split()


def test_an_sae_without_a_neuronpedia_id_gives_no_link(viewer: Viewer):
    g = sample_graph()
    for sae in g.graph["saes"]:
        sae["neuronpedia_id"] = None
    viewer.open(g).node(feature_with_inflow(g)).click()
    assert viewer.page.locator("#panel a").count() == 0


def test_a_feature_links_to_its_card_where_an_index_is_looked_at(viewer: Viewer):
    g, name, _ = with_pieces()
    g.graph["contexts"]["cards"] = "http://127.0.0.1:8123"
    viewer.open(g).node(name).click()
    link = viewer.page.get_by_role("link", name="card")
    assert link.get_attribute("href") == f"http://127.0.0.1:8123/feature/{name[8:].partition('@')[0]}"
    assert "noopener" in link.get_attribute("rel").split()
    other = next(n for n in g if n.startswith("feature:") and n != name)
    viewer.node(other).click()
    assert viewer.page.get_by_role("link", name="card").count() == 0  # the index knows nothing of it


def test_a_node_lists_which_two_others_decided_where_heads_looked(viewer: Viewer):
    g = sample_graph()
    name = feature_with_inflow(g)
    query, key = list(g.predecessors(name))[:2]
    g.graph["pairs"] = [{"node": name, "query": query, "key": key, "value": -1.25}]
    viewer.open(g).node(name).click()
    rows = viewer.page.locator("table[data-list='who looked for whom'] tbody tr")
    assert rows.count() == 1
    assert rows.locator("td").last.inner_text() in ("−1.250", "-1.250")
    rows.locator("button").nth(1).click()
    assert "who looked for whom" not in viewer.page.locator("#panel").inner_text()  # the key's own panel


def test_search_finds_features_labels_and_tokens(viewer: Viewer):
    g = sample_graph()
    name = feature_with_inflow(g)
    g.nodes[name]["label"] = "names of rivers"
    viewer.open(g).page.keyboard.press("/")
    node = g.nodes[name]
    for query in (f"{node['layer']}/{node['index']}", "RIVERS"):
        viewer.page.keyboard.type(query)
        assert viewer.page.locator(".node.match").evaluate_all("all => all.map(n => n.dataset.id)") == [name]
        viewer.page.keyboard.press("Enter")
        assert viewer.page.locator("#panel h2").first.inner_text() == f"11/{node['index']}@{node['pos']}"
        viewer.page.keyboard.press("Escape")
    viewer.page.keyboard.type("word2")
    words = {n for n, node in g.nodes(data=True) if node.get("token") == " word2"}
    assert set(viewer.page.locator(".node.match").evaluate_all("all => all.map(n => n.dataset.id)")) == words


def test_pins_stay_lit_and_listed_and_survive_a_reload(viewer: Viewer):
    g = sample_graph()
    name = feature_with_inflow(g)
    viewer.open(g).node(name).press("p")
    viewer.page.reload()
    assert "pinned" in viewer.node(name).get_attribute("class").split()
    assert viewer.page.locator("#lit .edge").count() == g.degree(name)
    assert viewer.page.locator("#pins li").count() == 1


def test_a_group_is_one_node_with_the_sums_of_its_members_edges(viewer: Viewer):
    g = sample_graph()
    names = sorted((n for n in g if n.startswith("feature:11")), key=g.in_degree)[-3:]
    viewer.open(g).group(names, "three features")
    assert all(viewer.node(name).count() == 0 for name in names)
    assert "three featur… 3 nodes" in viewer.node(f"group:{names[0]}").text_content()
    expected: dict[str, float] = {}
    for source, _, edge in g.in_edges(names, data=True):
        expected[source] = expected.get(source, 0.0) + edge["weight"]
    assert {name: cells[0] for name, cells in viewer.rows("inputs").items()} == {
        name: signed(weight) for name, weight in expected.items()
    }
    whole = sum(g.nodes[name]["pre_activation"] for name in names)
    assert f"= pre-activation {signed(whole)}" in viewer.page.locator("#panel .sum").inner_text()


def test_a_group_across_layers_says_what_flows_within_it(viewer: Viewer):
    g = sample_graph()
    top = feature_with_inflow(g)
    below = next(u for u in g.predecessors(top) if u.startswith("feature"))
    viewer.open(g).group([top, below], "both")
    line = viewer.page.locator("#panel .sum").inner_text()
    assert f"within the group {signed(g.edges[below, top]['weight'])}" in line
    assert "≠" not in line


def test_groups_survive_a_reload_and_can_be_taken_apart(viewer: Viewer):
    g = sample_graph()
    names = [n for n in g if n.startswith("feature:5")][:2]
    viewer.open(g).group(names, "pair")
    viewer.page.reload()
    assert viewer.node(f"group:{names[0]}").count() == 1
    viewer.page.get_by_label("ungroup pair").click()
    assert all(viewer.node(name).count() == 1 for name in names)
    viewer.page.reload()
    assert viewer.page.locator(".node.group").count() == 0


def test_the_graph_s_own_groups_are_drawn(viewer: Viewer):
    g = every_kind()
    viewer.open(g)
    assert viewer.page.locator(".node.group").count() == len(g.graph["groups"])


def test_the_downloaded_file_is_read_back_with_the_groups_of_the_page(viewer: Viewer):
    g = sample_graph()
    names = [n for n in g if n.startswith("feature:5")][:2]
    viewer.open(g).group(names, "pair \U0001f98a")
    with viewer.page.expect_download() as caught:
        viewer.page.locator("#download").click()
    file = viewer.folder / "graph.json"
    caught.value.save_as(file)
    back = read_graph(file)
    assert back.graph["groups"] == [{"name": "pair \U0001f98a", "nodes": names}]
    assert back.graph["tokens"] == g.graph["tokens"]
    assert dict(back.nodes(data=True)) == dict(g.nodes(data=True))
    assert list(back.edges(data=True)) == list(g.edges(data=True))


def test_nothing_is_requested_but_the_page(viewer: Viewer):
    viewer.open(sample_graph())
    viewer.node(feature_with_inflow(sample_graph())).click()
    asked = [url for url in viewer.requests if not url.startswith(("data:", "about:"))]
    assert [url.partition("#")[0] for url in asked] == [viewer.page.url.partition("#")[0]]


@pytest.mark.parametrize(
    "text",
    [
        "</script><img src=x onerror=alert(1)>",
        "<svg onload=alert(1)>",
        "\ud800\u202e\x00\n",
        "{{7*7}}${alert(1)}",
        "\"'`",
    ],
)
def test_hostile_text_stays_text(viewer: Viewer, text: str):
    g = with_text(text)
    viewer.open(g)
    name = next(n for n in g if n.startswith("feature"))
    viewer.node(name).click()
    viewer.node(name).hover()
    viewer.group([n for n in g if n.startswith("feature")][:2], "<img src=x onerror=alert(1)>")
    assert viewer.page.locator("img").count() == 0
    assert viewer.page.locator("script").count() == 3
    if text.isprintable():
        assert viewer.page.locator("#drawing .position").first.text_content().startswith(text[:10])
    else:
        assert not re.search("[\u202e\x00]", viewer.page.locator("body").inner_text())


def test_the_keyboard_reaches_a_node_opens_it_and_goes_on_to_its_neighbours(viewer: Viewer):
    g = sample_graph()
    viewer.open(g).page.locator("#download").focus()
    for _ in range(3):
        viewer.page.keyboard.press("Tab")
        if viewer.page.evaluate("document.activeElement.dataset.id"):
            break
    focused = "document.activeElement.dataset.id"
    start = viewer.page.evaluate(focused)
    assert start.startswith("logit")
    viewer.page.keyboard.press("Enter")
    assert set(viewer.rows("inputs")) == set(g.predecessors(start))
    viewer.page.keyboard.press("ArrowDown")
    below = max(g.in_edges(start, data=True), key=lambda entry: abs(entry[2]["weight"]))[0]
    assert viewer.page.evaluate(focused) == below
    viewer.page.keyboard.press("ArrowUp")
    above = max(g.out_edges(below, data=True), key=lambda entry: abs(entry[2]["weight"]))[1]
    assert viewer.page.evaluate(focused) == above
    viewer.page.keyboard.press("ArrowRight")
    viewer.page.keyboard.press("ArrowLeft")
    assert g.nodes[viewer.page.evaluate(focused)]["kind"] == "logit"
    viewer.page.keyboard.press("Escape")
    assert viewer.page.locator(".node.selected").count() == 0


def within(box: dict[str, float], outer: dict[str, float]) -> bool:
    return all(
        outer[side] <= box[side] and box[side] + box[size] <= outer[side] + outer[size] + 0.5
        for side, size in (("x", "width"), ("y", "height"))
    )


SMALL = [(1200, 700), (800, 700), (400, 700)]


@pytest.mark.parametrize(("width", "height"), SMALL)
def test_a_click_shows_the_details_and_the_node_within_a_small_window(viewer: Viewer, width: int, height: int):
    g = sample_graph()
    viewer.page.set_viewport_size({"width": width, "height": height})
    viewer.open(g)
    window = {"x": 0.0, "y": 0.0, "width": float(width), "height": float(height)}
    for name in (feature_with_inflow(g), "token:0", g.graph["target"][0]["node"]):
        viewer.node(name).scroll_into_view_if_needed()
        viewer.page.wait_for_timeout(100)  # the tokens' names follow a scroll in the next frame
        viewer.node(name).click()
        parts = (
            viewer.page.locator("#panel"),
            viewer.page.locator("#panel h2").first,
            viewer.node(name).locator(".body"),
        )
        panel, heading, node = (part.bounding_box() for part in parts)
        assert within(panel, window)
        assert within(heading, panel)
        assert within(node, window | {"height": panel["y"]})
        assert panel["height"] < height / 2
        overflowing = "p => [p.scrollHeight > p.clientHeight, getComputedStyle(p).overflowY]"
        assert viewer.page.locator("#panel").evaluate(overflowing) == [True, "auto"]


@pytest.mark.parametrize(("width", "height"), [(1160, 640), (700, 900)])
def test_a_click_shows_the_details_within_the_frame_of_another_page(viewer: Viewer, width: int, height: int):
    g = sample_graph()
    source = to_html(g).replace("&", "&amp;").replace('"', "&quot;")
    write_text(viewer.folder / "outer.html", f'<iframe srcdoc="{source}" width="{width}" height="{height}"></iframe>')
    viewer.page.goto((viewer.folder / "outer.html").as_uri())
    frame = viewer.page.frame_locator("iframe")
    frame.locator(f'#nodes [data-id="{most_influential(g)}"]').click()
    heading = frame.locator("#panel h2").first.bounding_box()
    assert within(heading, viewer.page.locator("iframe").bounding_box())


@pytest.mark.parametrize("way", ["Escape", "button", "ground"])
def test_details_over_a_small_window_can_be_closed_and_the_keyboard_goes_on_at_the_node(viewer: Viewer, way: str):
    g = sample_graph()
    viewer.page.set_viewport_size({"width": 800, "height": 700})
    name = feature_with_inflow(g)
    viewer.open(g).node(name).press("Enter")
    playwright.expect(viewer.page.locator("#close")).to_be_visible()
    assert viewer.page.evaluate("document.activeElement.dataset.id") == name
    if way == "Escape":
        viewer.page.keyboard.press("Escape")
    elif way == "button":
        viewer.page.locator("#close").click()
    else:
        viewer.page.locator("#drawing").click(position={"x": 300, "y": 3})
    playwright.expect(viewer.page.locator("#close")).to_have_count(0)
    assert viewer.page.locator("#panel").evaluate("p => getComputedStyle(p).position") == "static"
    if way != "ground":
        assert viewer.page.evaluate("document.activeElement.dataset.id") == name


def test_beside_the_drawing_the_details_have_no_button_of_their_own(viewer: Viewer):
    g = sample_graph()
    viewer.open(g).node(feature_with_inflow(g)).click()
    assert viewer.page.locator("#panel").evaluate("p => getComputedStyle(p).position") == "static"
    assert not viewer.page.locator("#close").is_visible()


def test_the_page_writes_numbers_as_everything_else_does(viewer: Viewer):
    numbers = [0.0, -0.0, 1.0, -1.5, 0.0005, 0.00049, -0.00049, 3.2e-12, 99999.9, 1e5, -123456.0, 2.0004999, 1e300]
    written = viewer.open(sample_graph()).page.evaluate(
        "all => all.map((x) => [model.plain(x), model.signed(x)])", numbers
    )
    assert written == [[number(x), signed(x)] for x in numbers]


def test_heads_are_a_second_view_that_can_be_switched_off(viewer: Viewer):
    g = every_kind()
    g.graph["groups"] = []
    target = next(v for _, v, edge in g.edges(data=True) if edge["kind"] == "head")
    viewer.open(g).node(target).click()
    assert set(viewer.rows("inputs once more, by head")) == {"head:11.3"}
    assert "head:11.3" not in viewer.rows("inputs")
    viewer.page.locator("#heads").uncheck()
    playwright.expect(viewer.node("head:11.3")).to_have_count(0)


def compared() -> nx.DiGraph:
    """A graph as the comparison of two has it."""
    g = sample_graph()
    g.graph["diff"] = {"a": "before", "b": "after </script>"}
    sides = ("only_a", "only_b", "both")
    for i, (_, node) in enumerate(g.nodes(data=True)):
        node["diff"] = sides[i % 3]
    for i, (*_, edge) in enumerate(g.edges(data=True)):
        edge["diff"] = sides[i % 3]
        if i % 3 != 1:
            edge.update(weight_a=edge["weight"], effect_a=edge["effect"])
        if i % 3 != 0:
            edge.update(weight_b=edge["weight"] / 2, effect_b=edge["effect"] * 3)
    return g


def test_two_compared_graphs_are_drawn_in_three_colours_with_both_weights(viewer: Viewer):
    g = compared()
    name = feature_with_inflow(g)
    viewer.open(g).node(name).click()
    for by in ("weight", "effect"):
        viewer.page.get_by_text(by, exact=True).first.click()
        viewer.page.wait_for_selector(f'#panel th:has-text("{by} in A")')
        for source, cells in viewer.rows("inputs").items():
            edge = g.edges[source, name]
            assert cells == [signed(edge[key]) if key in edge else "–" for key in (f"{by}_a", f"{by}_b")]
    fill = "n => getComputedStyle(n.querySelector('.body')).fill"
    features = [viewer.page.locator(f".node.{side}").first.evaluate(fill) for side in ("only_a", "only_b", "both")]
    assert len(set(features)) == 3
    legend = viewer.page.locator("#legend").inner_text()
    assert "only in A: before" in legend
    assert "only in B: after </script>" in legend


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system_and_the_button_and_the_choice_is_kept(
    browser: Any, tmp_path: Path, scheme: str
):
    context = browser.new_context(color_scheme=scheme)
    viewer = Viewer(context, tmp_path).open(sample_graph())
    dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(x => x < 60)"
    assert viewer.page.evaluate(dark) == (scheme == "dark")
    viewer.page.locator("#theme").click()
    assert viewer.page.evaluate(dark) == (scheme == "light")
    viewer.page.reload()
    assert viewer.page.evaluate(dark) == (scheme == "light")
    context.close()


def test_without_javascript_the_tables_are_there(browser: Any, tmp_path: Path):
    file = tmp_path / "graph.html"
    g = sample_graph()
    write_text(file, to_html(g))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("#tables tbody").first.locator("tr").count() == len(g)
    assert page.locator("#tables table").first.is_visible()
    assert page.get_by_text("The drawing needs JavaScript").is_visible()
    context.close()


def test_a_thousand_nodes_and_ten_thousand_edges_are_drawn(viewer: Viewer):
    g = limited(sample_graph(layers=(5, 11, 17), n_pos=12, per_level=330), MAX_NODES, MAX_EDGES)
    assert len(g) > 0.98 * MAX_NODES
    assert g.number_of_edges() > 0.98 * MAX_EDGES
    viewer.open(g)
    assert viewer.page.locator("#nodes .node").count() == len(g)
    playwright.expect(viewer.page.locator("#edge-count")).to_have_text(f"{len(g.edges):,} of {len(g.edges):,}")
    viewer.page.locator(".node.logit").first.click()
    assert viewer.page.locator("#panel .flows tbody tr").count() > 0
