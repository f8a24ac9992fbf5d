"""What really happens to a target when a source is replaced: the measurement beside the decomposition.

Each source's tokens give way to random ones of ordinary text, several times over, and the model runs on the new text
with nothing frozen. The measured effect is what the target loses on average; it sums to nothing, and it is what a
contribution should be compared with.

A vocabulary is no such text: it may be padded beyond the tokenizer's, and has tokens that no text has (reserved ones,
parts of a character). Random ones are drawn from the different tokens of a reservoir: some of the texts that come with
the package, or a file of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import UserError
from ..files import read_text
from ..models.prompt import Prompt, special_ids, token_text
from ..passes.forward import Progress
from ..passes.record import read_batch
from ..texts import is_whole
from .subject import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .targets import Target
    from .tokens import Span

BATCH_TOKENS = 4096
"""About how many tokens go through the model at once."""

MOST = 10_000
"""Replacements of a source: more than any mean needs, and still a batch that fits into memory."""

TEXTS = 300
"""So many of the package's texts are the reservoir: SmolLM2 knows 6,200 different tokens in them."""
LEAST = 20
"""A tokenizer that finds fewer in them (one for another script, or for no text at all) gives its whole vocabulary."""


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
    progress: Progress | None = None,
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
        values.append(target.live(subject, read_batch(subject.adapter, chunk, target.point, subject.trace_dtype)))
        if progress is not None:
            progress("replacing tokens", done, len(chunks))
    lost = original - torch.cat(values).double().cpu().view(len(replaced), times) if values else torch.empty(0, 1)
    mean: list[float | None] = [None] * len(sources)
    spread: list[float | None] = [None] * len(sources)
    for row, i in enumerate(replaced):
        mean[i] = lost[row].mean().item()
        spread[i] = lost[row].std(correction=0).item()
    return Measured(tuple(mean), tuple(spread), times, replacing.seed, replacing.replace_from)


# ----------------------------------------------------------------------------------------------------------- reservoirs


def replacements(subject: Subject, replace_from: str | Path | None = None) -> Int[Tensor, "token"]:
    """The ids that a token may be replaced by, ascending: the different ordinary tokens of a text.

    Ordinary are tokens that the model knows, that stand for whole characters and are not special. replace_from: a file
    of text; None is the package's. Without a tokenizer: the vocabulary without special tokens.

    Raises UserError where the file cannot be read or has no such token.
    """
    tokenizer, known = subject.loaded.tokenizer, subject.adapter.vocab_size
    specials = special_ids(subject.loaded)

    def ordinary(ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i < known and i not in specials]

    if tokenizer is None:
        if replace_from is not None:
            raise UserError(f"{subject.loaded.name} came without a tokenizer, so nothing can be replaced from a text")
        return torch.tensor(ordinary(range(known)))
    if replace_from is None:
        if tokenizer not in _RESERVOIRS:
            _RESERVOIRS[tokenizer] = _tokens_of(tokenizer, _texts())
        found = ordinary(_RESERVOIRS[tokenizer])
        return torch.tensor(found if len(found) >= LEAST else ordinary(_whole(tokenizer, range(len(tokenizer)))))
    try:
        found = ordinary(_tokens_of(tokenizer, [read_text(Path(replace_from))]))
    except UserError as error:
        raise UserError(f"cannot read {replace_from}: {error}") from None
    if not found:
        raise UserError(f"{replace_from} has no token to replace others by; it should be a text")
    return torch.tensor(found)


_RESERVOIRS: WeakKeyDictionary[PreTrainedTokenizerBase, list[int]] = WeakKeyDictionary()
"""The tokens of the package's texts, by tokenizer: finding them takes half a second."""


def _texts() -> list[str]:
    from ..demo.corpus import written

    return written()[:TEXTS]


def _tokens_of(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return _whole(tokenizer, sorted({i for row in rows for i in row}))


def _whole(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Without what is part of a character, or nothing."""
    return [i for i in ids if (text := token_text(tokenizer, i)) and is_whole(text)]
