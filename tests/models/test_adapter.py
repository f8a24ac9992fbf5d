"""Adapters: each proves itself against its model before it is used, or is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from depass_sae.errors import UserError
from depass_sae.models.adapter import Adapter, Family
from depass_sae.models.families.llama import LLAMA
from depass_sae.models.load import adapter_for
from depass_sae.models.sublayer import Layer, Sublayer
from depass_sae.passes.selfcheck import check

from ..passes.models import (
    CONFIGS,
    CONTEXT,
    D_MODEL,
    DTYPES,
    EVERY,
    HEADS,
    KV_HEADS,
    LAYERS,
    SHAPES,
    VOCAB,
    attention_of,
    build,
    fresh,
    mlp_of,
    tiny,
)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_reproduces_its_model_in_every_dtype(shape: str, dtype: torch.dtype) -> None:
    check(tiny(shape, dtype))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sizes_are_those_of_the_model(shape: str) -> None:
    adapter = tiny(shape)
    assert (adapter.n_layers, adapter.d_model, adapter.vocab_size) == (LAYERS, D_MODEL, VOCAB)
    assert adapter.context_length == CONTEXT
    attention = attention_of(adapter, 1)
    assert attention.n_heads == HEADS
    assert attention.n_kv_heads == (HEADS if shape == "gpt2" else KV_HEADS)
    assert attention.v.weight.shape == (D_MODEL, attention.n_kv_heads * attention.d_head)
    assert attention.o.weight.shape == (HEADS * attention.d_head, D_MODEL)


def test_windows_are_read_from_the_config_layer_by_layer() -> None:
    windows = {shape: [attention_of(tiny(shape), i).window for i in range(LAYERS)] for shape in SHAPES}
    assert windows == {
        "llama": [None] * 3,
        "mistral": [3] * 3,
        "qwen2": [None, 2, 2],
        "qwen3": [None] * 3,
        "gpt2": [None] * 3,
    }


def test_parts_are_views_of_the_live_weights() -> None:
    adapter = adapter_for(fresh("llama"))
    down = mlp_of(adapter, 0).down.weight
    adapter.model.model.layers[0].mlp.down_proj.weight.data.fill_(2.0)
    assert (down == 2).all()
    assert not down.requires_grad


# ------------------------------------------------------------------------------------------------ what is refused


def refusal(adapter: Adapter) -> str:
    with pytest.raises(UserError) as caught:
        check(adapter)
    message = str(caught.value)
    assert "\n" not in message
    return message


Change = Callable[[Sublayer], Sublayer]


def changed(family: Family, number: int, change: Change) -> Family:
    """A family's table with one of a layer's two sublayers described otherwise."""

    def layer(text: Any, config: Any, index: int) -> Layer:
        right = family.layer(text, config, index)
        parts = list(right.sublayers)
        parts[number] = change(parts[number])
        return replace(right, sublayers=tuple(parts))

    return replace(family, layer=layer)


def mixer(**values: Any) -> Change:
    return lambda part: replace(part, mixer=replace(part.mixer, **values))


def swapped(part: Sublayer) -> Sublayer:
    return mixer(gate=part.mixer.up, up=part.mixer.gate)(part)  # type: ignore[union-attr]


def no_gain(part: Sublayer) -> Sublayer:
    return replace(part, norm=replace(part.norm, weight=torch.ones(D_MODEL)))


def one_kv_head(part: Sublayer) -> Sublayer:
    v = part.mixer.v  # type: ignore[union-attr]
    return mixer(n_kv_heads=1, v=replace(v, weight=v.weight[:, : part.mixer.d_head]))(part)  # type: ignore[union-attr]


WRONG: list[tuple[int, Change]] = [
    (0, mixer(window=1)),
    (1, swapped),
    (1, mixer(act=torch.nn.functional.gelu)),
    (0, no_gain),
    (0, one_kv_head),
]


@pytest.mark.parametrize(("number", "change"), WRONG, ids=["window", "gate and up", "activation", "gain", "kv heads"])
def test_a_table_with_a_wrong_entry_is_refused_and_says_where(number: int, change: Change) -> None:
    """The Llama table with one entry wrong, on a model that slides (Mistral)."""
    message = refusal(Adapter(tiny("mistral").model, changed(LLAMA, number, change)))
    assert message.startswith("the llama adapter does not fit this MistralForCausalLM: the residual stream")
    assert f"{('resid_mid', 'resid_post')[number]} of layer 0 is off by" in message


def test_a_bias_that_the_table_leaves_out_is_refused() -> None:
    def forgotten(part: Sublayer) -> Sublayer:
        return mixer(down=replace(part.mixer.down, bias=None))(part)  # type: ignore[union-attr]

    assert "resid_post of layer 0 is off by" in refusal(Adapter(tiny("llama").model, changed(LLAMA, 1, forgotten)))


@pytest.mark.parametrize("shape", EVERY)
@pytest.mark.parametrize("number", [0, 1], ids=["attention", "mlp"])
def test_a_model_that_a_hook_modifies_is_refused(shape: str, number: int) -> None:
    adapter = adapter_for(fresh(shape))

    def louder(_module: Any, _args: Any, output: Any) -> Any:
        return (1.5 * output[0], *output[1:]) if isinstance(output, tuple) else 1.5 * output

    part = adapter.layer(1).sublayers[number]
    module = part.mixer.module if part.post is None else part.post.module
    assert module is not None
    module.register_forward_hook(louder)
    message = refusal(adapter)
    assert f"{('resid_mid', 'resid_post')[number]} of layer 1 is off by" in message
    assert "is it modified" in message


def test_logits_that_are_scaled_are_refused() -> None:
    adapter = adapter_for(fresh("qwen2"))
    adapter.model.lm_head.register_forward_hook(lambda _module, _args, output: output.tanh())
    assert "the logits" in refusal(adapter)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", SHAPES)
def test_damaged_weights_are_refused_with_the_layer_they_are_in(shape: str, bad: float) -> None:
    adapter = adapter_for(fresh(shape))
    mlp_of(adapter, 1).down.weight[0, 0] = bad
    message = refusal(adapter)
    assert "NaN" in message
    assert "layer 1" in message


def test_a_damaged_unembedding_is_refused() -> None:
    adapter = adapter_for(fresh("llama"))
    adapter.unembed.weight[3, 3] = float("nan")
    assert refusal(adapter).startswith("the model's logits are NaN or infinite")


def test_neurons_recorded_at_the_wrong_place_are_noticed() -> None:
    adapter = tiny("llama")
    elsewhere = mlp_of(adapter, 0).down_module
    wrong = replace(adapter, family=changed(adapter.family, 1, mixer(down_module=elsewhere)))
    assert "what the neurons of layer 1 add is off by" in refusal(wrong)


def test_a_model_with_a_context_of_two_tokens_is_checked_on_two() -> None:
    config = CONFIGS["gpt2"]()
    config.n_positions = config.max_position_embeddings = 2
    check(adapter_for(build(config)))


# ------------------------------------------------------------------------------------------------ families


def unsupported(model: Any) -> str:
    with pytest.raises(UserError) as caught:
        adapter_for(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unsupported_family_is_refused_with_the_types_there_are() -> None:
    small: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    message = unsupported(BertModel(BertConfig(**small, vocab_size=10)))
    assert "models of type 'bert' are not supported" in message
    for shape in SHAPES:
        assert shape in message


def test_a_thing_that_is_no_model_is_refused() -> None:
    assert "models of type 'Linear' are not supported" in unsupported(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_without_an_unembedding_is_refused(shape: str) -> None:
    message = unsupported(AutoModel.from_config(CONFIGS[shape]()))
    assert message.endswith("has no unembedding; load it as AutoModelForCausalLM")
