"""Feature-flow graphs as GraphML."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.graph.export.graphml import NAMESPACE, escape, from_graphml, to_graphml, unescape
from depass_sae.graph.names import label_of, unique_name
from tests.graph.sample import sample_graph

from .every_kind import every_kind, same, texts, with_text


def keys(text: str) -> dict[tuple[str, str], str]:
    """(for, name) -> type"""
    found = ElementTree.fromstring(text).findall(f"{{{NAMESPACE}}}key")
    return {(key.attrib["for"], key.attrib["attr.name"]): key.attrib["attr.type"] for key in found}


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        from_graphml(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_kind_of_node_and_edge_comes_back_as_it_was() -> None:
    g = every_kind()
    assert same(from_graphml(to_graphml(g)), g)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), layers=st.sets(st.integers(0, 40), min_size=1, max_size=4), n_pos=st.integers(2, 8))
def test_any_graph_comes_back_as_it_was(seed: int, layers: set[int], n_pos: int) -> None:
    g = sample_graph(layers=tuple(sorted(layers)), n_pos=n_pos, seed=seed)
    assert same(from_graphml(to_graphml(g)), g)


@settings(deadline=None, max_examples=60)
@given(text=texts)
def test_any_text_comes_back_as_it_was(text: str) -> None:
    g = with_text(text)
    assert same(from_graphml(to_graphml(g)), g)


@given(text=texts)
def test_escaping_is_exact_and_leaves_only_what_xml_can_hold(text: str) -> None:
    escaped = escape(text)
    assert unescape(escaped) == text
    root = ElementTree.fromstring(ElementTree.tostring(_element(escaped), encoding="unicode"))
    assert (root.text or "") == escaped


def _element(text: str) -> ElementTree.Element:
    element = ElementTree.Element("data")
    element.text = text
    return element


def test_ordinary_text_is_not_escaped() -> None:
    text = "déjà\tvu\n 🦊 C:\\users \\n \\u12 ‮"
    assert escape(text) == text


def test_a_text_that_looks_like_an_escape_stays_one() -> None:
    assert escape("\\u0041") == "\\u005cu0041"
    assert escape("\0") == "\\u0000"


def test_attributes_have_one_type_each() -> None:
    types = keys(to_graphml(every_kind()))
    assert types["node", "layer"] == types["node", "pos"] == types["node", "index"] == "int"
    assert types["node", "activation"] == types["node", "influence"] == types["edge", "weight"] == "double"
    assert types["node", "target"] == "boolean"
    assert types["node", "label"] == types["node", "token"] == types["edge", "kind"] == "string"
    assert types["graph", "tokens"] == types["graph", "saes"] == "string"


def test_an_attribute_with_whole_and_fractional_numbers_is_one_double() -> None:
    g = sample_graph()
    g.nodes["token:0"]["influence"] = 1
    text = to_graphml(g)
    assert text.count('attr.name="influence"') == 1
    assert keys(text)["node", "influence"] == "double"
    assert type(from_graphml(text).nodes["token:0"]["influence"]) is float


def test_whole_numbers_beyond_32_bits_are_long() -> None:
    g = sample_graph()
    g.graph["seed"] = 2**40
    text = to_graphml(g)
    assert keys(text)["graph", "seed"] == "long"
    assert from_graphml(text).graph["seed"] == 2**40


def test_lists_and_objects_are_json_strings() -> None:
    g = every_kind()
    read = nx.parse_graphml(to_graphml(g))
    for name in ("tokens", "token_ids", "saes", "target", "settings", "scores", "groups", "verification"):
        assert json.loads(read.graph[name]) == g.graph[name]


def test_networkx_reads_the_same_nodes_edges_and_numbers() -> None:
    g = every_kind()
    read = nx.parse_graphml(to_graphml(g))
    assert isinstance(read, nx.DiGraph)
    assert list(read) == list(g)
    for name in g:
        assert {key: value for key, value in read.nodes[name].items() if key not in ("name", "token", "label")} == {
            key: value for key, value in g.nodes[name].items() if key not in ("token", "label", "against_token")
        } | ({"against_token": " John\n"} if "against" in g.nodes[name] else {})
    assert dict(read.edges) == dict(g.edges)


def test_a_file_that_networkx_wrote_again_can_still_be_read() -> None:
    g = every_kind()
    read = nx.parse_graphml(to_graphml(g))
    del read.graph["node_default"], read.graph["edge_default"]
    again = from_graphml("".join(f"{line}\n" for line in nx.generate_graphml(read)))
    assert again.graph == g.graph
    assert dict(again.nodes) == dict(g.nodes)
    assert dict(again.edges) == dict(g.edges)


def test_every_node_has_a_label_and_a_readable_name_of_its_own() -> None:
    g = every_kind()
    read = nx.parse_graphml(to_graphml(g))
    feature = next(name for name, node in g.nodes(data=True) if node["kind"] == "feature" and node["token"] == " word0")
    names, labels = (nx.get_node_attributes(read, key) for key in ("name", "label"))
    assert names[feature] == feature.removeprefix("feature:")
    assert labels[feature] == feature.removeprefix("feature:").partition("@")[0] + " @word0"
    assert (names["token:1"], labels["token:1"]) == ("token 1 word0", "token word0")
    assert (names["token:5@0"], labels["token:5@0"]) == ("token 5@0 <s>", "token <s>, layer 5")
    assert (names["logit:17@5"], labels["logit:17@5"]) == ("logit 17@5 ␣out0", "output ␣out0")
    assert (names["bias:5"], labels["bias:-1"]) == ("bias 5", "bias of the embeddings")
    assert names["head:11.3"] == labels["head:11.3"] == "head 11.3"
    assert 'plural "nouns"' in labels.values()
    assert all(label.strip() for label in labels.values())
    assert len(set(names.values())) == len(labels) == len(g)
    assert not nx.get_node_attributes(from_graphml(to_graphml(g)), "name")


@settings(deadline=None, max_examples=40)
@given(text=texts)
def test_whatever_tokens_and_labels_say_no_label_is_empty_and_no_name_is_there_twice(text: str) -> None:
    for label in (text, ""):
        g = with_text(text)
        nx.set_node_attributes(g, label, "label")
        nodes = list(dict(g.nodes).values())
        assert all(label_of(node) for node in nodes)
        assert len({unique_name(node) for node in nodes}) == len(nodes)


def test_a_file_of_version_1_is_read_without_its_names() -> None:
    text = to_graphml(sample_graph())
    old = re.sub(r'(<data key="graph.schema_version">)2', r"\g<1>1", text)
    old = re.sub(r'(<data key="node.label">)[^<]+', r"\g<1>", old)
    old = re.sub(r'(<data key="node.name">)[^<]+', r"\g<1>old", old)
    assert old != text
    assert same(from_graphml(old), sample_graph())


def test_names_of_ones_own_stay() -> None:
    g = sample_graph()
    g.nodes["token:0"]["name"] = "start"
    assert same(from_graphml(to_graphml(g)), g)


def test_igraph_reads_the_same_graph_and_finds_a_name_of_its_own_and_a_label_for_every_node(tmp_path: Path) -> None:
    igraph = pytest.importorskip("igraph")
    g = every_kind()
    (tmp_path / "g.graphml").write_text(to_graphml(g), encoding="utf-8")
    read = igraph.Graph.Read_GraphML(str(tmp_path / "g.graphml"))
    assert read.is_directed()
    assert (read.vcount(), read.ecount()) == (len(g), g.number_of_edges())
    assert read.vs["id"] == [*g]
    assert len(set(read.vs["name"])) == len(g)
    assert all(label.strip() for label in read.vs["label"])
    ends = [(read.vs[edge.source]["id"], read.vs[edge.target]["id"]) for edge in read.es]
    assert dict(zip(ends, read.es["weight"], strict=True)) == nx.get_edge_attributes(g, "weight")
    assert dict(zip(ends, read.es["effect"], strict=True)) == nx.get_edge_attributes(g, "effect")


BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="directed"><data key="d">&c;</data></graph>
</graphml>"""
EXTERNAL = '<!DOCTYPE graphml SYSTEM "file:///etc/passwd"><graphml/>'


@pytest.mark.parametrize("text", [BOMB, EXTERNAL, "<!DOCTYPE html><html></html>"])
def test_a_document_type_declaration_is_refused(text: str) -> None:
    assert refused(text).startswith("it declares a document type")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not XML: no element found at line 1, column 1"),
        ("<graphml>\n<graph>", "not XML: no element found at line 2, column 8"),
        ("<graphml>&nbsp;</graphml>", "not XML: undefined entity at line 1, column 10"),
        ("<graphml>\0</graphml>", "not XML: not well-formed .* at line 1, column 10"),
        ("<svg/>", "not a feature-flow graph: a GraphML file holds one <graphml> with one <graph>"),
        ("<graphml/>", "not a feature-flow graph: .* one <graph>"),
        ("<graphml><graph edgedefault='directed'/></graphml>", "schema_version should be 2, and is None"),
        ("<graphml><graph><data key='d7'>1</data></graph></graphml>", 'there is no key "d7"'),
        (
            "<graphml><key id='d' attr.name='x' attr.type='date'/><graph/></graphml>",
            'key "x": "date" is no GraphML type',
        ),
    ],
)
def test_broken_xml_is_refused_with_one_line(text: str, message: str) -> None:
    assert re.fullmatch(message, refused(text))


@pytest.mark.parametrize("value", ["many", "", "nan", "9" * 5000])
def test_a_value_that_is_not_of_its_type_is_refused_with_one_line(value: str) -> None:
    text = to_graphml(sample_graph())
    text = re.sub(r'(<data key="edge.weight">)[^<]*', rf"\g<1>{value}", text, count=1)
    assert "weight" in refused(text)


def test_an_attribute_that_is_there_twice_is_refused_with_one_line() -> None:
    text = re.sub(r'(<data key="edge.weight">[^<]*</data>)', r"\1\1", to_graphml(sample_graph()), count=1)
    assert refused(text) == 'attribute "weight" is there twice in one edge'


def test_json_that_is_nested_too_deeply_or_names_something_twice_is_refused_with_one_line() -> None:
    for wrong in ("[" * 200_000, "[" * 900 + "]" * 900, '{"a": 1, "a": 2}'):
        text = re.sub(r'(<data key="graph.tokens">)[^<]*', rf"\g<1>{wrong}", to_graphml(sample_graph()), count=1)
        assert refused(text).startswith('attribute "tokens": ')


def test_json_that_is_broken_is_refused_with_one_line() -> None:
    text = re.sub(r'(<data key="graph.tokens">)[^<]*', r"\g<1>[", to_graphml(sample_graph()), count=1)
    assert refused(text).startswith('attribute "tokens": "[" is not of its key\'s type')


def test_an_undirected_graph_is_refused() -> None:
    text = to_graphml(sample_graph()).replace('edgedefault="directed"', 'edgedefault="undirected"')
    assert refused(text).startswith("directed: ")


def test_elements_nested_very_deeply_do_no_harm() -> None:
    assert refused("<a>" * 100_000 + "</a>" * 100_000).startswith("not a feature-flow graph")
