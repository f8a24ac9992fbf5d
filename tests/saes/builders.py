"""Small random SAEs of every kind that sae-lens has, and activations to give them."""

import warnings
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import sae_lens
import torch
from hypothesis import strategies as st

D_IN, D_SAE, D_OUT, K = 8, 20, 6, 5

# kind: (its class in sae-lens, what its configuration needs beyond the widths)
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("StandardSAE", {}),
    "jumprelu": ("JumpReLUSAE", {}),
    "topk": ("TopKSAE", {"k": K}),
    "abstopk": ("AbsTopKSAE", {"k": K}),
    "gated": ("GatedSAE", {}),
    "transcoder": ("Transcoder", {"d_out": D_OUT}),
    "skip_transcoder": ("SkipTranscoder", {"d_out": D_OUT}),
    "jumprelu_transcoder": ("JumpReLUTranscoder", {"d_out": D_OUT}),
    "jumprelu_skip_transcoder": ("JumpReLUSkipTranscoder", {"d_out": D_OUT}),
    "matching_pursuit": ("MatchingPursuitSAE", {}),
}
TRAINERS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("StandardTrainingSAE", {}),
    "jumprelu": ("JumpReLUTrainingSAE", {}),
    "topk": ("TopKTrainingSAE", {"k": K}),
    "abstopk": ("AbsTopKTrainingSAE", {"k": K}),
    "gated": ("GatedTrainingSAE", {}),
    "batchtopk": ("BatchTopKTrainingSAE", {"k": K}),
    "matryoshka_batchtopk": ("MatryoshkaBatchTopKTrainingSAE", {"k": K, "matryoshka_widths": [D_SAE // 2, D_SAE]}),
}
AFFINE = tuple(kind for kind in CLASSES if kind != "matching_pursuit")
NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")


@dataclass(frozen=True)
class Recipe:
    """What decides how an SAE encodes and decodes."""

    kind: str
    normalize_activations: str = "none"
    apply_b_dec_to_input: bool = False
    rescale_acts_by_decoder_norm: bool | None = None  # topk kinds only
    dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def build(self, **metadata: Any) -> Any:
        return random_sae(CLASSES[self.kind], self, metadata)

    def build_trainer(self, **metadata: Any) -> Any:
        return random_sae(TRAINERS[self.kind], self, metadata)


def random_sae(sae_class: tuple[str, dict[str, Any]], recipe: Recipe, metadata: dict[str, Any]) -> Any:
    name, needed = sae_class
    rescale = recipe.rescale_acts_by_decoder_norm
    config = getattr(sae_lens, f"{name}Config")(
        d_in=D_IN,
        d_sae=D_SAE,
        dtype=recipe.dtype,
        normalize_activations=recipe.normalize_activations,
        apply_b_dec_to_input=recipe.apply_b_dec_to_input,
        **({} if rescale is None else {"rescale_acts_by_decoder_norm": rescale}),
        **needed,
        **recipe.options,
    )
    for key, value in metadata.items():
        config.metadata[key] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sae-lens comments on some metadata
        sae = getattr(sae_lens, name)(config)
    generator = torch.Generator().manual_seed(0)
    for key, weight in sorted(sae.named_parameters()):
        values = torch.randn(weight.shape, generator=generator) * (0.5 if key.startswith("W_") else 0.2)
        weight.data.copy_(values.abs() if key == "threshold" else values)
    if hasattr(sae, "topk_threshold"):
        sae.topk_threshold.fill_(0.31)
    return sae


def _recipes(dtype: str) -> list[Recipe]:
    return [
        Recipe(kind, norm, b_dec, rescale, dtype)
        for kind, norm, b_dec in product(AFFINE, NORMALISATIONS, (False, True))
        for rescale in ((False, True) if "topk" in kind else (None,))
        if not ("transcoder" in kind and b_dec)  # sae-lens refuses these
    ]


built = cache(Recipe.build)


def recipes(dtype: str = "float32") -> st.SearchStrategy[Recipe]:
    """Every kind × normalisation × option."""
    return st.sampled_from(_recipes(dtype))


@st.composite
def activations_of_a_model(
    draw: st.DrawFn, dtype: torch.dtype = torch.float32, n_pos: int | None = None
) -> torch.Tensor:
    """[pos, D_IN]: any scale, not centred, with position 0 far larger than the others."""
    n_pos = draw(st.integers(1, 5)) if n_pos is None else n_pos
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(n_pos, D_IN, generator=generator, dtype=torch.float64)
    x = (x + draw(st.floats(-2, 2))) * draw(st.sampled_from([0.1, 1.0, 30.0]))
    x[0] *= draw(st.sampled_from([1.0, 100.0]))
    return x.to(dtype)
