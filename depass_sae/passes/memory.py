"""How much memory there is, asked before work that needs much of it."""

from __future__ import annotations

import torch

from ..errors import UserError


def available(device: torch.device) -> int:
    """Free bytes on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)


def check_memory(need: int, what: str, device: torch.device) -> None:
    """Raises UserError where ``what`` needs more bytes than there are."""
    free = available(device)
    if need > free:
        raise UserError(
            f"{what} needs about {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; "
            "try a shorter prompt, fewer layers, or the rule half"
        )
