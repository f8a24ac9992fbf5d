"""Feature-flow graphs as JSON."""

import json

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.graph.export.node_link import from_json, to_json
from tests.graph.sample import sample_graph

from .every_kind import every_kind, same, texts, with_text


def test_every_kind_of_node_and_edge_comes_back_as_it_was() -> None:
    g = every_kind()
    assert same(from_json(to_json(g)), g)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), layers=st.sets(st.integers(0, 40), min_size=1, max_size=4), n_pos=st.integers(2, 8))
def test_any_graph_comes_back_as_it_was(seed: int, layers: set[int], n_pos: int) -> None:
    g = sample_graph(layers=tuple(sorted(layers)), n_pos=n_pos, seed=seed)
    assert same(from_json(to_json(g)), g)


@settings(deadline=None, max_examples=60)
@given(text=texts)
def test_any_text_comes_back_as_it_was(text: str) -> None:
    g = with_text(text)
    written = to_json(g)
    assert written.isascii()
    assert same(from_json(written), g)


def test_writing_what_was_read_gives_the_same_text() -> None:
    written = to_json(every_kind())
    assert to_json(from_json(written)) == written


def test_networkx_reads_the_file() -> None:
    g = every_kind()
    assert same(nx.node_link_graph(json.loads(to_json(g))), g)


def test_a_file_of_version_1_with_its_edges_under_links_is_read() -> None:
    document = json.loads(to_json(every_kind()))
    document["links"] = document.pop("edges")
    document["schema_version"] = document["graph"]["schema_version"] = 1
    assert same(from_json(json.dumps(document)), every_kind())


def test_a_number_that_is_not_finite_is_not_written() -> None:
    g = sample_graph()
    g.nodes["token:0"]["influence"] = float("nan")
    with pytest.raises(UserError, match=r'^node "token:0": influence: nan is not a finite number$'):
        to_json(g)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value at line 1, column 1"),
        ('{\n"a" 1}', "not JSON: Expecting ':' delimiter at line 2, column 5"),
        ('{"a": NaN}', "not JSON: it holds NaN, and numbers must be finite"),
        ('{"a": -Infinity}', "not JSON: it holds -Infinity, and numbers must be finite"),
        ("[" * 100_000, "lists and objects are nested too deeply (more than 100 levels)"),
        ("9" * 5000, "it holds a number of too many digits"),
    ],
)
def test_broken_json_is_refused_with_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_json(text)
    assert str(caught.value) == message


def test_a_number_too_large_for_a_float_is_refused() -> None:
    text = to_json(sample_graph()).replace('"influence": 0.', '"influence": 1e999, "was": 0.', 1)
    with pytest.raises(UserError, match=r'^node "token:0": influence: inf is not a finite number$'):
        from_json(text)
