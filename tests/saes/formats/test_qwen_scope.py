"""Qwen-Scope's files, by the formula: f = topk(W_enc x + b_enc)."""

from pathlib import Path

import torch

from depass_sae.saes import load_saes

from .by_hand import D_IN, X, largest, random, refused

NAME = "SAE-Res-Qwen3-1.7B-Base-W1K-L0_5"
SHAPES = {"W_enc": (1024, D_IN), "W_dec": (D_IN, 1024), "b_enc": (1024,), "b_dec": (D_IN,)}


def scope(path: Path, *layers: int) -> Path:
    path.mkdir(parents=True)
    for layer in layers:
        torch.save(random(**SHAPES), path / f"layer{layer}.sae.pt")
    return path


def test_it_computes_what_the_formula_says(tmp_path: Path) -> None:
    saes = load_saes(scope(tmp_path / NAME, 11, 2))
    assert [str(hook) for hook in saes] == ["2.resid_post", "11.resid_post"]
    w = random(**SHAPES)
    acts = largest(X @ w["W_enc"].T + w["b_enc"], 5)
    for sae in saes.values():
        torch.testing.assert_close(sae.encode(X), acts, rtol=0, atol=1e-11)
        torch.testing.assert_close(sae(X), acts @ w["W_dec"].T + w["b_dec"], rtol=0, atol=1e-11)
        assert sae.cfg.metadata.model_name == "Qwen/Qwen3-1.7B-Base"


def test_the_hubs_cache_names_it_too(tmp_path: Path) -> None:
    path = scope(tmp_path / f"models--Qwen--{NAME}" / "snapshots" / "abc", 3)
    assert [hook.layer for hook in load_saes(path, layers=3)] == [3]


def test_k_is_never_guessed(tmp_path: Path) -> None:
    assert "does not say how many features are active" in refused(scope(tmp_path / "mine", 3))


def test_another_width_than_the_name_says_is_refused(tmp_path: Path) -> None:
    assert "W_enc should be [2048, 8]" in refused(scope(tmp_path / NAME.replace("W1K", "W2K"), 3))
