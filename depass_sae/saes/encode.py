"""What an SAE sees on a prompt: which features fire, how well they explain it, and their parts of the activation.

A feature's part is decode(f_i e_i) − decode(0) at the token's run-time scale: out · f_i · W_dec[i], over ‖W_dec[i]‖
where activations are in units of it. Together with the constant decode(0) and the error x − decode(f) they are x. The
plain f_i · W_dec[i] misses that for every SAE that normalises its input or rescales its activations.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .direction import activations, decoder_norm, encoded, pre_activations, threshold_gap
from .own import at_least_float32, detached
from .scale import read, run_time_scale

if TYPE_CHECKING:
    from sae_lens import SAE

# A healthy SAE explains 0.6 to 0.95 on text like its own; one of a far layer or another model less than nothing.
LEAST_EXPLAINED = 0.3
# No trained SAE is nearly this dense; one that is fed a wrong scale is.
DENSEST = 0.25


@dataclass(frozen=True)
class Fit:
    """How well an SAE fits a prompt; position 0, whose norm drowns all others, is left out.

    `explained_variance` is 1 − Σ‖x − x̂‖² / Σ‖x − mean x‖²; None for transcoders (they do not reconstruct what they
    read; a graph compares them with what the MLP adds), for fewer than two positions and where nothing varies. `l0` is
    the mean number of active features.
    """

    explained_variance: float | None
    l0: float
    warning: str | None  # one sentence, where the SAE cannot belong here


@dataclass(frozen=True)
class ActiveFeatures:
    """The features that fire at one position, strongest first (by size: abstopk's may be negative)."""

    indices: Int[Tensor, "active"]
    activations: Float[Tensor, "active"]


@dataclass(frozen=True)
class FeatureParts:
    """An activation as what each active feature wrote, a constant, and what the SAE missed.

    For a residual-stream SAE, Σ parts (at their positions) + constant + error = x. What a transcoder decodes is not x:
    its `error` is None (the caller has the MLP output that it is measured against), and a skip connection is in `skip`.
    """

    pos: Int[Tensor, "n_active"]  # ascending
    index: Int[Tensor, "n_active"]
    activation: Float[Tensor, "n_active"]
    written: Float[Tensor, "n_active"]  # a part is so many times its decoder row
    W_dec: Float[Tensor, "d_sae d_out"] = field(repr=False)
    constant: Float[Tensor, "pos d_out"]  # decode(0)
    error: Float[Tensor, "pos d_out"] | None  # x − decode(f), decode being sae-lens's own
    skip: Float[Tensor, "pos d_out"] | None  # W_skip x

    def part(self, some: slice | Int[Tensor, "chosen"]) -> Float[Tensor, "chosen d_out"]:
        """What some of the active features wrote."""
        return self.written[some, None] * detached(self.W_dec[self.index[some]], self.written.dtype)

    def without_position_0(self) -> FeatureParts:
        """Only the features of later positions."""
        later = self.pos > 0
        pos, index, activation, written = (v[later] for v in (self.pos, self.index, self.activation, self.written))
        return replace(self, pos=pos, index=index, activation=activation, written=written)

    @property
    def parts(self) -> Float[Tensor, "n_active d_out"]:
        """What each active feature wrote; all at once they may be large."""
        return self.part(slice(None))


@dataclass(frozen=True)
class Encoded:
    """All that an SAE makes of one prompt's activations ``x``, from encoding them once.

    pre: the pre-activations that sae-lens itself computes, of a gated SAE the magnitude's. decoded: what it makes of
    the activations; None for transcoders, which do not reconstruct what they read.
    """

    sae: "SAE" = field(repr=False)
    x: Float[Tensor, "pos d_in"] = field(repr=False)
    pre: Float[Tensor, "pos d_sae"] = field(repr=False)
    activations: Float[Tensor, "pos d_sae"] = field(repr=False)
    decoded: Float[Tensor, "pos d_in"] | None = field(repr=False)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.pre.nbytes + self.activations.nbytes + (0 if self.decoded is None else self.decoded.nbytes)

    def pre_activation(self, index: int, path: str = "magnitude") -> Float[Tensor, "pos"]:
        """One feature's. path: of a gated SAE, "magnitude" or "gate"."""
        return self.pre[:, index] if path == "magnitude" else pre_activations(self.sae, self.x, path)[:, index]

    def margin(self, index: int) -> Float[Tensor, "pos"]:
        """How far one feature is above where it starts to fire (:func:`.threshold_gap`)."""
        return threshold_gap(self.sae, self.x, index, self.pre)

    @cached_property
    def fit(self) -> Fit:
        """How well the SAE fits."""
        if self.decoded is None:
            return self._fit(None)
        given = read(self.sae, self.x[1:]).double()
        return self._fit(explained_variance(given, given - self.decoded[1:]))

    def fit_to(self, given: Float[Tensor, "pos d_out"], error: Float[Tensor, "pos d_out"]) -> Fit:
        """How well a transcoder fits what it stands for, of which it misses ``error``."""
        return self._fit(explained_variance(given[1:].double(), error[1:].double()))

    def _fit(self, explained: float | None) -> Fit:
        if len(self.x) < 2:
            return Fit(None, 0.0, None)
        l0 = (self.activations[1:] != 0).sum(-1).double().mean().item()
        return Fit(explained, l0, _warning(self.sae, explained, l0, len(self.x) - 1))

    @cached_property
    def active(self) -> list[ActiveFeatures]:
        """For every position the features that fire there, strongest first."""
        return [_strongest_first(row) for row in self.activations]

    @cached_property
    def parts(self) -> FeatureParts:
        """The activation split into the active features' parts, a constant and the SAE's error."""
        sae, x = self.sae, self.x.to(at_least_float32(self.x.dtype))
        W_dec = sae.W_dec
        error = None if self.decoded is None else x - self.decoded.to(x.dtype)
        pos, index = self.activations.nonzero(as_tuple=True)
        activation = detached(self.activations[pos, index], x.dtype)
        written = activation / detached(decoder_norm(sae, slice(None))[index], x.dtype)
        constant = detached(sae.b_dec, x.dtype).expand(len(x), -1)
        if self.decoded is not None:
            scale = run_time_scale(sae, read(sae, x))
            written = scale.out[pos, 0] * written
            constant = scale.out * constant + scale.shift
        skip = x @ detached(sae.W_skip, x.dtype).T if hasattr(sae, "W_skip") else None
        return FeatureParts(pos, index, activation, written, W_dec, constant, error, skip)


@torch.no_grad()
def encode(sae: "SAE", x: Float[Tensor, "pos d_in"]) -> Encoded:
    """Encode activations, once for all that is asked of them."""
    pre, acts = encoded(sae, x)
    # Decoded right away: sae-lens keeps the run-time scale from the one to the other.
    return Encoded(sae, x, pre, acts, sae.decode(acts) if reconstructs(sae) else None)


def fit(sae: "SAE", x: Float[Tensor, "pos d_in"]) -> Fit:
    """How well the SAE fits the activations `x` of one prompt."""
    return encode(sae, x).fit


def feature_parts(sae: "SAE", x: Float[Tensor, "pos d_in"]) -> FeatureParts:
    """Split the activation `x` into the active features' parts, a constant and the SAE's error."""
    return encode(sae, x).parts


@torch.no_grad()
def written_by(
    sae: "SAE", x: Float[Tensor, "pos d_in"], which: Bool[Tensor, "pos d_sae"]
) -> Float[Tensor, "pos d_out"]:
    """What these features write where the SAE reads `x`: the sum of their parts, zero where none of them fires."""
    return written(sae, x, activations(sae, x) * which)


def written(sae: "SAE", x: Float[Tensor, "pos d_in"], acts: Float[Tensor, "pos d_sae"]) -> Float[Tensor, "pos d_out"]:
    """What features with these activations write where the SAE reads `x`; differentiable in both."""
    x = x.to(at_least_float32(x.dtype))
    parts = (acts / decoder_norm(sae, slice(None))).to(x.dtype) @ detached(sae.W_dec, x.dtype)
    return run_time_scale(sae, read(sae, x)).out * parts if reconstructs(sae) else parts


def reconstructs(sae: "SAE") -> bool:
    """Whether what the SAE decodes is what it reads: all but transcoders."""
    return "transcoder" not in sae.cfg.architecture()


def explained_variance(given: Float[Tensor, "pos d"], missed: Float[Tensor, "pos d"]) -> float | None:
    """1 − Σ‖missed‖² / Σ‖given − its mean‖²; None for fewer than two positions, and where nothing varies."""
    if len(given) < 2:
        return None
    variance = (given - given.mean(0)).square().sum()
    return 1 - (missed.square().sum() / variance).item() if variance > 0 else None


def _strongest_first(row: Float[Tensor, "d_sae"]) -> ActiveFeatures:
    indices = row.nonzero()[:, 0]
    indices = indices[row[indices].abs().argsort(descending=True, stable=True)]
    return ActiveFeatures(indices, row[indices])


def _warning(sae: "SAE", explained: float | None, l0: float, n_pos: int) -> str | None:
    signs = []
    # Over n positions the variance about their own mean is (n − 1)/n of the true one: a fair SAE looks worse on few.
    if explained is not None and 1 - (1 - explained) * (n_pos - 1) / n_pos < LEAST_EXPLAINED:
        signs.append(f"explains {explained:.2f} of the variance")
    fixed_l0 = hasattr(sae.cfg, "k")
    if n_pos and (l0 == 0 or (l0 > DENSEST * sae.cfg.d_sae and not fixed_l0)):
        signs.append(f"has {l0:.1f} of {sae.cfg.d_sae} features active per position")
    if not signs:
        return None
    return f"The SAE {' and '.join(signs)}: it seems to belong to another model, layer, hook or scale."
