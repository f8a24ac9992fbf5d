"""What really happens to a target when a source is replaced: the measurement beside the decomposition.

Each source's tokens give way to random ones of ordinary text, several times over, and the model runs on the new text
with nothing frozen. The measured effect is what the target loses on average; it sums to nothing, and it is what a
contribution should be compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import UserError
from ..models.prompt import Prompt
from ..passes.record import read_batch
from ..passes.settings import Settings
from ..subject import Subject
from .reservoir import replacements

if TYPE_CHECKING:
    from .targets import Target
    from .tokens import Span

BATCH_TOKENS = 4096
"""About how many tokens go through the model at once."""

MOST = 10_000
"""Replacements of a source: more than any mean needs, and still a batch that fits into memory."""


@dataclass(frozen=True)
class Replacing:
    """How sources are replaced: so many times, by tokens of ``allowed``, which were found in the text ``replace_from``.

    replace_from: None is the package's own.
    """

    times: int
    seed: int
    allowed: Int[Tensor, "token"]
    replace_from: str | None = None

    @classmethod
    def of(cls, subject: Subject, times: int, seed: int, replace_from: str | Path | None = None) -> Replacing:
        """Raises UserError for numbers that cannot be, and for a file without tokens."""
        check_replacing(times, seed, replace_from)
        named = None if replace_from is None else str(replace_from)
        return cls(times, seed, replacements(subject, replace_from), named)

    def draw(self, rows: int, columns: int, generator: torch.Generator) -> Int[Tensor, "row column"]:
        return self.allowed[torch.randint(len(self.allowed), (rows, columns), generator=generator)]


def check_replacing(times: int, seed: int, replace_from: str | Path | None = None) -> None:
    """Raises UserError for numbers that cannot be. times: 0 where nothing is replaced."""
    if not 0 <= times <= MOST:
        raise UserError(f"--ablate takes the number of replacements, from 1 to {MOST:,}, or 0 for none, not {times}")
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"a seed is a whole number of 64 bits, not {seed}")
    if replace_from is not None and not times:
        raise UserError("--replace-from names the text that --ablate draws from; give --ablate, too")


@dataclass(frozen=True)
class Measured:
    """Per source: what the target loses when its tokens are replaced, mean and standard deviation.

    None for a special token, which is not replaced. replace_from: the file whose tokens came in (None: the package's).
    """

    mean: tuple[float | None, ...]
    spread: tuple[float | None, ...]
    replacements: int
    seed: int
    replace_from: str | None = None

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
    replacing: Replacing,
    settings: Settings,
) -> Measured:
    """Replace every source before or at ``pos`` by random tokens, several times, in a few batched forwards."""
    times = replacing.times
    generator = torch.Generator().manual_seed(replacing.seed)
    ids = prompt.ids()[: pos + 1]
    replaced = [i for i, source in enumerate(sources) if not any(prompt.special[p] for p in source.positions)]
    batch = ids.repeat(len(replaced), times, 1)  # [source, replacement, pos]
    for row, i in enumerate(replaced):
        where = [p for p in sources[i].positions if p <= pos]
        batch[row][:, where] = replacing.draw(times, len(where), generator)
    values = []
    chunks = batch.flatten(0, 1).split(max(1, BATCH_TOKENS // len(ids))) if replaced else ()
    for done, chunk in enumerate(chunks, start=1):
        values.append(target.live(subject, read_batch(subject.adapter, chunk, target.place, subject.trace_dtype)))
        settings.tell("replacing tokens", done, len(chunks))
    lost = original - torch.cat(values).double().cpu().view(len(replaced), times) if values else torch.empty(0, 1)
    mean: list[float | None] = [None] * len(sources)
    spread: list[float | None] = [None] * len(sources)
    for row, i in enumerate(replaced):
        mean[i] = lost[row].mean().item()
        spread[i] = lost[row].std(correction=0).item()
    return Measured(tuple(mean), tuple(spread), times, replacing.seed, replacing.replace_from)
