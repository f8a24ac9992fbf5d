"""What a target is, and how one is read on a prompt.

Each is affine in an activation that the pass reads, ⟨w, x⟩ + c with the norms on the way frozen, so that it splits over
the components of x and its constant. ``pre`` is the same number as its owner computes it: the SAE library for a
feature, the model for a logit. How far the two lie apart is the completeness error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.place import Place
from ..passes.record import Trace
from ..saes import Direction, Fit
from ..subject import Subject


@dataclass(frozen=True)
class Readoff:
    """A target on one prompt.

    pre, activation, margin: at every position; activation and margin (how far above what it takes to fire) only for
    features. fit: how well the feature's SAE fits the prompt. live: what the model itself makes of it at every
    position, where that is not ``pre``: a logit behind its soft-cap. directed: finds the direction, when it is asked
    for: over the vocabulary's mean that takes the whole unembedding.
    """

    place: Place
    directed: Callable[[], Direction]
    pre: Float[Tensor, "pos"]
    activation: Float[Tensor, "pos"] | None = None
    margin: Float[Tensor, "pos"] | None = None
    fit: Fit | None = None
    live: Float[Tensor, "pos"] | None = None

    @cached_property
    def direction(self) -> Direction:
        return self.directed()

    @property
    def now(self) -> Float[Tensor, "pos"]:
        """What an intervention changes."""
        return self.pre if self.live is None else self.live


class Target(Protocol):
    """A question's object. ``point`` None stands for the logits."""

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> Place | None: ...

    def check(self, subject: Subject) -> None:
        """Raises UserError where the model or its SAEs have no such target."""

    def read(self, subject: Subject, trace: Trace) -> Readoff: ...

    def at(self, seen: Trace, pos: int) -> Target:
        """The same at one position, with all that depends on the position settled: the rivals of a token."""

    def live(self, subject: Subject, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch"]:
        """The target's value, nothing frozen, from what the model computes at ``point``."""

    def slope(self, subject: Subject, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The target's gradient, its own norm live, at rows of the activation that it is read from."""

    def describe(self, subject: Subject) -> dict[str, Any]:
        """Its keys in a document: feature, logit or direction."""


def gradient(f: Callable[[Tensor], Tensor], x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Of a function that takes rows to numbers, at every row."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(f(x).sum(), x)
    return found
