"""What the edges of a graph lead to: features, logits and SAE errors, each an affine reading of the stream.

A node is read along one direction with its norms frozen (``w``, whose inner products are contributions) and along its
gradient with them live (``slope``, for effects).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.readoff import Target, gradient
from ..models.place import Place
from ..passes.record import Trace
from ..saes import Encoded, encoder_directions, live_pre_activation
from ..subject import Subject
from .cuts import Cut


@dataclass(frozen=True)
class Reads:
    """Readings at one point of the stream: pre = ⟨w, x[pos]⟩ + constant."""

    place: Place
    pos: Int[Tensor, "read"]
    w: Float[Tensor, "read d_model"] = field(repr=False)
    slope: Float[Tensor, "read d_model"] = field(repr=False)
    constant: Float[Tensor, "read"]
    pre: Float[Tensor, "read"]

    def __len__(self) -> int:
        return len(self.pos)

    @classmethod
    def joined(cls, parts: Sequence[Reads]) -> Reads:
        """Several, read at the same point."""
        columns = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("pos", "w", "slope", "constant", "pre")
        )
        return cls(parts[0].place, *columns)

    def some(self, which: Int[Tensor, "some"] | slice) -> Reads:
        return Reads(
            self.place, self.pos[which], self.w[which], self.slope[which], self.constant[which], self.pre[which]
        )


def feature_reads(cut: Cut, pos: Int[Tensor, "read"], index: Int[Tensor, "read"]) -> Reads:
    """Features at positions, their pre-activations being sae-lens's own."""
    assert cut.encoded is not None
    return encoder_reads(cut.encoded, cut.hook, pos, index)


def encoder_reads(encoded: Encoded, point: Place, pos: Int[Tensor, "read"], index: Int[Tensor, "read"]) -> Reads:
    """Features of an SAE on any read point, at positions."""
    sae, x = encoded.sae, encoded.x
    direction = encoder_directions(sae, x[pos], index)
    return Reads(
        place=point,
        pos=pos,
        w=direction.w.to(x),
        slope=gradient(lambda rows: live_pre_activation(sae, rows, index), x[pos]).to(x),
        constant=direction.c.to(x),
        pre=encoded.pre[pos, index].to(x),
    )


def target_read(subject: Subject, seen: Trace, target: Target, pos: int) -> Reads:
    """Any target at one position."""
    readoff = target.read(subject, seen)
    here = slice(pos, pos + 1)
    x = seen.at(readoff.place)
    return Reads(
        place=readoff.place,
        pos=torch.tensor([pos], device=x.device),
        w=readoff.direction.w[here].to(x),
        slope=target.slope(subject, x[here]).to(x),
        constant=readoff.direction.c[here].to(x),
        pre=readoff.pre[here].to(x),
    )


def error_reads(cut: Cut, seen: Trace, positions: Sequence[int], along: Float[Tensor, "pos d_model"]) -> Reads:
    """Errors of a whole cut, read along what the graph's target makes of them.

    With the active features fixed, error = x − Σ_i (⟨w_i, x⟩ + c_i) d_i − constant is affine in x, so ⟨u, error⟩ is
    read along u − Σ_i ⟨u, d_i⟩ w_i. along: u at every position.
    """
    x = seen.at(cut.place)
    w, constant = [], []
    for pos in positions:
        some = slice(cut.offsets[pos], cut.offsets[pos + 1])
        n = some.stop - some.start
        read = encoder_directions(cut.sae, x[pos].expand(n, -1), cut.active.index[some])
        per_unit = (cut.part(some).to(x) @ along[pos]) / cut.active.activation[some].to(x)
        w.append(along[pos] - per_unit @ read.w.to(x))
        constant.append(-per_unit @ read.c.to(x) - along[pos] @ cut.constant[pos])
    where = torch.tensor(list(positions), device=x.device)
    pre = (along[where] * cut.roots[where]).sum(-1)
    return Reads(cut.place, where, torch.stack(w), torch.stack(w), torch.stack(constant), pre)
