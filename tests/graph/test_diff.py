"""Two graphs laid onto each other: what is in both, what changed, and how prompts are aligned."""

from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.graph.diff import align, diff_graphs
from depass_sae.graph.export import write_graph
from depass_sae.graph.looks import diff_blocks
from depass_sae.graph.prune import fold
from depass_sae.view.terminal import text

from .sample import sample_graph


def flow(tokens: list[str], weight: float = 1.0, rule: str = "half", **graph: Any) -> nx.DiGraph:
    """Every token to feature 5/7 at its own position, and the last of these to a logit."""
    last = len(tokens) - 1
    g = nx.DiGraph(**sample_graph().graph)
    g.graph |= {
        "model": "tiny", "saes": [{"layer": 5, "hook": "resid_post", "d_sae": 64, "l0": 1.0}], "n_layers": 8,
        "tokens": tokens, "token_ids": list(range(len(tokens))), "prompt": "".join(tokens), "rule": rule,
        "target": [{"node": f"logit:3@{last}", "name": "logit", "weight": 1.0}], **graph,
    }  # fmt: skip
    numbers = {"activation": weight, "pre_activation": weight, "constant": 0.0}
    for pos, token in enumerate(tokens):
        here = {"pos": pos, "token": token, "influence": 0.5, "label": ""}
        g.add_node(f"token:{pos}", kind="token", layer=-1, **here)
        g.add_node(f"feature:5/7@{pos}", kind="feature", layer=5, index=7, **here, **numbers)
        g.add_edge(f"token:{pos}", f"feature:5/7@{pos}", kind="flow", weight=weight, effect=0.1)
    g.add_node(f"logit:3@{last}", kind="logit", layer=8, index=3, pos=last, token=" x", influence=1.0, label="",
               **numbers)  # fmt: skip
    g.add_edge(f"feature:5/7@{last}", f"logit:3@{last}", kind="flow", weight=weight, effect=0.2)
    return g


def marks(d: nx.DiGraph) -> set[str]:
    return {mark for _, mark in d.nodes(data="diff")} | {mark for *_, mark in d.edges(data="diff")}


def test_a_graph_and_itself_differ_in_nothing() -> None:
    g = sample_graph()
    d = diff_graphs(g, g)
    assert marks(d) == {"both"}
    assert (set(d), set(d.edges)) == (set(g), set(g.edges))
    assert all(edge["weight_a"] == edge["weight_b"] == edge["weight"] for *_, edge in d.edges(data=True))


def test_under_two_rules_an_edge_has_the_weights_of_both() -> None:
    d = diff_graphs(flow(["a", "b"], 1.0, "half"), flow(["a", "b"], 3.0, "ratio"))
    edge = d.edges["token:0", "feature:5/7@0"]
    assert (edge["diff"], edge["weight"], edge["weight_a"], edge["weight_b"]) == ("both", 1.0, 1.0, 3.0)
    assert d.graph["diff"] == {"a": "rule half", "b": "rule ratio"}


def test_what_only_one_graph_has_leaves_out_the_values_of_the_other() -> None:
    a, b = flow(["a", "b"]), flow(["a", "b"], 2.0)
    a.remove_node("feature:5/7@1")
    b.remove_node("feature:5/7@0")
    d = diff_graphs(a, b)
    assert d.nodes["feature:5/7@0"]["diff"] == "only_a"
    assert "influence_b" not in d.nodes["feature:5/7@0"]
    edge = d.edges["token:1", "feature:5/7@1"]
    assert (edge["diff"], edge["weight"], edge["weight_b"], edge["effect_b"]) == ("only_b", 2.0, 2.0, 0.1)
    assert not {"weight_a", "effect_a"} & set(edge)


def test_a_nodes_influence_is_the_larger_of_both() -> None:
    a, b = flow(["a"]), flow(["a"])
    b.nodes["token:0"]["influence"] = 0.9
    node = diff_graphs(a, b).nodes["token:0"]
    assert (node["influence"], node["influence_a"], node["influence_b"]) == (0.9, 0.5, 0.9)


def test_what_b_says_of_a_node_of_both_is_kept() -> None:
    a, b = flow(["a"]), flow(["a"])
    a.nodes["feature:5/7@0"].update(activation=1.0, pre_activation=1.5, constant=0.0)
    b.nodes["feature:5/7@0"].update(activation=2.0, pre_activation=2.5, constant=0.5)
    node = diff_graphs(a, b).nodes["feature:5/7@0"]
    assert (node["activation"], node["pre_activation"], node["constant"]) == (1.0, 1.5, 0.0)
    assert (node["activation_b"], node["pre_activation_b"], node["constant_b"]) == (2.0, 2.5, 0.5)


def test_folding_a_difference_adds_up_both_sides() -> None:
    d = diff_graphs(flow(["a", "b"], 1.0), flow(["a", "b"], 3.0))
    small = fold(d, [name for name in d if name != "token:0"], list(d.edges))
    edge = small.edges["remainder:-1", "feature:5/7@0"]
    assert (edge["weight"], edge["weight_a"], edge["weight_b"]) == (1.0, 1.0, 3.0)


def test_a_difference_is_no_graph_to_be_read_back(tmp_path: Path) -> None:
    d = diff_graphs(flow(["a"]), flow(["a"]))
    with pytest.raises(UserError, match="written as html, not as json"):
        write_graph(d, tmp_path / "d.json")
    assert not list(tmp_path.iterdir())


def test_prompts_of_the_same_length_are_compared_position_by_position() -> None:
    d = diff_graphs(flow(["The", " king"]), flow(["A", " queen"]))
    assert marks(d) == {"both"}
    assert d.graph["diff"] == {"a": "'The king'", "b": "'A queen'"}


def test_a_longer_prompt_is_laid_onto_the_tokens_they_share() -> None:
    a, b = flow(["In", " France", " is"]), flow(["In", " old", " France", " is"])
    d = diff_graphs(a, b)
    assert d.nodes["feature:5/7@2"]["diff"] == "both"
    assert d.edges["feature:5/7@2", "logit:3@2"]["diff"] == "both"
    assert {name for name, mark in d.nodes(data="diff") if mark == "only_b"} == {"token:1~b", "feature:5/7@1~b"}
    assert d.edges["token:1~b", "feature:5/7@1~b"]["diff"] == "only_b"


def test_every_position_of_the_two_prompts_has_its_token() -> None:
    d = diff_graphs(flow(["In", " France", " is"]), flow(["In", " old", " France", " is"]))
    assert d.graph["tokens"] == ["In", " France", " is", " old"]
    assert all(d.graph["tokens"][node["pos"]] == node["token"] for _, node in d.nodes(data=True) if node["layer"] < 8)


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_positions_are_aligned_in_order_and_none_twice(a: list[str], b: list[str]) -> None:
    found = align(a, b)
    positions = [found[pos] for pos in sorted(found)]
    assert positions == sorted(set(positions))
    assert set(found) <= set(range(len(b)))
    assert set(positions) <= set(range(len(a)))


def test_the_graphs_themselves_are_left_as_they_were() -> None:
    a, b = flow(["a"]), flow(["b"])
    diff_graphs(a, b)
    assert "diff" not in a.nodes["token:0"]
    assert "diff" not in a.graph
    assert "diff" not in b.edges["token:0", "feature:5/7@0"]


def test_graphs_of_two_models_are_refused_with_one_line() -> None:
    with pytest.raises(UserError, match="two models, 'tiny' and 'other'"):
        diff_graphs(flow(["a"]), flow(["a"], model="other"))


def test_graphs_of_two_saes_of_one_layer_are_refused_with_one_line() -> None:
    with pytest.raises(UserError, match="two different SAEs at layer 5"):
        diff_graphs(flow(["a"]), flow(["a"], saes=[{"layer": 5, "hook": "resid_post", "d_sae": 128, "l0": 1.0}]))


def test_the_table_counts_and_lists_the_largest_changes_first() -> None:
    a, b = flow(["a", "b"], rule="half"), flow(["a", "b"], rule="ratio")
    b.edges["token:1", "feature:5/7@1"]["weight"] = 4.0
    b.edges["token:0", "feature:5/7@0"]["weight"] = 0.5
    told = text(diff_blocks(diff_graphs(a, b), 5))
    assert "nodes: 5 in both, 0 only in a, 0 only in b" in told
    assert told.index("b (1) → 5/7@1") < told.index("a (0) → 5/7@0")
    assert "+3.000" in told
    assert "−0.500" in told


def test_the_table_lists_no_more_than_asked_for_and_nothing_unchanged() -> None:
    a, b = flow(["a", "b"]), flow(["a", "b"], 2.0)
    assert text(diff_blocks(diff_graphs(a, b), 1)).count("+1.000") == 1
    assert "→" not in text(diff_blocks(diff_graphs(a, a), 9))


def test_changes_that_are_all_shown_as_0_get_no_bar() -> None:
    large, small = (text(diff_blocks(diff_graphs(flow(["a"]), flow(["a"], w)), 9)) for w in (2.0, 1 + 1e-6))
    assert "█" in large
    assert "→" in small
    assert "█" not in small


def test_a_node_at_a_position_of_b_alone_is_named_by_its_place_in_b() -> None:
    d = diff_graphs(flow(["In", " is"]), flow(["In", " old", " is"]))
    assert "token 1 of b → feature 5/7@1 of b" in text(diff_blocks(d, 9))
