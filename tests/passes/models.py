"""Tiny models of every supported shape, built in memory, every parameter random: biases and norm gains too."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.utils import logging

from depass_sae.models.adapter import Adapter
from depass_sae.models.load import adapter_for
from depass_sae.models.parts import Norm
from depass_sae.passes.record import Trace

VOCAB, LAYERS, D_MODEL, D_MLP, HEADS, KV_HEADS, CONTEXT = 48, 3, 32, 24, 4, 2, 32

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
_GEMMA: dict[str, Any] = {"head_dim": 12, "query_pre_attn_scalar": 11, "sliding_window": 3}
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
_EXPERTS: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_DELTA: dict[str, Any] = {
    **_SIZES,
    "head_dim": 12,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
_SHARED: dict[str, Any] = {**_EXPERTS, "shared_expert_intermediate_size": 14}

CONFIGS = {
    "llama": lambda: LlamaConfig(**_SIZES, attention_bias=True, mlp_bias=True),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=3, head_dim=12),
    "qwen2": lambda: Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=2, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**_SIZES, head_dim=12),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB,
        n_embd=D_MODEL,
        n_inner=D_MLP,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
    ),
    "gemma": lambda: GemmaConfig(**_SIZES, head_dim=12),
    "gemma2": lambda: Gemma2Config(**_SIZES, **_GEMMA, layer_types=_SLIDING, final_logit_softcapping=9.0),
    "gemma3_text": lambda: Gemma3TextConfig(**_SIZES, **_GEMMA, layer_types=_SLIDING),
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZES, rotary_pct=0.25),
    "gpt_neox_serial": lambda: GPTNeoXConfig(**_SIZES, rotary_pct=0.25, use_parallel_residual=False),
    "qwen3_moe": lambda: Qwen3MoeConfig(**_SIZES, **_EXPERTS, head_dim=12, norm_topk_prob=True, mlp_only_layers=[1]),
    "gpt_oss": lambda: GptOssConfig(
        **_SIZES, head_dim=12, num_local_experts=5, num_experts_per_tok=2, sliding_window=3, layer_types=_SLIDING
    ),
    "qwen3_5_text": lambda: Qwen3_5TextConfig(**_DELTA),
    "qwen3_5_moe_text": lambda: Qwen3_5MoeTextConfig(**_DELTA, **_SHARED),
}
WHOLE = {
    "gemma3": lambda: Gemma3Config(
        text_config=CONFIGS["gemma3_text"]().to_dict(),
        vision_config=_VISION,
        image_token_index=45,
        boi_token_index=46,
        eoi_token_index=47,
        mm_tokens_per_image=1,
    ),
    "qwen3_5": lambda: Qwen3_5Config(text_config=_DELTA, vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2}),
    "qwen3_5_moe": lambda: Qwen3_5MoeConfig(
        text_config=_DELTA | _SHARED, vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2}
    ),
}
"""Models that read images, too."""
EVERY = tuple(CONFIGS)
SHAPES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
"""Those that :mod:`.reference` knows, too: one softmax attention and one MLP after the other, nothing normed behind."""
GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "qwen3_5_text")
ROUTED = ("qwen3_moe", "gpt_oss", "qwen3_5_moe_text")
PARALLEL = ("gpt_neox",)
DELTA = ("qwen3_5_text", "qwen3_5_moe_text")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def build(config: PreTrainedConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A model with large random weights: gains around 1, biases as large as what they are added to."""
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                embedding = "embed" in name or "wte" in name or "wpe" in name
                parameter.copy_(noise if embedding else 1.5 * noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(0.5 * noise + (1 if "norm" in name or "ln_" in name else 0))
    return model.eval()


def fresh(shape: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model that the test may change."""
    return build((CONFIGS | WHOLE)[shape](), dtype)


@cache
def tiny(shape: str, dtype: torch.dtype = torch.float32) -> Adapter:
    """A model that all tests share."""
    return adapter_for(fresh(shape, dtype))


def attention_of(adapter: Adapter, layer: int) -> Any:
    """The description of a layer's attention."""
    return adapter.layer(layer).sublayers[0].mixer


def mlp_of(adapter: Adapter, layer: int) -> Any:
    """The description of a layer's MLP."""
    return adapter.layer(layer).sublayers[1].mixer


def norms_of(adapter: Adapter, layer: int) -> list[Norm]:
    """The norms before a layer's attention and before its MLP."""
    return [part.norm for part in adapter.layer(layer).sublayers]


def recorded_heads(seen: Trace, layer: int) -> Tensor:
    """hook_z of a layer, from the recorded stream and pattern."""
    return seen.sublayer(2 * layer).recorded_z()


def recorded_neurons(seen: Trace, layer: int) -> Tensor:
    """What each neuron of a layer adds along its output row."""
    return seen.sublayer(2 * layer + 1).recorded_z()


def recorded_pattern(seen: Trace, layer: int) -> Tensor:
    found = seen.records[2 * layer].pattern
    assert found is not None
    return found
