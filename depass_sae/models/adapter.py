"""Where a transformer keeps the parts that the decomposed pass needs.

A model family is described by one function, ``layer(model, i) -> Layer`` (see :mod:`.llama` and :mod:`.gpt2`), and a
few paths. Everything else in the package works on the plain parts below: linear maps as ``x @ weight + bias``, norms as
a kind with a gain, attention as value and output maps around a pattern that the model itself computes.

The parts are views of the live weights, made when they are asked for: nothing is copied and nothing goes stale.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Linear:
    """``x @ weight + bias``."""

    weight: Float[Tensor, "d_in d_out"]
    bias: Float[Tensor, "d_out"] | None = None

    def to(self, dtype: torch.dtype) -> Linear:
        return Linear(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))

    def __call__(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class Norm:
    """RMSNorm ``x·g/rms(x)`` or LayerNorm ``(x − mean x)/σ·g + β``, both with their ``eps``."""

    module: nn.Module
    kind: Literal["rms", "layer"]
    gain: Float[Tensor, "d_model"]
    bias: Float[Tensor, "d_model"] | None
    eps: float

    def to(self, dtype: torch.dtype) -> Norm:
        bias = None if self.bias is None else self.bias.to(dtype)
        return Norm(self.module, self.kind, self.gain.to(dtype), bias, self.eps)

    def centre(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """What the norm takes its scale of: x itself, or x without its mean."""
        return x - x.mean(-1, keepdim=True) if self.kind == "layer" else x

    def scale(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows 1"]:
        """1/rms(x) or 1/σ(x): the one number per position that a frozen norm keeps."""
        return (self.centre(x).pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()

    def __call__(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        y = self.centre(x) * self.scale(x) * self.gain
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class Scores:
    """Where a head looks: score[n, k] = ⟨R_n q[n], R_k k[k]⟩ · scale, q and k normed per head where a model does that.

    rotary: positions -> (cos, sin) [pos, d_head]; R_n x = x·cos + rotate_half(x)·sin. None: no rotation.
    """

    q: Linear  # d_model -> n_heads * d_head
    k: Linear  # d_model -> n_kv_heads * d_head
    scale: float
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    rotary: Callable[[Int[Tensor, "pos"]], tuple[Tensor, Tensor]] | None = None

    def to(self, dtype: torch.dtype) -> Scores:
        q_norm, k_norm = (None if norm is None else norm.to(dtype) for norm in (self.q_norm, self.k_norm))
        return Scores(self.q.to(dtype), self.k.to(dtype), self.scale, q_norm, k_norm, self.rotary)


@dataclass(frozen=True)
class Attention:
    """Values and outputs around a pattern. ``module`` returns (attn_out, pattern) under eager attention.

    ``window``: how many positions, its own included, a query can see (None: all before it).
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


@dataclass(frozen=True)
class MLP:
    """``down(act(gate(x)) * up(x))``, or ``down(act(gate(x)))`` where ``up`` is None (an MLP that is not gated)."""

    module: nn.Module
    gate: Linear
    up: Linear | None
    down: Linear
    down_module: nn.Module  # its input are the neurons
    act: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    resid_mid = resid_pre + attention(norm(resid_pre)) and resid_post = resid_mid + mlp(norm(resid_mid)).
    """

    module: nn.Module
    attn_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: MLP


@dataclass(frozen=True)
class Family:
    """A model family: which transformers ``model_type``s it covers and where their parts are."""

    name: str
    model_types: tuple[str, ...]
    embed: str
    layers: str
    final_norm: Callable[[PreTrainedModel], Norm]
    unembed: str
    layer: Callable[[PreTrainedModel, int], Layer]


@dataclass(frozen=True)
class Adapter:
    """A model seen through its family's table."""

    model: PreTrainedModel
    family: Family

    @property
    def lock(self) -> threading.RLock:
        """The model object's one lock, whichever adapter asks for it: held by whoever changes the model for a pass, or
        takes its parts while another might."""
        with _LOCKING:
            return _LOCKS.setdefault(self.model, threading.RLock())

    @property
    def dtype(self) -> torch.dtype:
        """The model's own, also while another thread's pass has it in a higher one."""
        with self.lock:
            return self.model.dtype

    @property
    def n_layers(self) -> int:
        return len(self._part(self.family.layers))

    @property
    def d_model(self) -> int:
        return self.unembed.weight.shape[0]

    @property
    def context_length(self) -> int | None:
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def vocab_size(self) -> int:
        return weight(self._part(self.family.embed)).shape[0]

    @property
    def final_norm(self) -> Norm:
        with self.lock:
            return self.family.final_norm(self.model)

    @property
    def unembed(self) -> Linear:
        with self.lock:
            return linear(self._part(self.family.unembed))

    def compute_dtype(self, dtype: torch.dtype | None = None) -> torch.dtype:
        """What components are carried in: float32 at least, float64 for a float64 model (or trace)."""
        return torch.promote_types(dtype or self.dtype, torch.float32)

    def layer(self, index: int) -> Layer:
        with self.lock:
            return self.family.layer(self.model, index)

    def _part(self, path: str) -> Any:
        return self.model.get_submodule(path)


_LOCKS: WeakKeyDictionary[PreTrainedModel, threading.RLock] = WeakKeyDictionary()
_LOCKING = threading.Lock()
"""Hooks, attention implementation and dtype lie on the model object, and every adapter of it shares them."""


def weight(module: Any) -> Tensor:
    """A module's weight, which everything here takes for a plain tensor of floating-point numbers.

    Raises UserError where it is something else: packed, of another dtype, behind a method, or not there.
    """
    found = getattr(module, "weight", None)
    if not isinstance(found, Tensor):
        raise UserError(_quantized(module, "no plain weight"))
    if not found.is_floating_point() or found.element_size() < 2:
        raise UserError(_quantized(module, f"its weight is {str(found.dtype).removeprefix('torch.')}"))
    if found.layout != torch.strided:
        raise UserError(f"the weight of a {type(module).__name__} is a sparse tensor; make it dense: weight.to_dense()")
    return without_gradient(found)


def _quantized(module: Any, why: str) -> str:
    return (
        f"the model's weights are quantized or packed (a {module._get_name()}: {why}); load a checkpoint that is "
        "not, in bfloat16 or float32"
    )


def linear(module: Any) -> Linear:
    """A torch ``nn.Linear``, whose weight is stored [d_out, d_in]."""
    return Linear(weight(module).T, _bias(module))


def conv1d(module: Any) -> Linear:
    """A transformers ``Conv1D``, whose weight is stored [d_in, d_out]."""
    return Linear(weight(module), _bias(module))


def rms_norm(module: Any) -> Norm:
    return Norm(module, "rms", weight(module), None, module.variance_epsilon)


def layer_norm(module: nn.LayerNorm) -> Norm:
    return Norm(module, "layer", weight(module), _bias(module), module.eps)


def _bias(module: Any) -> Tensor | None:
    return None if module.bias is None else without_gradient(module.bias)


def without_gradient(tensor: Tensor) -> Tensor:
    """A view without gradient; a copy of what was made in ``torch.inference_mode``, which autograd takes nowhere."""
    return tensor.clone().detach() if tensor.is_inference() else tensor.detach()
