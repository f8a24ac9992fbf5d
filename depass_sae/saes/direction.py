"""The SAE encoder as an affine direction: pre_activation = ⟨w, x⟩ + c.

Everything between the model's activation and the number that the SAE thresholds is affine once the input scale is
frozen at x. With the encoder row W_enc[:, j], b_enc, the decoder bias β where that is subtracted first, and the
normalised input x' = s·(x − μ):

    pre = ⟨W_enc[:, j], x' − β⟩ + b_enc[j]      so      w = s·(W_enc[:, j] − its mean, if μ is taken out),
                                                        c = b_enc[j] − ⟨W_enc[:, j], β⟩

(μ of layer_norm is itself linear in x, so it moves to w). An architecture is the encoder rows that it has, by name, and
where its threshold lies; `ARCHITECTURES` is the table. Architectures without such a pre-activation are `REFUSED`.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from .own import at_least_float32, detached
from .scale import SCALES, not_normalised, read, reads_centred, run_time_scale

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class Direction:
    """pre_activation[p] = ⟨w[p], x[p]⟩ + c[p]."""

    w: Float[Tensor, "pos d_in"]
    c: Float[Tensor, "pos"]


Index: TypeAlias = int | slice | Tensor
Rows: TypeAlias = Callable[["SAE", Index], tuple[Tensor, Tensor]]
Gap: TypeAlias = Callable[["SAE", Tensor, Tensor, int], Tensor]


# --- encoder rows: (W [d_in] or [d_in, d_sae], b [] or [d_sae]) ---------------------------------------------


def _plain(sae: "SAE", j: Index) -> tuple[Tensor, Tensor]:
    return sae.W_enc[:, j], sae.b_enc[j]


def _times_decoder_norm(sae: "SAE", j: Index) -> tuple[Tensor, Tensor]:
    """What topk compares, and what becomes the activation, is ‖W_dec[j]‖·pre if the SAE rescales."""
    norm = decoder_norm(sae, j)
    return sae.W_enc[:, j] * norm, sae.b_enc[j] * norm


def _magnitude(sae: "SAE", j: Index) -> tuple[Tensor, Tensor]:
    return sae.W_enc[:, j] * sae.r_mag[j].exp(), sae.b_mag[j]


def _gate(sae: "SAE", j: Index) -> tuple[Tensor, Tensor]:
    return sae.W_enc[:, j], sae.b_gate[j]


# --- thresholds: how far above where the feature starts to fire, [pos] --------------------------------------


def _above_zero(sae: "SAE", x: Tensor, pre: Tensor, j: int) -> Tensor:
    return pre[:, j]


def _above_threshold(sae: "SAE", x: Tensor, pre: Tensor, j: int) -> Tensor:
    # In float32 at least. A ReLU comes before the comparison, so nothing below 0 fires whatever the threshold.
    return pre[:, j].to(at_least_float32(pre.dtype)) - sae.threshold[j].clamp(min=0)


def _above_own_threshold(sae: "SAE", x: Tensor, pre: Tensor, j: int) -> Tensor:
    # Nothing comes before the comparison: with a threshold below 0 a feature fires with a negative activation.
    return pre[:, j].to(at_least_float32(pre.dtype)) - sae.threshold[j]


def _above_kth(sae: "SAE", x: Tensor, pre: Tensor, j: int) -> Tensor:
    return pre[:, j] - pre.topk(sae.cfg.k).values[:, -1].clamp(min=0)


def _size_above_kth(sae: "SAE", x: Tensor, pre: Tensor, j: int) -> Tensor:
    size = pre.abs()
    return size[:, j] - size.topk(sae.cfg.k).values[:, -1]


def _above_rest_of_group(sae: "SAE", x: Tensor, pre: Tensor, j: int) -> Tensor:
    size = pre.shape[1] // sae.cfg.k
    rest = pre[:, j // size * size : (j // size + 1) * size].clone()
    rest[:, j % size] = 0
    return pre[:, j] - rest.clamp(min=0).amax(-1)


def _gate_above_zero(sae: "SAE", x: Tensor, pre: Tensor, j: int) -> Tensor:
    return pre_activations(sae, x, path="gate")[:, j]


@dataclass(frozen=True)
class Architecture:
    """An architecture: its affine paths by name, and how far a feature is above its threshold."""

    paths: Mapping[str, Rows]
    gap: Gap


ARCHITECTURES = {
    "standard": Architecture({"magnitude": _plain}, _above_zero),
    "jumprelu": Architecture({"magnitude": _plain}, _above_threshold),
    "topk": Architecture({"magnitude": _times_decoder_norm}, _above_kth),
    "abstopk": Architecture({"magnitude": _times_decoder_norm}, _size_above_kth),
    "gated": Architecture({"magnitude": _magnitude, "gate": _gate}, _gate_above_zero),
    "transcoder": Architecture({"magnitude": _plain}, _above_zero),
    "skip_transcoder": Architecture({"magnitude": _plain}, _above_zero),
    "jumprelu_transcoder": Architecture({"magnitude": _plain}, _above_threshold),
    "jumprelu_skip_transcoder": Architecture({"magnitude": _plain}, _above_threshold),
    "topk_transcoder": Architecture({"magnitude": _plain}, _above_kth),
    "topk_skip_transcoder": Architecture({"magnitude": _plain}, _above_kth),
    "groupmax": Architecture({"magnitude": _plain}, _above_rest_of_group),
    "groupmax_transcoder": Architecture({"magnitude": _plain}, _above_rest_of_group),
    "groupmax_skip_transcoder": Architecture({"magnitude": _plain}, _above_rest_of_group),
    "cross_layer_transcoder": Architecture({"magnitude": _plain}, _above_zero),
    "jumprelu_cross_layer_transcoder": Architecture({"magnitude": _plain}, _above_own_threshold),
}
REFUSED = {
    "matching_pursuit": "its features are chosen one after another",
    "temporal": "it takes out what it predicts from all earlier positions",
}
PATHS = tuple(dict.fromkeys(path for kind in ARCHITECTURES.values() for path in kind.paths))


@torch.no_grad()
def encoder_direction(sae: "SAE", x: Float[Tensor, "pos d_in"], feature: int, path: str = "magnitude") -> Direction:
    """The direction that a feature reads, with the SAE's per-token input scale frozen at `x`.

    Args:
        x: what the model computed at the SAE's hook, flat (hook_z as [pos, n_heads·d_head]).
        feature: 0 ≤ feature < d_sae.
        path: "magnitude", the value that becomes the activation; for a gated SAE also "gate", which decides if it does.

    Returns:
        w and c in x's dtype, float32 at least. ⟨w[p], x[p]⟩ + c[p] is `pre_activations(sae, x, path)[p, feature]`.

    Raises:
        UserError: an architecture that is not affine, no such feature or path, or an x of another width.
    """
    x = _checked(sae, x)
    return _direction(sae, x, feature_index(sae, feature), path)


def encoder_directions(
    sae: "SAE", x: Float[Tensor, "n d_in"], features: Int[Tensor, "n"], path: str = "magnitude"
) -> Direction:
    """The same for many features at once, each at its own row of `x`; differentiable in `x`."""
    return _direction(sae, _checked(sae, x), features, path)


def live_pre_activation(
    sae: "SAE", x: Float[Tensor, "pos d_in"], feature: int | Int[Tensor, "pos"], path: str = "magnitude"
) -> Float[Tensor, "pos"]:
    """The same number with the input scale left free: differentiable in `x`, for first-order effects.

    feature: one for all rows of `x`, or one for each.
    """
    x = _checked(sae, x)
    direction = _direction(sae, x, feature if isinstance(feature, Tensor) else feature_index(sae, feature), path)
    return (direction.w * x).sum(-1) + direction.c


@torch.no_grad()
def pre_activations(sae: "SAE", x: Float[Tensor, "pos d_in"], path: str = "magnitude") -> Float[Tensor, "pos d_sae"]:
    """The pre-activations that sae-lens itself computes from `x`, taken at its own hook and in the SAE's dtype.

    For a topk SAE that rescales by decoder norms they are rescaled, as sae-lens does after its hook.
    """
    _rows(sae, path)
    if path == "gate":  # sae-lens computes it without a hook
        return sae.process_sae_in(read(sae, _checked(sae, x))) @ sae.W_enc + sae.b_gate
    return encoded(sae, x)[0]


@torch.no_grad()
def encoded(sae: "SAE", x: Float[Tensor, "pos d_in"]) -> tuple[Float[Tensor, "pos d_sae"], Float[Tensor, "pos d_sae"]]:
    """Pre-activations and activations as sae-lens computes them, by encoding `x` once."""
    seen: list[Tensor] = []
    given = read(sae, _checked(sae, x))
    handle = sae.hook_sae_acts_pre.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        acts = sae.encode(given)
    finally:
        handle.remove()
    return seen[0] * decoder_norm(sae, slice(None)), acts


@torch.no_grad()
def activations(sae: "SAE", x: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos d_sae"]:
    """The feature activations that sae-lens computes from `x`."""
    return live_activations(sae, x)


def live_activations(sae: "SAE", x: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos d_sae"]:
    """The same, differentiable in `x` as far as sae-lens's encoder is."""
    return sae.encode(read(sae, _checked(sae, x)))


@torch.no_grad()
def threshold_gap(
    sae: "SAE", x: Float[Tensor, "pos d_in"], feature: int, pre: Float[Tensor, "pos d_sae"] | None = None
) -> Float[Tensor, "pos"]:
    """How far a feature is above where it starts to fire, in units of its pre-activation; negative where it is silent.

    Above 0 for relu; above the threshold for jumprelu; above the smallest pre-activation that still fires there for
    topk (by size for abstopk; 0 for that one itself); above all others of its group for groupmax; the gate's
    pre-activation for gated SAEs. pre: the pre-activations, where they are known.
    """
    return architecture_of(sae).gap(
        sae, x, pre_activations(sae, x) if pre is None else pre, feature_index(sae, feature)
    )


def architecture_of(sae: "SAE") -> Architecture:
    """Raises UserError for an SAE without an affine pre-activation."""
    architecture = sae.cfg.architecture()
    if wrong := not_affine(architecture):
        raise UserError(
            f"{wrong}; supported are {', '.join(ARCHITECTURES)} (and training objects of these, through load_saes)"
        )
    return ARCHITECTURES[architecture]


def not_affine(architecture: str) -> str | None:
    """What is wrong with an architecture; None for those that can be read as directions."""
    if architecture in ARCHITECTURES:
        return None
    because = f" ({REFUSED[architecture]})" if architecture in REFUSED else ""
    return f"a {architecture} SAE has no pre-activation that is affine in what it reads{because}"


def feature_index(sae: "SAE", feature: int) -> int:
    """`feature`, if the SAE has it."""
    index = operator.index(feature)
    if not 0 <= index < sae.cfg.d_sae:
        raise UserError(f"there is no feature {index}: the SAE's features are 0 to {sae.cfg.d_sae - 1}")
    return index


def decoder_norm(sae: "SAE", j: Index) -> Tensor:
    """‖W_dec[j]‖ where activations are in units of it, else 1."""
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        return sae.W_dec[j].norm(dim=-1)
    return torch.ones_like(sae.W_enc[0, j])


def _direction(sae: "SAE", x: Tensor, feature: int | Tensor, path: str) -> Direction:
    """For one feature at every row of x, or for as many as x has rows, each at its own."""
    row, bias = (detached(values, x.dtype) for values in _rows(sae, path)(sae, feature))
    row = row.movedim(0, -1)  # [d_in], or [n, d_in]
    if sae.cfg.apply_b_dec_to_input:
        bias = bias - row @ detached(sae.b_dec, x.dtype)
    if reads_centred(sae) or sae.cfg.normalize_activations == "layer_norm":
        row = row - row.mean(-1, keepdim=True)
    into = run_time_scale(sae, read(sae, x)).into
    return Direction(into * row, bias.expand(len(x)))


def _rows(sae: "SAE", path: str) -> Rows:
    paths = architecture_of(sae).paths
    if path not in paths:
        raise UserError(f"a {sae.cfg.architecture()} SAE has no path {path!r}, only {' and '.join(paths)}")
    return paths[path]


def _checked(sae: "SAE", x: Tensor) -> Tensor:
    """`x` in float32 at least, once it is sure that the SAE can read it."""
    architecture_of(sae)
    if wrong := not_normalised(sae.cfg.normalize_activations):
        raise UserError(f"{wrong}, only {', '.join(SCALES)}")
    if x.ndim != 2 or x.shape[-1] != sae.cfg.d_in:
        raise UserError(
            f"the SAE reads activations [pos, {sae.cfg.d_in}], not {list(x.shape)}: it is of another model or hook"
        )
    if getattr(sae, "hook_z_reshaping_mode", False):
        raise UserError("the SAE still reshapes hook_z: load it with load_saes, which reads the heads flat")
    return x.to(at_least_float32(x.dtype))
