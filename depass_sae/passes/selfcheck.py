"""An adapter proves itself against its model before anyone relies on it.

A few tokens go through the model and, as components, through the decomposed pass. If the adapter's table has every part
in its place, the components sum to the model's own residual stream at every layer, and the unembedding gives its
logits; and what a pass freezes, patterns and routers' weights, comes of the stream. Recording them takes eager
attention: the model must compute the same with the attention that it has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import QuantizationWarning, UserError, warn
from ..models.adapter import Adapter
from ..models.place import stream_at
from ..models.weights import rounds_inputs
from .choices import EFFECT
from .forward import Allocation, propagate
from .frozen import Frozen
from .record import Trace, trace
from .running import recording, run
from .sources import tokens


def rounding_bound(dtype: torch.dtype, n_layers: int) -> float:
    """How far a sum of components may lie from a stream that was computed in this dtype: 3·ε·√(sublayers).

    float32 and float64 get room for long sums: 1e-4 and 1e-6 (transformers' own norms round through float32).
    """
    if dtype == torch.float64:
        return 1e-6
    return max(1e-4, 3 * torch.finfo(dtype).eps * (2 * n_layers) ** 0.5)


def tolerance(dtype: torch.dtype, n_layers: int, checked: float) -> float:
    """The largest completeness error of an answer that rounding explains.

    Ten times what the self-check found, and at least 1e-4 in float32, 1e-9 in float64, 3·(ε/2)·√(sublayers) in half
    precision.
    """
    floor = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 1.5 * torch.finfo(dtype).eps * (2 * n_layers) ** 0.5)
    return max(10 * checked, floor)


@dataclass(frozen=True)
class Checked:
    """What the self-check found: its largest relative error, and the attention that the model had."""

    error: float
    implementation: str


def check(adapter: Adapter, dtype: torch.dtype | None = None) -> Checked:
    """Raises UserError where the model has NaN weights, or where the adapter does not reproduce what it computes.

    dtype: a higher one to run the model in, as its traces will.
    """
    seen = trace(adapter, _some_ids(adapter), dtype=dtype)
    _all_finite(seen)
    n = len(seen.token_ids)
    positions = torch.arange(n)
    worst = 0.0
    places = [stream_at(depth, adapter.n_layers).as_post for depth in range(1, 2 * adapter.n_layers + 1)]
    start = tokens([str(i) for i in range(n)]).start(seen)
    parts = propagate(seen, start, dict.fromkeys(places, positions), Allocation("linear"))
    bound = _bound(adapter, dtype)

    def compare(what: str, found: Tensor, whole: Tensor) -> None:
        nonlocal worst
        off = _distance(found, whole)
        if off > bound:
            raise UserError(_mismatch(adapter, what, off))
        worst = max(worst, off)

    for place in places:
        summed = parts[place].dense().sum(dim=1)
        compare(f"the residual stream at {place.hook} of layer {place.layer}", summed, seen.at(place))
    for number in range(2 * adapter.n_layers):
        frozen = seen.sublayer(number)
        after, bias = seen.streams[number] + frozen.written(), frozen.written_bias()
        after, layer = after if bias is None else after + bias, frozen.sublayer.place.layer
        compare(f"what the {frozen.mixer.unit}s of layer {layer} add", after, seen.streams[number + 1])
        off = _live_distance(frozen)
        if off > 10 * rounding_bound(dtype or adapter.dtype, 1):
            raise UserError(
                _mismatch(adapter, f"what the {frozen.mixer.unit}s of layer {layer} make of the stream", off)
            )
    assert seen.logits is not None
    logits = adapter.unembed.to(seen.resid_post)(adapter.final_norm.to(seen.resid_post)(seen.resid_post))
    compare("the logits", adapter.capped(logits), seen.logits)
    check_attention(adapter, dtype, seen.logits)
    if rounds_inputs(adapter.model):
        _warn_of_rounding(adapter, seen)
    return Checked(worst, adapter.text.config._attn_implementation)


def _warn_of_rounding(adapter: Adapter, seen: Trace) -> None:
    """Says how far the model as it is lies from what is traced, where packed maps compute with plain numbers."""
    assert seen.logits is not None
    with torch.no_grad():
        own = run(adapter, seen.token_ids[None]).logits[0].to(seen.logits)
    warn(
        f"the model's 8-bit maps round what they are given, and are traced without that: its own logits are off by "
        f"{_distances(own, seen.logits).median().item():.1%} from those that answers are about",
        QuantizationWarning,
    )


def check_attention(
    adapter: Adapter, dtype: torch.dtype | None = None, traced: Float[Tensor, "pos vocab"] | None = None
) -> None:
    """Raises UserError where the model's own attention is not what it computes eagerly, as it is traced.

    traced: its logits on the self-check's tokens, where they are known.
    """
    implementation = adapter.text.config._attn_implementation
    if implementation == "eager":
        return
    ids = _some_ids(adapter)
    if traced is None:
        traced = trace(adapter, ids, dtype=dtype).logits
    assert traced is not None
    with recording(adapter, dtype, patterns=False):
        own = run(adapter, ids[None]).logits[0].to(traced)
    off = _distance(traced, own)
    if not off <= _bound(adapter, dtype):
        raise UserError(
            f"the model's attention implementation {implementation!r} computes something else than eager attention, as "
            f"which it is traced: its logits are off by {off:.1%}; load it with attn_implementation='eager'"
            + (", or 'sdpa'" if implementation != "sdpa" else "")
        )


def _some_ids(adapter: Adapter) -> Int[Tensor, "pos"]:
    return torch.arange(min(8, adapter.context_length or 8, adapter.vocab_size), device=adapter.device)


def _bound(adapter: Adapter, dtype: torch.dtype | None) -> float:
    return 10 * rounding_bound(dtype or adapter.dtype, adapter.n_layers)


def _distance(found: Float[Tensor, "pos d"], whole: Float[Tensor, "pos d"]) -> float:
    """Relative, at the worst position."""
    return _distances(found, whole).max().item()


def _distances(found: Float[Tensor, "pos d"], whole: Float[Tensor, "pos d"]) -> Float[Tensor, "pos"]:
    return (found - whole).norm(dim=-1) / whole.norm(dim=-1).clamp_min(1e-30)


def _live_distance(frozen: Frozen) -> float:
    """How far a sublayer's inner value is from what it was, when nothing is frozen: no sum of parts sees a wrong score.

    At the middle one of all positions: in half precision rounding may decide where a head looks at one of them.
    """
    return _distances(frozen.inside(frozen.resid, EFFECT).z, frozen.recorded_z()).median().item()


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
