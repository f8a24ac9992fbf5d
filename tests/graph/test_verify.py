"""Predictions along paths, and interventions that are what transformers does when its stream is edited."""

import copy
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd
import pytest
import torch
from torch import Tensor

import depass_sae as ds
from depass_sae.attribution.reservoir import replacements
from depass_sae.errors import UserError
from depass_sae.graph.verify import REPLACEMENTS, predicted

from ..attribution.tiny import (
    BOS,
    D_SAE,
    TEXT,
    activation,
    fitting_sae,
    handle,
    pre_activations,
    random_sae,
)
from ..passes.models import D_MODEL, HEADS
from .sample import sample_graph

Edits = dict[str, Callable[[Tensor], Tensor]]

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
HOOKS = ("0.resid_post", "2.resid_post")
IDS = [80, 90, 17, 33, 80, 200, 61]
PROMPT = [BOS, *IDS]


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


# ------------------------------------------------------------------- what transformers and sae-lens say by themselves


@torch.no_grad()
def model_says(lm: ds.LM, ids: Tensor, edits: Edits | None = None) -> tuple[Tensor, dict[int, Tensor]]:
    """The logits and what each layer hands on, [batch, pos, d], with the stream or heads edited on the way."""
    layers, streams, before, handles = lm.model.model.layers, {}, {}, []

    def edited(x: Tensor, at: str) -> Tensor:
        return (edits or {}).get(at, lambda same: same)(x)

    for i, layer in enumerate(layers):

        def note(_m: Any, args: Any, i: int = i) -> None:
            before[i] = args[0]

        def attention(_m: Any, _args: Any, out: Any, i: int = i) -> Any:
            return (edited(before[i] + out[0], f"{i}.resid_mid") - before[i], *out[1:])

        def whole(_m: Any, _args: Any, out: Any, i: int = i) -> Any:
            streams[i] = edited(out[0] if isinstance(out, tuple) else out, f"{i}.resid_post")
            return (streams[i], *out[1:]) if isinstance(out, tuple) else streams[i]

        handles += [
            layer.register_forward_pre_hook(note),
            layer.self_attn.register_forward_hook(attention),
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args, i=i: (edited(args[0], f"{i}.hook_z"),)),
            layer.register_forward_hook(whole),
        ]
    try:
        return lm.model(ids, use_cache=False).logits, streams
    finally:
        for hook in handles:
            hook.remove()


@cache
def untouched(lm: ds.LM, ids: tuple[int, ...]) -> Tensor:
    return model_says(lm, torch.tensor([ids]))[0][0]


def value_of(lm: ds.LM, g: nx.DiGraph, ids: Tensor, edits: Edits | None = None) -> float:
    """The targets: logits count by the probability that the untouched model gives them, if there is nothing else."""
    nodes = [g.nodes[target["node"]] for target in g.graph["target"]]
    chances = untouched(lm, tuple(g.graph["token_ids"])).softmax(-1)
    alike = any(node["kind"] == "feature" or isinstance(node.get("against"), int) for node in nodes)
    worths = [1.0 if alike else chances[node["pos"], node["index"]].item() for node in nodes]
    logits, streams = model_says(lm, ids, edits)
    value = 0.0
    for node, worth in zip(nodes, worths, strict=True):
        if node["kind"] == "feature":
            read = pre_activations(lm.saes[node["layer"]], streams[node["layer"]][:, node["pos"]])[:, node["index"]]
        else:
            here = logits[:, node["pos"]]
            held = (
                here.mean(-1) if node.get("against") == "mean" else here[:, node["against"]] if "against" in node else 0
            )
            read = here[:, node["index"]] - held
        value += worth / sum(worths) * read.mean().item()
    return value


@cache
def stream_at(lm: ds.LM, ids: tuple[int, ...], hook: str) -> Tensor:
    return activation(lm.model, torch.tensor([ids]), hook)[0]


@torch.no_grad()
def decoded(sae: Any, x: Tensor, kept: Tensor) -> Tensor:
    """sae-lens's reconstruction of x [pos, d] from these of its features [pos, d_sae] alone."""
    return sae.decode(sae.encode(x) * kept)  # right after encoding: it keeps the scale from the one to the other


def taken_out(lm: ds.LM, g: nx.DiGraph, name: str, hooks: dict[int, str], ids: Tensor) -> tuple[Tensor, Edits]:
    """The prompt and the edits that take one node out; not for tokens of the prompt."""
    node = g.nodes[name]
    if node["kind"] == "head":
        width = D_MODEL // HEADS
        part = torch.zeros(D_MODEL)
        part[node["index"] * width : (node["index"] + 1) * width] = 1
        return ids, {f"{node['layer']}.hook_z": lambda z: z * (1 - part)}
    hook, pos, sae = f"{node['layer']}.{hooks[node['layer']]}", node["pos"], lm.saes[node["layer"]]
    x = stream_at(lm, tuple(g.graph["token_ids"]), hook)[pos : pos + 1]
    every, others = torch.ones(1, D_SAE), torch.ones(1, D_SAE)
    if node["kind"] == "feature":
        others[0, node["index"]] = 0
        part = decoded(sae, x, every) - decoded(sae, x, others)
    else:
        part = x - decoded(sae, x, every) if node["kind"] == "error" else x  # else the whole stream at position 0
    there = (torch.arange(ids.shape[1]) == pos)[:, None]
    return ids, {hook: lambda stream: stream - there * part}


@pytest.mark.parametrize(
    ("targets", "normalised", "place"),
    [  # what is read at layer 2 reaches down to the tokens
        (None, "none", "resid_post"),
        (["logit:5"], "layer_norm", "resid_mid"),
        (["logit:5@4", "logit:9@6", "logit:7"], "constant_norm_rescale", "resid_post"),
        (["logit-diff:7,9@6", "logit:5"], "none", "resid_mid"),
        (["2/0@4", "2/1@5", "2/3@7"], "layer_norm", "resid_post"),
        (["2/3@6", "logit:5"], "none", "resid_post"),
    ],
)
def test_what_is_observed_is_the_loss_in_transformers_own_model(targets: Any, normalised: str, place: str) -> None:
    hooks = {0: place, 2: "resid_post"}
    saes = [
        random_sae("jumprelu", f"{i}.{name}", seed=i, normalize_activations=normalised) for i, name in hooks.items()
    ]
    lm_ = handle(saes)
    g = lm_.graph(PROMPT, targets, max_nodes=64, heads=True)
    verified = lm_.verify(g, max_nodes=1000, seed=3).graph["verification"]
    ids = torch.tensor([g.graph["token_ids"]])
    whole = value_of(lm_, g, ids)
    assert verified["target"] == pytest.approx(whole, rel=1e-4, abs=1e-4)
    allowed = replacements(lm_._subject)  # which those are has tests of its own
    generator, told, size = torch.Generator().manual_seed(3), set(), max(abs(whole), 1.0)
    for entry in verified["nodes"]:
        node = g.nodes[entry["node"]]
        if node["kind"] == "token" and node["layer"] < 0:
            copies, edits = ids.repeat(REPLACEMENTS, 1), {}
            drawn = torch.randint(len(allowed), (REPLACEMENTS,), generator=generator)
            copies[:, node["pos"]] = allowed[drawn]
        else:
            copies, edits = taken_out(lm_, g, entry["node"], hooks, ids)
        expected = whole - value_of(lm_, g, copies, edits)
        assert entry["observed"] == pytest.approx(expected, abs=1e-4 * size, rel=1e-3), entry["node"]
        told |= {node["kind"]} if abs(expected) > 0.01 * size else set()
    assert told >= {"feature", "error", "head"} | ({"token"} if "2/" in str(targets) else set())


@pytest.mark.parametrize("errors", ["roots", "through"])
def test_a_prediction_takes_every_path_of_a_real_graph_heads_and_targets_on_the_way_included(errors: Any) -> None:
    lm_ = lm()
    (at_2,) = lm_.features(PROMPT, 2).layers
    on_the_way = f"2/{at_2.positions[7].indices[0]}@7"  # it fires, so it is a source of the logit, too
    g = lm_.graph(PROMPT, [on_the_way, "logit:5@7"], max_nodes=64, heads=True, errors=errors)
    assert g.out_degree(f"feature:{on_the_way}") == 1
    verified = lm_.verify(g, max_nodes=1000).graph["verification"]
    for value in ("weight", "effect"):
        largest = max(abs(entry[value]) for entry in verified["nodes"])
        for entry in verified["nodes"]:
            assert entry[value] == pytest.approx(along_paths(g, entry["node"], value), rel=1e-5, abs=1e-5 * largest)
    assert {g.nodes[entry["node"]]["kind"] for entry in verified["nodes"]} >= {"feature", "error", "token", "head"}


def test_the_most_influential_nodes_are_taken_out_first_and_the_target_never() -> None:
    lm_ = lm()
    g = lm_.graph(PROMPT, "logit:5", max_nodes=64, heads=True)
    few, all_ = (lm_.verify(g, max_nodes=n).graph["verification"]["nodes"] for n in (7, 1000))
    assert [entry["node"] for entry in few] == [entry["node"] for entry in all_[:7]]
    influences = [g.nodes[entry["node"]]["influence"] for entry in all_]
    assert influences == sorted(influences, reverse=True)
    kinds = ("feature", "error", "token", "head")
    assert {entry["node"] for entry in all_} == {name for name, node in g.nodes(data=True) if node["kind"] in kinds}


def test_ranks_and_signs_are_compared_over_all_nodes() -> None:
    lm_ = lm()
    g = lm_.graph(PROMPT, "logit:5", max_nodes=120)
    found = lm_.verify(g, max_nodes=120).graph["verification"]
    at = {g.nodes[target["node"]]["pos"] for target in g.graph["target"]}
    own = {name for name, node in g.nodes(data=True) if node["kind"] == "token" and node["pos"] in at}
    ranked = [entry for entry in found["nodes"] if entry["node"] not in own]
    assert len(ranked) == found["ranked"] == len(found["nodes"]) - 1
    for value in ("weight", "effect"):
        pairs = [(entry[value], entry["observed"]) for entry in found["nodes"]]
        said, seen = (pd.Series(column) for column in zip(*pairs, strict=True))
        without = pd.Series([entry[value] for entry in ranked]), pd.Series([entry["observed"] for entry in ranked])
        rank = found["rank_correlation"][value]
        assert rank == pytest.approx(without[0].rank().corr(without[1].rank()))
        low, high = found["rank_interval"][value]
        assert low < rank < high
        assert found["sign_agreement"][value] == pytest.approx(((said > 0) == (seen > 0)).mean())


# ------------------------------------------------------------------------------------------------------- all together


def live(lm: ds.LM, g: nx.DiGraph, hooks: dict[int, str], special: bool, *, drop: bool) -> Edits:
    """Every SAE without the graph's features, or without all others, as it reads the stream that reaches it."""

    def edit(layer: int) -> Any:
        sae = lm.saes[layer]
        ours = torch.zeros(len(g.graph["tokens"]), D_SAE, dtype=torch.bool)
        for _, node in g.nodes(data=True):
            if node["kind"] == "feature" and node["layer"] == layer:
                ours[node["pos"], node["index"]] = True
        kept = ~ours if drop else ours
        if special:
            kept[0] = True

        def without(x: Tensor) -> Tensor:
            return (x[0] - decoded(sae, x[0], torch.ones_like(kept)) + decoded(sae, x[0], kept))[None]

        return without

    return {f"{layer}.{hook}": edit(layer) for layer, hook in hooks.items()}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("normalised", "places"),
    [("none", "resid_post"), ("layer_norm", "resid_post"), ("constant_norm_rescale", "resid_mid")],
)
def test_together_each_sae_keeps_or_loses_the_graphs_features_and_position_0_is_left_alone_where_it_is_special(
    normalised: str, places: str, special: bool
) -> None:
    hooks = {0: "resid_post", 2: places}
    saes = [
        random_sae("jumprelu", f"{i}.{name}", seed=i, normalize_activations=normalised) for i, name in hooks.items()
    ]
    lm_ = handle(saes)
    prompt: Any = PROMPT if special else IDS
    assert lm_.encode(prompt).special[0] == special
    g = lm_.graph(prompt, ["logit:5@4", "logit:9"], max_nodes=60)
    together = lm_.verify(g, max_nodes=0).graph["verification"]["together"]
    ids = torch.tensor([prompt])
    for key, drop in (("only_graph", False), ("without_graph", True)):
        expected = value_of(lm_, g, ids, live(lm_, g, hooks, special, drop=drop))
        assert together[key] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    careless = value_of(lm_, g, ids, live(lm_, g, hooks, not special, drop=False))
    assert abs(careless - together["only_graph"]) > 2e-3  # position 0 matters here
    firing = [
        (sae.encode(activation(lm_.model, ids, f"{i}.{hooks[i]}")[0]) != 0)[special:] for i, sae in lm_.saes.items()
    ]
    assert together["active"] == sum(int(acts.sum()) for acts in firing)
    assert together["features"] == sum(node["kind"] == "feature" for _, node in g.nodes(data=True))


def test_with_every_active_feature_in_the_graph_keeping_only_them_changes_nothing() -> None:
    hooks = {0: "resid_post", 1: "resid_post"}  # below the last layer, where every position matters
    lm_ = handle([random_sae("jumprelu", f"{i}.{name}", seed=i) for i, name in hooks.items()])
    g = lm_.graph(PROMPT, "logit:5", max_nodes=5000, edge_threshold=None)
    found = lm_.verify(g, max_nodes=0).graph["verification"]
    together, ids = found["together"], torch.tensor([g.graph["token_ids"]])
    assert together["features"] == together["active"] > 100
    assert together["only_graph"] == pytest.approx(found["target"], rel=1e-4)
    expected = value_of(lm_, g, ids, live(lm_, g, hooks, True, drop=True))
    assert together["without_graph"] == pytest.approx(expected, rel=1e-3)
    assert abs(expected - found["target"]) > 0.1
    # Then there is but one way to draw as many.
    assert together["only_random"] == pytest.approx(together["only_graph"])
    assert together["without_random"] == pytest.approx(together["without_graph"])


@torch.no_grad()
def test_without_all_features_of_a_perfect_sae_nothing_is_left_but_position_0() -> None:
    handle_ = handle([fitting_sae("1.resid_post")])
    g = handle_.graph(PROMPT, "logit:5", max_nodes=5000, edge_threshold=None)
    together = handle_.verify(g, max_nodes=0).graph["verification"]["together"]
    assert together["features"] == together["active"]
    ids = torch.tensor([g.graph["token_ids"]])
    first = (torch.arange(ids.shape[1]) == 0)[:, None]
    nothing = model_says(handle_, ids, {"1.resid_post": lambda x: x * first})[0][0, -1, 5].item()
    assert together["without_graph"] == pytest.approx(nothing, rel=1e-4, abs=1e-4)
    assert together["only_graph"] == pytest.approx(handle_.model(ids).logits[0, -1, 5].item(), rel=1e-4)
    assert abs(together["only_graph"] - nothing) > 0.1


# --------------------------------------------------------------------------------------------------------------- graphs


def test_the_graph_is_left_as_it_was_and_the_copy_carries_the_result(tmp_path: Any) -> None:
    handle_ = lm()
    g = handle_.graph(TEXT, "logit:5", max_nodes=30)
    verified = handle_.verify(g, max_nodes=5)
    assert "verification" not in g.graph
    ds.write_graph(verified, tmp_path / "g.json")
    assert ds.read_graph(tmp_path / "g.json").graph["verification"] == verified.graph["verification"]


Change = Callable[[nx.DiGraph], object]


def longer(g: nx.DiGraph) -> None:
    g.graph |= {"tokens": ["a"] * 10_000, "token_ids": [1] * 10_000}


def beyond_the_heads(g: nx.DiGraph) -> None:
    g.add_node("head:0.99", kind="head", layer=0, index=99, influence=0.0, label="")


def many_features(g: nx.DiGraph) -> None:
    g.graph["saes"] = [{**sae, "d_sae": 10**6} for sae in g.graph["saes"]]


def tiny_pre_activations(g: nx.DiGraph) -> None:
    for name, node in g.nodes(data=True):
        if node["kind"] == "feature":
            inflow = sum(edge["weight"] for *_, edge in g.in_edges(name, data=True))
            node.update(pre_activation=1e-320, constant=-inflow)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (longer, r"the prompt has 10000 tokens; .* takes \d+ at most"),
        (lambda g: g.graph.update(token_ids=[10**6] * len(g.graph["tokens"])), "token id 1000000 is not in the vocab"),
        (lambda g: g.graph.update(n_layers=g.graph["n_layers"] + 1), "layer 3 is none where a logit can stand"),
        (many_features, r"the graph stands on an SAE of 1000000 features at 0\.resid_post, and one of \d+ is loaded"),
        (beyond_the_heads, "the graph has a head 0.99, and the heads are 0 to"),
        (tiny_pre_activations, "what the graph predicts along its paths is too large for a number"),
        (lambda g: g.graph.update(target=[]), "graph.target"),
        (lambda g: g.graph.update(saes=[]), "graph.saes"),
        (
            lambda g: g.graph["target"][0].update(
                node=next(n for n in g if n.startswith(("remainder", "error", "token")))
            ),
            "is no feature, logit or direction",
        ),
        (lambda g: g.graph.clear(), "graph.schema_version: is missing"),
    ],
)
def test_a_graph_that_no_model_can_have_is_refused_before_anything_is_taken_out(change: Change, message: str) -> None:
    handle_ = lm()
    g = copy.deepcopy(handle_.graph(TEXT, "logit:5", max_nodes=30))
    change(g)
    with pytest.raises(UserError, match=message) as caught:
        handle_.verify(g)
    assert "\n" not in str(caught.value)


def test_a_model_directory_may_be_written_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = handle([random_sae("jumprelu", "0.resid_post")])
    saved.model.save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    sae = random_sae("jumprelu", "0.resid_post")
    g = ds.load("./tiny", saes=sae).graph(PROMPT, "logit:5", max_nodes=30)
    assert g.graph["model"] == "./tiny"
    verified = ds.load(tmp_path / "tiny", saes=sae).verify(g, max_nodes=1)
    assert verified.graph["verification"]["nodes"]
    other = g.copy()
    other.graph["model"] = str(tmp_path / "tiny")
    assert set(ds.diff_graphs(g, other)) == set(g)
    shutil.copytree(tmp_path / "tiny", tmp_path / "copy")
    with pytest.raises(UserError, match=r"the graph is of ./tiny, and .*copy is loaded"):
        ds.load(tmp_path / "copy", saes=sae).verify(g, max_nodes=1)


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
    for value in ("pre_activation", "constant"):
        changed.nodes[g.graph["target"][0]["node"]][value] += 5
    with pytest.raises(UserError, match="other weights, SAEs or dtype"):
        handle_.verify(changed)
