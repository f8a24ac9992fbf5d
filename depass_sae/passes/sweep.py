"""The backward engine: from a target to every source at every layer in one sweep (rules ``linear`` and ``half``).

Under these two rules the frozen pass is an affine map of the residual stream, so a target ⟨w, x⟩ at one point is
⟨G, x′⟩ + bias at every earlier one. G is found by going backwards once, sublayer by sublayer:

    G_before = G_after + Jᵀ (G_after + what reads this sublayer's output),    bias += ⟨G_output, df/dβ⟩

with f the frozen sublayer (sublayers.py), J its Jacobian, and β = 1 the size of its bias vectors. A source's
contribution is then an inner product with what it put into the stream: ⟨G, part⟩. With attention, norms and MLP left
live the same sweep gives the gradient of the unfrozen network, and ⟨G, part⟩ is the first-order *effect* of taking the
part away; it sums to nothing.

Only inner products leave the sweep: it visits each sublayer and hands over the gradients there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.adapter import Layer, Linear
from .sublayers import Choices, head_outputs, neuron_outputs, with_biases_times
from .trace import HOOKS, Point, Trace


@dataclass(frozen=True)
class Level:
    """One sublayer on the way back: the targets' gradients around it.

    after, before: with respect to the residual stream after and before the sublayer, targets read there included.
    output: with respect to what the sublayer adds (attn_out, mlp_out): ``after``, and what reads the output itself.
    inner: with respect to hook_z [n_heads * d_head], or to the neurons [d_mlp]; recorded: what the recorded stream
    gives there.
    bias: what bias vectors at each position add to each target from here on (with everything live: their first-order
    effect), this sublayer's own output bias not included; bias_before: the same with all of this sublayer's.
    """

    layer: int
    sublayer: Literal["attn", "mlp"]
    after: Float[Tensor, "target pos d_model"]
    output: Float[Tensor, "target pos d_model"]
    inner: Float[Tensor, "target pos d_inner"]
    recorded: Float[Tensor, "pos d_inner"]
    before: Float[Tensor, "target pos d_model"]
    bias: Float[Tensor, "target pos"]
    bias_before: Float[Tensor, "target pos"]

    @classmethod
    def back(
        cls,
        index: int,
        sublayer: Literal["attn", "mlp"],
        layer: Layer,
        forward: Callable[[Float[Tensor, "pos d_model"], Layer], list[Float[Tensor, "pos d"]]],
        recorded: Float[Tensor, "pos d_model"],
        out: Linear,
        after: Float[Tensor, "target pos d_model"],
        bias: Float[Tensor, "target pos"],
        *,
        output_seed: Tensor | None,
        inner_seeds: list[Tensor | None],
        stream_seeds: list[Tensor | None],
    ) -> Level:
        """One step back through x + out(forward(x, layer)[0]), at the recorded x.

        forward's first result goes through ``out``; any of its results may be read, by ``inner_seeds``.
        """
        out = out.to(after.dtype)
        output = _plus(after, output_seed)
        inner = _plus(output @ out.weight.T, inner_seeds[0])
        with torch.enable_grad():
            x = recorded.detach().requires_grad_()
            size = torch.ones(len(x), dtype=x.dtype, device=x.device, requires_grad=True)
            results = forward(x, with_biases_times(layer, size))
            pairs = [(y, g) for y, g in zip(results, [inner, *inner_seeds[1:]], strict=True) if g is not None]
            back, own = torch.autograd.grad(
                [y for y, _ in pairs], (x, size), [g for _, g in pairs], is_grads_batched=True, materialize_grads=True
            )
        if out.bias is not None:
            own = own + (output * out.bias).sum(2)
        before = _plus(after + back, *stream_seeds)
        return cls(index, sublayer, after, output, inner, results[0].detach(), before, bias, bias + own)

    def heads(self, n_heads: int) -> Float[Tensor, "target head"]:
        """What each head contributes: ⟨gradient, hook_z⟩, summed over positions."""
        return (self.inner * self.recorded).unflatten(-1, (n_heads, -1)).sum((1, 3))

    def neurons(self) -> Float[Tensor, "target d_mlp"]:
        """What each neuron contributes, summed over positions."""
        return (self.inner * self.recorded).sum(1)


Seeds = Mapping[Point, Float[Tensor, "target pos d"]]
"""Where targets are read: for each point the direction of every target at every position, mostly zeros."""


def sweep(trace: Trace, seeds: Seeds, choices: Choices, *, down_to: int = 0) -> Iterator[Level]:
    """Visit the sublayers from the last one that a seed reads back to attention of layer ``down_to``.

    All seeds have the same number of targets and the trace's positions. Live attention is for a trace of one prompt.
    """
    assert choices.pattern == "frozen" or len(trace.starts) == 1
    example = next(iter(seeds.values()))
    last = max(layer for layer, _ in seeds)
    after = trace.resid_post.new_zeros(*example.shape[:2], trace.adapter.d_model)
    after, bias = _plus(after, seeds.get((last, "resid_post"))), after.new_zeros(after.shape[:2])
    for index in range(last, down_to - 1, -1):
        layer = trace.adapter.layer(index)

        def attention(x: Tensor, layer: Layer, index: int = index) -> list[Tensor]:
            return [head_outputs(layer, x, None, trace.pattern[index], choices)]

        def mlp(x: Tensor, layer: Layer, index: int = index) -> list[Tensor]:
            return list(neuron_outputs(layer, x, None, choices))

        read = {hook: seeds.get((index, hook)) for hook in HOOKS}
        level = Level.back(
            index,
            "mlp",
            layer,
            mlp,
            trace.resid_mid[index],
            layer.mlp.down,
            after,
            bias,
            output_seed=read["mlp_out"],
            inner_seeds=[None, read["mlp_in"]],
            stream_seeds=[read["resid_mid"]],
        )
        yield level
        level = Level.back(
            index,
            "attn",
            layer,
            attention,
            trace.resid_pre[index],
            layer.attention.o,
            level.before,
            level.bias_before,
            output_seed=read["attn_out"],
            inner_seeds=[read["hook_z"]],
            stream_seeds=[read["resid_pre"], seeds.get((index - 1, "resid_post"))],
        )
        yield level
        after, bias = level.before, level.bias_before


def _plus(gradient: Tensor, *seeds: Tensor | None) -> Tensor:
    for seed in seeds:
        gradient = gradient if seed is None else gradient + seed
    return gradient
