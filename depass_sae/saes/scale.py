"""What an SAE does to its input before the encoder and undoes after the decoder.

All of sae-lens's normalisations are x' = into · (x − shift), x̂ = out · x̂' + shift with numbers per token. With
into, out and shift frozen at the x that the model computed, encoder and decoder are affine, like the model's own norms.
`layer_norm` divides by std + 1e-5 on the way in and multiplies by std on the way out, as sae-lens does.

SAEs that were trained on a TransformerLens model with centred weights read x − mean(x) of a Hugging Face model's x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from sae_lens import SAE

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Scale:
    into: Float[Tensor, "pos 1"]
    out: Float[Tensor, "pos 1"]
    shift: Float[Tensor, "pos 1"]  # one number per token: its mean over d_in, or 0


def _identity(x: Tensor) -> Scale:
    one = torch.ones_like(x[:, :1])
    return Scale(one, one, torch.zeros_like(one))


def _constant_norm(x: Tensor) -> Scale:
    norm = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return Scale(1 / norm, norm, torch.zeros_like(norm))


def _layer_norm(x: Tensor) -> Scale:
    mean = x.mean(dim=-1, keepdim=True)
    std = (x - mean).std(dim=-1, keepdim=True)
    return Scale(1 / (std + LAYER_NORM_EPS), std, mean)


# The second and third are folded into the weights when an SAE is loaded, and are nothing at run time.
SCALES: dict[str, Callable[[Tensor], Scale]] = {
    "none": _identity,
    "expected_average_only_in": _identity,
    "covariance_whitening": _identity,
    "constant_norm_rescale": _constant_norm,
    "layer_norm": _layer_norm,
}


def not_normalised(normalisation: str) -> str | None:
    """What is wrong with a normalisation; None for those above."""
    return None if normalisation in SCALES else f"the normalisation {normalisation!r} is not supported"


def run_time_scale(sae: "SAE", x: Float[Tensor, "pos d_in"]) -> Scale:
    """The scale at `x`, as `read` returns it; differentiable in `x`."""
    return SCALES[sae.cfg.normalize_activations](x)


def reads_centred(sae: "SAE") -> bool:
    """Whether the SAE was trained on residuals without their mean over d_model."""
    return bool((sae.cfg.metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"))


def read(sae: "SAE", x: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos d_in"]:
    """What the SAE is to be given of the model's activation `x`."""
    return x - x.mean(dim=-1, keepdim=True) if reads_centred(sae) else x
