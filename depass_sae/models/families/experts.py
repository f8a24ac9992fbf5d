"""Routers and the experts behind them: how each kind chooses, and where its fused parameters are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..parts import MLP, Experts, Gate, Linear
from ..weights import weight


def softmax_experts(
    module: Any, k: int, renormalised: bool, shared: MLP | None = None, shared_gate: Gate | None = None
) -> Experts:
    """Qwen's: a softmax over all experts, the k largest of it; gate and up fused [expert, 2·d_mlp, d]."""
    experts, router = module.experts, module.gate
    into, out = weight(experts, "gate_up_proj"), weight(experts, "down_proj")

    def weigh(logits: Tensor, choice: Tensor) -> Tensor:
        kept = logits.softmax(-1).gather(-1, choice)
        return kept / kept.sum(-1, keepdim=True) if renormalised else kept

    def expert(i: int) -> MLP:
        gate, up = (Linear(into.view(lambda x, half=half: x[i].chunk(2)[half].T)) for half in (0, 1))  # type: ignore[misc]
        return MLP(gate, up, Linear(out.view(lambda x: x[i].T)), experts.act_fn)

    logits = Linear(weight(router).T)
    return Experts(module, router, logits, weigh, expert, into.shape[0], k, shared, shared_gate)


def clamped_experts(module: Any, k: int) -> Experts:
    """gpt-oss's: the k largest logits, then their softmax; biases, gate and up interleaved [expert, d, 2·d_mlp].

    The up-projection goes into the product as clamp(u) + 1.
    """
    own, router = module.experts, module.router
    into, out = weight(own, "gate_up_proj"), weight(own, "down_proj")
    into_bias, out_bias = weight(own, "gate_up_proj_bias"), weight(own, "down_proj_bias")

    def act(g: Tensor) -> Tensor:
        g = g.clamp(max=own.limit)
        return g * torch.sigmoid(own.alpha * g)

    def expert(i: int) -> MLP:
        def every_other(first: int) -> Linear:
            return Linear(into.view(lambda x: x[i, :, first::2]), into_bias.view(lambda x: x[i, first::2]))

        down = Linear(out.view(lambda x: x[i]), out_bias.view(lambda x: x[i]))
        return MLP(every_other(0), every_other(1), down, act, up_act=lambda u: u.clamp(-own.limit, own.limit) + 1)

    def weigh(logits: Tensor, choice: Tensor) -> Tensor:
        return logits.gather(-1, choice).softmax(-1)

    return Experts(module, router, Linear(weight(router).T, weight(router, "bias")), weigh, expert, into.shape[0], k)
