"""Source → head → target: each head's contribution, split by the token that it came from.

A head moves what stands at its keys: its contribution is Σ_k ⟨U_h[k], X̂[k]⟩ with U_h[k] what the target, through the
head and the frozen network behind it, reads at key k (from the sweep). The token pass says which token put which part
of X̂[k] there. So both engines meet in the middle, and the ledger is exact: a head's row, with the ``bias`` and ``rest``
columns, sums to the head's contribution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..passes.batch import Aim, Batch, sweep_each
from ..passes.memory import Budget, spans
from ..passes.propagate import Allocation, Progress, propagate
from ..passes.rows import Rows, on
from ..passes.sources import Spans
from ..passes.sublayers import CONTRIBUTION
from ..passes.sweep import Level
from ..passes.trace import Trace
from .targets import Readoff


def heads_by_token(
    seen: Trace,
    readoff: Readoff,
    positions: Sequence[int],
    allocation: Allocation,
    budget: Budget,
    progress: Progress | None,
) -> dict[int, Float[Tensor, "target head comp"]]:
    """The heads of every layer by source token, up to the last of the targets; then ``bias`` and ``rest``.

    Tokens go in groups whose streams fit into memory at all layers together: under these rules none is in the way of
    another.
    """
    seen, layers = seen.first(max(positions) + 1), readoff.point[0] + 1
    n = len(seen.token_ids)
    kept = seen.resid_post.element_size() * seen.adapter.d_model * layers
    aims = [Aim(readoff.point, readoff.direction.w[pos], pos) for pos in positions]
    found: dict[int, Tensor] = {}
    for low, high in spans([n - token for token in range(n)], kept, budget.kept(seen.resid_post)):
        streams = TokenStreams.of(seen, range(low, high), layers, allocation, budget, progress)

        def visit(
            batch: Batch, levels: Iterator[Level], streams: TokenStreams = streams, tokens: slice = slice(low, high)
        ) -> None:
            for level in levels:
                if level.sublayer == "attn":
                    shares = streams.split(batch.trace, level).double().cpu()
                    table = found.setdefault(level.layer, shares.new_zeros(len(aims), shares.shape[1], n + 2))
                    table[batch.which, :, tokens] = shares[batch.lanes, :, :-2]
                    table[batch.which, :, -2] = shares[batch.lanes, :, -2]

        sweep_each([seen], aims, CONTRIBUTION[allocation.rule], visit, budget)
    return found


@dataclass(frozen=True)
class TokenStreams:
    """Some of the prompt's tokens as components of the stream before every layer, the others as ``rest``."""

    rows: dict[int, Rows]

    @classmethod
    def of(
        cls, trace: Trace, some: range, layers: int, allocation: Allocation, budget: Budget, progress: Progress | None
    ) -> TokenStreams:
        positions = torch.arange(len(trace.token_ids))
        reads = {(layer, "resid_pre"): positions for layer in range(layers)}
        source = Spans([[token] for token in some], [str(token) for token in some])
        found = propagate(trace, source.start(trace), reads, allocation, budget=budget, progress=progress)
        return cls({layer: rows for (layer, _), rows in found.items()})

    def split(self, trace: Trace, level: Level) -> Float[Tensor, "target head comp"]:
        """The heads of one layer by source token; the last two components are ``bias`` and ``rest``."""
        layer = trace.adapter.layer(level.layer)
        attention, dtype = layer.attention, trace.resid_post.dtype
        norm, v = layer.attn_norm.to(dtype), layer.attention.v.to(dtype)
        resid = trace.resid_pre[level.layer]
        rows = self.rows[level.layer].keep(torch.arange(len(resid)))
        gradient = level.inner.unflatten(-1, (attention.n_heads, attention.d_head))
        at_keys = torch.einsum("hnk,tnhe->tkhe", trace.pattern[level.layer].to(dtype), gradient)
        kv_head = torch.arange(attention.n_heads, device=resid.device) // (attention.n_heads // attention.n_kv_heads)
        weight = v.weight.unflatten(-1, (attention.n_kv_heads, attention.d_head))[:, kv_head]  # [d_model, head, d_head]
        read = torch.einsum(
            "tkhe,dhe->tkhd", at_keys, weight
        )  # U: what the target reads at each key, through each head
        pos, comp = (on(resid, index) for index in rows.index)
        scaled = norm.centre(rows.values) * norm.scale(resid)[pos] * norm.gain
        products = torch.einsum("trhd,rd->thr", read[:, pos], scaled)
        shares = products.new_zeros(*products.shape[:2], rows.n_components)
        shares.index_add_(2, comp, products)
        if norm.bias is not None:
            shares[..., -2] += torch.einsum("tkhd,d->th", read, norm.bias)
        if v.bias is not None:
            bias = v.bias.unflatten(-1, (attention.n_kv_heads, attention.d_head))[kv_head]
            shares[..., -2] += torch.einsum("tkhe,he->th", at_keys, bias)
        return shares
