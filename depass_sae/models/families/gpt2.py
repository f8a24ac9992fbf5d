"""The GPT-2 shape: LayerNorm, biases everywhere, a fused q/k/v map, an MLP that is not gated, learned positions.

Position embeddings are added to the token's before layer 0, so they go with their token.
"""

from __future__ import annotations

from typing import Any

from ..adapter import Family
from ..parts import MLP, Attention, Scores, conv1d, fused, layer_norm
from ..sublayer import Layer, layer_of


def layer(text: Any, config: Any, index: int) -> Layer:
    block = text.h[index]
    attn, mlp = block.attn, block.mlp
    q, k, v = fused(conv1d(attn.c_attn), *3 * [attn.split_size])
    return layer_of(
        index,
        block,
        layer_norm(block.ln_1),
        Attention(
            module=attn,
            scores=Scores(q, k, attn.scaling),
            v=v,
            o=conv1d(attn.c_proj),
            o_module=attn.c_proj,
            n_heads=attn.num_heads,
            n_kv_heads=attn.num_heads,
            d_head=attn.head_dim,
        ),
        layer_norm(block.ln_2),
        MLP(conv1d(mlp.c_fc), None, conv1d(mlp.c_proj), mlp.act, module=mlp, down_module=mlp.c_proj),
    )


GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    text="transformer",
    embed="wte",
    layers="h",
    final_norm=lambda text: layer_norm(text.ln_f),
    layer=layer,
)
