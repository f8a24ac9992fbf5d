"""lm-saes and Llama Scope, by their formulas: f = act(W_E (s x) + b_E), x̂ = (W_D f + b_D) / s′."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from depass_sae.saes import load_saes

from .by_hand import D_IN, D_SAE, K, X, assert_is, largest, random, refused, write

RESID, NORMED, MLP = "blocks.3.hook_resid_post", "blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"
IN, OUT = 7.3, 2.1
SHAPES = {"W_E": (D_IN, D_SAE), "b_E": (D_SAE,), "W_D": (D_SAE, D_IN), "b_D": (D_IN,)}
CONFIG = {
    "sae_type": "sae",
    "d_model": D_IN,
    "expansion_factor": 3.0,
    "use_decoder_bias": True,
    "act_fn": "relu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": True,
    "top_k": K,
    "hook_point_in": RESID,
    "hook_point_out": RESID,
    "use_glu_encoder": False,
}


def saved(path: Path, change: dict[str, Any] | None = None, without: str | None = None) -> Path:
    """As lm-saes saves: with the average norms among the weights."""
    config = CONFIG | (change or {})
    tensors = random(**SHAPES)
    if config["act_fn"] == "jumprelu":
        tensors |= random(activation_function__log_jumprelu_threshold=(D_SAE,))
    norms = {config["hook_point_in"]: IN, config["hook_point_out"]: OUT}
    if config["hook_point_in"] == config["hook_point_out"]:
        norms = {config["hook_point_in"]: IN}
    tensors |= {f"dataset_average_activation_norm.{k}": torch.tensor(v).double() for k, v in norms.items()}
    tensors = {name: values for name, values in tensors.items() if without is None or without not in name}
    return write(path, "config.json", config, "sae_weights.safetensors", tensors)


def by_formula(config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    w = random(**SHAPES, activation_function__log_jumprelu_threshold=(D_SAE,))
    transcodes = config["hook_point_in"] != config["hook_point_out"]
    match config["norm_activation"]:
        case "dataset-wise":  # the file has the norms in float32
            norm_in, norm_out = (torch.tensor(norm).double() for norm in (IN, OUT if transcodes else IN))
            s_in, s_out = math.sqrt(D_IN) / norm_in, math.sqrt(D_IN) / norm_out
        case "token-wise":
            s_in = s_out = math.sqrt(D_IN) / X.norm(dim=1, keepdim=True)
        case _:
            s_in = s_out = torch.tensor(1.0).double()
    pre = (X * s_in) @ w["W_E"] + w["b_E"]
    length = w["W_D"].norm(dim=1) if config["sparsity_include_decoder_norm"] else torch.ones(D_SAE).double()
    match config["act_fn"]:
        case "relu":
            acts = pre.relu()
        case "jumprelu":
            acts = pre * (pre * length > w["activation_function.log_jumprelu_threshold"].exp())
        case _:
            acts = largest(pre, K, pre * length)
    out = (acts @ w["W_D"] + w["b_D"]) / s_out
    return acts * length if config["act_fn"] == "topk" else acts, out


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("norm", ["dataset-wise", "token-wise", "inference"])
@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
def test_it_computes_what_the_formula_says(tmp_path: Path, act_fn: str, norm: str, counts: bool) -> None:
    change = {"act_fn": act_fn, "norm_activation": norm, "sparsity_include_decoder_norm": counts}
    architecture = {"relu": "standard"}.get(act_fn, act_fn)
    sae = assert_is(saved(tmp_path, change), "3.resid_post", architecture, *by_formula(CONFIG | change))
    assert sae.cfg.normalize_activations == ("constant_norm_rescale" if norm == "token-wise" else "none")


@pytest.mark.parametrize("act_fn", ["relu", "jumprelu", "topk"])
def test_what_a_transcoder_writes_has_a_norm_of_its_own(tmp_path: Path, act_fn: str) -> None:
    change = {"act_fn": act_fn, "hook_point_in": NORMED, "hook_point_out": MLP}
    architecture = {"relu": "transcoder"}.get(act_fn, f"{act_fn}_transcoder")
    assert_is(saved(tmp_path, change), "3.ln2_normalized", architecture, *by_formula(CONFIG | change))


def test_without_a_decoder_bias_nothing_is_added(tmp_path: Path) -> None:
    path = saved(tmp_path, {"use_decoder_bias": False}, without="b_D")
    (sae,) = load_saes(path).values()
    assert torch.equal(sae.b_dec, torch.zeros(D_IN).double())


# --- Llama Scope ------------------------------------------------------------------------------------------------------

SCOPE = {  # the keys of a hyperparams.json
    "dtype": "torch.bfloat16",
    "hook_point_in": RESID,
    "hook_point_out": RESID,
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "expansion_factor": 3,
    "d_model": D_IN,
    "d_sae": D_SAE,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.41,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": IN, "out": IN},
    "sparsity_include_decoder_norm": True,
    "use_glu_encoder": False,
    "top_k": 50,
}
LINEAR = {
    "encoder__weight": (D_SAE, D_IN),
    "encoder__bias": (D_SAE,),
    "decoder__weight": (D_IN, D_SAE),
    "decoder__bias": (D_IN,),
}


def scope(path: Path, change: dict[str, Any] | None = None) -> Path:
    tensors = random(**LINEAR)
    tensors["decoder.weight"] /= tensors["decoder.weight"].norm(dim=0)
    return write(path, "hyperparams.json", SCOPE | (change or {}), "checkpoints/final.safetensors", tensors)


@pytest.mark.parametrize("transcodes", [False, True])
@pytest.mark.parametrize("subtracts", [False, True])
def test_llama_scopes_threshold_is_in_units_of_what_is_written(
    tmp_path: Path, transcodes: bool, subtracts: bool
) -> None:
    norm_out = OUT if transcodes else IN
    change = {
        "dataset_average_activation_norm": {"in": IN, "out": norm_out},
        "apply_decoder_bias_to_pre_encoder": subtracts,
        **({"hook_point_in": NORMED, "hook_point_out": MLP} if transcodes else {}),
    }
    w = random(**LINEAR)
    W_D = w["decoder.weight"] / w["decoder.weight"].norm(dim=0)
    x = X * math.sqrt(D_IN) / IN - (w["decoder.bias"] if subtracts else 0)
    pre = x @ w["encoder.weight"].T + w["encoder.bias"]
    acts = pre * (pre * norm_out / math.sqrt(D_IN) > 0.41)
    out = (acts @ W_D.T + w["decoder.bias"]) * norm_out / math.sqrt(D_IN)
    place, architecture = ("3.ln2_normalized", "jumprelu_transcoder") if transcodes else ("3.resid_post", "jumprelu")
    assert_is(scope(tmp_path, change), place, architecture, acts, out)


def test_llama_scope_is_what_sae_lens_makes_of_a_release_of_it(tmp_path: Path) -> None:
    from sae_lens.loading.pretrained_sae_loaders import llama_scope_sae_huggingface_loader as theirs

    path = scope(tmp_path / "repository" / "L3R")
    with pytest.MonkeyPatch.context() as patch:
        found = {"hyperparams.json": path / "hyperparams.json", "final.safetensors": path / "checkpoints"}
        patch.setattr(
            "sae_lens.loading.pretrained_sae_loaders.hf_hub_download",
            lambda repo_id, filename, subfolder=None, **_: str(
                found["hyperparams.json"] if subfolder is None else found[filename] / filename
            ),
        )
        config, weights, _ = theirs("repository", "L3R", "cpu", cfg_overrides={"dtype": "float64"})
    factor = math.sqrt(D_IN) / IN  # as their registry has it, folded as they do
    (sae,) = load_saes(path).values()
    assert config["hook_name"] == RESID
    torch.testing.assert_close(sae.W_enc.data, weights["W_enc"] * factor)
    torch.testing.assert_close(sae.b_enc.data, weights["b_enc"])
    torch.testing.assert_close(sae.W_dec.data, weights["W_dec"] / factor)
    torch.testing.assert_close(sae.b_dec.data, weights["b_dec"] / factor)
    torch.testing.assert_close(sae.threshold.data, weights["threshold"])


def test_a_repository_is_all_its_layers(tmp_path: Path) -> None:
    for layer in (25, 4):
        hook = f"blocks.{layer}.hook_resid_post"
        scope(tmp_path / f"L{layer}R-8x", {"hook_point_in": hook, "hook_point_out": hook})
    assert [hook.layer for hook in load_saes(tmp_path)] == [4, 25]
    assert [hook.layer for hook in load_saes(tmp_path, layers=25)] == [25]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sae_type": "lorsa"}, 'sae_type should be sae (no other is supported), and is "lorsa"'),
        ({"use_glu_encoder": True}, "not affine in what is read"),
        ({"act_fn": "batchtopk"}, 'act_fn should be relu or jumprelu or topk, and is "batchtopk"'),
        ({"act_fn": "topk", "top_k": 0}, "top_k should be a whole number from 1 to 24, and is 0"),
        ({"norm_activation": "batch-wise"}, "norm_activation should be dataset-wise or inference or token-wise"),
        ({"jump_relu_threshold": -1}, "jump_relu_threshold should be a number from 0, and is -1"),
        ({"jump_relu_threshold": None}, "activation_function.log_jumprelu_threshold should be [24]"),
        ({"dataset_average_activation_norm": {}}, "should be a number above 0, and is missing"),
        ({"dataset_average_activation_norm": {"in": 0, "out": 1}}, "should be a number above 0, and is 0"),
        ({"hook_point_out": MLP}, "transcoders are supported of one layer's MLP"),
        ({"hook_point_in": NORMED, "hook_point_out": "blocks.4.hook_mlp_out"}, "of one layer's MLP"),
        ({"hook_point_in": None}, "hook_point_in is missing"),
        ({"d_sae": 99}, "encoder.weight should be [99, 8]"),
        ({"d_sae": None, "expansion_factor": "3"}, "d_sae or expansion_factor should be a number"),
        ({"use_decoder_bias": False}, "also holds decoder.bias"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_be_right(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    assert why in refused(scope(tmp_path, change))


def test_norms_that_were_never_measured_are_told_of(tmp_path: Path) -> None:
    path = saved(tmp_path, without="dataset_average")
    assert f"the dataset's average activation norm at {RESID}" in refused(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"norm_activation": "inference"}))
    assert len(load_saes(path)) == 1
