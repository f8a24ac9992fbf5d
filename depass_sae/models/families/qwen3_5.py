"""The Qwen3.5 shape: three layers of the gated delta rule to one of full attention, whose heads are gated; norms with
gain 1 + w, but for the delta rule's own. With or without experts, a shared one among them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..adapter import Family
from ..parts import MLP, Attention, Experts, Gate, Linear, gated_mlp, interleaved, linear, rms_norm_plus_one
from ..sublayer import Layer, layer_of
from ..weights import of_linear
from . import rows
from .delta import gated_delta_rule
from .experts import softmax_experts


def full(text: Any, config: Any, attn: Any) -> Attention:
    q, gate = interleaved(linear(attn.q_proj), config.num_attention_heads, 2)
    gated = Gate(gate, torch.sigmoid)
    return rows.attention(attn, config, rows.rotary(text), norm=rms_norm_plus_one, q=q, gate=gated)


def mlp(module: Any, config: Any) -> MLP | Experts:
    if not hasattr(module, "experts"):
        return gated_mlp(module)
    gate = Gate(Linear(of_linear(module.shared_expert_gate).T), torch.sigmoid)
    return softmax_experts(module, config.num_experts_per_tok, True, gated_mlp(module.shared_expert), gate)


def layer(text: Any, config: Any, index: int) -> Layer:
    block = text.layers[index]
    attention = (
        full(text, config, block.self_attn) if hasattr(block, "self_attn") else gated_delta_rule(block.linear_attn)
    )
    norm, after = rms_norm_plus_one(block.input_layernorm), rms_norm_plus_one(block.post_attention_layernorm)
    return layer_of(index, block, norm, attention, after, mlp(block.mlp, config))


QWEN3_5 = Family(
    name="qwen 3.5",
    model_types=("qwen3_5_text", "qwen3_5_moe_text"),
    text="model",
    embed="embed_tokens",
    layers="layers",
    final_norm=lambda text: rms_norm_plus_one(text.norm),
    layer=layer,
)
QWEN3_5_WHOLE = replace(
    QWEN3_5, name="qwen 3.5 with images", model_types=("qwen3_5", "qwen3_5_moe"), text="model.language_model"
)
