"""A vector from a file: a .npy, or one tensor of a .safetensors. Neither can hold anything that runs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..files import expanded


def read_vector(written: str) -> tuple[Tensor, str]:
    """The vector of ``FILE.npy``, ``FILE.safetensors`` or ``FILE.safetensors#NAME``, and what to call it.

    Raises UserError for a file that cannot be read, and for what is no vector of numbers.
    """
    text, hash_, name = written.partition("#")
    path = expanded(text)
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".safetensors"):
        raise UserError(f"a direction is read from a .npy or .safetensors file, not from {path}")
    if hash_ and suffix == ".npy":
        raise UserError(f"{path} has one array and no names; leave #{name} out")
    found = _of_npy(path) if suffix == ".npy" else _of_safetensors(path, name if hash_ else None)
    if found.dim() != 1 or not found.numel():
        raise UserError(f"{path} holds numbers of shape {list(found.shape)}; a direction is one row of them, [d_model]")
    if found.is_complex() or found.dtype == torch.bool:
        raise UserError(f"{path} holds {found.dtype}; a direction is of plain numbers")
    return found, f"{path.name}{hash_}{name}"


def _of_npy(path: Path) -> Tensor:
    import numpy as np

    try:
        return torch.as_tensor(np.array(np.load(path, allow_pickle=False)))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a .npy of numbers: {_line(error)}") from None


def _of_safetensors(path: Path, name: str | None) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if name is None and len(names) == 1:
                name = names[0]
            if name is not None and name in names:
                found: Tensor = file.get_tensor(name)
                return found
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {_line(error)}") from None
    told = ", ".join(sorted(names)[:8]) or "none"
    raise UserError(f"say which tensor of {path} is the direction, as {path.name}#NAME; there are {told}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
