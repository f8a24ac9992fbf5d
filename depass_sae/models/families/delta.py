"""Qwen3.5's layers of linear attention: the gated delta rule, from fused projections."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ..parts import Convolved, DeltaRule, Gate, Linear, Norm, fused, linear, rms_norm
from ..weights import of_linear, weight


def gated_delta_rule(attn: Any) -> DeltaRule:
    from transformers.activations import ACT2FN

    widths = (attn.key_dim, attn.key_dim, attn.value_dim)
    taps = weight(attn.conv1d).view(lambda taps: taps[:, 0]).split(widths)
    maps = zip(fused(linear(attn.in_proj_qkv), *widths), taps, strict=True)
    q, k, v = (Convolved(into, taps, ACT2FN[attn.activation]) for into, taps in maps)
    rate = weight(attn, "A_log").fetch().float().exp()
    step = Linear(of_linear(attn.in_proj_a).T, weight(attn, "dt_bias"))
    return DeltaRule(
        module=attn,
        q=q,
        k=k,
        v=v,
        qk_norm=Norm(None, "l2", torch.ones((), device=rate.device), None, 1e-6),
        beta=Gate(linear(attn.in_proj_b), torch.sigmoid),
        decay=Gate(step, lambda t: -rate.to(t.device) * functional.softplus(t)),
        head_norm=rms_norm(attn.norm),
        gate=Gate(linear(attn.in_proj_z), functional.silu),
        o=linear(attn.out_proj),
        o_module=attn.out_proj,
        n_heads=attn.num_v_heads,
        n_qk_heads=attn.num_k_heads,
        d_head=attn.head_v_dim,
    )
