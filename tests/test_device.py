"""Every question with the model and its SAEs on a device that is not the host: the same answers as on the host."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.graph.export.node_link import to_json

from .attribution.tiny import D_MODEL, TEXT, handle, model, random_sae, tokenizer, width
from .far import FAR, device, far_module

W = torch.linspace(-1, 1, 2 * D_MODEL).view(2, D_MODEL)

QUESTIONS: dict[str, Callable[[ds.LM], Any]] = {
    "features": lambda lm: lm.features(TEXT).to_dict(),
    "tokens, words, measured": lambda lm: lm.attribute_tokens(TEXT, "1/3", by="word", ablate=2).to_dict(),
    "logit": lambda lm: lm.attribute_tokens(TEXT, logit=7).to_dict(),
    "logit difference": lambda lm: lm.attribute_tokens(TEXT, logit_diff=(7, 8)).to_dict(),
    "direction": lambda lm: lm.attribute_tokens(TEXT, direction=W[0], layer=1, pos=5).to_dict(),
    "several targets": lambda lm: [
        found.to_dict() for found in lm.attribute_tokens_each(TEXT, ["1/3", "0/2", "logit:7"])
    ],
    "several prompts": lambda lm: [
        found.to_dict() for found in lm.attribute_tokens_batch([TEXT, [4, 5, 6]], "1/3", rule="softmax")
    ],
    "heads by token": lambda lm: lm.attribute_heads(TEXT, "1/3", by_token=True).to_dict(),
    "modules": lambda lm: lm.attribute_modules(TEXT, "1/3").to_dict(),
    "neurons": lambda lm: lm.attribute_neurons(TEXT, "1/3", rule="softmax").to_dict(),
    "subspace": lambda lm: lm.attribute_subspace(TEXT, "1/3", subspace=ds.Subspace(W, 1)).to_dict(),
    "decoder directions": lambda lm: lm.attribute_subspace(
        TEXT, "1/3", subspace=lm.decoder_directions(["0/2", "0/5"])
    ).to_dict(),
    "votes": lambda lm: lm.decode(TEXT, ds.Subspace(W, 1)).to_dict(),
    "attention": lambda lm: lm.attribute_attention(TEXT, 1, 0, 6, 2).to_dict(),
    "attention by features": lambda lm: lm.attribute_attention(
        TEXT, 1, 0, 6, 2, by="features", against="mean"
    ).to_dict(),
    "contrast": lambda lm: lm.contrast(TEXT, TEXT + " x", "1/3").to_dict(),
    "parts": lambda lm: lm.decompose(TEXT, layer=1).parts.tolist(),
    "vectors": lambda lm: lm.decompose(
        TEXT, ds.Vectors(W.expand(len(lm.encode(TEXT)), -1, -1), ["a", "b"], (0, "resid_post")), layer=1
    ).parts.tolist(),
    "card": lambda lm: lm.card("1/3", [TEXT, [4, 5, 6]]).to_dict(),
    "graph": lambda lm: json.loads(to_json(lm.graph(TEXT, max_nodes=20))),
    "graph, softmax": lambda lm: json.loads(to_json(lm.graph(TEXT, target="1/3", rule="softmax", max_nodes=20))),
    "verified graph": lambda lm: json.loads(to_json(lm.verify(lm.graph(TEXT, target="1/3", max_nodes=20, heads=True)))),
    "case study": lambda lm: lm.case_study(TEXT, "1/3", max_nodes=10, verify=3, ablate=1).to_dict(),
} | {
    f"tokens, {rule}": lambda lm, rule=rule: lm.attribute_tokens(TEXT, "1/3", rule=rule, pos="all").to_dict()
    for rule in ("half", "linear", "softmax", "linear-norm", "relu", "max")
}


@cache
def both(shape: str) -> tuple[ds.LM, ds.LM]:
    """The same model and SAEs on the host and elsewhere."""
    d = width(shape, "resid_post")
    saes = [random_sae("jumprelu", "0.resid_post", d_in=d), random_sae("topk", "1.resid_post", d_in=d)]
    moved = [far_module(sae) for sae in saes]
    for sae in moved:
        sae.device, sae.cfg.device = FAR, FAR.type
    with device():
        return handle(saes, shape), ds.load(far_module(model(shape)), tokenizer(True), saes=moved)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_every_question_is_answered_on_another_device_as_on_the_host(shape: str, question: str) -> None:
    here, there = both(shape)
    assert there.model.device.type == FAR.type
    expected = QUESTIONS[question](here)
    with device(), warnings.catch_warnings():
        found = QUESTIONS[question](there)
    assert_alike(json.loads(json.dumps(found)), json.loads(json.dumps(expected)), question)


def assert_alike(found: Any, expected: Any, where: str) -> None:
    """The same documents, numbers to float32's precision."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_alike(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_alike(one, other, f"{where}/{i}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True), where
    else:
        assert found == expected, where
