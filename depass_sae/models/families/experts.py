"""Routers and the experts behind them: how each kind chooses, and where its fused parameters are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..parts import MLP, Experts, Gate, Linear, plain, without_gradient


def softmax_experts(
    module: Any, k: int, renormalised: bool, shared: MLP | None = None, shared_gate: Gate | None = None
) -> Experts:
    """Qwen's: a softmax over all experts, the k largest of it; gate and up fused [expert, 2·d_mlp, d]."""
    experts, router = module.experts, module.gate
    into, out = plain(experts.gate_up_proj, experts), plain(experts.down_proj, experts)

    def weigh(logits: Tensor, choice: Tensor) -> Tensor:
        kept = logits.softmax(-1).gather(-1, choice)
        return kept / kept.sum(-1, keepdim=True) if renormalised else kept

    def expert(i: int) -> MLP:
        gate, up = into[i].chunk(2)
        return MLP(Linear(gate.T), Linear(up.T), Linear(out[i].T), experts.act_fn)

    return Experts(
        module, router, Linear(plain(router.weight, router).T), weigh, expert, len(into), k, shared, shared_gate
    )


def clamped_experts(module: Any, k: int) -> Experts:
    """gpt-oss's: the k largest logits, then their softmax; biases, gate and up interleaved [expert, d, 2·d_mlp].

    The up-projection goes into the product as clamp(u) + 1.
    """
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
