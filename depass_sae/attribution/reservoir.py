"""Ordinary text, and the tokens in it that others may be replaced by.

A vocabulary is no such text: it may be padded beyond the tokenizer's, and has tokens that no text has (reserved ones,
parts of a character). Random ones are drawn from the different tokens of a reservoir: some of the texts that come with
the package, or a file of one's own.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import UserError
from ..files import read_text
from ..models.prompt import special_ids, token_text
from ..subject import Subject
from ..texts import is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WRITTEN = Path(__file__).parent / "text" / "written.jsonl.xz"
HOLD_OUT = 6
"""One in so many of the texts is kept from the training of SAEs."""
TEXTS = 300
"""So many of the package's texts are the reservoir: SmolLM2 knows 6,200 different tokens in them."""
LEAST = 20
"""A tokenizer that finds fewer in them (one for another script, or for no text at all) gives its whole vocabulary."""


def written() -> list[str]:
    """The texts that SmolLM2 wrote."""
    with lzma.open(WRITTEN, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def held_out() -> list[str]:
    """Those of them that none of the SAEs which come with the package was trained on."""
    return written()[::HOLD_OUT]


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
            _RESERVOIRS[tokenizer] = _tokens_of(tokenizer, written()[:TEXTS])
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


def _tokens_of(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[int]:
    rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return _whole(tokenizer, sorted({i for row in rows for i in row}))


def _whole(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Without what is part of a character, or nothing."""
    return [i for i in ids if (text := token_text(tokenizer, i)) and is_whole(text)]
