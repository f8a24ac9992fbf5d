"""The two sublayers as functions of the stream before them, each non-linearity frozen or live.

These are the maps that the sweep differentiates, in the stream and in the size of their bias vectors. With everything
live they are the model's own; with everything frozen each is affine, in the stream and the bias vectors together.

    attention   hook_z = A v(x̂)                            A the recorded pattern, or computed from x̂
    neurons     linear:  (act(g)/g · u) ∘ gate(x̂)          g, u the recorded totals
                half:    ½ (act(g)/g · u) ∘ gate(x̂) + ½ act(g) ∘ up(x̂)
                live:    act(gate(x̂)) ∘ up(x̂)
    norm        x̂ = centre(x) · scale · g + β               scale the recorded one, or computed from x
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.adapter import MLP, Attention, Layer, Linear, Norm
from .rules import slope

MLPChoice = Literal["linear", "half", "live"]


@dataclass(frozen=True)
class Choices:
    """What stays as recorded. ``CONTRIBUTION[rule]`` freezes everything, ``EFFECT`` nothing."""

    pattern: Literal["frozen", "live"]
    norm: Literal["frozen", "live"]
    mlp: MLPChoice


CONTRIBUTION = {rule: Choices("frozen", "frozen", rule) for rule in ("linear", "half")}
EFFECT = Choices("live", "live", "live")


def head_outputs(
    layer: Layer,
    x: Float[Tensor, "pos d_model"],
    recorded: Float[Tensor, "pos d_model"] | None,
    pattern: Float[Tensor, "head query key"],
    choices: Choices,
) -> Float[Tensor, "pos n_heads_d_head"]:
    """hook_z of the stream ``x``; ``recorded`` is the stream where norm and pattern were frozen (None: x itself)."""
    attention, dtype = layer.attention, x.dtype
    x_hat = _norm(layer.attn_norm.to(dtype), x, recorded, choices)
    a = pattern.to(dtype) if choices.pattern == "frozen" else attend(attention, x_hat)
    v = attention.v.to(dtype)(x_hat).unflatten(-1, (attention.n_kv_heads, attention.d_head))
    v = v.repeat_interleave(attention.n_heads // attention.n_kv_heads, dim=1)  # consecutive heads share a value
    return torch.einsum("hqk,khd->qhd", a, v).flatten(1)


def neuron_outputs(
    layer: Layer, x: Float[Tensor, "pos d_model"], recorded: Float[Tensor, "pos d_model"] | None, choices: Choices
) -> tuple[Float[Tensor, "pos d_mlp"], Float[Tensor, "pos d_model"]]:
    """The neurons and mlp_in of the stream ``x``; ``recorded`` is where they were frozen (None: x itself)."""
    norm = layer.mlp_norm.to(x.dtype)
    x_hat = _norm(norm, x, recorded, choices)
    return _neurons(layer.mlp, x_hat, None if recorded is None else norm(recorded), choices.mlp), x_hat


def _neurons(
    mlp: MLP, x_hat: Float[Tensor, "pos d_model"], recorded: Float[Tensor, "pos d_model"] | None, choice: MLPChoice
) -> Float[Tensor, "pos d_mlp"]:
    """What each neuron adds along its output row, from the normed stream and the recorded one."""
    gate = mlp.gate.to(x_hat.dtype)
    up = None if mlp.up is None else mlp.up.to(x_hat.dtype)
    s, t = gate(x_hat), None if up is None else up(x_hat)
    if choice == "live":
        return mlp.act(s) if t is None else mlp.act(s) * t
    g = (s if recorded is None else gate(recorded)).detach()
    if up is None or t is None:
        return slope(mlp.act, g) * s
    u = (t if recorded is None else up(recorded)).detach()
    by_gate = slope(mlp.act, g) * u * s
    return by_gate if choice == "linear" else 0.5 * (by_gate + mlp.act(g) * t)


def attend(attention: Attention, x_hat: Float[Tensor, "pos d_model"]) -> Float[Tensor, "head query key"]:
    """The attention pattern, from the normed stream."""
    scores = attention.scores.to(x_hat.dtype)
    q, k = queries_and_keys(attention, x_hat)
    products = torch.einsum("qhd,khd->hqk", q, k) * scores.scale
    positions = torch.arange(len(x_hat), device=x_hat.device)
    return products.masked_fill(~reach(positions, positions, attention.window), -torch.inf).softmax(dim=-1)


def queries_and_keys(
    attention: Attention, x_hat: Float[Tensor, "pos d_model"]
) -> tuple[Float[Tensor, "pos head d_head"], Float[Tensor, "pos head d_head"]]:
    """Normed and rotated queries and keys of every head, at positions 0, 1, ..."""
    scores = attention.scores.to(x_hat.dtype)
    q = scores.q(x_hat).unflatten(-1, (attention.n_heads, attention.d_head))
    k = scores.k(x_hat).unflatten(-1, (attention.n_kv_heads, attention.d_head))
    q = q if scores.q_norm is None else scores.q_norm(q)
    k = k if scores.k_norm is None else scores.k_norm(k)
    k = k.repeat_interleave(attention.n_heads // attention.n_kv_heads, dim=1)
    if scores.rotary is None:
        return q, k
    cos, sin = (c.to(q.dtype)[:, None] for c in scores.rotary(torch.arange(len(q), device=q.device)))
    return rotate(q, cos, sin), rotate(k, cos, sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, the two halves of d_head as pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def reach(queries: Int[Tensor, "query"], keys: Int[Tensor, "key"], window: int | None) -> Tensor:
    """Which keys each query can see."""
    distance = queries[:, None] - keys[None]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def biases(part: Any) -> list[Tensor]:
    """Every bias vector of a layer, or of a part of one."""
    if not is_dataclass(part):
        return []
    found = [getattr(part, field.name) for field in fields(part)]
    own = [part.bias] if isinstance(part, Linear | Norm) and part.bias is not None else []
    return own + [bias for value in found for bias in biases(value)]


def with_biases_times(part: Any, size: Float[Tensor, "pos"]) -> Any:
    """A layer, or a part of one, with every bias vector scaled at every position: what it adds there is the derivative
    in ``size``."""
    if not is_dataclass(part) or isinstance(part, type):
        return part
    changed = {field.name: with_biases_times(getattr(part, field.name), size) for field in fields(part)}
    if isinstance(part, Linear | Norm) and part.bias is not None:
        changed["bias"] = part.bias.to(size.dtype) * size[:, None]  # so that its derivative is summed in this dtype
    return replace(part, **changed)


def _norm(norm: Norm, x: Tensor, recorded: Tensor | None, choices: Choices) -> Tensor:
    frozen = x.detach() if recorded is None else recorded
    y = norm.centre(x) * norm.scale(x if choices.norm == "live" else frozen) * norm.gain
    return y if norm.bias is None else y + norm.bias
