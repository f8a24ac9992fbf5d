"""The backward engine: from a target to every source at every layer in one sweep (rules ``linear`` and ``half``).

Under these two rules the frozen pass is an affine map of the residual stream, so a target ⟨w, x⟩ at one point is
⟨G, x′⟩ + bias at every earlier one. G is found by going backwards once, sublayer by sublayer:

    G_before = G_after + Jᵀ (G_after + what reads this sublayer's output),    bias += ⟨G_output, f(0)⟩

with f the frozen sublayer (sublayers.py) and J its Jacobian. A source's contribution is then an inner product with what
it put into the stream: ⟨G, part⟩. With attention, norms and MLP left live the same sweep gives the gradient of the
unfrozen network, and ⟨G, part⟩ is the first-order *effect* of taking the part away; it sums to nothing.

Only inner products leave the sweep: it visits each sublayer and hands over the gradients there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.adapter import Layer
from .sublayers import Choices, attention_outputs, mlp_outputs
from .trace import Point, Trace


@dataclass(frozen=True)
class Level:
    """One sublayer on the way back: the targets' gradients around it.

    after, before: with respect to the residual stream after and before the sublayer.
    output: with respect to what the sublayer adds (attn_out, mlp_out): ``after``, and what reads the output itself.
    inner: with respect to hook_z [n_heads * d_head], or to the neurons [d_mlp].
    bias: what bias vectors add to each target from here on, this sublayer's own output bias not included;
    bias_before: the same with all of this sublayer's.
    """

    layer: int
    sublayer: Literal["attn", "mlp"]
    after: Float[Tensor, "target pos d_model"]
    output: Float[Tensor, "target pos d_model"]
    inner: Float[Tensor, "target pos d_inner"]
    before: Float[Tensor, "target pos d_model"]
    bias: Float[Tensor, "target"]
    bias_before: Float[Tensor, "target"]


Seeds = Mapping[Point, Float[Tensor, "target pos d"]]
"""Where targets are read: for each point the direction of every target at every position, mostly zeros."""


def sweep(trace: Trace, seeds: Seeds, choices: Choices, *, down_to: int = 0) -> Iterator[Level]:
    """Visit the sublayers from the last one that a seed reads back to attention of layer ``down_to``.

    All seeds have the same number of targets and the trace's positions.
    """
    example = next(iter(seeds.values()))
    n_targets, n = example.shape[:2]
    after = trace.resid_post.new_zeros(n_targets, n, trace.adapter.d_model)
    bias = after.new_zeros(n_targets)
    for layer_index in range(max(layer for layer, _ in seeds), down_to - 1, -1):
        layer = trace.adapter.layer(layer_index)

        def seed(hook: str, index: int = layer_index) -> Tensor | None:
            return seeds.get((index, hook))

        after = _plus(after, seed("resid_post"))
        level = _mlp_level(layer, layer_index, trace, after, bias, seed("mlp_in"), seed("mlp_out"), choices)
        yield level
        after, bias = _plus(level.before, seed("resid_mid")), level.bias_before
        level = _attention_level(layer, layer_index, trace, after, bias, seed("hook_z"), seed("attn_out"), choices)
        yield level
        after, bias = _plus(level.before, seed("resid_pre")), level.bias_before


def _plus(gradient: Tensor, seed: Tensor | None) -> Tensor:
    return gradient if seed is None else gradient + seed


def _attention_level(
    layer: Layer,
    index: int,
    trace: Trace,
    after: Tensor,
    bias: Tensor,
    seed_z: Tensor | None,
    seed_out: Tensor | None,
    choices: Choices,
) -> Level:
    recorded, pattern = trace.resid_pre[index], trace.pattern[index]
    output = _plus(after, seed_out)
    o = layer.attention.o.to(after.dtype)
    inner = _plus(output @ o.weight.T, seed_z)
    with torch.enable_grad():
        x = recorded.detach().requires_grad_()
        z, _ = attention_outputs(layer, x, recorded, pattern, choices)
        (back,) = torch.autograd.grad(z, x, inner, is_grads_batched=True)
    z_of_biases, _ = attention_outputs(layer, torch.zeros_like(recorded), recorded, pattern, choices)
    own = _dot(output, o.bias)
    return Level(index, "attn", after, output, inner, after + back, bias, bias + own + _dot(inner, z_of_biases))


def _mlp_level(
    layer: Layer,
    index: int,
    trace: Trace,
    after: Tensor,
    bias: Tensor,
    seed_in: Tensor | None,
    seed_out: Tensor | None,
    choices: Choices,
) -> Level:
    recorded = trace.resid_mid[index]
    output = _plus(after, seed_out)
    down = layer.mlp.down.to(after.dtype)
    inner = output @ down.weight.T
    with torch.enable_grad():
        x = recorded.detach().requires_grad_()
        x_hat, hidden, _ = mlp_outputs(layer, x, recorded, choices)
        outputs, gradients = [hidden], [inner]
        if seed_in is not None:
            outputs, gradients = [hidden, x_hat], [inner, seed_in]
        (back,) = torch.autograd.grad(outputs, x, gradients, is_grads_batched=True)
    in_of_biases, hidden_of_biases, _ = mlp_outputs(layer, torch.zeros_like(recorded), recorded, choices)
    own = _dot(output, down.bias) + _dot(inner, hidden_of_biases)
    if seed_in is not None:
        own = own + _dot(seed_in, in_of_biases)
    return Level(index, "mlp", after, output, inner, after + back, bias, bias + own)


def _dot(gradient: Float[Tensor, "target pos d"], values: Tensor | None) -> Float[Tensor, "target"]:
    """Σ over positions and dimensions; ``values`` one per position, one for all, or none."""
    if values is None:
        return gradient.new_zeros(len(gradient))
    return (gradient * values).sum((1, 2))
