"""The gpt-oss shape: attention sinks, windows on every other layer, experts with biases and a clamped activation.

Its router takes the k largest logits and then their softmax; gate and up are interleaved, and the up-projection goes
into the product as clamp(u) + 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..adapter import Family
from ..parts import MLP, Experts, Linear, plain, rms_norm, without_gradient
from ..sublayer import Layer, layer_of
from . import rows


def experts(module: Any, k: int) -> Experts:
    own, router = module.experts, module.router
    into, out = plain(own.gate_up_proj, own), plain(own.down_proj, own)
    into_bias, out_bias = without_gradient(own.gate_up_proj_bias), without_gradient(own.down_proj_bias)

    def act(g: Tensor) -> Tensor:
        g = g.clamp(max=own.limit)
        return g * torch.sigmoid(own.alpha * g)

    def expert(i: int) -> MLP:
        gate, up = (Linear(into[i, :, odd::2], into_bias[i, odd::2]) for odd in (0, 1))
        return MLP(gate, up, Linear(out[i], out_bias[i]), act, up_act=lambda u: u.clamp(-own.limit, own.limit) + 1)

    logits = Linear(plain(router.weight, router).T, without_gradient(router.bias))
    return Experts(module, router, logits, lambda x, choice: x.gather(-1, choice).softmax(-1), expert, len(into), k)


def layer(text: Any, config: Any, index: int) -> Layer:
    block = text.layers[index]
    attn, turn = block.self_attn, rows.rotary(text)
    attention = rows.attention(
        attn,
        config,
        lambda positions: tuple(torch.cat([half, half], -1) for half in turn(positions)),  # type: ignore[arg-type, return-value]
        window=rows.window(config, index),
        sinks=without_gradient(attn.sinks),
    )
    return layer_of(
        index,
        block,
        rms_norm(block.input_layernorm),
        attention,
        rms_norm(block.post_attention_layernorm),
        experts(block.mlp, config.num_experts_per_tok),
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
