"""The live model with features set: nothing frozen, each SAE's features made what one says they should be.

At an SAE the stream x that arrives is encoded, and the features' parts are exchanged; what the SAE misses of x stays:

    new_i = value_i + kept_i · (live_i − value_i)          x′ = x + Σ_i (part(new_i) − part(live_i))

A feature with kept = 1 is what the edited model makes of it, one with kept = 0 is the value that it is set to; between
them it is mixed, which makes the whole differentiable in ``kept``. Places come in the model's order, so that each SAE
sees what was set below it. Parts are written at the scale of the stream that arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.adapter import Adapter
from ..models.place import Place
from ..passes.frozen import INSIDE
from ..passes.intervene import Edit, intervene, intervene_differentiably
from ..passes.mixers import mixer_of
from ..saes import live_activations, written
from ..subject import Subject

if TYPE_CHECKING:
    from sae_lens import SAE

SAEErrors = Literal["keep", "hold", "zero"]
"""What becomes of an SAE's error, x − decode(f): what there is of the stream that arrives stays; it is held at what it
was in the untouched model; or it is taken out."""
AT_ONCE = 2**27
"""Bytes of one SAE's activations in a batch of edited prompts."""


def check_errors(errors: str) -> None:
    """Raises UserError for what cannot become of them."""
    if errors not in (ways := get_args(SAEErrors)):
        raise UserError(f"an SAE's errors are left to {', '.join(ways[:-1])} or {ways[-1]}, not {errors!r}")


@dataclass(frozen=True)
class Setting:
    """What an SAE's features are set to, at every position of a batch of prompts.

    touched: at which positions; elsewhere the stream passes as it is. held: what kept features are, instead of what the
    edited model makes of them. error: what the SAE's error is made, instead of what it is of the stream that arrives.
    """

    sae: SAE = field(repr=False)
    kept: Float[Tensor, "batch pos d_sae"] = field(repr=False)
    value: Float[Tensor, "pos d_sae"] = field(repr=False)
    touched: Bool[Tensor, "pos"]
    held: Float[Tensor, "pos d_sae"] | None = field(default=None, repr=False)
    error: Float[Tensor, "pos d"] | None = field(default=None, repr=False)

    def __call__(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        """The stream with its features set."""
        flat = x.flatten(0, 1)
        live = live_activations(self.sae, flat)
        own = live.unflatten(0, x.shape[:2])
        new = self.value + self.kept * ((own if self.held is None else self.held) - self.value)
        change = written(self.sae, flat, (new - own).flatten(0, 1)).view_as(x)
        if self.error is not None:
            live_error = flat.to(change) - self.sae.decode(live).to(change)  # right after encoding, at the same scale
            change = change + self.error - live_error.view_as(change)
        return x + (change * self.touched[:, None]).to(x)


def run_set(
    subject: Subject,
    ids: Int[Tensor, "pos"],
    settings: Mapping[Place, Setting],
    read: Place | None,
    *,
    gradients: bool = False,
) -> Float[Tensor, "batch d"]:
    """What the model computes at the last position of a place (None: the logits), with features set at SAEs.

    gradients: with respect to what the settings keep.
    """
    copies = max((len(setting.kept) for setting in settings.values()), default=1)
    edits: dict[Place, Edit] = {place.as_post: setting for place, setting in settings.items()}
    run = intervene_differentiably if gradients else intervene
    return run(subject.adapter, ids.expand(copies, -1), edits, {read}, subject.trace_dtype)[read]


def seen_at(adapter: Adapter, hook: Place) -> tuple[Place, Callable[[Tensor], Tensor]]:
    """Where what a transcoder reads can be seen on its way, and what it makes of that."""
    if INSIDE.get(hook.hook) != "bare":
        return hook, lambda x: x
    part = adapter.sublayer(hook.depth)

    def bare(x: Float[Tensor, "copy pos d_model"]) -> Tensor:
        norm = part.norm.to(x)
        return norm.bare(x, norm.scale(x))

    return part.reads, bare


def n_heads(adapter: Adapter, layer: int) -> int:
    return mixer_of(adapter.sublayer(Place(layer, "hook_z").depth).mixer).n_units


def head_slice(adapter: Adapter, layer: int, head: int) -> slice:
    """What of hook_z is a head's."""
    width = adapter.width(Place(layer, "hook_z")) // n_heads(adapter, layer)
    return slice(head * width, (head + 1) * width)


def copies_at_once(n_pos: int, d_sae: int) -> int:
    """How many edited prompts make one batch."""
    return int(max(1, min(32, AT_ONCE // (4 * n_pos * d_sae))))


def no_errors(like: Float[Tensor, "pos d"]) -> Float[Tensor, "pos d"]:
    """What an SAE's error is made where it is taken out."""
    return torch.zeros_like(like)
