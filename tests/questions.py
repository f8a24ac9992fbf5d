"""Every question about a prompt, as a function that gives its document, and how documents are compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.graph.export.node_link import to_json
from depass_sae.models.prompt import PromptLike

from .attribution.tiny import D_MODEL

W = torch.arange(-D_MODEL, D_MODEL).view(2, D_MODEL) / D_MODEL

QUESTIONS: dict[str, Callable[[ds.LM, PromptLike], Any]] = {
    "features": lambda lm, text: lm.features(text).to_dict(),
    "tokens, words, measured": lambda lm, text: lm.attribute_tokens(text, "1/3", by="word", ablate=2).to_dict(),
    "logit": lambda lm, text: lm.attribute_tokens(text, logit=7).to_dict(),
    "logit difference": lambda lm, text: lm.attribute_tokens(text, logit_diff=(7, 8)).to_dict(),
    "direction": lambda lm, text: lm.attribute_tokens(text, direction=W[0], layer=1, pos=5).to_dict(),
    "several targets": lambda lm, text: [
        found.to_dict() for found in lm.attribute_tokens_each(text, ["1/3", "0/2", "logit:7"])
    ],
    "several prompts": lambda lm, text: [
        found.to_dict() for found in lm.attribute_tokens_batch([text, [4, 5, 6]], "1/3", rule="softmax")
    ],
    "heads by token": lambda lm, text: lm.attribute_heads(text, "1/3", by_token=True).to_dict(),
    "modules": lambda lm, text: lm.attribute_modules(text, "1/3").to_dict(),
    "neurons": lambda lm, text: lm.attribute_neurons(text, "1/3", rule="softmax").to_dict(),
    "subspace": lambda lm, text: lm.attribute_subspace(text, "1/3", subspace=ds.Subspace(W, 1)).to_dict(),
    "decoder directions": lambda lm, text: lm.attribute_subspace(
        text, "1/3", subspace=lm.decoder_directions(["0/2", "0/5"])
    ).to_dict(),
    "votes": lambda lm, text: lm.votes(text, ds.Subspace(W, 1)).to_dict(),
    "attention": lambda lm, text: lm.attribute_attention(text, 1, 0, 6, 2).to_dict(),
    "attention by features": lambda lm, text: lm.attribute_attention(
        text, 1, 0, 6, 2, by="features", against="mean"
    ).to_dict(),
    "contrast": lambda lm, text: lm.contrast(text, [*lm.encode(text).token_ids, 9], "1/3").to_dict(),
    "parts": lambda lm, text: lm.decompose(text, layer=1).parts.tolist(),
    "vectors": lambda lm, text: lm.decompose(
        text, ds.Vectors(W.expand(len(lm.encode(text)), -1, -1), ["a", "b"], (0, "resid_post")), layer=1
    ).parts.tolist(),
    "card": lambda lm, text: lm.card("1/3", [text, [4, 5, 6]]).to_dict(),
    "graph": lambda lm, text: json.loads(to_json(lm.graph(text, max_nodes=20))),
    "graph, softmax": lambda lm, text: json.loads(to_json(lm.graph(text, target="1/3", rule="softmax", max_nodes=20))),
    "verified graph": lambda lm, text: json.loads(
        to_json(lm.verify(lm.graph(text, target="1/3", max_nodes=20, heads=True)))
    ),
    "case study": lambda lm, text: lm.case_study(text, "1/3", max_nodes=10, verify=3, ablate=1).to_dict(),
} | {
    f"tokens, {rule}": lambda lm, text, rule=rule: lm.attribute_tokens(text, "1/3", rule=rule, pos="all").to_dict()
    for rule in ("half", "linear", "softmax", "linear-norm", "relu", "max")
}


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
