"""Qwen-Scope: layerN.sae.pt for each layer, W_enc [d_sae, d_in], W_dec [d_in, d_sae], b_enc and b_dec.

A topk SAE on what the layer puts out, b_dec not subtracted. k and the model stand in the repository's name alone, so
the folder has to be called that (the hub's cache does): SAE-Res-Qwen3-1.7B-Base-W32K-L0_50.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..weights import check_tensors, made, read_tensors
from .folder import Format, Stored

if TYPE_CHECKING:
    from sae_lens import SAE

FILE = re.compile(r"layer(0|[1-9]\d{0,5})\.sae\.pt")
NAME = re.compile(r"SAE-Res-([\w.-]+)-W(\d+)K-L0_(\d+)")


def _layers(folder: Path) -> dict[int, Path]:
    found = ((FILE.fullmatch(file.name), file) for file in folder.iterdir())
    return {int(match[1]): file for match, file in found if match}


def _read(folder: Path) -> list[Stored]:
    name = next((match for part in reversed(folder.resolve().parts) if (match := NAME.search(part))), None)
    if name is None:
        raise UserError(
            f"{folder} does not say how many features are active: call it as the repository is called, such as "
            "SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
        )
    layers = _layers(folder)
    if not layers:
        raise UserError(f"{folder} has no layerN.sae.pt")
    d_sae, k = 1024 * int(name[2]), int(name[3])
    stored = []
    for layer, file in sorted(layers.items()):
        metadata = {
            "model_name": f"Qwen/{name[1]}",
            "hf_hook_name": f"model.layers.{layer}.output",
            "sae_id": f"{name[0]}/{layer}",
        }
        stored.append(Stored(str(file), "topk", metadata, partial(_load, file, metadata, d_sae, k)))
    return stored


def _load(file: Path, metadata: dict[str, Any], d_sae: int, k: int) -> SAE:
    found = read_tensors(file)
    d_in = len(found["b_dec"]) if "b_dec" in found and found["b_dec"].ndim == 1 else 1
    shapes = {"W_enc": (d_sae, d_in), "W_dec": (d_in, d_sae), "b_enc": (d_sae,), "b_dec": (d_in,)}
    weights = check_tensors(file, found, shapes, f"features: {d_sae}, d_in: {d_in}")
    if not 0 < k <= d_sae:
        raise UserError(f"{file}: k, the number of features that are active, should be from 1 to {d_sae}, and is {k}")
    return made("topk", weights | {name: weights[name].T for name in ("W_enc", "W_dec")}, metadata, k=k)


FORMAT = Format("qwen-scope", "layerN.sae.pt", FILE, lambda folder: bool(_layers(folder)), _read)
