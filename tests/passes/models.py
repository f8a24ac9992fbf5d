"""Tiny models of every supported shape, built in memory, every parameter random: biases and norm gains too."""

from functools import cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import logging

from depass_sae.models.adapter import Adapter
from depass_sae.models.load import adapter_for

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
}
SHAPES = tuple(CONFIGS)
GATED = ("llama", "mistral", "qwen2", "qwen3")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def build(config: PreTrainedConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A model with large random weights: gains around 1, biases as large as what they are added to."""
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                embedding = "embed" in name or "wte" in name or "wpe" in name
                parameter.copy_(noise if embedding else 1.5 * noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(0.5 * noise + (1 if "norm" in name or "ln_" in name else 0))
    return model.eval()


def fresh(shape: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model that the test may change."""
    return build(CONFIGS[shape](), dtype)


@cache
def tiny(shape: str, dtype: torch.dtype = torch.float32) -> Adapter:
    """A model that all tests share."""
    return adapter_for(fresh(shape, dtype))
