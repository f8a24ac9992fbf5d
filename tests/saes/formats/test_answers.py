"""Dictionaries of other formats on a model: their answers are complete, whatever the architecture."""

from pathlib import Path
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError

from ...attribution.tiny import TEXT, activation, handle
from ...passes.models import D_MODEL
from .by_hand import random, write

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
D_SAE, K = 40, 5


def sparsify(path: Path, **config: Any) -> Path:
    tensors = random(encoder__weight=(D_SAE, D_MODEL), encoder__bias=(D_SAE,), W_dec=(D_SAE, D_MODEL), b_dec=(D_MODEL,))
    if config.get("skip_connection"):
        tensors |= random(W_skip=(D_MODEL, D_MODEL))
    written = {"d_in": D_MODEL, "num_latents": D_SAE, "k": K} | config
    name = "layers.1.mlp" if config.get("transcode") else "layers.1"
    return write(path / name, "cfg.json", written, "sae.safetensors", tensors)


def lm_saes(path: Path, act_fn: str) -> Path:
    config = {
        "act_fn": act_fn,
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "top_k": K,
        "jump_relu_threshold": 0.4,
        "dataset_average_activation_norm": {"in": 9.0, "out": 3.0},
        "hook_point_in": "blocks.1.ln2.hook_normalized",
        "hook_point_out": "blocks.1.hook_mlp_out",
    }
    tensors = random(W_E=(D_MODEL, D_SAE), b_E=(D_SAE,), W_D=(D_SAE, D_MODEL), b_D=(D_MODEL,))
    return write(path, "hyperparams.json", config, "sae_weights.safetensors", tensors)


MADE = {
    "topk": lambda path: sparsify(path),
    "groupmax": lambda path: sparsify(path, activation="groupmax"),
    "topk_transcoder": lambda path: sparsify(path, transcode=True),
    "groupmax_skip_transcoder": lambda path: sparsify(
        path, activation="groupmax", transcode=True, skip_connection=True
    ),
    "lm-saes, jumprelu": lambda path: lm_saes(path, "jumprelu"),
    "lm-saes, topk": lambda path: lm_saes(path, "topk"),
}
PLACES = {"topk": "1.resid_post", "groupmax": "1.resid_post"}


@pytest.mark.parametrize("name", [name for name in MADE if not name.startswith("lm-saes")])
def test_the_features_are_those_that_fire_on_what_the_model_computes(tmp_path: Path, name: str) -> None:
    lm = handle(MADE[name](tmp_path))
    x = activation(lm.model, torch.tensor([lm.encode(TEXT).token_ids]), PLACES.get(name, "1.mlp_in"))[0]
    acts = lm.saes[1].encode(x)
    (found,) = lm.features(TEXT).layers
    for at in found.positions[1:]:
        assert sorted(at.indices) == acts[at.pos].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("name", MADE)
def test_every_active_feature_is_a_target_that_adds_up(tmp_path: Path, name: str) -> None:
    lm = handle(MADE[name](tmp_path))
    (found,) = lm.features(TEXT).layers
    at = next(at for at in found.positions[1:] if len(at.indices))
    for index in list(at.indices)[:3]:
        for rule in ("half", "softmax"):
            target = lm.attribute_tokens(TEXT, f"1/{index}@{at.pos}", rule=rule).target
            total = sum(target.contributions.tolist()) + sum(target.other.values()) + target.constant
            assert total == pytest.approx(target.pre_activation, rel=1e-4)
            assert target.completeness_error <= 1e-4
            assert lm.attribute_heads(TEXT, f"1/{index}@{at.pos}", rule=rule).target.completeness_error <= 1e-4


def test_a_graph_can_be_grown_from_one(tmp_path: Path) -> None:
    lm = handle(MADE["groupmax"](tmp_path))
    at = next(at for at in lm.features(TEXT).layers[0].positions[1:] if len(at.indices))
    g = lm.graph(TEXT, target=f"1/{at.indices[0]}@{at.pos}", max_nodes=15)
    (target,) = [node for node in g if g.out_degree(node) == 0]
    total = sum(weight for *_, weight in g.in_edges(target, data="weight"))
    found = g.nodes[target]
    assert total + found["constant"] == pytest.approx(found["pre_activation"], rel=1e-3)


def test_a_transcoder_of_what_the_mlp_gives_before_a_norm_is_refused_on_such_a_model(tmp_path: Path) -> None:
    path = sparsify(tmp_path, transcode=True)
    with pytest.raises(UserError, match=r"the transcoder at 1\.mlp_in cannot be on .* before a norm on it"):
        handle(path, "gemma2")


def test_the_format_is_named_in_python(tmp_path: Path) -> None:
    lm = handle(sparsify(tmp_path))
    again = ds.load(lm.model, lm.tokenizer, saes=tmp_path, sae_format="sparsify")
    assert list(again.saes) == [1]
    with pytest.raises(UserError, match=r"holds no SAE: neither hyperparams\.json"):
        ds.load(lm.model, lm.tokenizer, saes=tmp_path, sae_format="lm-saes")
