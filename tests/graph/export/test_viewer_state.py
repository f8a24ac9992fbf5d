"""What a reader makes of the viewer's page, and what becomes of it: the address, the file, pictures, undo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote
from xml.etree import ElementTree

import networkx as nx
import pytest

from depass_sae.graph.export import read_graph, write_graph
from depass_sae.graph.influence import through
from tests.browser import ALL, barriers
from tests.graph.export.every_kind import with_text
from tests.graph.export.frames import FRAMES, fullest
from tests.graph.export.test_viewer import Viewer, compared, feature_with_inflow, most_influential
from tests.graph.sample import sample_graph

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")

pytestmark = pytest.mark.browser


@pytest.fixture
def viewer(browser: Any, tmp_path: Path) -> Iterator[Viewer]:
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    viewer = Viewer(context, tmp_path)
    yield viewer
    assert viewer.trouble == []
    context.close()


def shown(viewer: Viewer) -> set[str]:
    return set(viewer.page.locator("#nodes .node").evaluate_all("all => all.map(n => n.dataset.id)"))


def pinned(viewer: Viewer) -> set[str]:
    return set(viewer.page.locator("#nodes .pinned").evaluate_all("all => all.map(n => n.dataset.id)"))


def saved(viewer: Viewer, button: str = "#download", name: str = "saved.json") -> Path:
    with viewer.page.expect_download() as caught:
        viewer.page.locator(button).click()
    file = viewer.folder / name
    caught.value.save_as(file)
    return file


def relabel(viewer: Viewer, name: str, text: str) -> None:
    viewer.node(name).click()
    viewer.page.locator("#panel input.label").fill(text)
    viewer.page.keyboard.press("Enter")


# -------------------------------------------------------------------------------------------------------------- paths


def test_only_paths_through_a_node_are_drawn_while_that_is_asked_for(viewer: Viewer):
    g = sample_graph()
    name = max((n for n in g if n.startswith("feature:11") and g.out_degree(n) == 2), key=g.in_degree)
    past = next(u for u in g.predecessors(name)), g.graph["target"][0]["node"]  # both on the way, the edge is not
    g.add_edge(*past, kind="flow", weight=5.0, effect=0.0)
    viewer.open(g).node(name).click()
    toggle = viewer.page.get_by_role("button", name="only paths through it")
    toggle.click()
    below, above = nx.ancestors(g, name), nx.descendants(g, name)
    assert shown(viewer) == {name} | below | above
    edges = {tuple(edge[:2]) for edge in viewer.page.evaluate("page.drawn()")}
    assert edges == {(a, b) for a, b in g.edges if b in below | {name} or a in above | {name}}
    assert past not in edges
    assert toggle.get_attribute("aria-pressed") == "true"
    assert viewer.page.locator("#path-name").inner_text() == f"11/{g.nodes[name]['index']}@{g.nodes[name]['pos']}"
    viewer.page.locator("#path-off").click()
    assert shown(viewer) == set(g)
    assert not viewer.page.locator("#path").is_visible()


def test_pins_are_a_graph_of_their_own_beside_the_drawing(viewer: Viewer):
    g = sample_graph()
    target = g.graph["target"][0]["node"]
    source = max((u for u in g.predecessors(target) if u.startswith("feature")), key=g.in_degree)
    token = next(u for u in g.predecessors(source))
    viewer.open(g).node(target).press("p")
    assert viewer.page.locator("#pinned-graph").count() == 0
    for name in (source, token):
        viewer.node(name).press("p")
    marks = viewer.page.locator("#pinned-graph [data-pin]")
    assert set(marks.evaluate_all("all => all.map(n => n.dataset.pin)")) == {target, source, token}
    expected = g.subgraph([target, source, token]).number_of_edges()
    assert viewer.page.locator("#pinned-graph .edge").count() == expected >= 2
    height = {n: viewer.page.locator(f'[data-pin="{n}"]').bounding_box()["y"] for n in (target, source, token)}
    assert height[target] < height[source] < height[token]
    viewer.page.locator(f'[data-pin="{source}"]').press("Enter")
    assert (
        viewer.page.locator("#panel h2").first.inner_text() == f"11/{g.nodes[source]['index']}@{g.nodes[source]['pos']}"
    )


# -------------------------------------------------------------------------------------------------------------- labels


def test_an_edited_label_is_a_features_wherever_it_stands_and_is_in_the_heading(viewer: Viewer):
    g = sample_graph()
    name = feature_with_inflow(g)
    node = g.nodes[name]
    twin = f"feature:11/{node['index']}@{node['pos'] - 1 or 2}"
    g.add_node(twin, **{**node, "pos": int(twin[-1]), "constant": node["pre_activation"]})
    g.nodes[name]["target"] = True
    g.graph["target"].insert(0, {"node": name, "name": "x", "weight": 0.0})
    g.nodes[name]["label"] = g.nodes[twin]["label"] = "before <b>"
    viewer.open(g)
    assert viewer.page.locator("h1 .meaning").first.inner_text() == "before <b>"
    assert viewer.page.title().endswith("before <b>: feature-flow graph")
    relabel(viewer, twin, "rivers & <i>")
    assert viewer.page.locator("h1 .meaning").first.inner_text() == "rivers & <i>"
    for one in (name, twin):
        assert "rivers & <i>" in viewer.node(one).get_attribute("aria-label")
    assert "rivers" in viewer.node(name).locator("text").text_content()
    back = read_graph(saved(viewer))
    assert {back.nodes[one]["label"] for one in (name, twin)} == {"rivers & <i>"}
    assert [n for n in g if back.nodes[n]["label"] != g.nodes[n]["label"]] == sorted([name, twin], key=list(g).index)


def test_a_group_can_be_renamed(viewer: Viewer):
    g = sample_graph()
    names = [n for n in g if n.startswith("feature:5")][:2]
    viewer.open(g).group(names, "pair")
    relabel(viewer, f"group:{names[0]}", "two")
    assert read_graph(saved(viewer)).graph["groups"] == [{"name": "two", "nodes": names}]


# ------------------------------------------------------------------------------------------- the address, and the file


def a_view(viewer: Viewer) -> tuple[nx.DiGraph, str, list[str]]:
    """A page with pins, a group, a label, a threshold and paths through a node."""
    g = sample_graph(per_level=20)
    name = most_influential(g)
    names = [n for n in g if n.startswith("feature:5") and n != name][:2]
    viewer.open(g).group(names, "pair")
    viewer.page.keyboard.press("Escape")
    viewer.node("token:2").press("p")
    relabel(viewer, name, "a label")
    viewer.page.locator("#node-slider").fill("40")
    viewer.page.get_by_text("effect", exact=True).first.click()
    playwright.expect(viewer.page.locator("#node-count")).to_contain_text("4")
    viewer.page.wait_for_timeout(100)
    return g, name, names


def test_the_address_says_what_was_made_of_the_page(viewer: Viewer, browser: Any):
    g, name, names = a_view(viewer)
    said = parse_qs(viewer.page.url.partition("#")[2])
    assert json.loads(said["pins"][0]) == ["token:2"]
    assert json.loads(said["groups"][0]) == [{"name": "pair", "nodes": names}]
    assert said["nodes"] == ["40"]
    assert said["by"] == ["effect"]
    other = browser.new_context()  # of a reader who was never here
    there = Viewer(other, viewer.folder).open(g, viewer.page.url.partition("#")[2])
    assert shown(there) == shown(viewer)
    assert pinned(there) == {"token:2"}
    assert there.node(f"group:{names[0]}").count() == 1
    assert "a label" in there.node(name).get_attribute("aria-label")
    assert there.page.locator("[name=by]:checked").get_attribute("value") == "effect"
    other.close()


def test_the_saved_file_makes_a_page_that_opens_like_this_one(viewer: Viewer, browser: Any):
    _, name, names = a_view(viewer)
    back = read_graph(saved(viewer))
    assert back.nodes[name]["label"] == "a label"
    assert back.graph["view"] == {"nodes": 40, "edges": "all", "by": "effect", "pins": ["token:2"]}
    for suffix in ("json", "graphml"):
        write_graph(back, viewer.folder / f"again.{suffix}")
        again = read_graph(viewer.folder / f"again.{suffix}")
        other = browser.new_context()
        there = Viewer(other, viewer.folder).open(again, "")
        assert shown(there) == shown(viewer)
        assert pinned(there) == {"token:2"}
        assert there.node(f"group:{names[0]}").count() == 1
        other.close()


def test_an_untouched_page_has_a_plain_address_and_saves_the_graph_as_it_was(viewer: Viewer):
    g = sample_graph()
    viewer.open(g, "")
    viewer.node(most_influential(g)).click()
    assert "#" not in viewer.page.url
    back = read_graph(saved(viewer))
    assert dict(back.graph) == dict(g.graph)
    assert list(back.nodes(data=True)) == list(g.nodes(data=True))


@pytest.mark.parametrize(
    "fragment",
    [
        "nodes=-3&edges=x&by=__proto__&path=nowhere&pins=7&groups=%7B%7D&labels=%5B1%5D",
        'pins=["<img src=x onerror=alert(1)>",7,null]&labels={"__proto__":"x","5/1":7}',
        'groups=[null,{"nodes":3},{"name":1}]&by=7&heads=maybe',
        'groups=[{"name":"<img src=x>","nodes":["token:1","nothing",4,{}]}]&path=%00',
        "%E0%A4%A&=&&nodes=1e999",
        "pins=" + "[" * 5000,
        "labels=null&groups=null&pins=null&nodes=null",
    ],
)
def test_an_address_that_makes_no_sense_breaks_nothing(viewer: Viewer, fragment: str):
    g = sample_graph()
    viewer.open(g, fragment)
    assert viewer.page.locator("#nodes .node").count() > 0
    assert viewer.page.locator("img").count() == 0
    assert pinned(viewer) == set()
    assert not viewer.page.locator("#path").is_visible()


@pytest.mark.parametrize("view", ["text", 7, [1], {"pins": {"a": 1}, "nodes": "many", "path": 3, "labels": {"5/1": 2}}])
def test_a_view_in_a_file_that_makes_no_sense_breaks_nothing(viewer: Viewer, view: Any):
    g = sample_graph()
    g.graph["view"] = view
    viewer.open(g, "")
    assert viewer.page.locator("#node-count").inner_text() == f"25 of {len(g)}"


def test_labels_of_an_address_stay_text(viewer: Viewer):
    g = sample_graph()
    node = g.nodes[most_influential(g)]
    labels = json.dumps({f"{node['layer']}/{node['index']}": "<img src=x onerror=alert(1)>\u202e" + "x" * 1000})
    viewer.open(g, f"labels={quote(labels)}").node(most_influential(g)).click()
    assert viewer.page.locator("img").count() == 0
    written = viewer.page.locator("#panel input.label").input_value()
    assert written.startswith("<img src=x onerror=alert(1)>\ufffdx")
    assert len(written) == 300


# ---------------------------------------------------------------------------------------------------------------- undo


def test_undo_takes_back_pins_groups_and_labels_one_by_one_and_redo_makes_them_again(viewer: Viewer):
    g = sample_graph()
    names = [n for n in g if n.startswith("feature:5")][:2]
    name = feature_with_inflow(g)
    viewer.open(g).node("token:2").press("p")
    viewer.group(names, "pair")
    relabel(viewer, name, "rivers")
    group = viewer.node(f"group:{names[0]}")

    def made() -> tuple[bool, bool, bool]:
        return "rivers" in viewer.node(name).get_attribute("aria-label"), group.count() == 1, bool(pinned(viewer))

    viewer.node(name).focus()
    assert made() == (True, True, True)
    for expected in ((False, True, True), (False, False, True), (False, False, False), (False, False, False)):
        viewer.page.keyboard.press("Control+z")
        assert made() == expected
    assert viewer.page.locator("#status").inner_text() == "nothing to undo"
    for expected in ((False, False, True), (False, True, True), (True, True, True)):
        viewer.page.keyboard.press("Control+Shift+z")
        assert made() == expected
    viewer.page.locator("#undo").click()
    assert made() == (False, True, True)
    viewer.page.reload()
    assert made() == (False, True, True)


def test_what_was_undone_is_gone_once_something_else_is_done(viewer: Viewer):
    viewer.open(sample_graph()).node("token:2").press("p")
    viewer.page.keyboard.press("Control+z")
    viewer.node("token:0").press("p")
    viewer.page.keyboard.press("Control+Shift+z")
    assert pinned(viewer) == {"token:0"}
    assert viewer.page.locator("#status").inner_text() == "nothing to do again"


@pytest.mark.parametrize("by", ["weight", "effect"])
def test_a_groups_edges_are_as_wide_as_what_comes_through_its_members(viewer: Viewer, by: str):
    g = sample_graph()
    names = sorted((n for n in g if n.startswith("feature:11")), key=g.in_degree)[-4:]
    share = through(g, by)
    viewer.open(g, f"nodes=all&edges=all&by={by}").group(names, "four")
    expected: dict[str, float] = {}
    for source, head in g.in_edges(names):
        expected[source] = expected.get(source, 0.0) + share[source, head]
    drawn = viewer.page.evaluate("page.drawn()")
    widths = {source: width for source, head, width, _ in drawn if head == f"group:{names[0]}"}
    assert set(widths) == set(expected)
    single = [n for n in widths if g.nodes[n]["kind"] not in ("remainder", "constant", "bias")]
    order = sorted(single, key=expected.__getitem__)
    assert [widths[n] for n in order] == sorted(widths[n] for n in single)


# ---------------------------------------------------------------------------------------------------------- moving


def place(viewer: Viewer, name: str) -> tuple[float, float]:
    box = viewer.node(name).locator(".body").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_the_wheel_zooms_where_the_pointer_is_and_dragging_moves_the_drawing(viewer: Viewer):
    g = sample_graph()
    name = most_influential(g)
    viewer.open(g, "")
    x, y = place(viewer, name)
    width = viewer.page.locator("#sheet").bounding_box()["width"]
    viewer.page.mouse.move(x, y)
    for _ in range(6):
        viewer.page.mouse.wheel(0, -120)
    viewer.page.wait_for_function(f"document.querySelector('#sheet').getBoundingClientRect().width > {2 * width}")
    assert place(viewer, name) == pytest.approx((x, y), abs=3)
    viewer.page.mouse.down()
    viewer.page.mouse.move(x - 80, y - 40, steps=5)
    viewer.page.mouse.up()
    assert place(viewer, name) == pytest.approx((x - 80, y - 40), abs=3)
    assert viewer.page.locator(".node.selected").count() == 0  # the end of a drag is no click
    viewer.node(name).click()
    assert viewer.page.locator(".node.selected").count() == 1
    viewer.page.locator("#fit").click()
    assert viewer.page.locator("#sheet").bounding_box()["width"] == pytest.approx(width, abs=1)


def test_two_fingers_zoom(browser: Any, tmp_path: Path):
    context = browser.new_context(viewport={"width": 800, "height": 900}, has_touch=True)
    viewer = Viewer(context, tmp_path).open(sample_graph(), "")
    sheet = viewer.page.locator("#sheet")
    before, box = sheet.bounding_box()["width"], viewer.page.locator("#stage").bounding_box()
    client = context.new_cdp_session(viewer.page)
    x, y = box["x"] + 300, box["y"] + 200

    def touch(kind: str, apart: float) -> None:
        points = [{"x": x - apart, "y": y}, {"x": x + apart, "y": y}] if kind != "touchEnd" else []
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 50)
    for apart in (60, 75, 90, 100):
        touch("touchMove", apart)
    touch("touchEnd", 0)
    assert sheet.bounding_box()["width"] == pytest.approx(2 * before, rel=0.05)
    assert viewer.trouble == []
    context.close()


def test_a_drawing_within_another_page_leaves_the_wheel_to_it(viewer: Viewer):
    from depass_sae.files import write_text
    from depass_sae.graph.export.html import to_html

    source = to_html(sample_graph()).replace("&", "&amp;").replace('"', "&quot;")
    body = f'<iframe srcdoc="{source}" width="1160" height="640"></iframe><p style="height: 3000px">'
    write_text(viewer.folder / "outer.html", body)
    viewer.page.goto((viewer.folder / "outer.html").as_uri())
    frame = viewer.page.frame_locator("iframe")
    frame.locator("#nodes .node").first.wait_for()
    before = frame.locator("#sheet").bounding_box()
    box = frame.locator("#stage").bounding_box()
    viewer.page.mouse.move(box["x"] + 300, box["y"] + 100)
    viewer.page.keyboard.down("Control")
    viewer.page.mouse.wheel(0, -120)
    viewer.page.keyboard.up("Control")
    viewer.page.wait_for_timeout(200)
    zoomed = frame.locator("#sheet").bounding_box()["width"]
    assert zoomed > 1.1 * before["width"]
    viewer.page.mouse.wheel(0, 120)
    viewer.page.wait_for_timeout(200)
    assert frame.locator("#sheet").bounding_box()["width"] == zoomed


@pytest.mark.parametrize("kind", ["drag", "wheel"])
def test_as_much_as_a_page_holds_is_moved(viewer: Viewer, kind: str):
    viewer.open(fullest())
    for _ in range(3):
        viewer.page.locator("#larger").click()
    viewer.page.wait_for_timeout(500)
    assert viewer.page.evaluate(FRAMES, [kind, 40])["moved"] > 50


def test_more_nodes_and_groups_are_fitted_to_the_window_again(viewer: Viewer):
    g = sample_graph(per_level=30)
    viewer.open(g, "")
    overflow = "e => [e.scrollWidth > e.clientWidth + 1, e.scrollHeight > e.clientHeight + 1]"
    assert viewer.page.locator("#stage").evaluate(overflow) == [False, False]
    viewer.page.locator("#node-slider").fill("60")
    playwright.expect(viewer.page.locator("#nodes .node")).to_have_count(60)
    assert viewer.page.locator("#stage").evaluate(overflow) == [False, False]
    boxes = [node.bounding_box() for node in viewer.page.locator("#nodes .node .body").all()]
    names = sorted(n for n in shown(viewer) if n.startswith("feature:11"))[:3]
    viewer.group(names, "three")
    viewer.page.keyboard.press("Escape")
    assert viewer.page.locator("#stage").evaluate(overflow) == [False, False]
    after = [node.bounding_box() for node in viewer.page.locator("#nodes .node .body").all()]
    assert min(box["width"] for box in after) > 0.7 * min(box["width"] for box in boxes)


def test_of_a_long_prompt_the_positions_at_which_nothing_stands_are_left_out(viewer: Viewer):
    g = sample_graph()
    g.graph["tokens"] += [" more"] * 200
    g.graph["token_ids"] += [0] * 200
    g.add_node("token:150", kind="token", layer=-1, pos=150, token=" more", influence=5.0, label="")
    viewer.open(g, "")
    written = viewer.page.locator("#drawing .position").all_text_contents()
    assert len(written) < 12
    assert written[-1] == "more150"
    assert written[-2] == "…"


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("make", [sample_graph, compared, lambda: with_text("\ud800</svg><script>\x01]]>")])
def test_the_drawing_is_saved_as_an_svg_that_stands_by_itself(viewer: Viewer, make: Any):
    g = make()
    viewer.open(g)
    text = saved(viewer, "#download-svg", "graph.svg").read_text(encoding="utf-8")
    drawn = ElementTree.fromstring(text)
    tags = [element.tag.rpartition("}")[2] for element in drawn.iter()]
    assert not {"script", "style", "foreignObject", "image"} & set(tags)
    assert not any(name.startswith("on") or name in ("class", "style") for e in drawn.iter() for name in e.attrib)
    assert tags.count("path") == 2 * len(g) + g.number_of_edges()  # a ring and a body each
    bodies = [e for e in drawn.iter() if e.tag.endswith("path") and e.get("fill", "none") != "none"]
    assert len(bodies) == len(g)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_drawing_is_saved_as_a_png_as_it_is_seen(browser: Any, tmp_path: Path, scheme: str):
    from io import BytesIO

    image = pytest.importorskip("PIL.Image")
    context = browser.new_context(color_scheme=scheme, accept_downloads=True)
    viewer = Viewer(context, tmp_path).open(sample_graph())
    box = viewer.page.locator("#sheet").bounding_box()
    picture = image.open(BytesIO(saved(viewer, "#download-png", "graph.png").read_bytes())).convert("L")
    assert picture.width / picture.height == pytest.approx(box["width"] / box["height"], rel=0.02)
    assert (picture.getpixel((2, 2)) < 60) == (scheme == "dark")
    assert len(set(picture.getdata())) > 20
    assert viewer.trouble == []
    context.close()


# -------------------------------------------------------------------------------------------------------- by looking


def test_what_is_done_by_where_heads_looked_has_a_dash_of_its_own(viewer: Viewer):
    g = sample_graph()
    target = g.graph["target"][0]["node"]
    g.add_edge("token:0", target, kind="query", weight=0.0, effect=0.0, query=-2.0, key=0.5)
    viewer.open(g).node(target).hover()
    edge = viewer.page.locator('#lit .edge[data-source="token:0"]')
    others = {
        e.get_attribute("stroke-dasharray")
        for e in viewer.page.locator("#lit .edge:not([data-source='token:0'])").all()
    }
    assert edge.get_attribute("stroke-dasharray") not in others
    assert "query −2.000" in edge.text_content()
    assert "where heads looked" in viewer.page.locator("#legend").inner_text()


# ------------------------------------------------------------------------------------------------------- accessibility


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 600])
def test_the_page_has_no_barriers_that_axe_knows_of(browser: Any, tmp_path: Path, scheme: str, width: int):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True)
    viewer = Viewer(context, tmp_path)
    g = sample_graph(per_level=20)
    viewer.open(g, "")
    for name in (g.graph["target"][0]["node"], most_influential(g)):
        viewer.node(name).press("p")
    viewer.node(most_influential(g)).press("t")
    viewer.node(most_influential(g)).press("Enter")
    assert barriers(viewer.page, ALL) == []
    assert viewer.trouble == []
    context.close()
