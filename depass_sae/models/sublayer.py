"""A layer as two sublayers in order: read the stream → norm → mixer → post-norm → add; and which module shows a place.

A model family says no more of a layer than that (see ``families/``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from .parts import MLP, Attention, DeltaRule, Experts, Norm, Part
from .place import Place

Mixed = Attention | DeltaRule | MLP | Experts


@dataclass(frozen=True)
class Sublayer(Part):
    """What one sublayer adds to the stream: post(mixer(norm(stream at ``reads``))).

    place: what it adds, ``attn_out`` or ``mlp_out`` of its layer. reads: in a parallel block the MLP reads what
    attention reads, ``resid_pre``.
    """

    place: Place
    reads: Place
    norm: Norm
    mixer: Mixed
    post: Norm | None = None

    @property
    def name(self) -> str:
        """``attn`` or ``mlp``, as documents call it."""
        return self.place.hook.removesuffix("_out")

    @property
    def number(self) -> int:
        """Among all of the model, counted in turn."""
        return self.place.depth


@dataclass(frozen=True)
class Layer:
    """One decoder layer. ``module`` takes resid_pre and hands on resid_post."""

    module: nn.Module
    sublayers: tuple[Sublayer, Sublayer]

    @property
    def parallel(self) -> bool:
        """Whether the second sublayer reads what the first reads. ``resid_mid`` is then no module's input or output."""
        return self.sublayers[1].reads == self.sublayers[0].reads


def layer_of(
    index: int,
    module: nn.Module,
    attn_norm: Norm,
    attention: Attention | DeltaRule,
    mlp_norm: Norm,
    mlp: MLP | Experts,
    *,
    attn_post: Norm | None = None,
    mlp_post: Norm | None = None,
    parallel: bool = False,
) -> Layer:
    """A family's row: the parts of one layer."""
    pre = Place(index, "resid_pre")
    mid = pre if parallel else Place(index, "resid_mid")
    first = Sublayer(Place(index, "attn_out"), pre, attn_norm, attention, attn_post)
    return Layer(module, (first, Sublayer(Place(index, "mlp_out"), mid, mlp_norm, mlp, mlp_post)))


@dataclass(frozen=True)
class Tap:
    """Where a module shows something: in what it is given, or in what it returns.

    pick: what of it; of the module's first argument, or of its whole output. derived: whether that is no part of it,
    but made of it.
    """

    module: nn.Module
    side: Literal["in", "out"]
    pick: Callable[[Any], Tensor]
    derived: bool = False


def given(module: nn.Module) -> Tap:
    """The module's input."""
    return Tap(module, "in", lambda x: x)


def returned(module: nn.Module, index: int = 0) -> Tap:
    """The module's output, or one entry of it where it is a tuple."""
    return Tap(module, "out", lambda out: out[index] if isinstance(out, tuple) else out)


def tap(layer: Layer, hook: str) -> Tap:
    """Where a layer's modules show a place. In a parallel block nothing shows ``resid_mid``."""
    attn, mlp = layer.sublayers
    match hook:
        case "resid_pre":
            return given(layer.module)
        case "resid_post":
            return returned(layer.module)
        case "resid_mid":
            assert mlp.norm.module is not None
            return given(mlp.norm.module)
        case "hook_z":
            return given(attn.mixer.o_module)  # type: ignore[union-attr]
        case "attn_out" | "mlp_out":
            sublayer = attn if hook == "attn_out" else mlp
            module = sublayer.mixer.module if sublayer.post is None else sublayer.post.module
            assert module is not None
            return returned(module)
        case "mlp_in":
            assert mlp.mixer.module is not None
            return given(mlp.mixer.module)
        case "ln2_normalized":
            assert mlp.norm.module is not None
            return Tap(mlp.norm.module, "in", lambda x: mlp.norm.bare(x, mlp.norm.scale(x)), derived=True)
    raise AssertionError(hook)


def width(layer: Layer, hook: str, d_model: int) -> int:
    """The last dimension of what stands at a place."""
    attention = layer.sublayers[0].mixer
    return attention.o.d_in if hook == "hook_z" else d_model  # type: ignore[union-attr]
