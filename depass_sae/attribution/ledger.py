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

from ..models.place import Place
from ..passes.backward import Level
from ..passes.many import Aim, Batch
from ..passes.memory import spans
from ..passes.record import Trace
from ..passes.rows import REST, Rows
from ..passes.rules import QK
from ..passes.settings import Settings
from ..passes.sources import Spans
from .readoff import Readoff


def heads_by_token(
    seen: Trace,
    readoff: Readoff,
    positions: Sequence[int],
    settings: Settings,
) -> dict[int, Float[Tensor, "target head comp"]]:
    """The heads of every layer by source token, up to the last of the targets; then what is no token.

    Tokens go in groups whose streams fit into memory at all layers together: under these rules none is in the way of
    another.
    """
    seen, layers = seen.first(max(positions) + 1), readoff.place[0] + 1
    n = len(seen.token_ids)
    kept = seen.resid_post.element_size() * seen.adapter.d_model * layers
    aims = [Aim(readoff.place, readoff.direction.w[pos], pos) for pos in positions]
    found: dict[int, Tensor] = {}
    aside = len(settings.allocation.aside)
    for low, high in spans([n - token for token in range(n)], kept, settings.budget.kept(seen.resid_post)):
        streams = TokenStreams.of(seen, range(low, high), layers, settings)

        def visit(
            batch: Batch, levels: Iterator[Level], streams: TokenStreams = streams, tokens: slice = slice(low, high)
        ) -> None:
            for level in levels:
                if level.looks_back:
                    shares = streams.split(level).double().cpu()
                    table = found.setdefault(level.layer, shares.new_zeros(len(aims), shares.shape[1], n + aside))
                    table[batch.which, :, tokens] = shares[batch.lanes, :, :-aside]
                    table[batch.which, :, -aside:REST] = shares[batch.lanes, :, -aside:REST]

        settings.quiet().sweep([seen], aims, visit)
    return found


@dataclass(frozen=True)
class TokenStreams:
    """Some of the prompt's tokens as components of the stream before every layer, the others as ``rest``."""

    rows: dict[int, Rows]
    qk: QK | None

    @classmethod
    def of(cls, trace: Trace, some: range, layers: int, settings: Settings) -> TokenStreams:
        positions = torch.arange(len(trace.token_ids))
        reads = {Place(layer, "resid_pre"): positions for layer in range(layers)}
        source = Spans([[token] for token in some], [str(token) for token in some])
        found = settings.carry(trace, source.start(trace), reads)
        return cls({place.layer: rows for place, rows in found.items()}, settings.allocation.qk)

    def split(self, level: Level) -> Float[Tensor, "target head comp"]:
        """The heads of one layer by source token; the last components are no tokens."""
        rows = self.rows[level.layer].keep(torch.arange(len(level.frozen.resid)))
        return level.frozen.mixer.split_by_source(level.frozen, level.inner, rows, self.qk)
