"""Graphs as pictures: whole files of the right kind, the same every time, whatever the tokens hold."""

import sys
from xml.etree import ElementTree

import networkx as nx
import pytest

pytest.importorskip("matplotlib")

from depass_sae.errors import UserError
from depass_sae.graph.plot import layout, picture_of, plot_graph, plot_verification, rendered

from .export.every_kind import every_kind, verification
from .sample import sample_graph


def small(**settings: int) -> nx.DiGraph:
    return sample_graph(**{"n_pos": 4, "per_level": 3, **settings})


def words(g: nx.DiGraph) -> list[str]:
    return [text.get_text() for text in plot_graph(g).axes[0].texts]


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


def test_every_node_but_a_head_has_a_place_in_its_own_column_and_row() -> None:
    g = every_kind()
    at = layout(g)
    assert set(at.places) == {name for name, node in g.nodes(data=True) if node["kind"] != "head"}
    for name, (x, y) in at.places.items():
        node = g.nodes[name]
        assert at.rows[node["layer"]][0] < y < at.rows[node["layer"]][1]
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
    assert rendered(picture, "svg") == rendered(plot_verification(g), "svg")


def test_notebooks_show_a_picture_without_pyplot() -> None:
    picture = plot_graph(sample_graph())
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert repr(picture).startswith("<Figure size")


def test_a_graph_that_was_not_verified_is_told_so_in_one_line() -> None:
    with pytest.raises(UserError, match="has not been verified yet"):
        plot_verification(small())
