"""How a source is taken out of a prompt: its tokens give way to random ones of ordinary text, or to a given one, or go.

Whichever way it is done, the model then runs on the new text with nothing frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import UserError
from ..models.prompt import token_id
from ..subject import Subject
from .reservoir import replacements

Texts = Iterator[tuple[Int[Tensor, "some"], Int[Tensor, "some pos"]]]
Without = Callable[[Bool[Tensor, "row pos"], Int[Tensor, "row"]], Texts]
"""Takes which positions are gone in each row, and each row's draw; gives the token ids of rows of equal length."""


class Removal(Protocol):
    """chance: whether the new text depends on a draw. spares_target: whether the position that is read has to stay."""

    chance: bool
    spares_target: bool

    def of(self, ids: Int[Tensor, "pos"], groups: Sequence[Sequence[int]], block: int) -> Without:
        """On one prompt. groups: the positions of each source; block: so many draws are made at once."""


@dataclass(frozen=True)
class Replacing:
    """By random tokens of ``allowed``, which were found in the text ``replace_from`` (None: the package's own)."""

    seed: int
    allowed: Int[Tensor, "token"]
    replace_from: str | None = None
    chance = True
    spares_target = False

    @classmethod
    def by(cls, subject: Subject, seed: int, replace_from: str | Path | None = None) -> Replacing:
        """Raises UserError for a file without tokens."""
        named = None if replace_from is None else str(replace_from)
        return cls(seed, replacements(subject, replace_from), named)

    def draw(self, rows: int, columns: int, generator: torch.Generator) -> Int[Tensor, "row column"]:
        return self.allowed[torch.randint(len(self.allowed), (rows, columns), generator=generator)]

    def of(self, ids: Int[Tensor, "pos"], groups: Sequence[Sequence[int]], block: int) -> Without:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = ids.new_empty(0, len(ids))

        def without(gone: Bool[Tensor, "row pos"], draw: Int[Tensor, "row"]) -> Texts:
            nonlocal drawn
            while len(drawn) <= int(draw.max()):
                more = ids.repeat(block, 1)
                for group in groups:
                    more[:, list(group)] = self.draw(block, len(group), generator)
                drawn = torch.cat([drawn, more])
            yield torch.arange(len(gone)), torch.where(gone, drawn[draw], ids)

        return without


@dataclass(frozen=True)
class Masking:
    """By one token."""

    token: int
    chance = False
    spares_target = False

    def of(self, ids: Int[Tensor, "pos"], groups: Sequence[Sequence[int]], block: int) -> Without:
        def without(gone: Bool[Tensor, "row pos"], draw: Int[Tensor, "row"]) -> Texts:
            yield torch.arange(len(gone)), ids.masked_fill(gone, self.token)

        return without


@dataclass(frozen=True)
class Deleting:
    """By leaving the tokens out, so that what follows moves up."""

    chance = False
    spares_target = True

    def of(self, ids: Int[Tensor, "pos"], groups: Sequence[Sequence[int]], block: int) -> Without:
        def without(gone: Bool[Tensor, "row pos"], draw: Int[Tensor, "row"]) -> Texts:
            left = (~gone).sum(1)
            for n in left.unique().tolist():
                rows = (left == n).nonzero()[:, 0]
                yield rows, ids.expand(len(rows), -1)[~gone[rows]].view(len(rows), n)

        return without


DELETE, TEXT, MASK = "delete", "text", "mask:"


def check_removal(removal: str) -> None:
    """Raises UserError for what is no way to take a token out."""
    if removal not in (DELETE, TEXT) and not (removal.startswith(MASK) and len(removal) > len(MASK)):
        raise UserError(
            f"tokens are taken out by {TEXT} (random tokens of ordinary text come in), by {DELETE}, or by "
            f"{MASK}TOKEN (that token comes in), not by {removal!r}"
        )


def removal_by(subject: Subject, removal: str, seed: int, replace_from: str | Path | None = None) -> Removal:
    """As it is written. Raises UserError for a mask that is no token of the model, and a file without tokens."""
    check_removal(removal)
    if removal == TEXT:
        return Replacing.by(subject, seed, replace_from)
    if removal == DELETE:
        return Deleting()
    token, known = token_id(subject.loaded, removal.removeprefix(MASK)), subject.adapter.vocab_size
    if token >= known:
        raise UserError(f"there is no token {token} to mask by; the tokens are 0 to {known - 1}")
    return Masking(token)
