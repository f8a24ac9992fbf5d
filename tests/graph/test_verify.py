"""Predictions along paths, and interventions that are what transformers does when its stream is edited."""

from typing import Any

import networkx as nx
import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.graph.verify import _shuffled, predicted
from depass_sae.saes import Hook, feature_parts

from ..attribution.tiny import TEXT, activation, fitting_sae, handle, random_sae
from .sample import sample_graph

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
HOOKS = ("0.resid_post", "2.resid_post")


def lm() -> ds.LM:
    return handle([random_sae("jumprelu", hook, seed=seed) for seed, hook in enumerate(HOOKS)])


def along_paths(g: nx.DiGraph, source: str, value: str) -> float:
    """Every path written out."""
    total = 0.0
    for target in g.graph["target"]:
        for path in nx.all_simple_paths(g, source, target["node"]):
            product = target["weight"]
            for a, b in nx.utils.pairwise(path):
                product *= g.edges[a, b][value]
                if b != target["node"]:
                    product /= g.nodes[b]["pre_activation"]
            total += product
    return total


@pytest.mark.parametrize("value", ["weight", "effect"])
def test_a_prediction_is_the_sum_over_paths_of_products_of_shares(value: str) -> None:
    g = sample_graph(per_level=3, n_pos=4)
    found = predicted(g, value)
    for name in g:
        if not g.nodes[name].get("target"):
            assert found[name] == pytest.approx(along_paths(g, name, value), rel=1e-9, abs=1e-9)


def test_what_is_observed_is_the_loss_in_transformers_own_model() -> None:
    handle_ = lm()
    g = handle_.verify(handle_.graph(TEXT, "logit:5", max_nodes=50), max_nodes=40)
    ids = torch.tensor([handle_.encode(TEXT).token_ids])
    with torch.no_grad():
        whole = handle_.model(ids).logits[0, -1, 5].item()
    assert g.graph["verification"]["target"] == pytest.approx(whole, rel=1e-4)
    checked = 0
    for entry in g.graph["verification"]["nodes"]:
        node = g.nodes[entry["node"]]
        if node["kind"] not in ("feature", "error"):
            continue
        x = activation(handle_.model, ids, HOOKS[node["layer"] // 2])[0]
        found = feature_parts(handle_._subject.saes[Hook(node["layer"], "resid_post")], x)
        if node["kind"] == "feature":
            part = found.parts[(found.pos == node["pos"]) & (found.index == node["index"])][0]
        else:
            part = found.error[node["pos"]]  # type: ignore[index]
        assert entry["observed"] == pytest.approx(
            whole - without(handle_, ids, node["layer"], node["pos"], part), abs=2e-4
        )
        checked += 1
    assert checked > 5


@torch.no_grad()
def without(lm: ds.LM, ids: torch.Tensor, layer: int, pos: int, part: torch.Tensor) -> float:
    def edit(_m: Any, _args: Any, out: Any) -> Any:
        x = (out[0] if isinstance(out, tuple) else out).clone()
        x[0, pos] -= part
        return (x, *out[1:]) if isinstance(out, tuple) else x

    hook = lm.model.model.layers[layer].register_forward_hook(edit)
    try:
        return lm.model(ids).logits[0, -1, 5].item()
    finally:
        hook.remove()


def test_with_every_active_feature_in_the_graph_keeping_only_them_changes_nothing() -> None:
    handle_ = lm()
    g = handle_.graph(TEXT, "logit:5", max_nodes=5000)
    active = sum(len(at.indices) for layer in handle_.features(TEXT).layers for at in layer.positions)
    assert sum(node["kind"] == "feature" for _, node in g.nodes(data=True)) <= active
    found = handle_.verify(g, max_nodes=1).graph["verification"]
    if found["together"]["features"] == found["together"]["active"]:
        assert found["together"]["only_graph"] == pytest.approx(found["target"], rel=1e-4)
    assert found["together"]["without_graph"] != pytest.approx(found["target"], rel=1e-3)


def test_without_all_features_of_a_perfect_sae_nothing_is_left_but_position_0() -> None:
    handle_ = handle([fitting_sae("1.resid_post")])
    g = handle_.verify(handle_.graph(TEXT, "logit:5", max_nodes=5000), max_nodes=1)
    together = g.graph["verification"]["together"]
    assert together["features"] <= together["active"]
    assert together["only_graph"] != together["without_graph"]


def test_the_graph_is_left_as_it_was_and_the_copy_carries_the_result(tmp_path: Any) -> None:
    handle_ = lm()
    g = handle_.graph(TEXT, "logit:5", max_nodes=30)
    verified = handle_.verify(g, max_nodes=5)
    assert "verification" not in g.graph
    ds.write_graph(verified, tmp_path / "g.json")
    assert ds.read_graph(tmp_path / "g.json").graph["verification"] == verified.graph["verification"]


def test_heads_and_tokens_are_taken_out_too() -> None:
    handle_ = lm()
    g = handle_.graph(TEXT, "logit:5", max_nodes=150, heads=True)
    verified = handle_.verify(g, max_nodes=1000).graph["verification"]
    assert {g.nodes[entry["node"]]["kind"] for entry in verified["nodes"]} == {"feature", "error", "token", "head"}


def test_a_graph_of_another_model_or_other_saes_is_refused() -> None:
    handle_ = lm()
    g = handle_.graph(TEXT, "logit:5", max_nodes=30)
    other = g.copy()
    other.graph["model"] = "somebody/else"
    with pytest.raises(UserError, match="the graph is of somebody/else"):
        handle_.verify(other)
    with pytest.raises(UserError, match=r"stands on SAEs at 0\.resid_post"):
        handle([random_sae("jumprelu", "2.resid_post")]).verify(g)
    changed = g.copy()
    changed.nodes[g.graph["target"][0]["node"]]["pre_activation"] += 5
    with pytest.raises(UserError, match="other weights, SAEs or dtype"):
        handle_.verify(changed)


def test_a_graph_on_the_stream_between_the_sublayers_is_verified() -> None:
    hooks = ("0.resid_mid", "2.resid_post")
    handle_ = handle([random_sae("jumprelu", hook, seed=seed) for seed, hook in enumerate(hooks)])
    g = handle_.verify(handle_.graph(TEXT, "logit:5", max_nodes=50), max_nodes=10)
    feature = next(e for e in g.graph["verification"]["nodes"] if e["node"].startswith("feature:0/"))
    assert feature["observed"] != 0.0


def test_random_features_are_drawn_where_the_target_can_see_them() -> None:
    mask = torch.tensor([True, False, False, True, False, False])
    candidates = torch.tensor([True, True, True, True, False, False])
    drawn = [_shuffled(mask, candidates, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all(int(found.sum()) == 2 and not found[4:].any() for found in drawn)
    assert any(not torch.equal(found, mask) for found in drawn)
