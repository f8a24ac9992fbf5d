"""The gated delta rule: linear attention with a state that decays and is corrected, and no pattern handed out.

With q, k, β and the decay frozen its heads are exactly linear in the values, so it has a pattern like any attention,
only signed (D[n, k] the decay between two positions):

    A = (Q Kᵀ/√d ∘ D) (I + tril(β K Kᵀ ∘ D, −1))⁻¹ diag β
    v = silu(c), c the causal convolution of W_V x̂: frozen as the slope v/c
    z[n, h] = norm(Σ_k A_h[n, k] v[k]) ∘ gate(x̂[n]): the norm's scale and the gate frozen
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ...errors import UserError
from ...models import parts
from ...models.parts import Convolved, Linear, Norm, Size
from ...models.sublayer import Tap
from ..rules import QK, Rule, slope
from .attention import Attention
from .mixer import Record


class DeltaRule(Attention):
    """What a :class:`parts.DeltaRule` does: attention with a pattern, values and a factor of its own."""

    part: parts.DeltaRule  # type: ignore[assignment]
    moves_as_mapped = False
    _looks_inside = True

    def __init__(self, part: parts.DeltaRule) -> None:
        self.part = part

    @property
    def n_kv_heads(self) -> int:
        return self.part.n_heads

    @property
    def window(self) -> None:
        return None

    @property
    def value_map(self) -> Linear:
        return self.part.v.linear

    def frozen_values(self, y: Float[Tensor, "pos d_kv"], record: Record) -> list[Float[Tensor, "pos *"]]:
        """The activation's slope, and how far into its prompt each position is."""
        age = record.at["age"]
        return [slope(self.part.v.act, _slid(self.part.v, y, age)), age]

    def values(
        self, y: Float[Tensor, "pos *comp d_kv"], frozen: list[Float[Tensor, "pos *"]]
    ) -> Float[Tensor, "pos *comp d_kv"]:
        steep, age = frozen
        return _slid(self.part.v, y, age) * _beside(steep, y)

    def values_back(
        self, gradient: Float[Tensor, "pos target d_kv"], frozen: list[Float[Tensor, "pos *"]]
    ) -> Float[Tensor, "pos target d_kv"]:
        steep, age = frozen
        return _slid(self.part.v, gradient * _beside(steep, gradient), age, back=True)

    def live_values(self, y: Float[Tensor, "pos d_kv"]) -> Float[Tensor, "pos d_kv"]:
        return self.part.v.act(_slid(self.part.v, y, torch.arange(len(y), device=y.device)))

    def factor(
        self, normed: Float[Tensor, "pos d_model"], moved: Callable[[], Float[Tensor, "pos d_inner"]], size: Size | None
    ) -> Float[Tensor, "pos d_inner"]:
        norm, gate = self.part.head_norm.to(normed), self.part.gate.to(normed)
        heads = moved().unflatten(-1, (self.part.n_heads, -1))
        return (norm.scale(heads) * norm.gain).flatten(-2) * gate(normed, size)

    def attend(self, normed: Float[Tensor, "pos d_model"], size: Size | None = None) -> Float[Tensor, "head query key"]:
        part, dtype = self.part, normed.dtype
        q, k = (self._normed_heads(into, normed, size) for into in (part.q, part.k))
        beta, decay = part.beta.to(normed)(normed, size).T, part.decay.to(normed)(normed, size).T
        total = decay.double().cumsum(-1)  # over a long prompt it is large, and what neighbours differ by is small
        fades = (total[:, :, None] - total[:, None]).tril().to(dtype).exp().tril()
        corrects = (beta[..., None] * (k @ k.mT) * fades).tril(-1)
        eye = torch.eye(len(normed), dtype=dtype, device=normed.device)
        written = torch.linalg.solve_triangular(eye + corrects, torch.diag_embed(beta), upper=False, unitriangular=True)
        return (q @ k.mT / q.shape[-1] ** 0.5 * fades) @ written

    def _normed_heads(
        self, into: Convolved, normed: Float[Tensor, "pos d_model"], size: Size | None
    ) -> Float[Tensor, "head pos d_qk"]:
        age = torch.arange(len(normed), device=normed.device)
        mapped = into.act(_slid(into, into.linear.to(normed)(normed, size), age))
        heads = self.part.qk_norm.to(normed)(mapped.unflatten(-1, (self.part.n_qk_heads, -1)))
        return heads.repeat_interleave(self.part.n_heads // self.part.n_qk_heads, 1).transpose(0, 1)

    def look(self) -> Attention:
        raise UserError(
            "this layer attends by the gated delta rule: its pattern comes of keys that correct one another, so that "
            "no single score stands behind it; ask a layer of full attention"
        )

    def sharing(self, normed: Float[Tensor, "pos d_model"], record: Record, qk: QK | None) -> None:
        """No single score stands behind its pattern: queries and keys have no share, and all of it goes to values."""

    def _looking(self, rule: Rule) -> tuple[Linear, ...]:
        return ()

    def taps(self) -> dict[str, Tap]:
        return {}

    def record(self, noted: Mapping[str, Tensor], norm: Norm, stream: Float[Tensor, "pos d_model"]) -> Record:
        age = torch.arange(len(stream), device=stream.device)
        return Record(pattern=self.attend(norm(stream)), at={"age": age})

    def blank(self, n: int, dtype: torch.dtype, compute: torch.dtype) -> Record:
        return super().blank(n, compute, compute)


def _slid(
    into: Convolved, y: Float[Tensor, "pos *comp d_kv"], age: Int[Tensor, "pos"], back: bool = False
) -> Float[Tensor, "pos *comp d_kv"]:
    """Each channel's causal convolution over the positions of its prompt; back: its transpose.

    age: how far into its prompt each position is. Beyond the prompt's beginning there is nothing.
    """
    taps = into.taps.to(y)
    last, found = taps.shape[1] - 1, taps[:, -1] * y
    for by in range(1, min(last, len(y) - 1) + 1):  # so many positions before
        reaches = _beside((age >= by).to(y.dtype)[:, None], y)
        term = taps[:, last - by] * (_shifted(y * reaches, -by) if back else _shifted(y, by) * reaches)
        found = found + term
    return found


def _shifted(y: Float[Tensor, "pos *comp d"], by: int) -> Float[Tensor, "pos *comp d"]:
    """Moved to later positions, or to earlier ones."""
    some = y[: len(y) - by] if by > 0 else y[-by:]
    return functional.pad(some, [0, 0] * (y.dim() - 1) + [max(by, 0), max(-by, 0)])


def _beside(x: Float[Tensor, "pos d"], y: Float[Tensor, "pos *comp d"]) -> Float[Tensor, "pos *1 d"]:
    """x with a dimension of one for each that y has more."""
    return x.view(len(x), *[1] * (y.dim() - 2), -1)
