"""The Llama shape: RMSNorm, grouped-query attention, gated MLP. Also Mistral, Qwen2 (q/k/v biases) and Qwen3 (QK-norm).

Rotary positions, QK-norm and q/k biases shape the attention pattern, which the model itself computes; they are listed
for the questions that look behind the pattern.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor

from .adapter import MLP, Attention, Family, Layer, Norm, Scores, linear, rms_norm


def _window(config: Any, index: int) -> int | None:
    """Qwen marks each layer as full or sliding; Mistral slides in all layers or none."""
    kinds = getattr(config, "layer_types", None)
    sliding = kinds[index] == "sliding_attention" if kinds else config.model_type == "mistral"
    return getattr(config, "sliding_window", None) if sliding else None


def _head_norm(attn: Any, name: str) -> Norm | None:
    """Qwen3 norms queries and keys per head."""
    return rms_norm(getattr(attn, name)) if hasattr(attn, name) else None


def _rotary(model: Any, positions: Int[Tensor, "pos"]) -> tuple[Tensor, Tensor]:
    """cos and sin [pos, d_head], attention scaling included, from the model's own module."""
    cos, sin = model.model.rotary_emb(positions.float(), positions[None])
    return cos[0], sin[0]


def layer(model: Any, index: int) -> Layer:
    block, config = model.model.layers[index], model.config
    attn, mlp = block.self_attn, block.mlp
    return Layer(
        module=block,
        attn_norm=rms_norm(block.input_layernorm),
        attention=Attention(
            module=attn,
            scores=Scores(
                linear(attn.q_proj),
                linear(attn.k_proj),
                attn.scaling,
                q_norm=_head_norm(attn, "q_norm"),
                k_norm=_head_norm(attn, "k_norm"),
                rotary=lambda positions: _rotary(model, positions),
            ),
            v=linear(attn.v_proj),
            o=linear(attn.o_proj),
            o_module=attn.o_proj,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            d_head=attn.head_dim,
            window=_window(config, index),
        ),
        mlp_norm=rms_norm(block.post_attention_layernorm),
        mlp=MLP(
            mlp,
            gate=linear(mlp.gate_proj),
            up=linear(mlp.up_proj),
            down=linear(mlp.down_proj),
            down_module=mlp.down_proj,
            act=mlp.act_fn,
        ),
    )


LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    embed="model.embed_tokens",
    layers="model.layers",
    final_norm=lambda model: rms_norm(model.model.norm),
    unembed="lm_head",
    layer=layer,
)
