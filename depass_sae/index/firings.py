"""Every feature of every SAE on a unit of windows: one pass of the model, which ends above the last hook.

Windows alike in length go through it together, padded at their ends, where no position of theirs can look; no window
sees another. What counts are all positions but a special token at the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..passes.many import alike_in_length
from ..passes.record import read_places
from ..saes import activations
from ..saes.encode import DENSEST
from ..subject import Subject
from .hashing import place_hash
from .units import Window

if TYPE_CHECKING:
    from sae_lens import SAE

TOGETHER = 2048
"""Positions that go through the model at once."""
AT_ONCE = 2**24
"""Numbers of an SAE's features at once: 64 MiB, however wide it is."""
MOST_ACTIVE = 4096
"""Features per token. An SAE with more, that are a large share of all, is fed a wrong scale, and fills any memory."""


@dataclass(frozen=True)
class Tokens:
    """The positions of a unit's windows, one after the other."""

    token: Int[np.ndarray, "pos"]
    window: Int[np.ndarray, "pos"]
    """The row of it among the unit's windows."""
    pos: Int[np.ndarray, "pos"]
    document: Int[np.ndarray, "pos"]
    number: Int[np.ndarray, "pos"]
    """Of the window in its document."""
    counted: Bool[np.ndarray, "pos"]

    @classmethod
    def of(cls, windows: Sequence[Window]) -> Tokens:
        lengths = np.array([len(window.token_ids) for window in windows])
        starts = np.cumsum(lengths) - lengths
        pos = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        special = np.repeat([window.special for window in windows], lengths)
        return cls(
            token=np.concatenate([np.array(window.token_ids, dtype=np.int32) for window in windows]),
            window=np.repeat(np.arange(len(windows), dtype=np.int32), lengths),
            pos=pos.astype(np.int32),
            document=np.repeat(np.array([window.document for window in windows], dtype=np.int64), lengths),
            number=np.repeat(np.array([window.number for window in windows], dtype=np.int32), lengths),
            counted=~(special & (pos == 0)),
        )

    @cached_property
    def hash(self) -> UInt[np.ndarray, "pos"]:
        return place_hash(self.document, self.number, self.pos)

    @cached_property
    def starts(self) -> Int[np.ndarray, "window"]:
        return (self.pos == 0).nonzero()[0]


@dataclass(frozen=True)
class Firings:
    """Where an SAE's features fire, sorted by feature and then by position. at: the row of :class:`Tokens`."""

    feature: Int[np.ndarray, "firing"]
    at: Int[np.ndarray, "firing"]
    activation: Float[np.ndarray, "firing"]

    @classmethod
    def joined(cls, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Firings:
        if not parts:
            return cls(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32))
        feature, at, activation = (torch.cat(x).cpu().numpy() for x in zip(*parts, strict=True))
        order = np.argsort(feature.astype(np.int64) << 32 | at)  # no two are equal
        return cls(feature[order].astype(np.int32), at[order].astype(np.int32), activation[order].astype(np.float32))


def fired(
    subject: Subject, windows: Sequence[Window], tokens: Tokens, tell: Callable[[int], None] = lambda done: None
) -> dict[Place, Firings]:
    """What fires at every SAE's hook. tell: is called with how many positions are done.

    Raises UserError where the model overflows, and for an SAE that fires as densely as none does where it belongs.
    """
    found: dict[Place, list[tuple[Tensor, Tensor, Tensor]]] = {hook: [] for hook in subject.saes}
    done = 0
    for group in alike_in_length([len(window.token_ids) for window in windows], TOGETHER):
        longest = max(len(windows[i].token_ids) for i in group)
        rows = [windows[i].token_ids for i in group]
        batch = torch.tensor([[*ids, *ids[-1:] * (longest - len(ids))] for ids in rows])
        real = torch.arange(longest) < torch.tensor([[len(ids)] for ids in rows])
        at = torch.from_numpy(tokens.starts[group])[:, None] + torch.arange(longest)
        real &= torch.from_numpy(tokens.counted)[at.clamp(max=len(tokens.token) - 1)]
        seen = read_places(subject.adapter, batch, subject.saes, subject.trace_dtype)
        for hook, sae in subject.saes.items():
            x = seen[hook]
            x = x[real.to(x.device)]
            if not x.isfinite().all():
                raise UserError(
                    f"{subject.loaded.name} computes NaN or infinity in {subject.dtype_name} at {hook} in "
                    f"{windows[group[0]].name}, or one of the {len(group)} texts beside it; try float32"
                )
            found[hook] += _encoded(sae, hook, x, at[real])
        done += int(real.sum())
        tell(done)
    return {hook: Firings.joined(found.pop(hook)) for hook in list(found)}


def _encoded(
    sae: SAE, hook: Place, x: Float[Tensor, "n d"], at: Int[Tensor, "n"]
) -> list[tuple[Int[Tensor, "firing"], Int[Tensor, "firing"], Float[Tensor, "firing"]]]:
    """Feature, row and activation of what fires, a block of positions at a time."""
    step = max(AT_ONCE // sae.cfg.d_sae, 1)
    parts, fires = [], 0
    for begin in range(0, len(x), step):
        acts = activations(sae, x[begin : begin + step])
        pos, feature = acts.nonzero(as_tuple=True)
        fires += len(pos)
        here = at.to(acts.device)[begin : begin + step]
        parts.append((feature.int(), here[pos].int(), acts[pos, feature]))
    if fires > max(DENSEST * sae.cfg.d_sae, MOST_ACTIVE) * len(x):
        raise UserError(
            f"the SAE at {hook} has {fires / len(x):,.0f} of its {sae.cfg.d_sae:,} features active per token: it seems "
            "to belong to another model, layer, hook or scale, and no index of it would say anything"
        )
    return parts
