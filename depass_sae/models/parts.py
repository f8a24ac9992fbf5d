"""The plain parts that every architecture is made of: linear maps, norms, gates, and what mixes positions or neurons.

A part describes, it does nothing but its own arithmetic. How components are carried through it, what of it is frozen
and what its units are is known by the mixer of its kind alone (``passes/mixers``). Weights are got when they are asked
for (:mod:`.weights`): views of the live ones, so that nothing is copied and nothing goes stale, or from where they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .weights import Held, MaybeHeld, held, of_conv1d, of_linear, optional, weight


class Part:
    """A description made of tensors and other parts."""

    def to(self, *where: Tensor | torch.dtype | torch.device) -> Self:
        """With every tensor of numbers as this tensor is: of its dtype, on its device; or as a tensor's ``to`` does."""
        changed = {field.name: _to(getattr(self, field.name), where) for field in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changed)  # type: ignore[type-var]


def _to(value: Any, where: tuple[Any, ...]) -> Any:
    return value.to(*where) if isinstance(value, Part | Tensor) else value


Size = Float[Tensor, "pos"]
"""How large bias vectors are taken at each position: the derivative in it is what they add there."""


@dataclass(frozen=True)
class Linear(Part):
    """``x @ weight + bias``."""

    weight: Held = Held()  # [d_in, d_out]
    bias: MaybeHeld = MaybeHeld(None)  # [d_out]

    @property
    def d_in(self) -> int:
        return held(self, "weight").shape[0]

    @property
    def d_out(self) -> int:
        return held(self, "weight").shape[1]

    def __call__(self, x: Float[Tensor, "*rows d_in"], size: Size | None = None) -> Float[Tensor, "*rows d_out"]:
        y = x @ self.weight
        return y if self.bias is None else y + times(self.bias, size)


@dataclass(frozen=True)
class Norm(Part):
    """RMSNorm ``x·g/rms(x)``, LayerNorm ``(x − mean x)/σ·g + β``, or ``x·g/‖x‖``, all with their ``eps``.

    The gain g is ``weight + plus``: some families keep g − 1. module: whose input is x, where there is one.
    """

    module: nn.Module | None
    kind: Literal["rms", "layer", "l2"]
    weight: Held = Held()  # [d]
    bias: MaybeHeld = MaybeHeld()  # [d]
    eps: float  # type: ignore[misc]
    plus: float = 0.0

    @property
    def gain(self) -> Float[Tensor, "d"]:
        return self.weight + self.plus if self.plus else self.weight

    def centre(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """What the norm takes its scale of: x itself, or x without its mean."""
        return x - x.mean(-1, keepdim=True) if self.kind == "layer" else x

    def scale(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows 1"]:
        """1/rms(x), 1/σ(x) or 1/‖x‖: the one number per position that a frozen norm keeps."""
        squares = self.centre(x).pow(2)
        return (
            (squares.sum(-1, keepdim=True) if self.kind == "l2" else squares.mean(-1, keepdim=True)) + self.eps
        ).rsqrt()

    def frozen(self, x: Float[Tensor, "*rows d"], scale: Float[Tensor, "*rows 1"] | float) -> Float[Tensor, "*rows d"]:
        """What a component of the norm's input comes out as, the scale being that of the whole. β is not in it."""
        return self.bare(x, scale) * self.gain

    def bare(self, x: Float[Tensor, "*rows d"], scale: Float[Tensor, "*rows 1"] | float) -> Float[Tensor, "*rows d"]:
        """The same before the gain."""
        return self.centre(x) * scale

    def __call__(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        y = self.frozen(x, self.scale(x))
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class Gate(Part):
    """A factor per position, or one per position and channel, that the sublayer's own normed input decides."""

    linear: Linear
    act: Callable[[Tensor], Tensor]

    def __call__(self, x: Float[Tensor, "pos d"], size: Size | None = None) -> Float[Tensor, "pos d_out"]:
        return self.act(self.linear(x, size))


Rotary = Callable[[Int[Tensor, "pos"]], tuple[Tensor, Tensor]]
"""positions -> (cos, sin) [pos, d_rotated]; R_n x = x·cos + rotate_half(x)·sin on the first d_rotated channels."""


@dataclass(frozen=True)
class Scores(Part):
    """Where a head looks: score[n, k] = ⟨R_n q[n], R_k k[k]⟩ · scale, q and k normed per head where a model does that.

    softcap: c·tanh(score/c) goes into the softmax. sinks: one more score per head, whose share of attention goes
    nowhere. rotary None: no rotation.
    """

    q: Linear  # d_model -> n_heads * d_head
    k: Linear  # d_model -> n_kv_heads * d_head
    scale: float
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    rotary: Rotary | None = None
    softcap: float | None = None
    sinks: Float[Tensor, "head"] | None = None


@dataclass(frozen=True)
class Attention(Part):
    """Values and outputs around a pattern. ``module`` returns (attn_out, pattern) under eager attention.

    window: how many positions, its own included, a query can see (None: all before it). gate: a factor on hook_z.
    """

    module: nn.Module
    scores: Scores
    v: Linear  # d_model -> n_kv_heads * d_head
    o: Linear  # n_heads * d_head -> d_model
    o_module: nn.Module  # its input is hook_z
    n_heads: int
    n_kv_heads: int
    d_head: int
    window: int | None = None
    gate: Gate | None = None


@dataclass(frozen=True)
class Convolved(Part):
    """A linear map, then a causal convolution of each channel on its own and an activation."""

    linear: Linear
    taps: Held = Held()  # [d_out, n_taps]; the last tap is the position itself
    act: Callable[[Tensor], Tensor]  # type: ignore[misc]


@dataclass(frozen=True)
class DeltaRule(Part):
    """Gated delta rule: linear attention, whose pattern is a closed form of q, k, β and the decay.

    Each head's output is normed (``head_norm``) and gated before W_O. decay: its logarithm, at each position.
    """

    module: nn.Module
    q: Convolved
    k: Convolved
    v: Convolved
    qk_norm: Norm
    beta: Gate
    decay: Gate
    head_norm: Norm
    gate: Gate
    o: Linear
    o_module: nn.Module
    n_heads: int
    n_qk_heads: int
    d_head: int


@dataclass(frozen=True)
class MLP(Part):
    """``down(act(gate(x)) * up(x))``, or ``down(act(gate(x)))`` where ``up`` is None (an MLP that is not gated).

    up_act: an activation on the up-projection. The modules are None for an expert, which is no module of its own.
    """

    gate: Linear
    up: Linear | None
    down: Linear
    act: Callable[[Tensor], Tensor]
    up_act: Callable[[Tensor], Tensor] | None = None
    module: nn.Module | None = None
    down_module: nn.Module | None = None  # its input are the neurons


@dataclass(frozen=True)
class Experts(Part):
    """Each position goes through a few of n MLPs, each weighted by the router, and through a shared one where there is.

    router: hands out (logits, weights, choice) [pos, k]. weigh: router logits [pos, expert] and the choice [pos, k] ->
    weights [pos, k]. shared_gate: the shared expert's own weight.
    """

    module: nn.Module
    router: nn.Module
    logits: Linear
    weigh: Callable[[Tensor, Tensor], Tensor]
    expert: Callable[[int], MLP]
    n: int
    k: int
    shared: MLP | None = None
    shared_gate: Gate | None = None


# ------------------------------------------------------------------------------------ parts of transformers' modules


def times(bias: Float[Tensor, "d"], size: Size | None) -> Float[Tensor, "*pos d"]:
    """A bias vector, as large at each position as ``size`` says, in whose dtype its derivative is then summed."""
    return bias if size is None else bias.to(size.dtype) * size[:, None]


def linear(module: Any) -> Linear:
    """A torch ``nn.Linear``, whose weight is stored [d_out, d_in]."""
    return Linear(of_linear(module).T, optional(module, "bias"))


def conv1d(module: Any) -> Linear:
    """A transformers ``Conv1D``, whose weight is stored [d_in, d_out]."""
    return Linear(of_conv1d(module), optional(module, "bias"))


def fused(whole: Linear, *widths: int) -> tuple[Linear, ...]:
    """A map's outputs, one after the other, as maps of their own."""
    w, b = held(whole, "weight"), held(whole, "bias")
    biases = [None] * len(widths) if b is None else b.split(widths)
    return tuple(map(Linear, w.split(widths, dim=1), biases))


def interleaved(whole: Linear, n_heads: int, parts: int) -> tuple[Linear, ...]:
    """The same where the outputs are fused head by head: [q_0, k_0, q_1, k_1, ...]."""
    w, b = held(whole, "weight"), held(whole, "bias")

    def one(i: int) -> Linear:
        own = w.view(lambda x: x.unflatten(1, (n_heads, parts, -1))[:, :, i].flatten(1))
        return Linear(own, None if b is None else b.view(lambda x: x.view(n_heads, parts, -1)[:, i].flatten()))

    return tuple(map(one, range(parts)))


def rms_norm(module: Any) -> Norm:
    return Norm(module, "rms", weight(module), None, module.variance_epsilon)


def rms_norm_plus_one(module: Any) -> Norm:
    """Where the weight is the gain's difference from 1."""
    return Norm(module, "rms", weight(module), None, module.eps, plus=1.0)


def layer_norm(module: Any) -> Norm:
    return Norm(module, "layer", weight(module), optional(module, "bias"), module.eps)


def gated_mlp(module: Any) -> MLP:
    """Llama's: gate_proj, up_proj, down_proj."""
    gate, up, down = (linear(getattr(module, name)) for name in ("gate_proj", "up_proj", "down_proj"))
    return MLP(gate, up, down, module.act_fn, module=module, down_module=module.down_proj)
