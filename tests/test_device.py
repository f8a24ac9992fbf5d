"""Every question with the model and its SAEs on a device that is not the host: the same answers as on the host."""

from __future__ import annotations

import json
import warnings
from functools import cache

import pytest

import depass_sae as ds

from .attribution.tiny import TEXT, handle, model, random_sae, tokenizer, width
from .far import FAR, device, far_module, spread_module
from .questions import QUESTIONS, assert_alike

SAES = [("jumprelu", "0.resid_post"), ("topk", "1.resid_post")]


@cache
def both(shape: str) -> tuple[ds.LM, ds.LM]:
    """The same model and SAEs on the host and elsewhere."""
    d = width(shape, "resid_post")
    saes = [random_sae(kind, hook, d_in=d) for kind, hook in SAES]
    moved = [far_module(sae) for sae in saes]
    for sae in moved:
        sae.device, sae.cfg.device = FAR, FAR.type
    with device():
        return handle(saes, shape), ds.load(far_module(model(shape)), tokenizer(True), saes=moved)


SPREAD = {
    "llama": (["model.layers.1", "model.layers.2", "model.norm", "lm_head"], ["model.embed_tokens", "model.layers.0"]),
    "gpt2": (["transformer.h.1", "transformer.h.2", "transformer.ln_f"],),
}
"""Parts that are elsewhere; the components are where the embedding is."""
SOME = ("features", "heads by token", "tokens, softmax", "verified graph")


@cache
def spread(shape: str, which: int) -> ds.LM:
    saes = [random_sae(kind, hook, d_in=width(shape, "resid_post")) for kind, hook in SAES]
    with device():
        given = spread_module(model(shape), SPREAD[shape][which])
        elsewhere = given.get_input_embeddings().weight.device.type == FAR.type
        saes = [far_module(sae) for sae in saes] if elsewhere else saes
        for sae in saes if elsewhere else ():
            sae.device, sae.cfg.device = FAR, FAR.type
        return ds.load(given, tokenizer(True), saes=saes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("shape", "which", "question"),
    [("llama", 0, question) for question in QUESTIONS]
    + [(shape, which, question) for shape, which in (("llama", 1), ("gpt2", 0)) for question in SOME],
)
def test_every_question_is_answered_on_a_model_that_lies_on_two_devices(shape: str, which: int, question: str) -> None:
    expected = QUESTIONS[question](both(shape)[0], TEXT)
    with device(), warnings.catch_warnings():
        found = QUESTIONS[question](spread(shape, which), TEXT)
    assert_alike(json.loads(json.dumps(found)), json.loads(json.dumps(expected)), question)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_every_question_is_answered_on_another_device_as_on_the_host(shape: str, question: str) -> None:
    here, there = both(shape)
    assert there.model.device.type == FAR.type
    expected = QUESTIONS[question](here, TEXT)
    with device(), warnings.catch_warnings():
        found = QUESTIONS[question](there, TEXT)
    assert_alike(json.loads(json.dumps(found)), json.loads(json.dumps(expected)), question)
