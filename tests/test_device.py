"""Every question with the model and its SAEs on a device that is not the host: the same answers as on the host."""

from __future__ import annotations

import json
import warnings
from functools import cache

import pytest

import depass_sae as ds

from .attribution.tiny import TEXT, handle, model, random_sae, tokenizer, width
from .far import FAR, device, far_module
from .questions import QUESTIONS, assert_alike


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
    expected = QUESTIONS[question](here, TEXT)
    with device(), warnings.catch_warnings():
        found = QUESTIONS[question](there, TEXT)
    assert_alike(json.loads(json.dumps(found)), json.loads(json.dumps(expected)), question)
