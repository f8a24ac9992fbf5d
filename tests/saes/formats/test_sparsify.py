"""EleutherAI's sparsify, by its formulas: z = topk(relu(W (x − b_dec) + b)), a transcoder's without b_dec."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from depass_sae.saes import load_saes

from .by_hand import D_IN, D_SAE, MODEL, K, X, assert_is, largest, random, refused, write

CONFIG = {
    "activation": "topk",
    "expansion_factor": 3,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D_IN,
}
KINDS: dict[str, dict[str, Any]] = {
    "topk": {},
    "groupmax": {"activation": "groupmax"},
    "topk_transcoder": {"transcode": True},
    "topk_skip_transcoder": {"transcode": True, "skip_connection": True},
    "groupmax_transcoder": {"transcode": True, "activation": "groupmax"},
    "groupmax_skip_transcoder": {"transcode": True, "skip_connection": True, "activation": "groupmax"},
    "abstopk": {"signed": True},  # before sparsify 1.0
}


def tensors(skips: bool = False) -> dict[str, Tensor]:
    shapes = {"encoder__weight": (D_SAE, D_IN), "encoder__bias": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    return random(**shapes, **({"W_skip": (D_IN, D_IN)} if skips else {}))


def sparsify(run: Path, hookpoint: str, change: dict[str, Any] | None = None, model: str | None = MODEL) -> Path:
    config = CONFIG | (change or {})
    folder = write(run / hookpoint, "cfg.json", config, "sae.safetensors", tensors(config["skip_connection"]))
    if model is not None:
        (run / "config.json").write_text(json.dumps({"model": model, "sae": config}))
    return folder


def by_formula(w: dict[str, Tensor], config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    x = X if config["transcode"] else X - w["b_dec"]
    pre = x @ w["encoder.weight"].T + w["encoder.bias"]
    if config.get("signed"):
        acts = torch.where(pre.abs() >= pre.abs().topk(K).values[:, -1:], pre, 0)
    elif config["activation"] == "groupmax":
        groups = [largest(group, 1) for group in pre.split(D_SAE // K, dim=1)]
        acts = torch.cat(groups, dim=1)
    else:
        acts = largest(pre, K)
    out = acts @ w["W_dec"] + w["b_dec"]
    return acts, out + X @ w["W_skip"].T if config["skip_connection"] else out


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_formula_says(tmp_path: Path, kind: str) -> None:
    config = CONFIG | KINDS[kind]
    path = sparsify(tmp_path, "layers.1.mlp" if config["transcode"] else "layers.1", config)
    place = "1.mlp_in" if config["transcode"] else "1.resid_post"
    sae = assert_is(path, place, kind, *by_formula(load_file(path / "sae.safetensors"), config))
    assert sae.cfg.metadata.model_name == MODEL
    (again,) = load_saes(sae).values()
    assert torch.equal(again.encode(X), sae.encode(X))


@pytest.mark.parametrize("kind", ["topk_skip_transcoder", "groupmax"])
def test_what_sae_lens_has_no_class_of_is_saved_and_loaded_as_sae_lens_does(tmp_path: Path, kind: str) -> None:
    hookpoint = "layers.1.mlp" if "transcoder" in kind else "layers.1"
    (sae,) = load_saes(sparsify(tmp_path, hookpoint, KINDS[kind])).values()
    sae.save_model(tmp_path / "saved")
    (again,) = load_saes(tmp_path / "saved").values()
    assert torch.equal(again(X), sae(X))


@pytest.mark.parametrize(
    ("hookpoint", "place"),
    [
        ("layers.17", "17.resid_post"),
        ("h.3", "3.resid_post"),
        ("layers.17.mlp", "17.mlp_out"),
        ("layers.2.self_attn", "2.attn_out"),
        ("layers.2.attention", "2.attn_out"),
        ("embed_tokens", "0.resid_pre"),
        ("layers.5/seed3", "5.resid_post"),
    ],
)
def test_the_folders_name_is_the_module_whose_output_it_reads(tmp_path: Path, hookpoint: str, place: str) -> None:
    path = sparsify(tmp_path, hookpoint, model=None if "seed" in hookpoint else MODEL)
    (hook,) = load_saes(path)
    assert str(hook) == place


def test_a_run_is_all_its_hookpoints(tmp_path: Path) -> None:
    for hookpoint in ("layers.2", "layers.0", "layers.1.mlp"):
        sparsify(tmp_path, hookpoint)
    assert [str(hook) for hook in load_saes(tmp_path)] == ["0.resid_post", "1.mlp_out", "2.resid_post"]


def test_a_folder_of_another_name_has_to_be_told_where_it_reads(tmp_path: Path) -> None:
    path = sparsify(tmp_path, "best")
    assert refused(path) == f'{path} does not say which hook it reads; name it: saes={{"17.resid_post": "{path}"}}'
    (hook,) = load_saes({"4.mlp_out": path})
    assert str(hook) == "4.mlp_out"


def test_the_number_of_latents_goes_before_the_expansion_factor(tmp_path: Path) -> None:
    (sae,) = load_saes(sparsify(tmp_path, "layers.1", {"num_latents": D_SAE, "expansion_factor": 99})).values()
    assert sae.cfg.d_sae == D_SAE


@pytest.mark.parametrize(
    ("hookpoint", "change", "why"),
    [
        ("layers.1", {"k": None}, "cfg.json: k should be a whole number from 1 to 24, and is None"),
        ("layers.1", {"k": 25}, "k should be a whole number from 1 to 24, and is 25"),
        ("layers.1", {"d_in": "8"}, "d_in should be a whole number from 1"),
        ("layers.1", {"d_in": 16}, "encoder.weight should be [48, 16]"),
        ("layers.1", {"expansion_factor": 2}, "encoder.weight should be [16, 8]"),
        ("layers.1", {"activation": "softmax"}, 'activation should be topk or groupmax, and is "softmax"'),
        ("layers.1", {"activation": "groupmax", "k": 5}, "k, the number of groups, should divide 24 latents, and is 5"),
        ("layers.1", {"transcode": "yes"}, 'transcode should be true or false, and is "yes"'),
        ("layers.1", {"skip_connection": True}, "an SAE with a skip_connection is not supported"),
        ("layers.1", {"transcode": True}, "only transcoders of a layer's MLP are supported"),
        ("layers.1.mlp", {"transcode": True, "signed": True}, "signed latents are supported of topk SAEs only"),
        ("layers.1.mlp.act", {}, "reads 'layers.1.mlp.act.output', which is not a read point here"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_be_right(
    tmp_path: Path, hookpoint: str, change: dict[str, Any], why: str
) -> None:
    assert why in refused(sparsify(tmp_path, hookpoint, change))


def test_a_skip_that_the_configuration_does_not_speak_of_is_not_passed_over(tmp_path: Path) -> None:
    path = sparsify(tmp_path, "layers.1.mlp", {"transcode": True})
    save_file(tensors(True), path / "sae.safetensors")
    assert "also holds W_skip, which its configuration does not speak of" in refused(path)


def test_where_a_norm_stands_behind_the_mlp_its_transcoders_are_refused(tmp_path: Path) -> None:
    path = sparsify(tmp_path, "layers.1.mlp", {"transcode": True}, model="google/gemma-2-2b")
    assert "stands for what the MLP gives before a norm on it" in refused(path)
