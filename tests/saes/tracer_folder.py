"""Folders of random transcoders as circuit-tracer keeps them."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..passes.models import D_MODEL, LAYERS

WIDTHS = (40, 24, 32)


@dataclass
class Weights:
    """Of a cross-layer transcoder, by layer, as they are in the files."""

    W_enc: list[Tensor] = field(default_factory=list)
    b_enc: list[Tensor] = field(default_factory=list)
    W_dec: list[Tensor] = field(default_factory=list)  # [d_sae, layers from here on, d_model]
    b_dec: list[Tensor] = field(default_factory=list)
    threshold: list[Tensor] | None = None

    def pre(self, x: Tensor, layer: int) -> Tensor:
        return x @ self.W_enc[layer].to(x).T + self.b_enc[layer].to(x)

    def encode(self, x: Tensor, layer: int) -> Tensor:
        pre = self.pre(x, layer)
        return pre.relu() if self.threshold is None else torch.where(pre > self.threshold[layer].to(x), pre, 0)

    def write(self, path: Path, **config: str | None) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        for layer in range(len(self.W_enc)):
            tensors = {f"{name}_{layer}": getattr(self, name)[layer] for name in ("W_enc", "b_enc", "b_dec")}
            if self.threshold is not None:
                tensors[f"threshold_{layer}"] = self.threshold[layer]
            save_file(tensors, path / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": self.W_dec[layer]}, path / f"W_dec_{layer}.safetensors")
        return write_config(path, **({"model_kind": "cross_layer_transcoder"} | config))


def write_config(path: Path, **config: str | None) -> Path:
    """None leaves a key out."""
    whole = {
        "model_name": "meta-llama/Llama-3.2-1B",
        "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out",
    } | config
    lines = [f'{key}: "{value}"' for key, value in whole.items() if value is not None]
    (path / "config.yaml").write_text("\n".join(lines) + "\n")
    return path


def random_weights(
    jumprelu: bool = False, dtype: torch.dtype = torch.float32, widths: tuple[int, ...] = WIDTHS, seed: int = 0
) -> Weights:
    """As large as the streams of tiny models; of a jumprelu, some thresholds are below 0."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    made = Weights(threshold=[] if jumprelu else None)
    for layer, d_sae in enumerate(widths):
        made.W_enc.append(0.3 * random(d_sae, D_MODEL))
        made.b_enc.append(0.3 * random(d_sae))
        made.W_dec.append(0.3 * random(d_sae, len(widths) - layer, D_MODEL))
        made.b_dec.append(random(D_MODEL))
        if made.threshold is not None:
            made.threshold.append(random(d_sae) + 0.5)
    return made


def write_transcoder(path: Path, layer: int, *, jumprelu: bool = False, skip: bool = False) -> dict[str, Tensor]:
    """One file of a set; its tensors."""
    generator = torch.Generator().manual_seed(layer)
    shapes = {"W_enc": (40, D_MODEL), "b_enc": (40,), "W_dec": (40, D_MODEL), "b_dec": (D_MODEL,)}
    if skip:
        shapes["W_skip"] = (D_MODEL, D_MODEL)
    tensors = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if jumprelu:
        tensors["activation_function.threshold"] = torch.rand(40, generator=generator)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / f"layer_{layer}.safetensors")
    return tensors


assert len(WIDTHS) == LAYERS
