"""Graphs as pictures: whole files of the right kind, the same every time, whatever the tokens hold."""

import sys
from xml.etree import ElementTree

import networkx as nx
import pytest

pytest.importorskip("matplotlib")

from depass_sae.errors import UserError
from depass_sae.graph.group import merged
from depass_sae.graph.influence import influence
from depass_sae.graph.plot import MOST, layout, picture_of, plot_graph, plot_verification
from depass_sae.view.figures import WIDTH, rendered

from .export.every_kind import every_kind, verification, with_text
from .sample import sample_graph


def small(**settings: int) -> nx.DiGraph:
    return sample_graph(**{"n_pos": 4, "per_level": 3, **settings})


def words(g: nx.DiGraph, max_drawn: int = MOST) -> list[str]:
    return [text.get_text() for text in plot_graph(g, max_drawn=max_drawn).axes[0].texts]


def legend(g: nx.DiGraph) -> set[str]:
    from matplotlib.legend import Legend

    found = plot_graph(g).axes[0].get_children()
    return {text.get_text() for part in found if isinstance(part, Legend) for text in part.get_texts()}


@pytest.mark.parametrize(("format", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_picture_is_a_file_of_the_format_asked_for(format: str, start: bytes) -> None:
    assert picture_of(small(), format).startswith(start)


@pytest.mark.parametrize("format", ["svg", "pdf"])
def test_the_same_graph_gives_the_same_bytes(format: str) -> None:
    assert picture_of(small(), format) == picture_of(small(), format)


def test_an_svg_of_hostile_tokens_is_wellformed() -> None:
    g = small(n_pos=12)
    g.graph["tokens"][2:5] = ["--><b>&", "$\\frac{", "\ufffe\x01"]
    ElementTree.fromstring(picture_of(g, "svg"))


def test_a_dollar_sign_is_written_as_it_is() -> None:
    g = small()
    g.graph["tokens"][1] = "$x$"
    assert "$x$" in words(g)


def test_a_graph_with_every_kind_of_node_is_drawn() -> None:
    assert picture_of(every_kind(), "png")


def test_no_two_nodes_stand_in_the_same_place() -> None:
    places = layout(sample_graph(n_pos=3, per_level=40)).places
    assert len(set(places.values())) == len(places)


def test_every_node_has_a_place_in_its_own_column_and_row_and_a_head_below_the_layer_it_writes_to() -> None:
    g = every_kind()
    at = layout(g)
    assert set(at.places) == set(g)
    for name, (x, y) in at.places.items():
        node = g.nodes[name]
        if node["kind"] == "head":
            assert at.rows[5, ""][1] < y < at.rows[11, ""][0]
            continue
        assert at.rows[node["layer"], ""][0] < y < at.rows[node["layer"], ""][1]
        if "pos" in node:
            assert at.columns[node["pos"]][0] < x < at.columns[node["pos"]][1]
        else:
            assert x < 0


def test_features_are_named_by_their_labels_where_they_have_one() -> None:
    g = small()
    feature = next(name for name, node in g.nodes(data=True) if node["kind"] == "feature")
    g.nodes[feature].update(label="capitals", influence=5.0)
    assert "capitals" in words(g)


def test_a_long_prompt_shows_only_the_positions_at_which_something_stands() -> None:
    g = small()
    g.graph["tokens"] += [" word"] * 400
    assert sorted(layout(g).columns) == [0, 1, 2, 3]


def test_heads_are_drawn_with_their_edges_where_the_graph_has_them() -> None:
    g = every_kind()
    without = g.subgraph([name for name in g if name != "head:11.3"])
    assert "11.3" in words(g, 500)
    assert {"attention head", "the same flow by head"} <= legend(g)
    assert "11.3" not in words(without, 500)
    assert not {"attention head", "the same flow by head"} & legend(without)
    many = [len(plot_graph(some, max_drawn=500).axes[0].collections[0].get_paths()) for some in (g, without)]
    assert many[0] == many[1] + 1


def test_no_two_heads_stand_in_the_same_place_and_each_within_the_picture() -> None:
    g = small()
    feature = next(name for name, node in g.nodes(data=True) if node["kind"] == "feature" and node["layer"] == 11)
    for i in range(60):
        g.add_node(f"head:8.{i}", kind="head", layer=8, index=i, influence=0.0, label="")
        g.add_edge(f"head:8.{i}", feature, kind="head", weight=1.0 + i, effect=0.0)
    at = layout(g)
    places = [at.places[f"head:8.{i}"] for i in range(60)]
    assert len(set(places)) == 60
    assert all(0 < x < at.right and at.rows[5, ""][1] < y < at.rows[11, ""][0] for x, y in places)


def test_a_supernode_is_one_node_with_its_name_and_the_sums_of_its_edges() -> None:
    g = sample_graph()
    names = [name for name, node in g.nodes(data=True) if node["kind"] == "feature" and node["layer"] == 11][:3]
    g.graph["groups"] = [{"name": "the rivers", "nodes": names}]
    assert "the rivers (3)" in words(g)
    assert "group (members)" in legend(g)
    small = merged(g)
    (group,) = set(small) - set(g)
    assert set(g) - set(small) == set(names)
    for source in small.predecessors(group):
        edges = [g.edges[source, name] for name in names if g.has_edge(source, name)]
        assert small.edges[source, group]["weight"] == pytest.approx(sum(edge["weight"] for edge in edges))
        if edges[0]["kind"] == "remainder":
            assert small.edges[source, group]["magnitude"] == pytest.approx(sum(edge["magnitude"] for edge in edges))


def test_a_group_of_what_stands_nowhere_is_left_apart() -> None:
    g = small()
    g.graph["groups"] = [{"name": "rest", "nodes": ["bias:-1", "token:1", "remainder:5"]}]
    assert set(merged(g)) == set(g)
    assert picture_of(g, "png")


def test_of_a_large_graph_the_most_influential_nodes_and_all_targets_are_drawn_and_the_rest_is_told_of() -> None:
    g = sample_graph(n_pos=8, per_level=60)
    placed = sorted(
        (name for name, node in g.nodes(data=True) if "pos" in node and not node.get("target")),
        key=lambda name: -g.nodes[name]["influence"],
    )
    features = [name for name in placed[:18] if g.nodes[name]["kind"] == "feature"]  # and two targets
    named = {f"{g.nodes[name]['layer']}/{g.nodes[name]['index']}" for name in features}
    said = words(g, 20)
    assert {word for word in said if word.startswith(("5/", "11/"))} == named
    assert {"␣out0 50 %", "␣out1 25 %"} <= set(said)
    assert said[-1].endswith(f"Left out: the {len(placed) - 18} nodes of least influence.")
    assert "what was left out" in legend(g)


def test_what_is_left_out_arrives_by_remainders_so_that_every_sum_holds() -> None:
    from depass_sae.graph.limits import foremost

    g = sample_graph(n_pos=8, per_level=60)
    drawn = foremost(g, 20)
    assert sum(1 for _, node in drawn.nodes(data=True) if "pos" in node) == 20
    for name, node in drawn.nodes(data=True):
        if node["kind"] in ("feature", "logit"):
            inflow = sum(edge["weight"] for *_, edge in drawn.in_edges(name, data=True))
            assert inflow + node["constant"] == pytest.approx(node["pre_activation"])


def test_nothing_is_said_of_what_is_left_out_where_all_is_drawn() -> None:
    assert words(small(), 500)[-1] == "A node's area is its influence on the target."


def test_a_picture_is_as_wide_as_a_column_where_there_is_room_for_it() -> None:
    assert plot_graph(small()).get_size_inches()[0] == pytest.approx(WIDTH)


def chain() -> nx.DiGraph:
    """Two tokens into a feature into the target: the louder weight is the one that matters less."""
    g = small(layers=(5,), per_level=2, n_logits=1)
    (target,) = (node["node"] for node in g.graph["target"])
    strong, weak = (name for name in g if name.startswith("feature"))
    g.remove_edges_from(list(g.edges))
    for source, head, weight in (
        (strong, target, 9.0), (weak, target, -1.0), ("token:0", strong, 2.0), ("token:1", weak, 200.0),
    ):  # fmt: skip
        g.add_edge(source, head, kind="flow", weight=weight, effect=0.0)
    for name, share in influence(g).nodes.items():
        g.nodes[name].update(influence=share, constant=0.0)
        if "pre_activation" in g.nodes[name]:
            g.nodes[name]["pre_activation"] = sum(edge["weight"] for *_, edge in g.in_edges(name, data=True))
    g.graph["target"][0]["weight"] = 1.0
    return g


def test_an_edge_is_as_wide_as_what_of_the_target_comes_through_it_whatever_its_weight() -> None:
    g = chain()
    edges = plot_graph(g).axes[0].collections[0]
    widths = sorted(zip(edges.get_linewidths(), edges.get_edgecolors()[:, 3], strict=True))
    assert len(widths) == 4
    assert widths[0] == pytest.approx(widths[1])  # weak → target, and all of weak's inflow
    assert widths[2] == pytest.approx(widths[3])
    assert widths[3][0] > 3 * widths[0][0]
    assert widths[3][1] > 2 * widths[0][1]
    assert {"positive", "negative", "9 %", "36 %", "90 % of the target comes through it"} <= legend(g)


def test_what_stands_for_many_nodes_makes_no_other_edge_thin() -> None:
    g = chain()
    (target,) = (node["node"] for node in g.graph["target"])
    before = plot_graph(g).axes[0].collections[0].get_linewidths()
    g.add_edge("remainder:5", target, kind="remainder", weight=0.0, effect=0.0, magnitude=990.0)
    after = plot_graph(g).axes[0].collections[0].get_linewidths()
    assert max(after) == pytest.approx(max(before))


def test_a_probability_that_is_there_is_not_written_as_none() -> None:
    g = small(n_logits=1)
    next(node for _, node in g.nodes(data=True) if node["kind"] == "logit")["probability"] = 0.0004
    assert "␣out0 <0.5 %" in words(g)


@pytest.mark.parametrize("hostile", ["--><b>&", "$\\frac{", "\ufffe\x01\u202e", "x" * 500, "\ud800"])
def test_a_picture_of_hostile_labels_and_group_names_is_wellformed(hostile: str) -> None:
    g = with_text(hostile)
    g.graph["groups"] = [{"name": hostile, "nodes": [name for name in g if name.startswith("feature")][:2]}]
    ElementTree.fromstring(picture_of(g, "svg"))
    assert max(map(len, words(g)[:-1])) < 60


def test_text_in_an_svg_is_text() -> None:
    assert b">layer 5<" in picture_of(small(), "svg")


def test_a_number_of_nodes_that_is_none_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="max_drawn is how many nodes a picture has, at least 1, not 0"):
        plot_graph(small(), max_drawn=0)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'depass-sae\[notebook\]'"):
        plot_graph(small())


def test_a_verification_is_drawn_as_predicted_beside_observed() -> None:
    g = small()
    features = [name for name, node in g.nodes(data=True) if node["kind"] == "feature"][:3]
    nodes = [{"node": n, "weight": float(i), "effect": -1.0 * i, "observed": 2.0 * i} for i, n in enumerate(features)]
    rank = {"weight": 1.0, "effect": None}
    g.graph["verification"] = verification(features[0]) | {"nodes": nodes, "rank_correlation": rank}
    picture = plot_verification(g)
    weights, effects = ([tuple(p) for p in axis.collections[0].get_offsets().tolist()] for axis in picture.axes)
    assert weights == [(0.0, 0.0), (1.0, 2.0), (2.0, 4.0)]
    assert effects == [(0.0, 0.0), (-1.0, 2.0), (-2.0, 4.0)]
    assert [axis.get_title() for axis in picture.axes] == ["rank correlation 1.00", ""]
    labels = [picture.axes[0].get_ylabel(), *(axis.get_xlabel() for axis in picture.axes)]
    assert labels == [
        "observed loss of the target (logits)",
        "loss of the target that weights predict (logits)",
        "loss of the target that effects predict (logits)",
    ]
    assert rendered(picture, "svg") == rendered(plot_verification(g), "svg")


def test_notebooks_show_a_picture_without_pyplot() -> None:
    picture = plot_graph(sample_graph())
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert repr(picture).startswith("<Figure size")


def test_a_graph_that_was_not_verified_is_told_so_in_one_line() -> None:
    with pytest.raises(UserError, match="has not been verified yet"):
        plot_verification(small())
