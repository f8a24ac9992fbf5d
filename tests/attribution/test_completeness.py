"""Whether an answer whose parts miss the whole says so, and only such an answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.errors import CompletenessWarning
from depass_sae.passes.selfcheck import tolerance

from ..passes.models import CONTEXT, D_MODEL, DTYPES, HEADS, LAYERS, SHAPES, VOCAB, fresh
from .tiny import random_sae

PROMPT = [0, 17, 5, 33, 5, 40]
W = torch.linspace(-1, 1, 2 * D_MODEL).view(2, D_MODEL)

ANSWERS: dict[str, Callable[[ds.LM], Any]] = {
    "tokens": lambda lm: lm.attribute_tokens(PROMPT, logit=3),
    "tokens, softmax": lambda lm: lm.attribute_tokens(PROMPT, logit=3, rule="softmax"),
    "tokens, a direction": lambda lm: lm.attribute_tokens(PROMPT, direction=W[0], layer=2, pos="all"),
    "several prompts": lambda lm: lm.attribute_tokens_batch([PROMPT, PROMPT[:4]], logit=3)[0],
    "heads": lambda lm: lm.attribute_heads(PROMPT, logit=3),
    "heads, softmax": lambda lm: lm.attribute_heads(PROMPT, logit=3, rule="softmax"),
    "modules": lambda lm: lm.attribute_modules(PROMPT, logit=3),
    "neurons": lambda lm: lm.attribute_neurons(PROMPT, logit=3),
    "subspaces": lambda lm: lm.attribute_subspace(
        PROMPT, logit=3, subspace=ds.Subspace([W[:1], W[1:]], 0, "resid_pre")
    ),
    "parts": lambda lm: lm.decompose(PROMPT, layer=2),
    "votes": lambda lm: lm.votes(PROMPT, ds.Heads(0)),
    "graph": lambda lm: lm.graph(PROMPT, logit=3),
}


@contextmanager
def steered(lm: ds.LM, by: float) -> Iterator[None]:
    """A hook of the user's own that adds to what a layer puts out."""
    block = lm._subject.adapter.layer(1).module

    def add(_module: Any, _args: Any, out: Any) -> Any:
        return (out[0] + by * W[1], *out[1:]) if isinstance(out, tuple) else out + by * W[1].to(out)

    handle = block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("question", ANSWERS)
@pytest.mark.parametrize("shape", ["qwen3", "gpt2"])
def test_a_hook_of_the_users_that_parts_miss_is_warned_of(shape: str, question: str) -> None:
    lm = ds.load(fresh(shape), saes=random_sae("topk", "1.resid_post"))
    with steered(lm, 3.0), pytest.warns(CompletenessWarning) as caught:
        ANSWERS[question](lm)
    assert "is a hook or an adapter active on the model, or were its weights changed" in str(caught[0].message)
    assert "\n" not in str(caught[0].message)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompletenessWarning)
        ANSWERS[question](lm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_warned_of_where_only_rounding_is_missing(shape: str, dtype: torch.dtype) -> None:
    lm = ds.load(fresh(shape, dtype), saes=random_sae("topk", "1.resid_post"))
    prompts = torch.randint(VOCAB, (4, CONTEXT - 8), generator=torch.Generator().manual_seed(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompletenessWarning)
        for ask in ANSWERS.values():
            ask(lm)
        for prompt in prompts:
            lm.attribute_tokens(prompt, logit=int(prompt[0]), pos="all")
            lm.attribute_heads(prompt, direction=W[0], layer=1, pos="all")


def test_an_attention_adapter_that_joins_after_loading_is_warned_of() -> None:
    lm = ds.load(fresh("llama"))
    proj = lm.model.model.layers[1].self_attn.o_proj
    low, high = torch.nn.Linear(HEADS * 8, 2, bias=False), torch.nn.Linear(2, D_MODEL, bias=False)
    proj.register_forward_hook(lambda _module, args, out: out + high(low(args[0])))
    with pytest.warns(CompletenessWarning):
        lm.attribute_heads(PROMPT, logit=3)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_scores_that_are_not_those_of_the_pattern_are_warned_of(shape: str) -> None:
    lm = ds.load(fresh(shape))
    attention = lm._subject.adapter.layer(1).sublayers[0].mixer.module
    proj = attention.c_attn if shape == "gpt2" else attention.q_proj
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompletenessWarning)
        for query in range(len(PROMPT)):
            lm.attribute_attention(PROMPT, 1, 1, query, query)
    handle = proj.register_forward_hook(lambda _module, _args, out: out.roll(1, -1))
    with pytest.warns(CompletenessWarning, match="the scores of head 1 in layer 1"):
        lm.attribute_attention(PROMPT, 1, 1, 5, 4)
    handle.remove()


def test_an_answer_in_float64_is_held_to_more_than_one_in_float32() -> None:
    lm = ds.load(fresh("gpt2", torch.float64))
    assert lm._subject.checked.error < 1e-6
    with steered(lm, 1e-4), pytest.warns(CompletenessWarning):
        lm.attribute_tokens(PROMPT, logit=3)


def test_the_tolerance_grows_with_what_the_self_check_found_and_has_a_floor() -> None:
    assert tolerance(torch.float32, LAYERS, 1e-7) == 1e-4
    assert tolerance(torch.float32, LAYERS, 1e-3) == pytest.approx(1e-2)
    assert tolerance(torch.float64, LAYERS, 0.0) == 1e-9
    assert tolerance(torch.float64, LAYERS, 1e-8) == pytest.approx(1e-7)
    assert tolerance(torch.bfloat16, 8, 0.0) == pytest.approx(3 * 2**-8 * 16**0.5)
    assert tolerance(torch.bfloat16, 8, 0.01) == pytest.approx(0.1)
