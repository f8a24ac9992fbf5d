"""Graphs on dictionaries at any places: the set of every node's sources, and every edge, are the dense oracle's."""

from __future__ import annotations

import random
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor

import depass_sae as ds

from ..attribution.tiny import BOS, VOCAB, random_sae, tokenizer, width
from ..passes.models import CONFIGS, LAYERS, build
from ..saes.tracer_folder import Weights, random_weights
from ..test_documents import InFloat64
from .oracle import FAMILIES, Dictionary, Plain, Source, edges

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing
IDS = (BOS, 90, 70, 61, 75, 90, 44)
LOGIT = 9
CLOSE = 1e-9


@cache
def model(shape: str) -> Any:
    config = CONFIGS[shape]()
    config.vocab_size = VOCAB
    with InFloat64():  # rotary frequencies, too
        return build(config, torch.float64)


@cache
def plain(shape: str) -> Plain:
    return FAMILIES[shape](model(shape))


def dictionary(shape: str, hook: str, kind: str, seed: int, writes: str | None = None) -> tuple[Any, Dictionary]:
    """One for the package, and the same as plain tensors."""
    metadata = {} if writes is None else {"hook_name_out": writes}
    sae = random_sae(kind, hook, d_in=width(shape, hook), seed=seed, dtype="float64", metadata=metadata)
    with torch.no_grad():  # few of them fire
        sae.b_enc -= 3.0
    W_enc, W_dec, b_enc, b_dec = (getattr(sae, name).detach().double() for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
    threshold = sae.threshold.detach().double() if hasattr(sae, "threshold") else torch.zeros(())
    subtracted = b_dec if sae.cfg.apply_b_dec_to_input else torch.zeros(())

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = (x - subtracted) @ W_enc + b_enc
        return pre, pre.relu() * (pre > threshold)

    layer, name = hook.split(".")
    cuts = name if "transcoder" not in kind else "raw" if writes is not None and "mlp.hook_out" in writes else "mlp"
    skip = sae.W_skip.detach().double().T if hasattr(sae, "W_skip") else None
    if cuts == "raw" and FAMILIES[shape] is not FAMILIES["gemma2"]:
        cuts = "mlp"  # nothing is normed behind
    return sae, Dictionary(int(layer), name, cuts, encode, W_enc, b_dec, {int(layer): W_dec}, skip)


def loaded(shape: str, saes: Any) -> ds.LM:
    with InFloat64(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ds.load(model(shape), tokenizer(), saes=saes)


def grown(lm: ds.LM, ids: Any = IDS, target: Any = f"logit:{LOGIT}", **options: Any) -> nx.DiGraph:
    with InFloat64():
        return lm.graph(list(ids), target, **({"max_nodes": 9000, "edge_threshold": None} | options))


def source_of(g: nx.DiGraph, node: dict[str, Any]) -> Source:
    """A node as the oracle names it."""
    kind, pos = node["kind"], node.get("pos", -1)
    if kind == "bias":
        return kind, "", -1, -1
    if kind == "logit":
        return kind, "", pos, node["index"]
    hooks = [sae["hook"] for sae in g.graph["saes"] if sae["layer"] == node["layer"]]
    name = "embed" if node["layer"] < 0 else f"{node['layer']}.{node.get('hook', hooks[0] if hooks else '')}"
    return kind, name, pos, node.get("index", -1)


def agrees(g: nx.DiGraph, expected: Any) -> int:
    """How many readings were compared: each has exactly the oracle's sources, with its weights and effects."""
    compared = 0
    for name, node in g.nodes(data=True):
        if "pre_activation" not in node:
            continue
        pre, constant, weights, effects, *looked = expected[source_of(g, node)]
        size = max(map(abs, [pre, *weights.values()]))
        assert node["pre_activation"] == pytest.approx(pre, abs=CLOSE * size)
        assert node["constant"] == pytest.approx(constant, abs=CLOSE * size)
        found = {source_of(g, g.nodes[u]): edge for u, _, edge in g.in_edges(name, data=True)}
        assert not any(kind == "remainder" for kind, *_ in found)
        slope = max(map(abs, [size, *effects.values()]))  # of a token that a norm forgets the effects cancel
        each = {"weight": (weights, size), "effect": (effects, slope)}
        each |= {way: (own, size) for way, own in zip(("query", "key"), looked, strict=True)}
        numbers = {source for own, _ in each.values() for source in own}
        there = {source for own, most in each.values() for source, x in own.items() if abs(x) > CLOSE * most}
        assert there <= found.keys() <= numbers, (name, there ^ found.keys())
        for source, edge in found.items():
            for way, (own, most) in each.items():
                assert edge[way] == pytest.approx(own.get(source, 0.0), abs=CLOSE * most), (name, source, way)
        total = sum(edge["weight"] for edge in found.values()) + node["constant"]
        assert total == pytest.approx(node["pre_activation"], abs=CLOSE * size)
        compared += 1
    return compared


# ---------------------------------------------------------------------------------------------------- the mixes


def mix(shape: str, seed: int) -> list[tuple[str, str, str | None]]:
    """Dictionaries at random places: (hook, kind, where a transcoder writes)."""
    rng = random.Random(seed)
    chosen: list[tuple[str, str, str | None]] = []
    for layer in range(LAYERS):
        streams = ["resid_pre"] if layer else []
        streams += [] if shape == "gpt_neox" else ["resid_mid"]
        for hook in [*streams, "hook_z", "attn_out", "mlp_out"]:
            if rng.random() < 0.3:
                chosen.append((f"{layer}.{hook}", rng.choice(["jumprelu", "standard"]), None))
        if rng.random() < 0.5:
            kind = rng.choice(["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"])
            reads = rng.choice(["mlp_in", "ln2_normalized"])
            writes = f"blocks.{layer}.{rng.choice(['hook_mlp_out', 'mlp.hook_out'])}"
            chosen.append((f"{layer}.{reads}", kind, writes))
    return chosen or mix(shape, seed + 1000)


def made(shape: str, seed: int) -> tuple[list[Any], list[Dictionary]]:
    saes, dictionaries = [], []
    for number, (hook, kind, writes) in enumerate(mix(shape, seed)):
        sae, same = dictionary(shape, hook, kind, 10 * seed + number, writes)
        saes.append(sae)
        dictionaries.append(same)
    return saes, dictionaries


@pytest.mark.parametrize("seed", [0, 3, *(pytest.param(seed, marks=pytest.mark.long) for seed in (4, 5))])
@pytest.mark.parametrize("shape", FAMILIES)
def test_every_node_of_any_mix_has_the_oracles_sources_and_edges(shape: str, seed: int) -> None:
    saes, dictionaries = made(shape, seed)
    g = grown(loaded(shape, saes))
    expected = edges(plain(shape), torch.tensor(IDS), dictionaries, lambda place: True, LOGIT)
    assert agrees(g, expected) > 10


@pytest.mark.parametrize("shape", ["llama", "gemma2"])
def test_without_a_special_token_position_0_is_one_like_any_other(shape: str) -> None:
    saes, dictionaries = made(shape, 3)
    ids = IDS[1:]
    g = grown(loaded(shape, saes), ids)
    expected = edges(plain(shape), torch.tensor(ids), dictionaries, lambda place: False, LOGIT)
    assert agrees(g, expected) > 10
    assert any(node["kind"] == "error" and node["pos"] == 0 for node in g.nodes.values())


# -------------------------------------------------------------------------------------------- cross-layer transcoders


def crossing(weights: Weights, reads: str, layers: Any) -> tuple[list[Dictionary], dict[int, Tensor]]:
    def one(layer: int) -> Dictionary:
        def encode(x: Tensor) -> tuple[Tensor, Tensor]:
            return weights.pre(x, layer), weights.encode(x, layer)

        rows = {layer + i: weights.W_dec[layer][:, i] for i in range(LAYERS - layer)}
        return Dictionary(layer, reads, "mlp", encode, weights.W_enc[layer].T, weights.b_dec[layer], rows)

    return [one(layer) for layer in layers], dict(enumerate(weights.b_dec))


@pytest.mark.parametrize(
    ("shape", "reads", "layers", "others"),
    [
        ("llama", "resid_mid", (0, 1, 2), []),
        ("gpt2", "mlp_in", (0, 1, 2), ["1.hook_z"]),
        ("gemma2", "ln2_normalized", (0, 2), ["0.attn_out", "1.mlp_out"]),  # layer 1's own features are in its error
        ("llama", "resid_mid", (1,), ["2.resid_pre"]),  # it passes around a whole cut, and writes above it
        ("gpt_neox", "mlp_in", (0, 1), ["1.resid_pre", "2.mlp_out"]),
    ],
)
def test_a_cross_layer_transcoder_feeds_what_all_later_mlps_feed(
    shape: str, reads: str, layers: Any, others: list[str], tmp_path: Path
) -> None:
    weights = random_weights(jumprelu=True, dtype=torch.float64)
    hooks = {"resid_mid": "hook_resid_mid", "mlp_in": "mlp.hook_in", "ln2_normalized": "ln2.hook_normalized"}
    folder = weights.write(tmp_path / "clt", feature_input_hook=hooks[reads], model_name=None)
    dictionaries, constants = crossing(weights, reads, layers)
    saes: dict[Any, Any] = {f"{layer}.{reads}": str(folder) for layer in layers}
    for number, hook in enumerate(others):
        saes[hook], same = dictionary(shape, hook, "jumprelu", number)
        dictionaries.append(same)
    g = grown(loaded(shape, saes))
    expected = edges(plain(shape), torch.tensor(IDS), dictionaries, lambda place: True, LOGIT, constants)
    assert agrees(g, expected) > 10
    crossed = [layer for layer in range(min(layers), LAYERS) if layer not in layers]
    assert [sae["layer"] for sae in g.graph["saes"] if not sae["d_sae"]] == crossed


# ---------------------------------------------------------------------------------------------------- circuit tracing


def test_with_a_transcoder_for_every_mlp_edges_are_the_direct_effects_of_circuit_tracing() -> None:
    """What a source writes goes through frozen attention and norms, and no MLP, to what an encoder reads."""
    shape, saes, same = "llama", [], []
    for layer in range(LAYERS):
        sae, one = dictionary(shape, f"{layer}.mlp_in", "jumprelu_transcoder", layer)
        saes.append(sae)
        same.append(one)
    g = grown(loaded(shape, saes))
    seen, blocks = looked(model(shape)), model(shape).model.layers
    target = max((n for n in g if n.startswith("feature:2/")), key=lambda n: g.nodes[n]["pre_activation"])
    index, pos = g.nodes[target]["index"], g.nodes[target]["pos"]

    def reached(x: Tensor, above: int) -> float:
        """Of what is added behind the MLP of a layer (−1: at the embeddings)."""
        for layer in range(above + 1, 3):
            attention, norm = blocks[layer].self_attn, blocks[layer].input_layernorm.weight
            values = (x * seen["scale"][layer, 0] * norm) @ attention.v_proj.weight.T
            values = values.unflatten(-1, (2, -1)).repeat_interleave(2, 1)
            moved = torch.einsum("hqk,khd->qhd", seen["pattern"][layer], values).flatten(1)
            x = x + moved @ attention.o_proj.weight.T
        read = x[pos] * seen["scale"][2, 1][pos] * blocks[2].post_attention_layernorm.weight
        return (read @ same[2].W_enc[:, index]).item()

    def alone(row: Tensor, at: int) -> Tensor:
        return torch.zeros_like(seen["mlp_out"][0]).index_add(0, torch.tensor([at]), row[None])

    expected: dict[Source, float] = {}
    for at, row in enumerate(seen["embed"]):
        expected["token", "embed", at, -1] = reached(alone(row, at), -1)
    for layer in (0, 1):
        name, rows = f"{layer}.mlp_in", same[layer].rows[layer]
        acts, out = same[layer].encode(seen["mlp_in"][layer])[1], seen["mlp_out"][layer]
        expected["token", name, 0, -1] = reached(alone(out[0], 0), layer)
        for at in range(1, len(IDS)):
            error = out[at] - acts[at] @ rows - same[layer].b_dec
            expected["error", name, at, -1] = reached(alone(error, at), layer)
            for feature in acts[at].nonzero()[:, 0].tolist():
                part = acts[at, feature] * rows[feature]
                expected["feature", name, at, feature] = reached(alone(part, at), layer)
        later = (torch.arange(len(IDS)) > 0)[:, None] * same[layer].b_dec
        expected["constant", name, -1, -1] = reached(later, layer)
    found = {source_of(g, g.nodes[u]): edge["weight"] for u, _, edge in g.in_edges(target, data=True)}
    found.pop(("bias", "", -1, -1))
    size = max(map(abs, expected.values()))
    assert {source for source, weight in expected.items() if abs(weight) > CLOSE * size} == found.keys()
    assert found == pytest.approx({source: expected[source] for source in found}, abs=CLOSE * size)
    assert len({kind for kind, *_ in found}) == 4


@torch.no_grad()
def looked(model: Any) -> dict[str, Any]:
    """What transformers' modules compute on the prompt."""
    seen: dict[str, Any] = {"mlp_in": [], "mlp_out": [], "scale": {}}
    handles = []
    for number, block in enumerate(model.model.layers):
        handles.append(block.mlp.register_forward_pre_hook(lambda _m, args: seen["mlp_in"].append(args[0][0])))
        handles.append(block.mlp.register_forward_hook(lambda _m, _args, out: seen["mlp_out"].append(out[0])))
        for i, norm in enumerate((block.input_layernorm, block.post_attention_layernorm)):

            def scale(module: Any, args: Any, at: tuple[int, int] = (number, i)) -> None:
                x = args[0][0]
                seen["scale"][at] = (x.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()

            handles.append(norm.register_forward_pre_hook(scale))
    with InFloat64():
        model.set_attn_implementation("eager")
        out = model(torch.tensor([IDS]), output_attentions=True, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen | {"pattern": [x[0] for x in out.attentions], "embed": model.model.embed_tokens(torch.tensor(IDS))}
