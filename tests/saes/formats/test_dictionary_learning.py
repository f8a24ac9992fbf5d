"""dictionary_learning's classes, by their formulas."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from depass_sae.saes import load_saes

from .by_hand import D_IN, D_SAE, MODEL, K, X, assert_is, largest, random, refused, write

THRESHOLD = 1.3
LINEAR = {"encoder__weight": (D_SAE, D_IN), "decoder__weight": (D_IN, D_SAE)}
PLAIN = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
TOPK = {**LINEAR, "encoder__bias": (D_SAE,), "b_dec": (D_IN,)}
BUFFERS = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(THRESHOLD)}
CLASSES: dict[str, tuple[str, dict[str, Tensor]]] = {
    "AutoEncoder": ("standard", random(**LINEAR, encoder__bias=(D_SAE,), bias=(D_IN,))),
    "AutoEncoderNew": ("standard", random(**LINEAR, encoder__bias=(D_SAE,), decoder__bias=(D_IN,))),
    "GatedAutoEncoder": (
        "gated",
        random(**LINEAR, decoder_bias=(D_IN,), r_mag=(D_SAE,), gate_bias=(D_SAE,), mag_bias=(D_SAE,)),
    ),
    "JumpReluAutoEncoder": ("jumprelu", random(**PLAIN, threshold=(D_SAE,))),
    "AutoEncoderTopK": ("topk", random(**TOPK) | BUFFERS),
    "BatchTopKSAE": ("jumprelu", random(**TOPK) | BUFFERS),
    "MatryoshkaBatchTopKSAE": ("jumprelu", random(**PLAIN) | BUFFERS | {"group_sizes": torch.tensor([8, 16])}),
}


def by_formula(name: str, w: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    match name:
        case "AutoEncoder":  # rescaled to decoder rows of length 1 when it is loaded
            acts = ((X - w["bias"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
            return acts * w["decoder.weight"].norm(dim=0), acts @ w["decoder.weight"].T + w["bias"]
        case "AutoEncoderNew":
            acts = (X @ w["encoder.weight"].T + w["encoder.bias"]).relu()
            return acts, acts @ w["decoder.weight"].T + w["decoder.bias"]
        case "GatedAutoEncoder":
            encoded = (X - w["decoder_bias"]) @ w["encoder.weight"].T
            acts = (encoded * w["r_mag"].exp() + w["mag_bias"]).relu() * (encoded + w["gate_bias"] > 0)
            return acts, acts @ w["decoder.weight"].T + w["decoder_bias"]
        case "JumpReluAutoEncoder":
            pre = X @ w["W_enc"] + w["b_enc"]
            acts = (pre * (pre > w["threshold"])).relu()
            return acts, acts @ w["W_dec"] + w["b_dec"]
        case "AutoEncoderTopK":
            acts = largest((X - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], K)
            return acts, acts @ w["decoder.weight"].T + w["b_dec"]
        case "BatchTopKSAE":
            pre = (X - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
            acts = pre * (pre > w["threshold"])
            return acts, acts @ w["decoder.weight"].T + w["b_dec"]
        case _:
            pre = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
            acts = pre * (pre > w["threshold"])
            return acts, acts @ w["W_dec"] + w["b_dec"]


def trained(
    path: Path, name: str, tensors: dict[str, Tensor] | None = None, file: str = "ae.pt", **trainer: Any
) -> Path:
    config = {
        "trainer_class": "AnyTrainer",
        "dict_class": name,
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "k": K,
        "layer": 8,
        "lm_name": MODEL,
        "submodule_name": "resid_post_layer_8",
    } | trainer
    whole = {"trainer": config, "buffer": {"io": "out", "ctx_len": 128}}
    return write(path, "config.json", whole, file, CLASSES[name][1] if tensors is None else tensors)


@pytest.mark.parametrize("name", CLASSES)
def test_it_computes_what_the_formula_says(tmp_path: Path, name: str) -> None:
    architecture, tensors = CLASSES[name]
    path = trained(tmp_path / "run" / "trainer_3", name)
    sae = assert_is(path, "8.resid_post", architecture, *by_formula(name, tensors))
    assert (sae.cfg.metadata.sae_id, sae.cfg.metadata.model_name) == ("run/trainer_3", MODEL)


def test_safetensors_are_read_where_they_are(tmp_path: Path) -> None:
    path = trained(tmp_path, "BatchTopKSAE", file="ae.safetensors")
    assert_is(path, "8.resid_post", "jumprelu", *by_formula("BatchTopKSAE", CLASSES["BatchTopKSAE"][1]))


@pytest.mark.parametrize(
    ("folder", "submodule", "place"),
    [
        ("trainer_0", "mlp_out_layer_8", "8.mlp_out"),
        ("attn_out_layer_8/trainer_0", None, "8.attn_out"),
        ("resid_out_layer8/10_32768", None, "8.resid_post"),
    ],
)
def test_the_place_is_what_the_trainer_or_a_folder_is_called(
    tmp_path: Path, folder: str, submodule: str | None, place: str
) -> None:
    (hook,) = load_saes(trained(tmp_path / folder, "AutoEncoder", submodule_name=submodule))
    assert str(hook) == place


def test_where_no_place_is_named_it_is_asked_for(tmp_path: Path) -> None:
    path = trained(tmp_path / "trainer_0", "AutoEncoder", submodule_name=None)
    assert "does not say which hook it reads" in refused(path)
    (hook,) = load_saes({8: path})
    assert str(hook) == "8.resid_post"
    config = json.loads((path / "config.json").read_text())
    config["trainer"]["submodule_name"], config["buffer"]["io"] = "mlp_out_layer_8", "in"
    (path / "config.json").write_text(json.dumps(config))
    assert "does not say which hook it reads" in refused(path)


BATCH = CLASSES["BatchTopKSAE"][1]


@pytest.mark.parametrize(
    ("name", "tensors", "trainer", "why"),
    [
        ("BatchTopKSAE", BATCH | {"threshold": torch.tensor(-1.0)}, {}, "training ended before it was set"),
        ("BatchTopKSAE", BATCH | {"k": torch.tensor(7)}, {}, "k is 7, and 4 in config.json"),
        ("BatchTopKSAE", None, {"k": None}, "k should be a whole number from 1 to 24, and is None"),
        ("AutoEncoderTopK", None, {"k": 100}, "k should be a whole number from 1 to 24, and is 100"),
        ("AutoEncoder", None, {"dict_class": "IdentityDict"}, 'and is "IdentityDict"'),
        ("AutoEncoder", None, {"dict_class": "AutoEncoderNew"}, "decoder.bias should be [8]"),
        ("AutoEncoder", None, {"dict_size": 16}, "encoder.weight should be [16, 8]"),
        ("AutoEncoder", None, {"layer": 3}, "layer is 3, and the place is called resid_post_layer_8"),
        ("AutoEncoder", None, {"lm_name": 7}, "lm_name should be a text, and is 7"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_what_would_be_right(
    tmp_path: Path, name: str, tensors: dict[str, Tensor] | None, trainer: dict[str, Any], why: str
) -> None:
    assert why in refused(trained(tmp_path, name, tensors, **trainer))


def test_a_place_before_a_norm_is_refused(tmp_path: Path) -> None:
    path = trained(tmp_path, "AutoEncoder", submodule_name="mlp_out_layer_8", lm_name="google/gemma-2-2b")
    assert "not a read point here" in refused(path)
