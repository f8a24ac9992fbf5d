"""The GPT-2 shape: LayerNorm, biases everywhere, a fused q/k/v map, an MLP that is not gated, learned positions.

Position embeddings are added to the token's before layer 0, so they go with their token.
"""

from __future__ import annotations

from typing import Any

from .adapter import MLP, Attention, Family, Layer, Linear, Scores, conv1d, layer_norm


def layer(model: Any, index: int) -> Layer:
    block = model.transformer.h[index]
    attn, mlp = block.attn, block.mlp
    fused = conv1d(attn.c_attn)  # [d_model, 3 * d_model]: queries, keys, values
    width = attn.split_size
    q, k, v = (Linear(fused.weight[:, i : i + width], fused.bias[i : i + width]) for i in (0, width, 2 * width))  # type: ignore[index]
    return Layer(
        module=block,
        attn_norm=layer_norm(block.ln_1),
        attention=Attention(
            module=attn,
            scores=Scores(q, k, attn.scaling),
            v=v,
            o=conv1d(attn.c_proj),
            o_module=attn.c_proj,
            n_heads=attn.num_heads,
            n_kv_heads=attn.num_heads,
            d_head=attn.head_dim,
        ),
        mlp_norm=layer_norm(block.ln_2),
        mlp=MLP(mlp, gate=conv1d(mlp.c_fc), up=None, down=conv1d(mlp.c_proj), down_module=mlp.c_proj, act=mlp.act),
    )


GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    embed="transformer.wte",
    layers="transformer.h",
    final_norm=lambda model: layer_norm(model.transformer.ln_f),
    unembed="lm_head",
    layer=layer,
)
