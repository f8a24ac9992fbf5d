"""What a scan and the bare pass beside it share: the packs of a unit, and the model alone on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def packs_of(unit: Any) -> list[tuple[Any, int]]:
    """A unit's windows as a scan packs them, ids [window, token]; and of each how many tokens are no padding."""
    import torch

    from depass_sae.index.firings import TOGETHER
    from depass_sae.passes.many import alike_in_length

    rows, packs = [window.token_ids for window in unit.windows], []
    for group in alike_in_length([len(ids) for ids in rows], TOGETHER):
        longest = max(len(rows[i]) for i in group)
        pack = torch.tensor([[*rows[i], *rows[i][-1:] * (longest - len(rows[i]))] for i in group])
        packs.append((pack, sum(len(rows[i]) for i in group)))
    return packs


def run_bare(model: Any, packs: Iterable[Any]) -> None:
    import torch

    with torch.no_grad():
        for pack in packs:
            model(pack, use_cache=False)
