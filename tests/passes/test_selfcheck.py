"""The self-check's second half: the model's own attention is what it computes eagerly, as it is traced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.models.load import adapter_for
from depass_sae.passes.selfcheck import check

from .models import SHAPES, fresh

PROMPT = [0, 17, 5, 33, 5, 40]


def backwards(*arguments: Any, **options: Any) -> tuple[Tensor, None]:
    """Attention that answers with the opposite sign."""
    out, _ = sdpa_attention_forward(*arguments, **options)
    return -out, None


@pytest.fixture
def names() -> Iterator[None]:
    """Two attention functions of the user's own: one is sdpa under another name."""
    for name, function in (("backwards", backwards), ("renamed", sdpa_attention_forward)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
    yield
    for name in ("backwards", "renamed"):
        AttentionInterface._global_mapping.pop(name)
        AttentionMaskInterface._global_mapping.pop(name)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("shape", SHAPES)
def test_an_attention_function_that_computes_something_else_is_refused(shape: str) -> None:
    model = fresh(shape)
    model.set_attn_implementation("backwards")
    with pytest.raises(UserError, match="'backwards' computes something else than eager attention") as caught:
        ds.load(model)
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == "backwards"


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "renamed"])
def test_an_attention_function_that_computes_the_same_is_taken_and_stays(implementation: str) -> None:
    model = fresh("qwen2")
    model.set_attn_implementation(implementation)
    lm = ds.load(model)
    assert lm._subject.checked.implementation == implementation
    lm.attribute_tokens(PROMPT, logit=3)
    assert model.config._attn_implementation == implementation


@pytest.mark.usefixtures("names")
def test_an_attention_function_that_is_set_after_loading_is_checked_at_the_next_question() -> None:
    lm = ds.load(fresh("llama"))
    expected = lm.attribute_tokens(PROMPT, logit=3).contributions
    lm.model.set_attn_implementation("renamed")
    assert torch.equal(lm.attribute_tokens(PROMPT, logit=3).contributions, expected)
    lm.model.set_attn_implementation("backwards")
    with pytest.raises(UserError, match="'backwards' computes something else"):
        lm.attribute_tokens(PROMPT, logit=3)


def test_attention_that_hands_out_no_pattern_is_refused() -> None:
    model = fresh("llama")
    attention = model.model.layers[1].self_attn
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: (forward(*args, **kwargs)[0], None)
    with pytest.raises(UserError, match="the attention of layer 1 hands out no pattern"):
        ds.load(model)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_off_is_kept_for_later_answers(shape: str) -> None:
    exact, rounded = (check(adapter_for(fresh(shape, dtype))) for dtype in (torch.float32, torch.bfloat16))
    assert 0 < exact.error < 1e-5 < rounded.error < 0.1
    assert exact.implementation == "sdpa"


def test_a_model_that_is_traced_in_a_higher_dtype_is_checked_in_it() -> None:
    adapter = adapter_for(fresh("llama", torch.bfloat16))
    assert check(adapter, torch.float32).error < 1e-5
