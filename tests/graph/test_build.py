"""Graphs of random models and SAEs: they add up, and every edge is what a direct computation says."""

from collections import Counter
from operator import itemgetter
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.graph.cuts import sae_cut
from depass_sae.graph.document import document_of, graph_of
from depass_sae.graph.influence import is_flow, size
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.settings import Settings
from depass_sae.passes.sources import Vectors
from depass_sae.saes import Hook, encoder_direction

from ..attribution.tiny import (
    BOS,
    SINK,
    TEXT,
    activation,
    handle,
    model,
    pre_activations,
    random_sae,
    sinking,
    tokenizer,
)  # fmt: skip
from ..passes.models import EVERY, HEADS, PARALLEL, SHAPES
from ..test_documents import InFloat64

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
    shape=st.sampled_from(EVERY),
    rule=st.sampled_from(["half", "linear", "softmax", "linear-norm", "max"]),
    max_nodes=st.integers(16, 90),
    edge_threshold=st.none() | st.floats(0.3, 1.0),
    node_threshold=st.none() | st.floats(0.3, 1.0),
)
def test_every_feature_and_logit_is_the_sum_of_what_flows_in(
    kind: str, normalised: str, shape: str, rule: str, max_nodes: int, edge_threshold: Any, node_threshold: Any
) -> None:
    hooks = [hook for hook in HOOKS if shape not in PARALLEL or "mid" not in hook]
    with InFloat64():  # inflow may cancel to a five-hundredth of it, where float32 has few digits left
        saes = [
            random_sae(kind, hook, seed=seed, normalize_activations=normalised, dtype="float64")
            for seed, hook in enumerate(hooks)
        ]
        lm = ds.load(model(shape, torch.float64), tokenizer(), saes=saes)
        g = lm.graph(
            TEXT, ["logit:5", "logit-diff:7,9"], rule=rule, max_nodes=max_nodes, edge_threshold=edge_threshold,
            node_threshold=node_threshold,
        )  # fmt: skip
    assert len(g) <= max_nodes
    assert len(summed(g)) >= 2
    assert adds_up(g, 1e-9)
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
    checked: Counter[str] = Counter()
    for source, target, edge in g.edges(data=True):
        u, v = g.nodes[source], g.nodes[target]
        if u["layer"] < 0 or u["kind"] in ("bias", "remainder") or v["kind"] != "feature" or checked[u["kind"]] >= 8:
            continue
        low, high = (Hook(n["layer"], HOOKS[n["layer"]].partition(".")[2]) for n in (u, v))
        part = stream_of(subject.saes[low], seen.at((low.layer, low.name)), u)[:, None]
        start = Vectors(part, ["it"], (low.layer, low.name)).start(seen)
        point = (high.layer, high.name)
        rows = propagate(seen, start, {point: torch.tensor([v["pos"]])}, Allocation("half"))[point]
        w = encoder_direction(subject.saes[high], seen.at(point), v["index"]).w[v["pos"]]
        assert edge["weight"] == pytest.approx(rows.project(w[None])[0, 0].item(), rel=1e-4, abs=1e-5)
        checked[u["kind"]] += 1
    assert min(checked[kind] for kind in ("feature", "error", "constant")) >= 3


@torch.no_grad()
def stream_of(sae: Any, x: torch.Tensor, node: dict[str, Any], special: bool = True) -> torch.Tensor:
    """What a source of a cut is in the stream [pos, d], by sae-lens's own decoder."""
    out, first = torch.zeros_like(x), torch.arange(len(x)) == 0
    if node["kind"] == "token":
        out[0] = x[0]
        return out
    acts = sae.encode(x)
    if node["kind"] == "error":
        out[node["pos"]] = (x - sae.decode(acts))[node["pos"]]
        return out
    constant = sae.decode(acts * 0)
    if node["kind"] == "constant":
        return constant * ~(first & special)[:, None]
    sae.encode(x)  # it keeps the scale from the one to the other
    alone = torch.zeros_like(acts)
    alone[node["pos"], node["index"]] = acts[node["pos"], node["index"]]
    return sae.decode(alone) - constant


@pytest.mark.parametrize("shape", ["llama", "gpt2", "qwen3"])
def test_both_engines_give_the_same_edges(shape: str) -> None:
    from depass_sae.graph.cuts import Standing, sae_cut
    from depass_sae.graph.flow import carry, inflow
    from depass_sae.graph.reads import feature_reads

    lm = lm_with(shape=shape)
    subject, prompt = lm._subject, lm.encode(TEXT)
    seen = subject.trace(prompt, None)
    low, high = (sae_cut(subject, seen, prompt, Hook(layer, "resid_post")) for layer in (0, 2))
    reads = feature_reads(high, high.active.pos[::5], high.active.index[::5])
    standing = Standing([low, high])
    for rule in ("half", "linear"):
        swept = inflow(seen, standing, 0, reads, Settings.of(rule)).weights[0]
        rows = carry(seen, low, high.place, Settings.of(rule))
        carried = inflow(seen, standing, 0, reads, Settings.of(rule), rows).weights[0]
        assert (swept - carried).abs().max() <= 2e-5 * carried.abs().max()


@pytest.mark.parametrize("normalised", NORMS)
def test_effects_are_autograds_on_the_untouched_model_and_sae(normalised: str) -> None:
    lm = lm_with(hooks=("0.resid_post", "2.resid_post"), normalize_activations=normalised)
    g = lm.graph(TEXT, max_nodes=150, edge_threshold=None)
    ids = torch.tensor([lm.encode(TEXT).token_ids])
    low, high = (lm._subject.saes[Hook(layer, "resid_post")] for layer in (0, 2))
    x = activation(lm.model, ids, "0.resid_post")[0]
    checked: Counter[str] = Counter()
    for target in [name for name in g if name.startswith("feature:2/")][:4]:
        node = g.nodes[target]
        slope, reached = gradient_of(lm, ids, high, node["index"], node["pos"])
        assert reached == pytest.approx(node["pre_activation"], rel=1e-4, abs=1e-4)
        for source, _, edge in g.in_edges(target, data=True):
            u = g.nodes[source]
            if u["kind"] not in ("bias", "remainder"):
                expected = (slope * stream_of(low, x, u)).sum().item()
                assert edge["effect"] == pytest.approx(expected, rel=2e-3, abs=1e-4 * slope.abs().max().item())
                checked[u["kind"]] += 1
    assert checked["feature"] > 10
    assert min(checked[kind] for kind in ("error", "constant")) > 1


def test_effects_on_a_capped_logit_are_those_on_what_the_model_puts_out() -> None:
    lm = lm_with(shape="gemma2", hooks=("2.resid_post",))
    g = lm.graph(TEXT, logit=9, edge_threshold=None)
    (target,) = (name for name in g if g.nodes[name]["kind"] == "logit")
    stream: list[torch.Tensor] = []

    def keep(_m: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        stream.append(out.detach().requires_grad_())
        return stream[0]

    hook = lm.model.model.layers[-1].register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logit = lm.model(torch.tensor([lm.encode(TEXT).token_ids]), use_cache=False).logits[0, -1, 9]
            (slope,) = torch.autograd.grad(logit, stream[0])
    finally:
        hook.remove()
    low, before = lm._subject.saes[Hook(2, "resid_post")], stream[0][0].detach()
    flows = [(g.nodes[name], edge["effect"]) for name, _, edge in g.in_edges(target, data=True) if is_flow(edge)]
    features = [(node, effect) for node, effect in flows if node["kind"] == "feature"]
    assert len(features) > 3
    for node, effect in features:
        expected = (slope[0] * stream_of(low, before, node)).sum().item()
        assert effect == pytest.approx(expected, rel=2e-3, abs=1e-5)
    assert g.nodes[target]["pre_activation"] != pytest.approx(logit.item(), rel=1e-2)
    checked = lm.verify(g, max_nodes=1).graph["verification"]
    assert checked["target"] == pytest.approx(logit.item(), rel=1e-4)


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
    probabilities = torch.tensor([node["probability"] for node in found])
    weights = [target["weight"] for target in g.graph["target"]]
    assert weights == pytest.approx((probabilities / probabilities.sum()).tolist())
    assert len(weights) > 1


@pytest.mark.parametrize(
    ("targets", "by_probability"),
    [
        (["logit:5@4", "logit:9", "logit:7@3"], True),
        (["logit:5@4", "logit-diff:7,9"], False),
        (["2/0@4", "2/3@5", "logit:5"], False),
        (["logit:5@4", "logit:5@4"], True),  # once is enough
    ],
)
def test_logits_count_by_probability_and_everything_else_alike(targets: list[str], by_probability: bool) -> None:
    lm = lm_with()
    g = lm.graph(TEXT, targets, max_nodes=60)
    with torch.no_grad():
        chances = lm.model(torch.tensor([lm.encode(TEXT).token_ids])).logits[0].softmax(-1)
    nodes = [g.nodes[target["node"]] for target in g.graph["target"]]
    assert len(nodes) == len(set(targets))
    counted = [chances[node["pos"], node["index"]].item() if by_probability else 1.0 for node in nodes]
    assert [target["weight"] for target in g.graph["target"]] == pytest.approx(
        [count / sum(counted) for count in counted], rel=1e-4
    )


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


def test_an_error_that_is_followed_is_worth_to_its_readers_what_flows_through_them_to_the_targets() -> None:
    """Its pre-activation is ⟨u, error⟩, u being the gradient, along all paths, of what the targets count for."""
    lm = lm_with(hooks=("0.resid_post", "2.resid_post"))
    g = lm.graph(TEXT, ["2/0@6", "logit:5", "logit:9@6"], max_nodes=55, errors="through", edge_threshold=None)
    errors = [name for name, node in g.nodes(data=True) if node["kind"] == "error" and g.in_degree(name)]
    for name in errors:
        # All were found in one round, upper layers first, so that everything which reads an error was known.
        expected = sum(edge["weight"] * unit_of(g, reader) for _, reader, edge in g.out_edges(name, data=True))
        assert g.nodes[name]["pre_activation"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert {g.nodes[name]["layer"] for name in errors} == {0, 2}
    targets = {target["node"] for target in g.graph["target"]}
    assert any(set(g.successors(name)) - targets for name in errors)


def unit_of(g: nx.DiGraph, name: str) -> float:
    """What one unit of a node's pre-activation is worth to the targets."""
    own = sum(target["weight"] for target in g.graph["target"] if target["node"] == name)
    through = sum(edge["weight"] * unit_of(g, reader) for _, reader, edge in g.out_edges(name, data=True))
    return own + (through / g.nodes[name]["pre_activation"] if through else 0.0)


def heads_edges(g: nx.DiGraph, target: str) -> dict[tuple[int, int], dict[str, Any]]:
    found = [(g.nodes[source], edge) for source, _, edge in g.in_edges(target, data=True) if edge["kind"] == "head"]
    return {(head["layer"], head["index"]): edge for head, edge in found}


def heads_outputs(lm: ds.LM, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What every layer gives its o_proj, and the logits that can be differentiated by it."""
    z: list[torch.Tensor] = []
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: z.append(args[0]))
        for layer in lm.model.model.layers
    ]
    try:
        return z, lm.model(ids, use_cache=False).logits[0]
    finally:
        for handle_ in handles:
            handle_.remove()


def test_a_heads_edge_is_what_it_writes_along_the_direction_that_is_read() -> None:
    lm = lm_with(hooks=("0.resid_post", "1.resid_mid"))  # nothing but layer 1's attention lies between
    g = lm.graph(TEXT, ["logit:5"], max_nodes=80, heads=True)
    z = heads_outputs(lm, torch.tensor([lm.encode(TEXT).token_ids]))[0][1][0].detach().unflatten(-1, (HEADS, -1))
    out = lm.model.model.layers[1].self_attn.o_proj.weight.detach().unflatten(1, (HEADS, -1))
    readers = [name for name in g if name.startswith("feature:1/")][:6]
    for reader in readers:
        node, edges = g.nodes[reader], heads_edges(g, reader)
        assert set(edges) == {(1, head) for head in range(HEADS)}
        for (_, head), edge in edges.items():
            along = lm.saes[1].W_enc[:, node["index"]].detach()
            expected = pytest.approx((out[:, head] @ z[node["pos"], head] @ along).item(), rel=1e-3, abs=1e-4)
            assert edge["weight"] == expected
            assert edge["effect"] == expected  # nothing is curved there
    assert len(readers) == 6


def test_of_a_nodes_heads_the_largest_are_shown_with_autograds_effects() -> None:
    lm = lm_with(hooks=("0.resid_post",))
    g = lm.graph(TEXT, ["logit:5"], max_nodes=40, heads=True)
    z, logits = heads_outputs(lm, torch.tensor([lm.encode(TEXT).token_ids]))
    slopes = torch.autograd.grad(logits[-1, 5], z[1:])
    effects = [(slope * x)[0].unflatten(-1, (HEADS, -1)).sum((0, 2)) for slope, x in zip(slopes, z[1:], strict=True)]
    edges = heads_edges(g, f"logit:5@{len(logits) - 1}")
    assert len(edges) == 5
    for (layer, head), edge in edges.items():
        assert edge["effect"] == pytest.approx(effects[layer - 1][head].item(), rel=1e-3, abs=1e-4)
    rows = lm.attribute_heads(TEXT, logit=5).target.rows
    every = {(row.layer, i): value for row in rows for i, value in enumerate(row.values.tolist()) if row.layer > 0}
    assert set(edges) == set(sorted(every, key=lambda head: -abs(every[head]))[:5])
    assert {head: edge["weight"] for head, edge in edges.items()} == pytest.approx(
        {head: every[head] for head in edges}, rel=1e-3, abs=1e-4
    )


def test_heads_are_a_second_view_and_change_no_sum() -> None:
    plain, with_heads = (lm_with().graph(TEXT, "logit:5", max_nodes=60, heads=heads) for heads in (False, True))
    heads = [name for name, node in with_heads.nodes(data=True) if node["kind"] == "head"]
    assert heads
    assert adds_up(with_heads)
    with_heads.remove_nodes_from(heads)
    assert set(with_heads.edges) == set(plain.edges)


def test_what_has_no_place_in_a_graph_or_is_not_remembered_changes_no_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = lm_with(hooks=HOOKS[:2])
    prompt = lm.encode(TEXT).token_ids[:9]
    whole = lm.graph(prompt, "logit:5", max_nodes=5000, edge_threshold=None)  # every node has its place
    for kept in (12, 20_000):
        monkeypatch.setattr("depass_sae.graph.grow.KEPT_SOURCES", kept)
        g = lm.graph(prompt, "logit:5", max_nodes=60)
        assert adds_up(g)
        assert len(summed(g)) > 10
        for name in summed(g):
            for value in (itemgetter("weight"), itemgetter("effect"), size):
                mine, its = ([value(edge) for _, _, edge in of.in_edges(name, data=True)] for of in (g, whole))
                assert sum(mine) == pytest.approx(sum(its), abs=1e-4 * sum(map(abs, its)))


@pytest.mark.parametrize("by", ["weight", "effect", "both"])
@pytest.mark.parametrize("kept", [20_000, 8])
def test_the_graph_grows_by_the_node_of_farthest_reach_as_far_as_it_is_known(
    kept: int, by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = lm_with(hooks=("0.resid_post", "1.resid_post"))
    prompt = lm.encode(TEXT).token_ids[:9]
    (at_1,) = lm.features(prompt, 1).layers
    target = f"1/{at_1.positions[8].indices[0]}@8"  # it fires, so it is a source of the logits, too
    targets = [target, "logit:5", "logit:9@4"]
    whole = lm.graph(prompt, targets, max_nodes=5000, edge_threshold=None)
    monkeypatch.setattr("depass_sae.graph.grow.AT_ONCE", 1)
    monkeypatch.setattr("depass_sae.graph.grow.KEPT_SOURCES", kept + 2)
    g = lm.graph(prompt, targets, max_nodes=30, edge_threshold=None, grow=by)
    shared = ("constant", "bias", "remainder", "logit")
    found = {name for name, node in g.nodes(data=True) if node["kind"] not in shared} - {f"feature:{target}"}
    assert found == set(grown(whole, len(found), kept, by))
    assert {g.nodes[name]["layer"] for name in found} >= {0, 1}


def grown(whole: nx.DiGraph, count: int, kept: int, by: str) -> list[str]:
    """The first nodes to join, one at a time, from a graph that has them all; of an inflow so many are remembered."""
    worth = {target["node"]: target["weight"] for target in whole.graph["target"]}
    single = {name for name, node in whole.nodes(data=True) if node["kind"] in ("feature", "error", "token")}
    order = list(nx.topological_sort(whole))[::-1]
    shares = {}
    for name in order:
        inflow = [(source, edge) for source, _, edge in whole.in_edges(name, data=True)]
        parts = by_largest_share(inflow, {"weight": ["weight"], "effect": ALL[1:], "both": ALL}[by])
        largest = sorted(single & parts.keys(), key=lambda source: -parts[source])[:kept]
        # Constants and biases are always remembered.
        some = [source for source in parts if source in largest or source not in single]
        size = max(1.0, sum(parts[source] for source in some))
        shares[name] = {source: parts[source] / size for source in largest}
    expanded, joined = set(worth), []
    while len(joined) < count:
        reach = dict.fromkeys(whole, 0.0) | worth
        for name in order:
            for source, share in shares[name].items() if name in expanded else ():
                reach[source] += reach[name] * share
        joined.append(max(single - {*joined, *worth}, key=reach.__getitem__))
        expanded |= {name for name in joined[-1:] if whole.nodes[name]["kind"] == "feature"}
    return joined


ALL = ["weight", "effect", "query", "key"]


def by_largest_share(inflow: list[tuple[str, Any]], ways: list[str]) -> dict[str, float]:
    """Of each source its largest share, queries and keys as shares of what flows where that is more."""
    sizes = {way: sum(abs(edge[way]) for _, edge in inflow) for way in ALL}
    whole = {way: max(sizes[way], sizes["weight"]) if way in ("query", "key") else sizes[way] for way in ways}
    return {source: max(abs(edge[way]) / whole[way] for way in ways if whole[way]) for source, edge in inflow}


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
        ({"layers": [7]}, "there is no SAE or transcoder at layer 7"),
        ({"errors": "gone"}, "errors are"),
        ({"edge_threshold": 1.5}, "edge_threshold is a share"),
        ({"rule": "softmax", "heads": True}, "need a rule of linear and half"),
        ({"target": "logit-diff: Mary"}, "write a difference of logits as"),
        ({"target": "2/9999"}, "there is no feature 9999"),
    ],
)
def test_a_mistake_gets_one_line(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lm_with().graph(TEXT, **asked)


def test_a_graph_needs_something_to_stand_on() -> None:
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
    cut = sae_cut(lm._subject, seen, lm.encode(ids), Hook(2, "resid_post"))
    torch.testing.assert_close(cut.roots[0], x[0])
    assert not cut.constant[0].any()
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
