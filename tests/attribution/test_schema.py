"""The published schema of answers has every key that they write, and nothing else passes for one of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.attribution.schema import json_schema

from ..schemas import mistakes, passing, unnoticed, unsaid
from .tiny import D_MODEL, TEXT, handle, random_sae

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing

SCHEMA = json_schema()
SHORT = "supply and demand"
SHAPLEY = {"measure": "shapley", "measure_seconds": 1e-9}


def lm(kind: str = "jumprelu", shape: str = "llama") -> ds.LM:
    return handle([random_sae(kind, hook, seed=i) for i, hook in enumerate(("0.resid_post", "1.resid_post"))], shape)


ANSWERS: dict[str, Callable[[ds.LM], Any]] = {
    "tokens": lambda lm: lm.attribute_tokens(TEXT, "1/3", pos="all"),
    "words, measured, by depth": lambda lm: lm.attribute_tokens(TEXT, "1/3", by="word", ablate=2, by_depth=True),
    "measured once": lambda lm: lm.attribute_tokens(TEXT, "1/3", ablate=1),
    "Shapley values": lambda lm: lm.attribute_tokens(TEXT, "1/3", **SHAPLEY),
    "masked": lambda lm: lm.attribute_tokens(TEXT, "1/3", measure="replace", removal="delete"),
    "queries and keys": lambda lm: lm.attribute_tokens(SHORT, "1/3", rule="half-qk"),
    "ids": lambda lm: lm.attribute_tokens([4, 5, 6], "1/3"),
    "a logit": lambda lm: lm.attribute_tokens(SHORT, logit=7),
    "logits": lambda lm: next(iter(lm.attribute_tokens_each(SHORT, ["logit:7+9 against 8,10"]))),
    "a difference": lambda lm: lm.attribute_tokens(SHORT, logit_diff=(7, 8)),
    "a log-probability": lambda lm: lm.attribute_tokens(SHORT, logprob=7),
    "a direction": lambda lm: lm.attribute_tokens(SHORT, direction=torch.ones(D_MODEL), layer=1),
    "heads": lambda lm: lm.attribute_heads(SHORT, "1/3"),
    "heads by token": lambda lm: lm.attribute_heads(SHORT, "1/3", by_token=True, effects=True),
    "heads measured": lambda lm: lm.attribute_heads(SHORT, "1/3", measure_heads=3, **SHAPLEY),
    "heads measured alone": lambda lm: lm.attribute_heads(SHORT, "1/3", measure="replace", reference=TEXT),
    "modules": lambda lm: lm.attribute_modules(SHORT, "1/3", effects=True),
    "neurons": lambda lm: lm.attribute_neurons(SHORT, "1/3", rule="half-qk"),
    "what a feature does": lambda lm: lm.downstream(TEXT, first_firing(lm)),
    "what a token does": lambda lm: lm.downstream(TEXT, "token:3"),
    "what a head does": lambda lm: lm.downstream(TEXT, "head:0.1"),
    "what a neuron does": lambda lm: lm.downstream(TEXT, "neuron:0/7@4"),
}
PASSING = {
    "words, measured, by depth": {
        "targets[].measured", "targets[].by_depth", "targets[].contributions[].measured",
    },
    "heads by token": {f"targets[].heads[].{key}" for key in ("by_token", "other", "effect")},
    "logits": {"logit", "logit.plus"},
    "a direction": {"direction"},
    "queries and keys": {"qk_share", "qk_slope"},
    "modules": {"targets[].modules[].effect", "targets[].rest[].module"},
    "heads measured": {"targets[].measured"},
    "what a feature does": {f"source.{key}" for key in ("layer", "hook", "index", "pos")},
}  # fmt: skip
"""Keys that are left out where they say nothing: no others can be missing."""


def first_firing(lm: ds.LM) -> str:
    pos, indices = next((at.pos, at.indices) for at in lm.features(TEXT, layer=0).layers[0].positions[3:] if at.indices)
    return f"0/{indices[0]}@{pos}"


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_has_the_schemas_keys_and_no_others(what: str) -> None:
    assert not mistakes(ANSWERS[what](lm()).to_dict(), SCHEMA)


def test_so_do_answers_about_gates_and_experts() -> None:
    experts = lm(shape="qwen3_moe")
    found = experts.attribute_neurons(SHORT, "1/3").to_dict()
    assert any(isinstance(part["neuron"], str) for part in found["targets"][0]["neurons"])
    assert not mistakes(found, SCHEMA)
    gated = lm("gated").attribute_tokens(SHORT, "1/3", path="gate").to_dict()
    assert gated["feature"]["path"] == "gate"
    assert not mistakes(gated, SCHEMA)


@pytest.mark.parametrize("what", PASSING)
def test_no_key_can_be_missing_or_of_another_kind(what: str) -> None:
    without, other = passing(ANSWERS[what](lm()).to_dict(), SCHEMA)
    assert without == PASSING[what]
    assert not other


@pytest.mark.parametrize("what", PASSING)
def test_a_key_that_is_not_documented_is_found_wherever_it_is(what: str) -> None:
    assert not unnoticed(ANSWERS[what](lm()).to_dict(), SCHEMA)


def test_nothing_in_the_schema_is_left_open() -> None:
    assert not list(unsaid(SCHEMA))
    entries = {"a": {}, "b": {"type": "object"}, "c": {"type": "array", "items": {}}}
    assert list(unsaid({"type": "object", "properties": entries})) == ["/a", "/b", "/c[]"]
