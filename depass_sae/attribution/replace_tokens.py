"""What really happens to a target when a source is replaced: the measurement beside the decomposition.

Each source's tokens give way to random ones of the vocabulary, several times over, and the model runs on the new text
with nothing frozen. The measured effect is what the target loses on average; it sums to nothing, and it is what a
contribution should be compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import UserError
from ..models.prompt import Prompt, ordinary_ids
from ..passes.propagate import Progress
from ..passes.trace import read_batch
from .subject import Subject

if TYPE_CHECKING:
    from .targets import Target
    from .tokens import Span

BATCH_TOKENS = 4096
"""About how many tokens go through the model at once."""


@dataclass(frozen=True)
class Measured:
    """Per source: what the target loses when its tokens are replaced, mean and standard deviation.

    None for a special token, which is not replaced.
    """

    mean: tuple[float | None, ...]
    spread: tuple[float | None, ...]
    replacements: int
    seed: int

    def rank_correlation(self, contributions: Sequence[float]) -> float | None:
        """Spearman's rank correlation of contributions with measured effects, over the sources that were replaced."""
        from scipy.stats import spearmanr

        pairs = [(c, m) for c, m in zip(contributions, self.mean, strict=True) if m is not None]
        if len(pairs) < 3 or len({c for c, _ in pairs}) < 2 or len({m for _, m in pairs}) < 2:
            return None
        return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def measure(
    subject: Subject,
    prompt: Prompt,
    target: Target,
    pos: int,
    original: float,
    sources: Sequence[Span],
    replacements: int,
    seed: int,
    progress: Progress | None = None,
) -> Measured:
    """Replace every source before or at ``pos`` by random tokens, ``replacements`` times, in a few batched forwards."""
    if replacements < 1:
        raise UserError("--ablate takes the number of replacements, at least 1")
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"a seed is a whole number of 64 bits, not {seed}")
    generator = torch.Generator().manual_seed(seed)
    allowed = ordinary_ids(subject.loaded, subject.adapter)
    ids = prompt.ids()[: pos + 1]
    replaced = [i for i, source in enumerate(sources) if not any(prompt.special[p] for p in source.positions)]
    batch = ids.repeat(len(replaced), replacements, 1)  # [source, replacement, pos]
    for row, i in enumerate(replaced):
        where = [p for p in sources[i].positions if p <= pos]
        drawn = torch.randint(len(allowed), (replacements, len(where)), generator=generator)
        batch[row][:, where] = allowed[drawn]
    values = []
    chunks = batch.flatten(0, 1).split(max(1, BATCH_TOKENS // len(ids))) if replaced else ()
    for done, chunk in enumerate(chunks, start=1):
        values.append(target.live(subject, read_batch(subject.adapter, chunk, target.point, subject.trace_dtype)))
        if progress is not None:
            progress("replacing tokens", done, len(chunks))
    lost = (
        original - torch.cat(values).double().cpu().view(len(replaced), replacements) if values else torch.empty(0, 1)
    )
    mean: list[float | None] = [None] * len(sources)
    spread: list[float | None] = [None] * len(sources)
    for row, i in enumerate(replaced):
        mean[i] = lost[row].mean().item()
        spread[i] = lost[row].std(correction=0).item()
    return Measured(tuple(mean), tuple(spread), replacements, seed)
