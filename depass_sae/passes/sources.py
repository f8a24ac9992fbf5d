"""What a stream is split into where a pass starts: tokens, heads, modules, neurons, subspaces, or any given vectors.

A source turns a trace into a :class:`Start`: labelled components that sum to the residual stream, position by position.
A source keeps its own sublayer's biases: a head is z_h W_O^h with b_V in z_h, a module's output includes b_O or b_down.
Two components stand after a source's own in every decomposition: ``bias`` (what bias vectors add on the way) and
``rest`` (what the source leaves over, and what no other component can take).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UserError
from .rows import Rows
from .trace import Point, Trace


@dataclass(frozen=True)
class Start:
    """Components at one point of the residual stream.

    labels: one per component, ``bias`` and ``rest`` last.
    first_only: the components that come from position 0 alone. In most models that position carries a massive,
    meaningless activation, which would win every allocation (see :mod:`.propagate`).
    """

    at: Point
    rows: Rows
    labels: tuple[str, ...]
    first_only: Bool[Tensor, "comp"]


class Source(Protocol):
    """A rule for splitting the stream at one point."""

    def start(self, trace: Trace) -> Start: ...


@dataclass(frozen=True)
class Spans:
    """One component for each group of positions, at ``resid_pre`` of a layer (0: the embeddings, positions included).

    groups: disjoint; positions in no group are left to ``rest``. Sub-tokens of a word that are one group are one
    component from the start, not a sum of scores (paper appendix B.3).
    """

    groups: Sequence[Sequence[int]]
    labels: Sequence[str]
    layer: int = 0

    def start(self, trace: Trace) -> Start:
        x = trace.resid_pre[self.layer]
        n, m = len(x), len(self.groups)
        owner = torch.full((n,), m + 1)  # rest
        for component, group in enumerate(self.groups):
            positions = torch.as_tensor(list(group), dtype=torch.long)
            if (owner[positions] != m + 1).any():
                raise UserError(f"position {positions.tolist()} is in two spans; spans must not overlap")
            owner[positions] = component
        present = torch.zeros(n, m + 2, dtype=torch.bool)
        present[torch.arange(n), owner] = True
        first_only = torch.tensor([list(group) == [0] for group in self.groups] + [False, False])
        rows = Rows(torch.arange(n, device=x.device), present.to(x.device), x)
        return Start((self.layer, "resid_pre"), rows, (*self.labels, "bias", "rest"), first_only.to(x.device))


def tokens(labels: Sequence[str], layer: int = 0) -> Spans:
    """One component per token (paper eq. 18)."""
    return Spans([[position] for position in range(len(labels))], labels, layer)


@dataclass(frozen=True)
class Vectors:
    """Any given vectors, at any point of the residual stream; what they leave over is ``rest``.

    parts: zero where a component is absent. present: where each one takes part (default: everywhere).
    at: (layer, "resid_pre" | "resid_mid" | "resid_post").
    """

    parts: Float[Tensor, "pos comp d_model"]
    labels: Sequence[str]
    at: Point
    present: Bool[Tensor, "pos comp"] | None = None
    first_only: Bool[Tensor, "comp"] | None = None

    def start(self, trace: Trace) -> Start:
        if self.at[1] not in ("resid_pre", "resid_mid", "resid_post"):
            raise UserError(f"a decomposition starts on the residual stream, not at {self.at[1]}")
        x = trace.at(self.at)
        if self.parts.dim() != 3 or self.parts.shape[::2] != x.shape or self.parts.shape[1] != len(self.labels):
            expected = f"[{x.shape[0]}, {len(self.labels)}, {x.shape[1]}]"
            raise UserError(
                f"vectors have shape {list(self.parts.shape)}, expected {expected} (pos, component, d_model)"
            )
        parts = self.parts.to(x)
        present = torch.ones(parts.shape[:2], dtype=torch.bool) if self.present is None else self.present
        present = present.to(x.device)
        parts = parts * present[..., None]
        rest = x - parts.sum(dim=1)
        # What is left over by rounding alone is no component: it would compete for neurons.
        largest = torch.cat([parts, x[:, None]], dim=1).abs().amax((1, 2))
        left = rest.abs().amax(-1) > 100 * torch.finfo(x.dtype).eps * largest
        full = torch.cat([parts, torch.zeros_like(rest)[:, None], rest[:, None]], dim=1)
        mask = torch.cat([present, torch.zeros_like(left)[:, None], left[:, None]], dim=1)
        first = torch.zeros(len(self.labels), dtype=torch.bool) if self.first_only is None else self.first_only
        first = torch.cat([first, torch.zeros(2, dtype=torch.bool)]).to(x.device)
        rows = Rows(torch.arange(len(x), device=x.device), mask, full[mask])
        return Start(self.at, rows, (*self.labels, "bias", "rest"), first)
