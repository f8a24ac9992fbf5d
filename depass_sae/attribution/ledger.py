"""Source → head → target: each head's contribution, split by the token that it came from.

A head moves what stands at its keys: its contribution is Σ_k ⟨U_h[k], X̂[k]⟩ with U_h[k] what the target, through the
head and the frozen network behind it, reads at key k (from the sweep). The token pass says which token put which part
of X̂[k] there. So both engines meet in the middle, and the ledger is exact: a head's row, with the ``bias`` and ``rest``
columns, sums to the head's contribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..passes.memory import Budget
from ..passes.propagate import Allocation, Progress, propagate
from ..passes.rows import Rows
from ..passes.sources import Spans
from ..passes.sweep import Level
from ..passes.trace import Trace


@dataclass(frozen=True)
class TokenStreams:
    """The prompt's tokens as components of the stream before every layer."""

    rows: dict[int, Rows]

    @classmethod
    def of(
        cls, trace: Trace, spans: Spans, last: int, allocation: Allocation, budget: Budget, progress: Progress | None
    ) -> TokenStreams:
        positions = torch.arange(len(trace.token_ids), device=trace.resid_post.device)
        reads = {(layer, "resid_pre"): positions for layer in range(last + 1)}
        found = propagate(trace, spans.start(trace), reads, allocation, budget=budget, progress=progress)
        return cls({layer: rows for (layer, _), rows in found.items()})

    def split(self, trace: Trace, level: Level) -> Float[Tensor, "target head comp"]:
        """The heads of one layer by source token; the last two components are ``bias`` and ``rest``."""
        layer = trace.adapter.layer(level.layer)
        attention, dtype = layer.attention, trace.resid_post.dtype
        norm, v = layer.attn_norm.to(dtype), layer.attention.v.to(dtype)
        resid, rows = trace.resid_pre[level.layer], self.rows[level.layer]
        gradient = level.inner.unflatten(-1, (attention.n_heads, attention.d_head))
        at_keys = torch.einsum("hnk,tnhe->tkhe", trace.pattern[level.layer].to(dtype), gradient)
        kv_head = torch.arange(attention.n_heads, device=resid.device) // (attention.n_heads // attention.n_kv_heads)
        weight = v.weight.unflatten(-1, (attention.n_kv_heads, attention.d_head))[:, kv_head]  # [d_model, head, d_head]
        read = torch.einsum(
            "tkhe,dhe->tkhd", at_keys, weight
        )  # U: what the target reads at each key, through each head
        scaled = norm.centre(rows.values) * norm.scale(resid)[rows.index[0]] * norm.gain
        products = torch.einsum("trhd,rd->thr", read[:, rows.index[0]], scaled)
        shares = products.new_zeros(*products.shape[:2], rows.n_components)
        shares.index_add_(2, rows.index[1], products)
        if norm.bias is not None:
            shares[..., -2] += torch.einsum("tkhd,d->th", read, norm.bias)
        if v.bias is not None:
            bias = v.bias.unflatten(-1, (attention.n_kv_heads, attention.d_head))[kv_head]
            shares[..., -2] += torch.einsum("tkhe,he->th", at_keys, bias)
        return shares
