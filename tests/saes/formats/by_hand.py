"""Dictionaries written byte by byte as their libraries do, in float64, and what their formulas give on `X`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from depass_sae.errors import UserError
from depass_sae.models.place import Place
from depass_sae.saes import encode, encoder_direction, hook_of, load_saes, pre_activations, threshold_gap

D_IN, D_SAE, K = 8, 24, 4
MODEL = "HuggingFaceTB/SmolLM2-135M"
_X = torch.Generator().manual_seed(7)
X = 2 * torch.randn(30, D_IN, generator=_X, dtype=torch.float64) + 0.5


def random(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Tensors by name ("__" for a dot), different for every name."""
    found = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        found[name.replace("__", ".")] = torch.randn(shape, generator=generator, dtype=torch.float64)
    return found


def write(folder: Path, config: str, values: Any, weights: str, tensors: dict[str, Tensor]) -> Path:
    (folder / weights).parent.mkdir(parents=True, exist_ok=True)
    (folder / config).write_text(json.dumps(values))
    if weights.endswith(".safetensors"):
        save_file({name: values.contiguous() for name, values in tensors.items()}, folder / weights)
    else:
        torch.save(tensors, folder / weights)
    return folder


def activations(sae: Any) -> Tensor:
    """[pos, d_sae] of what has as many dimensions as the SAE reads."""
    x = torch.randn(6, sae.cfg.d_in, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    return sae.encode(x.to(sae.W_enc.dtype))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


def largest(pre: Tensor, k: int, by: Tensor | None = None) -> Tensor:
    """The k largest of each row, none below 0. by: what is compared instead."""
    scores = pre if by is None else by
    kept = scores >= scores.sort(-1, descending=True).values[:, k - 1 : k]
    return torch.where(kept & (pre > 0), pre, 0)


def assert_is(source: Any, place: str, architecture: str, acts: Tensor, out: Tensor, **options: Any) -> Any:
    """What is loaded reads there, encodes and decodes so, and its directions and parts are of the same."""
    ((hook, sae),) = load_saes(source, **options).items()
    assert hook == hook_of(sae) == Place.parse(place)
    assert sae.cfg.architecture() == architecture
    assert 0 < (acts != 0).sum() < acts.numel()
    close(sae.encode(X), acts)
    close(sae(X), out)
    seen = encode(sae, X)
    parts = seen.parts
    total = parts.constant.index_add(0, parts.pos, parts.parts)
    close(total if parts.skip is None else total + parts.skip, out)
    assert parts.error is None or torch.allclose(total + parts.error, X, atol=1e-9)
    for j in (0, D_SAE - 1):
        direction = encoder_direction(sae, X, j)
        close((direction.w * X).sum(-1) + direction.c, pre_activations(sae, X)[:, j])
        gap = threshold_gap(sae, X, j)
        assert torch.equal(gap >= 0 if "topk" in architecture else gap > 0, acts[:, j] != 0)  # 0: the last of the k
    return sae


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        load_saes(source, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)
