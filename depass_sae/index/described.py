"""The model and the SAEs that an index is of, as its manifest has them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

import torch

from ..models.place import Place
from ..saes import describe
from ..subject import Subject

if TYPE_CHECKING:
    from sae_lens import SAE

    from .schema import ModelKeys, ScannedSAE


def described_saes(saes: Mapping[Place, SAE]) -> dict[str, ScannedSAE]:
    """By hook, in order."""
    return {
        str(hook): cast("ScannedSAE", {**describe(saes[hook]), "hook": str(hook), "sha256": weights_hash(saes[hook])})
        for hook in sorted(saes)
    }


def weights_hash(sae: SAE) -> str:
    """Of all tensors that make the SAE what it is, by their names; whatever device they are on."""
    found = hashlib.sha256()
    for name, tensor in sorted(_tensors(sae).items()):
        if tensor is None:
            continue
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        for block in _blocks(tensor.detach()):
            found.update(block.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def weights_state(sae: SAE) -> tuple[int, ...] | None:
    """What changes when a tensor of the SAE is written to; None where nobody counts that."""
    try:
        return tuple(tensor._version for tensor in _tensors(sae).values() if tensor is not None)
    except RuntimeError:  # made in inference mode
        return None


def _tensors(sae: SAE) -> dict[str, torch.Tensor | None]:
    named = sae.state_dict() if hasattr(sae, "state_dict") else {}
    return named or {name: getattr(sae, name) for name in ("W_enc", "b_enc", "threshold") if hasattr(sae, name)}


def _blocks(tensor: torch.Tensor) -> Iterable[torch.Tensor]:
    return tensor.reshape(-1).split(2**24)


def described_model(subject: Subject) -> ModelKeys:
    config = subject.adapter.model.config
    known = {name: getattr(config, name, None) for name in ("model_type", "_commit_hash")}
    return {
        "name": subject.loaded.name,
        "dtype": subject.dtype_name,
        "type": known["model_type"],
        "revision": known["_commit_hash"],
        "layers": subject.adapter.n_layers,
        "d_model": subject.adapter.d_model,
    }
