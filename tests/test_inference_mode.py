"""Questions asked inside ``torch.inference_mode``, also of a model and SAEs that were made in it: the same answers."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError

from .attribution.tiny import D_MODEL, TEXT, VOCAB, random_sae, tokenizer
from .passes.models import CONFIGS, build
from .questions import QUESTIONS, assert_alike


@cache
def handle(shape: str, inside: bool) -> ds.LM:
    with torch.inference_mode(inside):
        config = CONFIGS[shape]()
        config.vocab_size = VOCAB
        saes = [random_sae("jumprelu", "0.resid_post", d_in=D_MODEL), random_sae("gated", "1.resid_post", d_in=D_MODEL)]
        return ds.load(build(config), tokenizer(), saes=saes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("shape", ["qwen3", "gpt2"])
def test_every_question_is_answered_in_inference_mode_as_outside_of_it(shape: str, question: str) -> None:
    expected = QUESTIONS[question](handle(shape, False), TEXT)
    there = handle(shape, True)
    assert all(parameter.is_inference() for parameter in there.model.parameters())
    with torch.inference_mode():
        found = QUESTIONS[question](there, TEXT)
    assert_alike(json.loads(json.dumps(found)), json.loads(json.dumps(expected)), question)


def test_a_model_that_was_made_in_inference_mode_keeps_its_dtype() -> None:
    with torch.inference_mode():
        model = build(CONFIGS["llama"](), torch.bfloat16)
    with pytest.raises(UserError, match=r"made in torch.inference_mode keeps its dtype"):
        ds.load(model, trace_dtype="float32")
    assert ds.load(model).model.dtype == torch.bfloat16


def test_what_comes_out_of_inference_mode_may_be_used_outside_of_it() -> None:
    with torch.inference_mode():
        w = torch.linspace(-1, 1, D_MODEL)
        found = handle("qwen3", True).attribute_tokens(TEXT, direction=w, layer=1)
    assert not found.contributions.is_inference()
