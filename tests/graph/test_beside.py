"""Graphs on dictionaries beside the stream: what they say of themselves, files, pruning, pictures, interventions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor

import depass_sae as ds
from depass_sae.errors import SAEFitWarning, UserError
from depass_sae.graph.cuts import Active, _writes
from depass_sae.graph.diff import diff_graphs
from depass_sae.graph.document import document_of, graph_of
from depass_sae.graph.export.graphml import from_graphml, to_graphml
from depass_sae.graph.export.html import to_html
from depass_sae.graph.export.neuronpedia import to_neuronpedia
from depass_sae.graph.group import group_automatically, merged, with_groups
from depass_sae.graph.labels import with_labels
from depass_sae.graph.limits import limited
from depass_sae.graph.names import name_of
from depass_sae.graph.plot import layout
from depass_sae.graph.prune import prune
from depass_sae.models.place import Place

from ..attribution.tiny import TEXT, activation, handle, model, random_sae
from ..passes.models import D_MODEL
from ..saes.tracer_folder import random_weights
from .test_build import adds_up

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing
PROMPT = (0, 90, 70, 61, 75, 90, 44)
SEVERAL = {
    "0.attn_out": "jumprelu", "1.resid_pre": "jumprelu", "1.mlp_in": "jumprelu_skip_transcoder",
    "1.mlp_out": "standard", "2.resid_mid": "jumprelu",
}  # fmt: skip


def lm_with(hooks: dict[str, str], shape: str = "llama", **options: Any) -> ds.LM:
    return handle(
        [random_sae(kind, hook, seed=seed, **options) for seed, (hook, kind) in enumerate(hooks.items())], shape
    )


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    return lm_with(SEVERAL)


@pytest.fixture(scope="module")
def g(lm: ds.LM) -> nx.DiGraph:
    return lm.graph(list(PROMPT), "logit:5", max_nodes=400, edge_threshold=None)


def test_of_several_in_a_layer_every_node_is_named_by_the_hook_of_its_own(g: nx.DiGraph) -> None:
    assert [(sae["layer"], sae["hook"]) for sae in g.graph["saes"]] == [
        (int(hook[0]), hook[2:]) for hook in sorted(SEVERAL, key=list(SEVERAL).index)
    ]
    hooks = {node["hook"] for node in g.nodes.values() if node["layer"] == 1}
    assert hooks >= {"resid_pre", "mlp_in", "mlp_out"}
    assert all("hook" not in node for node in g.nodes.values() if node["layer"] != 1)
    name = next(name for name in g if name.startswith("feature:1.mlp_out/"))
    assert name_of(g, name) == name.removeprefix("feature:")
    assert adds_up(g)


def test_files_hold_all_of_it(g: nx.DiGraph) -> None:
    for back in (graph_of(json.loads(json.dumps(document_of(g)))), from_graphml(to_graphml(g))):
        assert dict(back.nodes(data=True)) == dict(g.nodes(data=True))
        assert set(back.edges) == set(g.edges)
    document = to_neuronpedia(g)
    ids = [node["node_id"] for node in document["nodes"]]
    assert len(ids) == len(set(ids))
    assert any(name.startswith("1_mlp_out_") for name in ids)


def test_an_edge_that_points_down_within_a_layer_is_refused(g: nx.DiGraph) -> None:
    names = [next(name for name in g if name.startswith(f"feature:1.{hook}/")) for hook in ("mlp_out", "mlp_in")]
    turned = g.copy()
    turned.add_edge(*names, kind="flow", weight=0.0, effect=0.0)
    with pytest.raises(UserError, match="edges point upwards"):
        graph_of(document_of(turned))
    turned = g.copy()
    turned.nodes[names[0]]["hook"] = "hook_z"
    with pytest.raises(UserError, match="its attributes make it"):
        graph_of(document_of(turned))


def test_pruned_limited_and_grouped_it_still_adds_up(g: nx.DiGraph) -> None:
    small = prune(g, node_threshold=0.7, edge_threshold=0.8)
    assert len(small) < len(g)
    assert {name for name in small if name.startswith("remainder:1.")} >= {"remainder:1.mlp_in", "remainder:1.mlp_out"}
    for smaller in (small, limited(g, 90, 600)):
        assert adds_up(smaller)
        assert graph_of(document_of(smaller)).nodes == smaller.nodes
    grouped = with_groups(g, group_automatically(g))
    assert merged(grouped).number_of_nodes() <= g.number_of_nodes()
    index = next(node["index"] for node in g.nodes.values() if node.get("hook") == "mlp_out" and "index" in node)
    labelled = with_labels(g, {f"1.mlp_out/{index}": "apples"})
    found = {(node["hook"], node["index"]) for node in labelled.nodes.values() if node["label"] == "apples"}
    assert found == {("mlp_out", index)}
    both = diff_graphs(g, labelled)
    assert {node["diff"] for node in both.nodes.values()} == {"both"}


def test_every_level_has_a_row_of_its_own_in_the_order_of_the_model(g: nx.DiGraph) -> None:
    levels = [level for level in layout(g).rows if level[0] == 1]
    assert levels == [(1, "resid_pre"), (1, "mlp_in"), (1, "mlp_out")]
    page = to_html(g)
    assert "layer 0, layer 1, resid_pre, layer 1, mlp_in, layer 1, mlp_out, layer 2<" in page


# ---------------------------------------------------------------------------------------------------------- what fits


def test_a_transcoder_is_measured_against_what_the_mlp_adds(lm: ds.LM, g: nx.DiGraph) -> None:
    ids = torch.tensor([PROMPT])
    sae = lm.saes["1.mlp_in"]
    with torch.no_grad():
        x, y = (activation(lm.model, ids, f"1.{hook}")[0].double() for hook in ("mlp_in", "mlp_out"))
        acts = sae.encode(x.float())
        missed = y - sae.decode(acts).double() - x @ sae.W_skip.double().T
    expected = 1 - missed[1:].square().sum() / (y[1:] - y[1:].mean(0)).square().sum()
    (about,) = [about for about in g.graph["saes"] if (about["layer"], about["hook"]) == (1, "mlp_in")]
    assert about["explained_variance"] == pytest.approx(expected.item(), rel=1e-4)
    assert about["l0"] == pytest.approx((acts[1:] != 0).sum(1).double().mean().item())


def test_each_cut_that_explains_too_little_is_warned_of(lm: ds.LM) -> None:
    with pytest.warns(SAEFitWarning, match="of the variance") as warned:
        g = lm.graph(list(PROMPT), "logit:5", max_nodes=40)
    poor = [sae for sae in g.graph["saes"] if sae["explained_variance"] < 0.3]
    assert len([w for w in warned if "of the variance" in str(w.message)]) == len(poor) == len(SEVERAL)


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("hooks", "asked", "message"),
    [
        (
            {"1.mlp_in": "transcoder", "1.ln2_normalized": "transcoder"},
            {},
            "both stand for what the MLP of layer 1 adds",
        ),
        ({"1.mlp_in": "jumprelu"}, {}, "an SAE on mlp_in splits what the MLP reads"),
        ({"1.attn_out": "jumprelu_transcoder"}, {}, "a transcoder that reads attn_out does not stand for"),
        ({"1.mlp_out": "jumprelu"}, {"rule": "softmax"}, "the rule softmax shares out a whole stream"),
        ({"1.mlp_out": "jumprelu"}, {"layers": ["1.attn_out"]}, "no SAE or transcoder at 1.attn_out"),
        ({"1.mlp_out": "jumprelu"}, {"layers": ["1.nowhere"]}, "'nowhere' is not a hook"),
    ],
)
def test_what_cannot_stand_is_one_line(hooks: dict[str, str], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lm_with(hooks).graph(TEXT, "logit:5", **asked)


def test_a_transcoder_of_summed_decoders_and_one_of_another_output_are_refused() -> None:
    for metadata, message in (
        ({"decoders_summed": True}, "all its decoders summed"),
        ({"hook_name_out": "blocks.2.hook_mlp_out"}, "it decodes to 'blocks.2.hook_mlp_out'"),
    ):
        with pytest.raises(UserError, match=message):
            handle([random_sae("transcoder", "1.mlp_in", metadata=metadata)]).graph(TEXT, "logit:5")


def test_a_skip_connection_that_passes_by_a_whole_stream_is_refused_and_one_that_does_not_is_not() -> None:
    whole = random_sae("jumprelu", "1.resid_mid")
    with pytest.raises(
        UserError, match=r"the skip connection of the transcoder at 1.resid_pre passes by .* 1.resid_mid"
    ):
        handle([whole, random_sae("skip_transcoder", "1.resid_pre")]).graph(TEXT, "logit:5")
    for transcoder in (random_sae("transcoder", "1.resid_pre"), random_sae("skip_transcoder", "2.resid_pre")):
        assert adds_up(handle([whole, transcoder]).graph(TEXT, "logit:5", max_nodes=60))


def test_one_of_a_layers_dictionaries_is_chosen_by_its_hook(lm: ds.LM) -> None:
    g = lm.graph(TEXT, "logit:5", layers=[0, "1.mlp_out"], max_nodes=40)
    assert [(sae["layer"], sae["hook"]) for sae in g.graph["saes"]] == [(0, "attn_out"), (1, "mlp_out")]
    with_target = lm.graph(TEXT, "1.mlp_in/3", layers=[0], max_nodes=40)
    assert [(sae["layer"], sae["hook"]) for sae in with_target.graph["saes"]] == [(0, "attn_out"), (1, "mlp_in")]


def test_an_sae_on_the_embeddings_reads_the_tokens() -> None:
    lm = lm_with({"0.resid_pre": "jumprelu", "2.resid_mid": "jumprelu"})
    g = lm.graph(list(PROMPT), "logit:5", max_nodes=150, edge_threshold=None)
    features = [name for name in g if name.startswith("feature:0/")]
    assert features
    for name in features:
        inflow = list(g.in_edges(name, data=True))
        assert [source for source, _, _ in inflow] == [f"token:{g.nodes[name]['pos']}"]
    assert adds_up(g)


# ------------------------------------------------------------------------------------------------------- interventions


def logit(lm: ds.LM, edits: dict[str, Any]) -> float:
    """Of token 5 at the last position, attention and MLPs changed by hooks on transformers' modules."""
    handles = []
    for name, edit in edits.items():
        layer, hook = int(name[0]), name[2:]
        module = {"attn_out": lm.model.model.layers[layer].self_attn, "mlp_out": lm.model.model.layers[layer].mlp}[hook]
        handles.append(module.register_forward_hook(edit))
    try:
        with torch.no_grad():
            return lm.model(torch.tensor([PROMPT]), use_cache=False).logits[0, -1, 5].item()
    finally:
        for handle_ in handles:
            handle_.remove()


def test_taking_a_feature_or_an_error_out_is_done_where_it_is(lm: ds.LM, g: nx.DiGraph) -> None:
    ids = torch.tensor([PROMPT])
    found = {entry["node"]: entry for entry in lm.verify(g, max_nodes=200).graph["verification"]["nodes"]}
    whole, checked = logit(lm, {}), 0
    for name, entry in found.items():
        node = g.nodes[name]
        hook = node.get("hook", "attn_out")
        if node["layer"] not in (0, 1) or hook not in ("attn_out", "mlp_in", "mlp_out") or node["kind"] != "feature":
            continue
        sae = lm.saes[f"{node['layer']}.{hook}" if f"{node['layer']}.{hook}" in lm.saes else node["layer"]]
        part = node["activation"] * sae.W_dec[node["index"]]
        edit = less(node["pos"], part)
        lost = whole - logit(lm, {f"{node['layer']}.{'attn_out' if hook == 'attn_out' else 'mlp_out'}": edit})
        assert entry["observed"] == pytest.approx(lost, rel=1e-3, abs=1e-4)
        checked += 1
    assert checked > 8
    assert ids.shape[1] == len(g.graph["tokens"])


def less(pos: int, part: Tensor) -> Any:
    def edit(_module: Any, _args: Any, out: Any) -> Any:
        x = (out[0] if isinstance(out, tuple) else out).clone()
        x[:, pos] -= part
        return (x, *out[1:]) if isinstance(out, tuple) else x

    return edit


def test_without_a_transcoders_features_the_mlp_adds_so_much_less() -> None:
    lm = lm_with({"1.mlp_in": "transcoder"})
    g = lm.graph(list(PROMPT), "logit:5", max_nodes=30, edge_threshold=None)
    together = lm.verify(g, max_nodes=1).graph["verification"]["together"]
    sae, nodes = lm.saes[1], [node for node in g.nodes.values() if node["kind"] == "feature"]
    with torch.no_grad():
        acts = sae.encode(activation(lm.model, torch.tensor([PROMPT]), "1.mlp_in")[0])
    mine = torch.zeros_like(acts)
    for node in nodes:
        mine[node["pos"], node["index"]] = acts[node["pos"], node["index"]]
    acts[0] = 0  # a special token has no features
    written = {"without_graph": mine @ sae.W_dec, "only_graph": (acts - mine) @ sae.W_dec}
    for which, gone in written.items():
        expected = logit(lm, {"1.mlp_out": lambda _module, _args, out, gone=gone: out - gone})
        assert together[which] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert together["features"] == len(nodes) > 3
    assert model("llama").config.hidden_size == D_MODEL


def test_where_position_0_becomes_a_sink_features_of_layers_before_write_nothing_there(tmp_path: Path) -> None:
    weights = random_weights()
    sae = handle(str(weights.write(tmp_path))).saes[0]
    active = Active(torch.tensor([0, 0, 2]), torch.tensor([5, 7, 5]), torch.tensor([1.0, 2.0, 3.0]))
    written = _writes(sae.whole, 0, active, {0: False, 1: True, 2: True})
    for into, factors in ((0, (1.0, 2.0, 3.0)), (1, (0.0, 0.0, 3.0)), (2, (0.0, 0.0, 3.0))):
        rows = weights.W_dec[0][torch.tensor([5, 7, 5]), into]
        expected = torch.tensor(factors)[:, None] * rows
        torch.testing.assert_close(written[Place(into, "mlp_out")].part(slice(None)), expected)
