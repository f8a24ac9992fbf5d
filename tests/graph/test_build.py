"""Graphs of random models and SAEs: they add up, and every edge is what a direct computation says."""

from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.graph.document import document_of, graph_of
from depass_sae.graph.influence import is_flow
from depass_sae.graph.tiers import sae_tier
from depass_sae.passes.propagate import Allocation, propagate
from depass_sae.passes.sources import Vectors
from depass_sae.saes import Hook, encoder_direction, feature_parts

from ..attribution.tiny import (
    BOS,
    SINK,
    TEXT,
    activation,
    handle,
    pre_activations,
    random_sae,
    sinking,
    tokenizer,
)  # fmt: skip
from ..passes.models import SHAPES

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing
HOOKS = ("0.resid_post", "1.resid_mid", "2.resid_post")
NORMS = ("none", "layer_norm", "constant_norm_rescale")


def lm_with(kind: str = "jumprelu", shape: str = "llama", hooks: Any = HOOKS, **options: Any) -> ds.LM:
    saes = [random_sae(kind, hook, seed=seed, **options) for seed, hook in enumerate(hooks)]
    return handle(saes, shape)


def shortfall(g: nx.DiGraph, name: str) -> float:
    """|Σ incoming + constant − pre-activation| over the largest number involved."""
    node = g.nodes[name]
    weights = [edge["weight"] for _, _, edge in g.in_edges(name, data=True) if is_flow(edge)]
    sizes = [abs(node["pre_activation"]), abs(node["constant"]), *map(abs, weights)]
    return abs(sum(weights) + node["constant"] - node["pre_activation"]) / max(sizes)


def summed(g: nx.DiGraph) -> list[str]:
    return [name for name, node in g.nodes(data=True) if "pre_activation" in node]


def adds_up(g: nx.DiGraph, tolerance: float = 2e-5) -> bool:
    return all(shortfall(g, name) <= tolerance for name in summed(g))


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["standard", "jumprelu", "topk", "gated"]),
    normalised=st.sampled_from(NORMS),
    shape=st.sampled_from(SHAPES),
    rule=st.sampled_from(["half", "linear", "softmax", "linear-norm", "max"]),
    max_nodes=st.integers(16, 90),
    edge_threshold=st.none() | st.floats(0.3, 1.0),
    node_threshold=st.none() | st.floats(0.3, 1.0),
)
def test_every_feature_and_logit_is_the_sum_of_what_flows_in(
    kind: str, normalised: str, shape: str, rule: str, max_nodes: int, edge_threshold: Any, node_threshold: Any
) -> None:
    lm = lm_with(kind, shape, normalize_activations=normalised)
    g = lm.graph(
        TEXT, ["logit:5", "logit-diff:7,9"], rule=rule, max_nodes=max_nodes, edge_threshold=edge_threshold,
        node_threshold=node_threshold,
    )  # fmt: skip
    assert len(g) <= max_nodes
    assert len(summed(g)) >= 2
    assert adds_up(g)
    assert graph_of(document_of(g)).nodes == g.nodes  # the format's own checks pass, too


@pytest.mark.parametrize("rule", ["half", "softmax"])
def test_a_topk_sae_that_rescales_by_decoder_norms_adds_up(rule: str) -> None:
    lm = lm_with("topk", rescale_acts_by_decoder_norm=True)
    assert adds_up(lm.graph(TEXT, max_nodes=80, rule=rule))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_edge_is_the_direct_propagation_of_the_one_feature(shape: str) -> None:
    lm = lm_with(shape=shape)
    subject, prompt = lm._subject, lm.encode(TEXT)
    seen = subject.trace(prompt, None)
    g = lm.graph(TEXT, max_nodes=200, edge_threshold=None)
    checked = 0
    for source, target, edge in g.edges(data=True):
        u, v = g.nodes[source], g.nodes[target]
        if u["kind"] != "feature" or v["kind"] != "feature" or checked >= 12:
            continue
        low, high = (Hook(n["layer"], HOOKS[n["layer"]].partition(".")[2]) for n in (u, v))
        found = feature_parts(subject.saes[low], seen.at((low.layer, low.name)))
        which = ((found.pos == u["pos"]) & (found.index == u["index"])).nonzero()[0, 0]
        part = torch.zeros(len(prompt), 1, found.constant.shape[1])
        part[u["pos"], 0] = found.part(slice(int(which), int(which) + 1))[0]
        start = Vectors(part, ["it"], (low.layer, low.name)).start(seen)
        point = (high.layer, high.name)
        rows = propagate(seen, start, {point: torch.tensor([v["pos"]])}, Allocation("half"))[point]
        w = encoder_direction(subject.saes[high], seen.at(point), v["index"]).w[v["pos"]]
        assert edge["weight"] == pytest.approx(rows.project(w[None])[0, 0].item(), rel=1e-4, abs=1e-5)
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("shape", ["llama", "gpt2", "qwen3"])
def test_both_engines_give_the_same_edges(shape: str) -> None:
    from depass_sae.graph.flow import carry, inflow
    from depass_sae.graph.reads import feature_reads
    from depass_sae.graph.tiers import sae_tier

    lm = lm_with(shape=shape)
    subject, prompt = lm._subject, lm.encode(TEXT)
    seen = subject.trace(prompt, None)
    low, high = (sae_tier(subject, seen, prompt, Hook(layer, "resid_post")) for layer in (0, 2))
    assert high.features is not None
    reads = feature_reads(high, seen, high.features.pos[::5], high.features.index[::5])
    for rule in ("half", "linear"):
        swept = inflow(seen, low, reads, Allocation(rule)).weights
        carried = inflow(seen, low, reads, Allocation(rule), carry(seen, low, high.point, Allocation(rule))).weights
        assert (swept - carried).abs().max() <= 2e-5 * carried.abs().max()


@pytest.mark.parametrize("normalised", NORMS)
def test_effects_are_autograds_on_the_untouched_model_and_sae(normalised: str) -> None:
    lm = lm_with(hooks=("0.resid_post", "2.resid_post"), normalize_activations=normalised)
    g = lm.graph(TEXT, max_nodes=150, edge_threshold=None)
    ids = torch.tensor([lm.encode(TEXT).token_ids])
    low, high = (lm._subject.saes[Hook(layer, "resid_post")] for layer in (0, 2))
    found = feature_parts(low, activation(lm.model, ids, "0.resid_post")[0])
    checked = 0
    for target in [name for name in g if name.startswith("feature:2/")][:4]:
        node = g.nodes[target]
        slope, reached = gradient_of(lm, ids, high, node["index"], node["pos"])
        assert reached == pytest.approx(node["pre_activation"], rel=1e-4, abs=1e-4)
        for source, _, edge in g.in_edges(target, data=True):
            u = g.nodes[source]
            if u["kind"] == "feature":
                which = ((found.pos == u["pos"]) & (found.index == u["index"])).nonzero()[0, 0]
                expected = (slope[u["pos"]] * found.parts[which]).sum().item()
                assert edge["effect"] == pytest.approx(expected, rel=2e-3, abs=1e-4 * slope.abs().max().item())
                checked += 1
    assert checked > 10


def gradient_of(lm: ds.LM, ids: torch.Tensor, sae: Any, index: int, pos: int) -> tuple[torch.Tensor, float]:
    """∂(pre-activation at layer 2)/∂(stream after layer 0), through transformers' modules and sae-lens's encoder."""
    stream: dict[str, torch.Tensor] = {}

    def keep(_m: Any, _args: Any, out: Any) -> Any:
        x = (out[0] if isinstance(out, tuple) else out).detach().requires_grad_()
        stream["low"] = x
        return (x, *out[1:]) if isinstance(out, tuple) else x

    def note(_m: Any, _args: Any, out: Any) -> None:
        stream["high"] = out[0] if isinstance(out, tuple) else out

    layers = lm.model.model.layers
    handles = [layers[0].register_forward_hook(keep), layers[2].register_forward_hook(note)]
    seen: list[torch.Tensor] = []
    handles.append(sae.hook_sae_acts_pre.register_forward_hook(lambda _m, _i, out: seen.append(out)))
    try:
        with torch.enable_grad():
            lm.model(ids, use_cache=False)
            sae.encode(stream["high"][0])
            value = seen[-1][pos, index]
            (slope,) = torch.autograd.grad(value, stream["low"])
    finally:
        for handle_ in handles:
            handle_.remove()
    return slope[0], value.item()


def test_pre_activations_are_sae_lens_own() -> None:
    lm = lm_with()
    g = lm.graph(TEXT, max_nodes=120)
    ids = torch.tensor([lm.encode(TEXT).token_ids])
    for name in [name for name in g if name.startswith("feature:")]:
        node = g.nodes[name]
        hook = HOOKS[node["layer"]]
        sae = lm.saes[node["layer"]]
        if hook.endswith("resid_post"):
            expected = pre_activations(sae, activation(lm.model, ids, hook)[0])[node["pos"], node["index"]].item()
            assert node["pre_activation"] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_an_sae_on_the_last_layer_leads_straight_to_the_logits() -> None:
    g = lm_with(hooks=("0.resid_post", "2.resid_post")).graph(TEXT, "logit:5", max_nodes=60)
    (target,) = [t["node"] for t in g.graph["target"]]
    assert all(g.nodes[source]["layer"] == 2 for source in g.predecessors(target))
    assert adds_up(g)


def test_without_a_target_the_likeliest_tokens_are_the_targets_by_their_probability() -> None:
    lm = lm_with()
    g = lm.graph(TEXT, max_nodes=90)
    with torch.no_grad():
        chances = lm.model(torch.tensor([lm.encode(TEXT).token_ids])).logits[0, -1].softmax(-1)
    found = [g.nodes[target["node"]] for target in g.graph["target"]]
    assert [node["index"] for node in found] == chances.argsort(descending=True)[: len(found)].tolist()
    assert [node["probability"] for node in found] == pytest.approx(
        chances.sort(descending=True).values[: len(found)].tolist(), rel=1e-4
    )
    assert sum(target["weight"] for target in g.graph["target"]) == pytest.approx(1)


def test_a_features_graph_stands_on_the_saes_below_it() -> None:
    lm = lm_with()
    report = lm.features(TEXT, 2).layers[0].positions[5]
    g = lm.graph(TEXT, f"2/{report.indices[0]}@5", max_nodes=60)
    layers = {node["layer"] for _, node in g.nodes(data=True)}
    assert {0, 1, 2} <= layers <= {-1, 0, 1, 2}
    assert g.graph["target"][0]["node"] == f"feature:2/{report.indices[0]}@5"
    assert adds_up(g)


def test_position_0_is_one_root_per_layer_where_it_is_a_special_token() -> None:
    g = lm_with().graph(TEXT, max_nodes=300)
    at_0 = {name for name, node in g.nodes(data=True) if node.get("pos") == 0}
    assert at_0 <= {"token:0", "token:0@0", "token:1@0", "token:2@0"}
    assert at_0 & {"token:0@0", "token:1@0", "token:2@0"}


def test_errors_followed_through_add_up_and_are_no_roots_any_more() -> None:
    g = lm_with().graph(TEXT, "logit:5", max_nodes=120, errors="through")
    errors = [name for name, node in g.nodes(data=True) if node["kind"] == "error" and node["layer"] > 0]
    assert errors
    assert all(shortfall(g, name) <= 1e-4 for name in summed(g))
    assert all(g.in_degree(name) for name in errors)


def test_heads_are_a_second_view_and_change_no_sum() -> None:
    plain, with_heads = (lm_with().graph(TEXT, "logit:5", max_nodes=60, heads=heads) for heads in (False, True))
    heads = [name for name, node in with_heads.nodes(data=True) if node["kind"] == "head"]
    assert heads
    assert adds_up(with_heads)
    with_heads.remove_nodes_from(heads)
    assert set(with_heads.edges) == set(plain.edges)


def test_what_is_remembered_of_a_nodes_inflow_changes_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depass_sae.graph.grow.KEPT_SOURCES", 12)
    g = lm_with().graph(TEXT, max_nodes=90)
    assert adds_up(g)


def test_the_size_of_a_batch_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lm_with().graph(TEXT, "logit:5", max_nodes=60)
    monkeypatch.setattr("depass_sae.passes.memory.SWEPT", 1)
    small = lm_with().graph(TEXT, "logit:5", max_nodes=60)
    assert set(whole.edges) == set(small.edges)
    for edge in whole.edges:
        assert whole.edges[edge]["weight"] == pytest.approx(small.edges[edge]["weight"], rel=1e-4, abs=1e-5)


def test_twice_the_same_graph() -> None:
    one, two = (lm_with().graph(TEXT, max_nodes=70) for _ in range(2))
    assert list(one.nodes(data=True)) == list(two.nodes(data=True))
    assert list(one.edges(data=True)) == list(two.edges(data=True))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_nodes": 5}, "max_nodes 5 is too few"),
        ({"rule": "relu"}, "a graph takes the rules half, linear"),
        ({"layers": [7]}, "there is no SAE on the residual stream at layer 7"),
        ({"errors": "gone"}, "errors are"),
        ({"edge_threshold": 1.5}, "edge_threshold is a share"),
        ({"rule": "softmax", "heads": True}, "need a rule of half and linear"),
        ({"target": "logit-diff: Mary"}, "write a difference of logits as"),
        ({"target": "2/9999"}, "there is no feature 9999"),
    ],
)
def test_a_mistake_gets_one_line(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lm_with().graph(TEXT, **asked)


def test_saes_that_the_stream_by_passes_are_refused() -> None:
    lm = handle([random_sae("jumprelu", "1.mlp_out")])
    with pytest.raises(UserError, match="by-passed"):
        lm.graph(TEXT)
    with pytest.raises(UserError, match="needs SAEs"):
        handle([]).graph(TEXT)


def test_two_saes_at_the_same_point_are_refused() -> None:
    lm = handle([random_sae("jumprelu", "0.resid_post"), random_sae("jumprelu", "1.resid_pre")])
    with pytest.raises(UserError, match="the same point"):
        lm.graph(TEXT)


# --------------------------------------------------------------------------------------------------------------- sinks


def sunk(hooks: Any = HOOKS) -> ds.LM:
    """Without a start token: the first token of a prompt is an ordinary one that the model makes a sink."""
    saes = [random_sae("jumprelu", hook, seed=seed) for seed, hook in enumerate(hooks)]
    return ds.load(sinking(), tokenizer(adds_bos=False), saes=saes)


@pytest.mark.parametrize("rule", ["half", "softmax"])
def test_at_position_0_a_sink_is_one_root_per_sae_as_a_special_token_is(rule: str) -> None:
    lm, ids = sunk(), [SINK, 90, 70, 60, 75]
    g = lm.graph(ids, "logit:5", max_nodes=400, edge_threshold=None, rule=rule)
    at_0 = {name: node for name, node in g.nodes(data=True) if node.get("pos") == 0}
    assert {node["kind"] for node in at_0.values()} == {"token"}
    assert at_0.keys() == {"token:0", "token:0@0", "token:1@0"}  # of the last, nothing looks back to position 0
    assert adds_up(g)
    x = activation(lm.model, torch.tensor([ids]), HOOKS[-1])[0]
    seen = lm._subject.trace(lm.encode(ids), None)
    tier = sae_tier(lm._subject, seen, lm.encode(ids), Hook(2, "resid_post"))
    torch.testing.assert_close(tier.roots[0], x[0])
    assert not tier.constant[0].any()
    verified = lm.verify(g, max_nodes=8)
    assert verified.graph["verification"]["together"]["active"] == sum(
        len(at.indices) for layer in lm.features(ids).layers for at in layer.positions[1:]
    )


def test_a_later_sink_keeps_its_features_in_a_graph_and_is_no_default_target() -> None:
    lm, ids = sunk(), [BOS, 90, SINK, 60, 75]
    strongest = next(i for i in lm.features(ids).layers[-1].positions[2].indices)
    g = lm.graph(ids, f"2/{strongest}", max_nodes=100)
    assert all(g.nodes[target["node"]]["pos"] != 2 for target in g.graph["target"])
    asked = lm.graph(ids, f"2/{strongest}@2", max_nodes=100)
    assert f"feature:2/{strongest}@2" in asked
    assert adds_up(asked)


def test_a_feature_at_a_first_position_that_is_a_sink_may_be_asked_for() -> None:
    lm, ids = sunk(), [SINK, 90, 70, 60, 75]
    strongest = lm.features(ids).layers[-1].positions[0].indices[0]
    g = lm.graph(ids, f"2/{strongest}@0", max_nodes=100)
    assert adds_up(g)
    assert {node["kind"] for node in g.nodes.values() if node["layer"] < 2} <= {
        "token",
        "bias",
        "constant",
        "remainder",
    }
