"""The gpt-oss shape: attention sinks, windows on every other layer, experts with biases and a clamped activation."""

from __future__ import annotations

from typing import Any

import torch

from ..adapter import Family
from ..parts import rms_norm
from ..sublayer import Layer, layer_of
from ..weights import weight
from . import rows
from .experts import clamped_experts


def layer(text: Any, config: Any, index: int) -> Layer:
    block = text.layers[index]
    attn, turn = block.self_attn, rows.rotary(text)
    attention = rows.attention(
        attn,
        config,
        lambda positions: tuple(torch.cat([half, half], -1) for half in turn(positions)),  # type: ignore[arg-type, return-value]
        window=rows.window(config, index),
        sinks=weight(attn, "sinks").fetch(),
    )
    return layer_of(
        index,
        block,
        rms_norm(block.input_layernorm),
        attention,
        rms_norm(block.post_attention_layernorm),
        clamped_experts(block.mlp, config.num_experts_per_tok),
    )


GPT_OSS = Family(
    name="gpt-oss",
    model_types=("gpt_oss",),
    text="model",
    embed="embed_tokens",
    layers="layers",
    final_norm=lambda text: rms_norm(text.norm),
    layer=layer,
)
