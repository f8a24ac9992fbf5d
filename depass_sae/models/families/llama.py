"""The Llama shape: RMSNorm, grouped-query attention, gated MLP. Also Mistral, Qwen2 (q/k/v biases), Qwen3 (QK-norm) and
Qwen3-MoE (experts in some layers or all).
"""

from __future__ import annotations

from typing import Any

from ..adapter import Family
from ..parts import gated_mlp, rms_norm
from ..sublayer import Layer, layer_of
from . import rows
from .experts import softmax_experts


def window(config: Any, index: int) -> int | None:
    """Mistral and Qwen3-MoE slide in all layers or in none, Llama in none: ``layer_types`` say nothing of theirs."""
    if config.model_type in ("mistral", "qwen3_moe"):
        return config.sliding_window
    return rows.window(config, index) if config.model_type in ("qwen2", "qwen3") else None


def layer(text: Any, config: Any, index: int) -> Layer:
    block = text.layers[index]
    mlp = block.mlp
    return layer_of(
        index,
        block,
        rms_norm(block.input_layernorm),
        rows.attention(block.self_attn, config, rows.rotary(text), norm=rms_norm, window=window(config, index)),
        rms_norm(block.post_attention_layernorm),
        softmax_experts(mlp, config.num_experts_per_tok, config.norm_topk_prob)
        if hasattr(mlp, "experts")
        else gated_mlp(mlp),
    )


LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3", "qwen3_moe"),
    text="model",
    embed="embed_tokens",
    layers="layers",
    final_norm=lambda text: rms_norm(text.norm),
    layer=layer,
)
