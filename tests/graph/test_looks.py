"""What a graph says of itself in words and tables, and what its nodes are called."""

from __future__ import annotations

import networkx as nx
import pytest

from depass_sae.graph.looks import graph_block, graph_blocks, verification_blocks
from depass_sae.graph.names import name_of, node_id, note_of
from depass_sae.view.blocks import Feature, Note, Table
from depass_sae.view.html import fragment
from depass_sae.view.markdown import markdown
from depass_sae.view.terminal import text

from .export.every_kind import every_kind, with_text
from .sample import sample_graph


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("token:1", "word0 (1)"),
        ("token:5@0", "<s> (0), layer 5"),
        ("error:5@2", "error 5@2"),
        ("bias:-1", "bias of the embeddings"),
        ("remainder:5", "remainder 5"),
        ("head:11.3", "head 11.3"),
        ("logit:17@5", "logit ␣out0"),
        ("logit:3-4@5", 'logit ␣"Mary" − ␣John↵'),
    ],
)
def test_a_node_is_named_as_people_write_it(node: str, name: str) -> None:
    g = every_kind()
    g.nodes["token:1"]["token"] = " word0"
    assert name_of(g, node) == name


def test_a_feature_is_named_by_layer_index_and_position() -> None:
    g = every_kind()
    for name, node in g.nodes(data=True):
        if node["kind"] == "feature":
            assert name_of(g, name) == f"{node['layer']}/{node['index']}@{node['pos']}"


def test_ids_are_those_of_the_attributes() -> None:
    assert all(node_id(node) == name for name, node in every_kind().nodes(data=True))


def test_no_two_nodes_have_the_same_name() -> None:
    g = every_kind()
    assert len({name_of(g, name) for name in g}) == len(g)


def table_of(g: nx.DiGraph, top: int | None = None) -> Table:
    (table,) = (block for block in graph_blocks(g, top) if isinstance(block, Table))
    return table


def test_the_most_influential_nodes_come_first_and_no_target_or_head_among_them() -> None:
    g = every_kind()
    found = [row.cells[-1] for row in table_of(g).rows]
    listed = [node["influence"] for _, node in g.nodes(data=True) if not node.get("target") and node["kind"] != "head"]
    assert found == sorted(listed, reverse=True)
    assert len(table_of(g, 3).rows) == 3


def test_a_feature_stands_with_its_meaning_and_its_page() -> None:
    g = sample_graph()
    name = next(name for name, node in g.nodes(data=True) if node["kind"] == "feature")
    g.nodes[name].update(label="capitals", influence=9.0)
    index = g.nodes[name]["index"]
    link = f"https://www.neuronpedia.org/tiny/5-res/{index}"
    assert table_of(g, 1).rows[0].cells[0] == Feature(name_of(g, name), "capitals", link)


def test_the_scores_are_told_and_a_small_share_is_not_told_as_none() -> None:
    g = sample_graph()
    g.graph["scores"]["whole"]["shares"] |= {"bias": 0.001, "constant": 0.0}
    whole, pruned = (block.text for block in graph_blocks(g, 3) if isinstance(block, Note))
    assert whole == (
        "whole graph: completeness 0.80, replacement 0.70; "
        "influence ends in token 50 %, error 20 %, bias <0.5 %, remainder 10 %"
    )
    assert pruned.startswith("pruned graph: ")


def test_a_verification_tells_each_node_and_all_together() -> None:
    g = every_kind()
    told = text(verification_blocks(g))
    assert "+0.375" in told
    assert "same sign over 1 nodes: weights 1.00, effects 1.00" in told
    assert "rank correlation" not in told  # of one node there is none
    for line in (
        "removing the graph's 1 feature takes 0.75 of the target away; 1 random feature of the same layers and "
        "positions: 0.62 ± 0.12",
        "keeping only them of 5 active features leaves 0.75 of it; as many random ones: 0.38 ± 0.12; all active "
        "features 1.00, all without SAE errors 0.62, none 0.12",
        "±: 95 % of Student's t over 5 random sets; 50 % of their features are the graph's own, for want of others",
    ):
        assert line in " ".join(told.split())


def test_an_older_verification_and_one_of_a_target_of_nothing_are_told_in_the_targets_unit() -> None:
    g = every_kind()
    together = g.graph["verification"]["together"]
    del together["shares"]
    told = text(verification_blocks(g))
    assert "the graph's 1 of 5 active features 1.50 (as many random ones: 0.25)" in told
    together["shares"] = None
    assert text(verification_blocks(g)) == told


def test_a_graph_tells_what_its_features_suffice_for() -> None:
    line = "keeping only its 1 of 5 active features leaves 0.75 of the target in the model (none of them: 0.12)"
    assert line in " ".join(text(graph_blocks(every_kind())).split())
    assert "keeping only" not in text(graph_blocks(sample_graph()))


def test_a_graph_is_a_block_of_which_each_medium_takes_what_it_can_show() -> None:
    pytest.importorskip("matplotlib")
    block = graph_block(sample_graph(), "Where it comes from", "graph-1")
    assert (block.title, block.name) == ("Where it comes from", "graph-1")
    assert block.page().startswith("<!doctype html>")
    assert block.figure().axes
    assert text([block]) == text(block.blocks())


@pytest.mark.parametrize("hostile", ["</script><img src=x onerror=alert(1)>", "\x1b[31m\u202e\x00", "| a | `b` [c](d)"])
def test_hostile_texts_are_plain_in_every_medium(hostile: str) -> None:
    blocks = graph_blocks(with_text(hostile))
    assert "<img" not in fragment(blocks)
    assert not set(text(blocks)) & set("\x1b\u202e\x00")
    assert "<img" not in markdown(blocks)


def test_only_a_text_is_a_note() -> None:
    g = sample_graph()
    for note, told in (("as it is", "as it is"), (5, None), (["x"], None)):
        g.graph["note"] = note
        assert note_of(g) == told
    assert isinstance(graph_blocks(g)[1], Note)
