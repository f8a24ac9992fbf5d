"""The Gemma shape: norms with gain 1 + w, an embedding times √d (which resid_pre of layer 0 has in it), gated MLP.

Gemma 2 and 3 norm what a sublayer adds, too. Gemma 2 soft-caps scores and logits; Gemma 3 norms queries and keys, and
its local and global layers turn by different angles.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..adapter import Family
from ..parts import gated_mlp, rms_norm_plus_one
from ..sublayer import Layer, layer_of
from . import rows


def layer(text: Any, config: Any, index: int) -> Layer:
    block = text.layers[index]
    attn, sandwich = block.self_attn, hasattr(block, "pre_feedforward_layernorm")
    kinds = (config.layer_types[index],) if config.model_type == "gemma3_text" else ()
    attention = rows.attention(
        attn,
        config,
        rows.rotary(text, *kinds),
        norm=rms_norm_plus_one,
        window=rows.window(config, index),
        softcap=attn.attn_logit_softcapping if config.model_type == "gemma2" else None,  # Gemma 3's is never applied
    )
    after = block.post_attention_layernorm
    return layer_of(
        index,
        block,
        rms_norm_plus_one(block.input_layernorm),
        attention,
        rms_norm_plus_one(block.pre_feedforward_layernorm if sandwich else after),
        gated_mlp(block.mlp),
        attn_post=rms_norm_plus_one(after) if sandwich else None,
        mlp_post=rms_norm_plus_one(block.post_feedforward_layernorm) if sandwich else None,
    )


GEMMA = Family(
    name="gemma",
    model_types=("gemma", "gemma2", "gemma3_text"),
    text="model",
    embed="embed_tokens",
    layers="layers",
    final_norm=lambda text: rms_norm_plus_one(text.norm),
    layer=layer,
    softcap=lambda config: getattr(config, "final_logit_softcapping", None),
)
GEMMA3 = replace(GEMMA, name="gemma 3", model_types=("gemma3",), text="model.language_model")
