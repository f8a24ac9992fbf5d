"""An adapter proves itself against its model before anyone relies on it.

A few tokens go through the model and, as components, through the decomposed pass. If the adapter's table has every part
in its place, the components sum to the model's own residual stream at every layer, and the unembedding gives its
logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from ..models.adapter import Adapter
from .propagate import Allocation, propagate
from .sources import tokens
from .trace import Trace, trace


def rounding_bound(dtype: torch.dtype, n_layers: int) -> float:
    """How far a sum of components may lie from a stream that was computed in this dtype: 3·ε·√(sublayers).

    float32 and float64 get room for long sums: 1e-4 and 1e-6 (transformers' own norms round through float32).
    """
    if dtype == torch.float64:
        return 1e-6
    return max(1e-4, 3 * torch.finfo(dtype).eps * (2 * n_layers) ** 0.5)


def check(adapter: Adapter) -> None:
    """Raises UserError where the model has NaN weights, or where the adapter does not reproduce what it computes."""
    n = min(8, adapter.context_length or 8, adapter.vocab_size)
    ids = torch.arange(n, device=adapter.model.device)
    seen = trace(adapter, ids)
    _all_finite(seen)
    positions = torch.arange(n)
    points = [(layer, hook) for layer in range(adapter.n_layers) for hook in ("resid_mid", "resid_post")]
    start = tokens([str(i) for i in range(n)]).start(seen)
    parts = propagate(seen, start, dict.fromkeys(points, positions), Allocation("linear"))
    bound = 10 * rounding_bound(adapter.model.dtype, adapter.n_layers)

    def compare(what: str, found: Tensor, whole: Tensor) -> None:
        off = (found - whole).norm(dim=-1) / whole.norm(dim=-1).clamp_min(1e-30)
        if off.max() > bound:
            raise UserError(_mismatch(adapter, what, off.max().item()))

    for layer, hook in points:
        summed = parts[layer, hook].dense().sum(dim=1)
        compare(f"the residual stream at {hook} of layer {layer}", summed, seen.at((layer, hook)))
    dtype = seen.resid_post.dtype
    for layer in range(adapter.n_layers):
        added = adapter.layer(layer).mlp.down.to(dtype)(seen.neurons[layer].to(dtype))
        after = seen.at((layer, "resid_post"))
        compare(f"what the neurons of layer {layer} add", seen.resid_mid[layer] + added, after)
    assert seen.logits is not None
    compare("the logits", adapter.unembed.to(dtype)(adapter.final_norm.to(dtype)(seen.resid_post)), seen.logits)


def _all_finite(seen: Trace) -> None:
    for layer in range(seen.n_layers):
        if not seen.at((layer, "resid_post")).isfinite().all():
            raise UserError(
                f"the model computes NaN or infinity from layer {layer} on: its weights are damaged, or overflow"
            )
    if seen.logits is not None and not seen.logits.isfinite().all():
        raise UserError(
            "the model's logits are NaN or infinite: its unembedding is damaged, or overflows in this dtype"
        )


def _mismatch(adapter: Adapter, what: str, off: float) -> str:
    name = type(adapter.model).__name__
    return f"the {adapter.family.name} adapter does not fit this {name}: {what} is off by {off:.1%}; is it modified?"
