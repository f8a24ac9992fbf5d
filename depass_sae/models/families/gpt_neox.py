"""The GPT-NeoX shape (Pythia): LayerNorm and biases, q/k/v fused head by head, rotary positions on some channels.

Attention and MLP both read resid_pre (in parallel), or one after the other, as the configuration says.
"""

from __future__ import annotations

from typing import Any

from ..adapter import Family
from ..parts import MLP, Attention, Scores, interleaved, layer_norm, linear
from ..sublayer import Layer, layer_of
from . import rows


def layer(text: Any, config: Any, index: int) -> Layer:
    block = text.layers[index]
    attn, mlp = block.attention, block.mlp
    n_heads = config.num_attention_heads
    q, k, v = interleaved(linear(attn.query_key_value), n_heads, 3)
    return layer_of(
        index,
        block,
        layer_norm(block.input_layernorm),
        Attention(
            module=attn,
            scores=Scores(q, k, attn.scaling, rotary=rows.rotary(text)),
            v=v,
            o=linear(attn.dense),
            o_module=attn.dense,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            d_head=attn.head_size,
        ),
        layer_norm(block.post_attention_layernorm),
        MLP(
            linear(mlp.dense_h_to_4h),
            None,
            linear(mlp.dense_4h_to_h),
            mlp.act,
            module=mlp,
            down_module=mlp.dense_4h_to_h,
        ),
        parallel=block.use_parallel_residual,
    )


GPT_NEOX = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    text="gpt_neox",
    embed="embed_in",
    layers="layers",
    final_norm=lambda text: layer_norm(text.final_layer_norm),
    layer=layer,
)
