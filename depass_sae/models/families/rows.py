"""What several families' tables share: attention in separate maps, rotary positions, windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Int
from torch import Tensor

from ..parts import Attention, Gate, Linear, Norm, Rotary, Scores, linear


def rotary(text: Any, *layer_type: str) -> Rotary:
    """cos and sin, attention scaling included, from the model's own module."""

    def at(positions: Int[Tensor, "pos"]) -> tuple[Tensor, Tensor]:
        cos, sin = text.rotary_emb(positions.float(), positions[None], *layer_type)
        return cos[0], sin[0]

    return at


def window(config: Any, index: int) -> int | None:
    """Where each layer is marked as full or sliding, that of the sliding ones."""
    kinds = getattr(config, "layer_types", None)
    return config.sliding_window if kinds and kinds[index] == "sliding_attention" else None


def attention(
    module: Any,
    config: Any,
    turn: Rotary,
    *,
    norm: Callable[[Any], Norm] | None = None,
    q: Linear | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    gate: Gate | None = None,
) -> Attention:
    """q_proj, k_proj, v_proj, o_proj. norm: what a module's q_norm and k_norm are, if it has them."""
    normed = norm is not None and hasattr(module, "q_norm")
    return Attention(
        module=module,
        scores=Scores(
            q=q or linear(module.q_proj),
            k=linear(module.k_proj),
            scale=module.scaling,
            q_norm=norm(module.q_norm) if norm and normed else None,
            k_norm=norm(module.k_norm) if norm and normed else None,
            rotary=turn,
            softcap=softcap,
            sinks=sinks,
        ),
        v=linear(module.v_proj),
        o=linear(module.o_proj),
        o_module=module.o_proj,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_head=module.head_dim,
        window=window,
        gate=gate,
    )
