"""Feature-flow graphs for Neuronpedia: its schema, and what its viewer relies on beyond it."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.graph.export import neuronpedia
from depass_sae.graph.export.neuronpedia import cantor, from_cantor, neuronpedia_text, to_neuronpedia
from depass_sae.view.words import shown
from tests.graph.sample import sample_graph

from .every_kind import every_kind, texts, with_text

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = json.loads((Path(__file__).parents[2] / "data" / "neuronpedia" / "graph-schema.json").read_text())


def nodes_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["node_id"]: node for node in document["nodes"]}


def of_type(document: dict[str, Any], feature_type: str) -> list[dict[str, Any]]:
    return [node for node in document["nodes"] if node["feature_type"] == feature_type]


def with_ids(*ids: str | None) -> nx.DiGraph:
    g = sample_graph()
    for sae, name in zip(g.graph["saes"], ids, strict=True):
        sae["neuronpedia_id"] = name
    return g


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), layers=st.sets(st.integers(0, 40), min_size=1, max_size=4))
def test_any_graph_obeys_the_schema_with_unique_ids_and_no_loose_links(seed: int, layers: set[int]) -> None:
    document = json.loads(neuronpedia_text(sample_graph(layers=tuple(sorted(layers)), seed=seed)))
    jsonschema.validate(document, SCHEMA)
    ids = Counter(node["node_id"] for node in document["nodes"])
    assert set(ids.values()) == {1}
    assert len({node["jsNodeId"] for node in document["nodes"]}) == len(ids)
    assert all(link["source"] in ids and link["target"] in ids for link in document["links"])


@settings(deadline=None, max_examples=40)
@given(text=texts)
def test_any_text_obeys_the_schema_and_can_be_stored(text: str) -> None:
    written = neuronpedia_text(with_text(text))
    document = json.loads(written)
    jsonschema.validate(document, SCHEMA)
    assert "\0" not in json.dumps(document, ensure_ascii=False)
    json.dumps(document, ensure_ascii=False).encode()
    assert re.fullmatch("[a-zA-Z0-9_.-]+", document["metadata"]["slug"])
    assert re.fullmatch("[a-zA-Z0-9_.-]+", document["metadata"]["scan"])


def test_every_kind_of_node_and_edge_obeys_the_schema() -> None:
    jsonschema.validate(to_neuronpedia(every_kind()), SCHEMA)


@given(layer=st.integers(0, 200), index=st.integers(0, 2**24))
def test_the_pairing_of_layer_and_index_can_be_undone(layer: int, index: int) -> None:
    assert from_cantor(cantor(layer, index)) == (layer, index)


def test_the_pairing_is_cantors() -> None:
    assert [cantor(*pair) for pair in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 253), (1, 77))] == [
        0, 1, 2, 3, 4, 32384, 3158,
    ]  # fmt: skip


def test_a_feature_has_the_pairing_of_its_layer_and_index_and_its_activation() -> None:
    g, document = sample_graph(), to_neuronpedia(sample_graph())
    assert document["metadata"]["schema_version"] == 1
    features = {node["node_id"]: node for node in of_type(document, "cross layer transcoder")}
    expected = [node for _, node in g.nodes(data=True) if node["kind"] == "feature"]
    assert len(features) == len(expected)
    for node in expected:
        found = features[f"{node['layer']}_{node['index']}_{node['pos']}"]
        assert from_cantor(found["feature"]) == (node["layer"], node["index"])
        assert found["layer"] == str(node["layer"])
        assert found["ctx_idx"] == node["pos"]
        assert found["activation"] == node["activation"]
        assert found["jsNodeId"] == f"{node['layer']}_{node['index']}-{node['pos']}"


def test_tokens_errors_and_logits_are_named_as_the_viewer_names_them() -> None:
    nodes = nodes_of(to_neuronpedia(sample_graph()))
    assert nodes["E_2_2"] | {"influence": 0} == {
        "node_id": "E_2_2", "feature": 2, "layer": "E", "ctx_idx": 2, "feature_type": "embedding", "token_prob": 0.0,
        "is_target_logit": False, "jsNodeId": "E_2-2", "clerp": "token \ufffd\ufffd", "influence": 0,
    }  # fmt: skip
    assert nodes["5_error_mlp_3"]["feature_type"] == "mlp reconstruction error"
    assert nodes["5_error_mlp_3"]["layer"] == "5"
    assert nodes["15_17_5"]["feature_type"] == "logit"
    assert nodes["15_17_5"]["layer"] == "15"
    assert nodes["15_17_5"]["feature"] == 17
    assert nodes["5_token_0"]["feature_type"] == "embedding"


def test_an_error_never_has_the_id_of_a_feature_of_layer_0() -> None:
    g = sample_graph(layers=(0, 3))
    g.add_node("feature:0/3@2", kind="feature", layer=0, index=3, pos=2, token="", activation=1.0, pre_activation=1.0,
               constant=1.0, influence=0.5, label="")  # fmt: skip
    ids = [node["node_id"] for node in to_neuronpedia(g)["nodes"]]
    assert "0_3_2" in ids
    assert "3_error_mlp_2" in ids
    assert len(set(ids)) == len(ids)


def test_a_logit_says_its_token_in_quotes_and_its_probability() -> None:
    node = nodes_of(to_neuronpedia(sample_graph()))["15_17_5"]
    assert node["clerp"] == 'Output " out0" (p=0.500)'
    assert node["token_prob"] == 0.5
    assert node["is_target_logit"]
    assert "influence" not in node


@pytest.mark.parametrize("token", ['"', "(p=", ') "(p=x)', "\n", ""])
def test_the_viewer_finds_token_and_probability_whatever_the_token(token: str) -> None:
    g = sample_graph()
    g.nodes["logit:17@5"]["token"] = token
    clerp = nodes_of(to_neuronpedia(g))["15_17_5"]["clerp"]
    assert clerp.count('"') == 2
    assert float(clerp.split("(p=")[1].split(")")[0]) == 0.5


def test_a_difference_of_logits_has_the_probability_of_the_one_against_the_other() -> None:
    node = nodes_of(to_neuronpedia(every_kind()))["15_3-4_5"]
    assert node["clerp"] == 'Output " ”Mary”" - " John⏎" (p=0.881)'
    assert node["token_prob"] == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert node["feature"] == 3


def test_a_feature_that_is_the_target_stays_a_feature_and_is_pinned() -> None:
    g = sample_graph(n_logits=0)
    name = next(name for name in g if name.startswith("feature:11/"))
    g.nodes[name]["target"] = True
    g.graph["target"] = [{"node": name, "name": "feature", "weight": 1.0}]
    document = to_neuronpedia(g)
    jsonschema.validate(document, SCHEMA)
    (node_id,) = document["qParams"]["pinnedIds"]
    assert document["qParams"]["clickedId"] == node_id
    assert nodes_of(document)[node_id]["feature_type"] == "cross layer transcoder"
    assert not nodes_of(document)[node_id]["is_target_logit"]
    assert not of_type(document, "logit")


def test_a_feature_that_is_the_target_is_kept_by_the_slider_and_its_own_worth_counts_for_nothing() -> None:
    g = sample_graph(n_logits=0)
    first, second = [name for name in g if name.startswith("feature:11/")][:2]
    nx.set_node_attributes(g, 0.0, "influence")
    for name, influence in ((first, 100.0), (second, 50.0), ("token:1", 3.0), ("error:5@1", 1.0)):
        g.nodes[name]["influence"] = influence
    g.graph["target"] = [{"node": name, "name": name, "weight": 0.5} for name in (first, second)]
    nodes = nodes_of(to_neuronpedia(g))
    for name in (first, second):
        layer, index, pos = re.split("[/@]", name.removeprefix("feature:"))
        assert nodes[f"{layer}_{index}_{pos}"]["influence"] == 0.0
    assert nodes["E_1_1"]["influence"] == 3 / 4
    assert nodes["5_error_mlp_1"]["influence"] == 1.0


def test_influence_is_the_share_of_a_node_and_all_stronger_ones() -> None:
    g = sample_graph()
    for name in g:
        g.nodes[name]["influence"] = 0.0
    feature = next(name for name in g if name.startswith("feature:5/"))
    for name, influence in (("token:1", 1.0), (feature, 5.0), ("error:5@1", 2.0), ("bias:5", 7.0)):
        g.nodes[name]["influence"] = influence
    nodes = nodes_of(to_neuronpedia(g))
    layer, index, pos = re.split("[/@]", feature.removeprefix("feature:"))
    assert nodes[f"{layer}_{index}_{pos}"]["influence"] == 5 / 8
    assert nodes["5_error_mlp_1"]["influence"] == 7 / 8
    assert nodes["E_1_1"]["influence"] == 1.0
    assert nodes["E_0_0"]["influence"] == 1.0


def test_the_slider_starts_with_the_whole_graph() -> None:
    document = to_neuronpedia(sample_graph())
    values = [node["influence"] for node in document["nodes"] if "influence" in node]
    assert max(values) == 1.0 == document["metadata"]["node_threshold"]
    assert min(values) > 0


def test_no_influence_at_all_is_left_out() -> None:
    g = sample_graph()
    nx.set_node_attributes(g, 0.0, "influence")
    assert not any("influence" in node for node in to_neuronpedia(g)["nodes"])


def test_no_key_is_null() -> None:
    def values(value: Any) -> list[Any]:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [value, *(found for item in items for found in values(item))]

    assert None not in values(to_neuronpedia(every_kind()))
    assert None not in values(to_neuronpedia(with_ids(None, None)))


def test_links_carry_the_flow_between_the_nodes_that_are_drawn() -> None:
    g = every_kind()
    document = to_neuronpedia(g)
    kinds = {"token", "feature", "error", "logit"}
    drawn = [
        edge["weight"]
        for source, target, edge in g.edges(data=True)
        if edge["kind"] == "flow" and {g.nodes[source]["kind"], g.nodes[target]["kind"]} <= kinds
    ]
    assert [link["weight"] for link in document["links"]] == drawn
    assert {node["feature_type"] for node in document["nodes"]} == set(neuronpedia.FEATURE_TYPES.values())


def test_what_is_not_drawn_is_said_in_the_description() -> None:
    description = to_neuronpedia(sample_graph())["metadata"]["info"]["description"]
    assert "token 50.0%, error 20.0%, constant 10.0%, bias 10.0%, remainder 10.0%" in description
    assert "Replacement score 0.70, completeness score 0.80." in description
    assert "so the scores that a viewer computes from what is drawn differ." in description
    assert "logits" not in description
    assert (
        "they count what reaches logits, and there are none here."
        in to_neuronpedia(sample_graph(n_logits=0))["metadata"]["info"]["description"]
    )


def test_labels_become_clerps_and_what_has_none_says_what_it_is() -> None:
    g = sample_graph()
    name = next(name for name in g if name.startswith("feature:5/"))
    g.nodes[name]["label"] = "capital cities"
    clerps = {node["node_id"]: node["clerp"] for node in to_neuronpedia(g)["nodes"]}
    assert all(clerp.strip() for clerp in clerps.values())
    layer, index, pos = re.split("[/@]", name.removeprefix("feature:"))
    assert clerps.pop(f"{layer}_{index}_{pos}") == "capital cities"
    other = next(node for node in g if node.startswith("feature:11/"))
    layer, index, pos = re.split("[/@]", other.removeprefix("feature:"))
    assert clerps[f"{layer}_{index}_{pos}"] == f"{layer}/{index} @{shown(g.nodes[other]['token'])}"


def test_groups_become_supernodes_and_their_members_are_pinned() -> None:
    document = to_neuronpedia(every_kind())
    first, second = document["qParams"]["supernodes"]
    assert first[0] == "first </script>"
    assert second[0] == "second"
    pinned = document["qParams"]["pinnedIds"]
    assert {*first[1:], *second[1:]} < set(pinned) <= nodes_of(document).keys()
    assert len(set(pinned)) == len(pinned)


def test_what_is_pinned_in_the_page_is_pinned_there() -> None:
    g = every_kind()
    g.graph["view"] = {"pins": ["token:2", "bias:5", "gone"]}
    before = to_neuronpedia(every_kind())["qParams"]["pinnedIds"]
    document = to_neuronpedia(g)
    jsonschema.validate(document, SCHEMA)
    assert set(document["qParams"]["pinnedIds"]) == {*before, f"E_{g.graph['token_ids'][2]}_2"}  # a bias is not drawn


def test_a_feature_lists_what_decided_where_heads_looked() -> None:
    g = sample_graph(n_pos=20)
    name = max((n for n in g if n.startswith("feature:11")), key=lambda n: g.nodes[n]["pos"])
    for pos in range(15):
        g.add_edge(f"token:{pos}", name, kind="query", weight=0.0, effect=0.0, query=(-1.0) ** pos * pos, key=0.0)
    g.add_edge("remainder:5", name, kind="remainder", weight=0.0, effect=0.0, magnitude=0.0, key=5.0)
    flowing = next(u for u, _, edge in g.in_edges(name, data=True) if edge["kind"] == "flow")
    g.edges[flowing, name]["key"] = -0.5
    document = to_neuronpedia(g)
    jsonschema.validate(document, SCHEMA)
    told = {n["node_id"]: n["qk_tracing_results"] for n in document["nodes"] if "qk_tracing_results" in n}
    (found,) = told.values()
    token_ids = g.graph["token_ids"]
    assert found["top_q_marginal_contributors"] == [
        [f"E_{token_ids[pos]}_{pos}", (-1.0) ** pos * pos] for pos in range(14, 4, -1)
    ]
    ((source, key),) = found["top_k_marginal_contributors"]
    assert key == -0.5
    assert source in nodes_of(document)
    assert found["pair_wise_contributors"] == []
    drawn = [flowing, "token:3"]
    g.graph["pairs"] = [
        {"node": name, "query": drawn[i], "key": key, "value": 0.5 - i}
        for i, key in enumerate([drawn[1], "remainder:5"])  # which is not drawn there
    ]
    document = to_neuronpedia(g)
    jsonschema.validate(document, SCHEMA)
    (found,) = (n["qk_tracing_results"] for n in document["nodes"] if "qk_tracing_results" in n)
    assert [value for *_, value in found["pair_wise_contributors"]] == [0.5]
    assert set(found["pair_wise_contributors"][0][:2]) <= nodes_of(document).keys()
    assert not any("qk_tracing_results" in node for node in to_neuronpedia(sample_graph())["nodes"])


def test_model_and_source_set_come_from_the_saes() -> None:
    ids = ("llama3.1-8b/5-llamascope-res-32k", "llama3.1-8b/11-llamascope-res-32k")
    metadata = to_neuronpedia(with_ids(*ids))["metadata"]
    assert metadata["scan"] == "llama3.1-8b"
    assert metadata["feature_details"] == {"neuronpedia_source_set": "llamascope-res-32k"}
    assert metadata["info"]["neuronpedia_source_set"] == "llamascope-res-32k"


@pytest.mark.parametrize(
    "ids",
    [
        (None, None),
        ("llama3.1-8b/5-res", None),
        ("llama3.1-8b/5-res", "llama3.1-8b/11-mlp"),
        ("llama3.1-8b/5-res", "gemma-2-2b/11-res"),
        ("llama3.1-8b/5-res", "llama3.1-8b/12-res"),
        ("res", ""),
    ],
)
def test_a_source_set_that_some_sae_is_not_of_is_left_out(ids: tuple[str | None, ...]) -> None:
    metadata = to_neuronpedia(with_ids(*ids))["metadata"]
    assert "feature_details" not in metadata
    assert "neuronpedia_source_set" not in metadata["info"]


def test_without_a_neuronpedia_id_the_models_name_is_made_into_one() -> None:
    g = with_ids(None, None)
    g.graph["model"] = "/home/me/my model/"
    assert to_neuronpedia(g)["metadata"]["scan"] == "my-model"


def test_slug_and_scan_can_be_chosen_and_are_made_fit() -> None:
    metadata = to_neuronpedia(sample_graph(), slug="Paris & London?", scan="google/gemma-2-2b")["metadata"]
    assert metadata["slug"] == "Paris-London"
    assert metadata["scan"] == "google-gemma-2-2b"


def test_other_graphs_of_one_prompt_have_other_slugs() -> None:
    one, again, other = (to_neuronpedia(sample_graph(seed=seed))["metadata"]["slug"] for seed in (0, 0, 1))
    assert one == again != other
    assert one.startswith("s-word0-word2")


@pytest.mark.parametrize("n_logits", [0, 2])
def test_there_is_a_numeric_layer_above_0_even_if_the_only_sae_is_at_layer_0(n_logits: int) -> None:
    g = sample_graph(layers=(0,), n_logits=n_logits)
    if not n_logits:
        g.graph["target"] = []
    document = to_neuronpedia(g)
    jsonschema.validate(document, SCHEMA)
    layers = [node["layer"] for node in document["nodes"] if node["feature_type"] != "logit"]
    assert max(int(layer) for layer in layers if layer.isdigit()) == 1
    assert len(nodes_of(document)) == len(document["nodes"])


def viewer_scores(document: dict[str, Any]) -> tuple[float, float]:
    """Replacement and completeness as Neuronpedia's viewer computes them: circuit-tracer's, by the rows' order."""
    order = ["cross layer transcoder", "lorsa", "mlp reconstruction error", "lorsa error", "embedding", "logit"]
    nodes = sorted(
        document["nodes"],
        key=lambda node: order.index(node["feature_type"]) if node["feature_type"] in order else len(order),
    )
    row = {node["node_id"]: i for i, node in enumerate(nodes)}
    flow = np.zeros((len(nodes), len(nodes)))
    for link in document["links"]:
        flow[row[link["target"]], row[link["source"]]] = abs(link["weight"])
    flow /= np.maximum(flow.sum(1, keepdims=True), 1e-10)
    probabilities = [node["token_prob"] for node in nodes if node["feature_type"] == "logit"]
    own = np.concatenate([np.zeros(len(nodes) - len(probabilities)), probabilities])
    influence = np.linalg.solve(np.eye(len(nodes)) - flow.T, own) - own
    types = np.array([node["feature_type"] for node in nodes])
    error, token = influence[types == order[2]].sum(), influence[types == order[4]].sum()
    whole = influence + own
    completeness = ((1 - flow[:, types == order[2]].sum(1)) * whole).sum() / whole.sum()
    return token / (token + error), completeness


def test_the_viewer_can_compute_its_scores() -> None:
    replacement, completeness = viewer_scores(to_neuronpedia(sample_graph()))
    assert 0 < replacement < 1
    assert 0 < completeness < 1


def test_errors_lower_the_viewers_scores() -> None:
    g = sample_graph()
    before = viewer_scores(to_neuronpedia(g))
    for source, _, edge in g.edges(data=True):
        if source.startswith("error"):
            edge["weight"] *= 10
    after = viewer_scores(to_neuronpedia(g))
    assert all(new < old for new, old in zip(after, before, strict=True))


def test_a_file_too_large_to_upload_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neuronpedia, "UPLOAD_LIMIT", 2**12)
    with pytest.raises(UserError, match=r"^the Neuronpedia file would have .* MiB and an upload may have"):
        neuronpedia_text(sample_graph())
