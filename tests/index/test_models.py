"""Whatever the model and wherever an SAE reads: what is scanned is what ``lm.features`` says of each text alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import depass_sae as ds

from ..attribution.tiny import handle, random_sae, width
from ..far import device
from ..test_device import both
from .scanned import texts

CASES = [
    ("gpt2", [("gated", "1.hook_z"), ("topk", "0.resid_mid")]),
    ("gemma2", [("jumprelu", "1.mlp_out"), ("topk", "1.attn_out")]),
    ("gpt_neox", [("standard", "2.resid_pre")]),
    ("qwen3_5_text", [("topk", "2.resid_post"), ("jumprelu", "1.resid_post")]),
    ("qwen3_moe", [("transcoder", "1.ln2_normalized"), ("topk", "0.resid_post")]),
]


def agree(lm: ds.LM, index: ds.Index, some: list[str]) -> int:
    """How many activations are the same ones."""
    found: dict[tuple[str, int, int, int], float] = {}
    for hook, feature_count in index.saes.items():
        for i in range(feature_count):
            rows = index.activations(f"{hook}/{i}")
            for window, pos, value in zip(rows["window"], rows["pos"], rows["activation"], strict=True):
                found[str(hook), index.window(window)["document"], pos, i] = float(value)
    expected: dict[tuple[str, int, int, int], float] = {}
    for document, text in enumerate(some):
        for layer in lm.features(text).to_dict()["layers"]:
            for position in layer["positions"]:
                for one in position["features"]:
                    where = (f"{layer['layer']}.{layer['hook']}", document, position["pos"], one["index"])
                    expected[where] = one["activation"]
    assert found.keys() == expected.keys()
    assert np.allclose([found[key] for key in expected], list(expected.values()), rtol=2e-3, atol=1e-3)
    return len(found)


@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
@pytest.mark.parametrize(("shape", "saes"), CASES, ids=[shape for shape, _ in CASES])
def test_every_architecture_and_hook_is_scanned_as_features_are_found(
    tmp_path: Path, shape: str, saes: list[tuple[str, str]]
) -> None:
    lm = handle([random_sae(kind, hook, d_in=width(shape, hook)) for kind, hook in saes], shape)
    some = texts(5, longest=8)
    assert agree(lm, lm.scan(some, tmp_path / "ix", full="all"), some) > 300


@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
def test_a_model_and_saes_on_a_device_are_scanned(tmp_path: Path) -> None:
    here, far = both("llama")
    some = texts(5, longest=8)
    with device():
        index = far.scan(some, tmp_path / "ix", full="all")
    assert agree(here, index, some) > 300
