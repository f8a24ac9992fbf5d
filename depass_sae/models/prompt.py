"""Prompts: text or token ids, as the model will see them, with every token's text and place."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import UserError
from .adapter import Adapter
from .load import Loaded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptLike = str | Sequence[int] | Int[Tensor, "pos"]


@dataclass(frozen=True)
class Prompt:
    """Token ids with their texts. ``special``: which are special tokens (BOS and the like)."""

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    def ids(self, device: torch.device | None = None) -> Int[Tensor, "pos"]:
        return torch.tensor(self.token_ids, device=device)


def encode(loaded: Loaded, adapter: Adapter, prompt: PromptLike) -> Prompt:
    """A text is tokenized, with the start token in front; ids are taken exactly as they are given.

    Raises UserError for a prompt that is empty, longer than the context, or has ids that the model does not know.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise UserError("the prompt is empty")
        if loaded.tokenizer is None:
            raise UserError(f"{loaded.name} came without a tokenizer, so its prompts are token ids, not text")
        _check_text(prompt, "the prompt")
        ids = list(loaded.tokenizer(prompt)["input_ids"])
        if loaded.bos_id is not None and ids[:1] != [loaded.bos_id]:
            ids = [loaded.bos_id, *ids]
    else:
        ids = _ids(prompt)
    if not ids:
        raise UserError("the prompt is empty")
    if adapter.context_length is not None and len(ids) > adapter.context_length:
        raise UserError(f"the prompt has {len(ids)} tokens; {loaded.name} takes {adapter.context_length} at most")
    unknown = [i for i in ids if not 0 <= i < adapter.vocab_size]
    if unknown:
        raise UserError(f"token id {unknown[0]} is not in the vocabulary; ids go from 0 to {adapter.vocab_size - 1}")
    tokens = tuple(token_text(loaded.tokenizer, i) for i in ids)
    specials = special_ids(loaded)
    text = prompt if isinstance(prompt, str) else "".join(tokens)
    return Prompt(text, tuple(ids), tokens, tuple(i in specials for i in ids))


def _ids(prompt: Sequence[int] | Tensor) -> list[int]:
    if isinstance(prompt, Tensor):
        if prompt.dim() == 2 and len(prompt) == 1:  # what a tokenizer returns with return_tensors="pt"
            prompt = prompt[0]
        if prompt.dim() != 1 or prompt.is_floating_point():
            raise UserError(
                f"a prompt of token ids is one-dimensional and integer, not {prompt.dtype} {list(prompt.shape)}"
            )
        return prompt.tolist()
    try:
        return [int(i.__index__()) for i in prompt]
    except (AttributeError, TypeError):
        raise UserError("a prompt is a text, or token ids as a list of integers or a 1-d tensor") from None


def _check_text(text: str, what: str) -> None:
    """Bytes that are no UTF-8 come from a command line as lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} is not valid Unicode at character {error.start}; write it in UTF-8") from None


def special_ids(loaded: Loaded) -> frozenset[int]:
    """The ids of special tokens: the tokenizer's, or, without one, those that the model's configuration names."""
    if loaded.tokenizer is not None:
        known = set(loaded.tokenizer.all_special_ids)
    else:
        named = (getattr(loaded.model.config, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad"))
        known = {i for entry in named if entry is not None for i in (entry if isinstance(entry, list) else [entry])}
    return frozenset(known if loaded.bos_id is None else known | {loaded.bos_id})


def ordinary_ids(loaded: Loaded, adapter: Adapter) -> Int[Tensor, "token"]:
    """The vocabulary without special tokens, ascending: what a token may be replaced by."""
    return torch.tensor(sorted(set(range(adapter.vocab_size)) - special_ids(loaded)))


def token_text(tokenizer: PreTrainedTokenizerBase | None, token_id: int) -> str:
    """The text that one token stands for, its leading space included."""
    if tokenizer is None:
        return f"#{token_id}"
    text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    raw = tokenizer.convert_ids_to_tokens(token_id)
    # SentencePiece drops the space that opens a text, and every token is decoded as if it did.
    return f" {text}" if isinstance(raw, str) and raw.startswith("▁") and not text.startswith(" ") else text


def token_id(loaded: Loaded, text: str) -> int:
    """The single token that a text is. Raises UserError where it is several, or none."""
    if loaded.tokenizer is None:
        if text.removeprefix("#").isdecimal():
            return int(text.removeprefix("#"))
        raise UserError(f"{loaded.name} came without a tokenizer; give the logit as a token id")
    _check_text(text, "the token")
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        return ids[0]
    known = loaded.tokenizer.get_vocab().get(text)
    if known is not None:
        return known
    pieces = [token_text(loaded.tokenizer, i) for i in ids]
    hint = " (most words begin with a space)" if text and not text.startswith(" ") else ""
    raise UserError(f"{text!r} is {len(ids)} tokens ({pieces}), a logit is one token's{hint}")


def words(prompt: Prompt) -> list[list[int]]:
    """The positions of each word: sub-tokens of one word together, punctuation and special tokens alone.

    A token goes on with the word before it where both are letters or digits with no space between them (an apostrophe
    between letters too), and a space that is a token of its own belongs to the word that it opens.
    Scripts written without spaces stay token by token.
    """
    groups: list[list[int]] = []
    for position, token in enumerate(prompt.tokens):
        goes_on = (
            position > 0
            and not prompt.special[position]
            and not prompt.special[position - 1]
            and (_begins_within_word(token) or _is_apostrophe_within_word(prompt.tokens[position : position + 2]))
            and (_ends_within_word([prompt.tokens[i] for i in groups[-1]]) or prompt.tokens[position - 1] == " ")
        )
        if goes_on:
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups


def sentences(prompt: Prompt) -> list[list[int]]:
    """The positions of each sentence; special tokens alone. A sentence ends with . ! or ? before a space, or a line."""
    groups: list[list[int]] = []
    open_ = False
    for position, token in enumerate(prompt.tokens):
        following = prompt.tokens[position + 1] if position + 1 < len(prompt) else " "
        if open_ and not prompt.special[position]:
            groups[-1].append(position)
        else:
            groups.append([position])
        ends = token.rstrip("\"'”’)]").endswith((".", "!", "?")) and following[:1].isspace()
        open_ = not (prompt.special[position] or ends or token.endswith("\n"))
    return groups


def _is_apostrophe_within_word(tokens: Sequence[str]) -> bool:
    return tokens[0] in ("'", "’") and len(tokens) > 1 and _is_word_character(tokens[1][:1])


def _ends_within_word(tokens: Sequence[str]) -> bool:
    return _is_word_character(tokens[-1][-1:]) or (tokens[-1] in ("'", "’") and len(tokens) > 1)


def _begins_within_word(token: str) -> bool:
    body = token[1:] if token[:1] in "'’" else token
    return _is_word_character(body[:1])


def _is_word_character(character: str) -> bool:
    if character == "\ufffd":  # part of a character that was cut into several tokens
        return True
    wide = character and unicodedata.east_asian_width(character) in "WF"
    return bool(character) and not wide and (character.isalnum() or unicodedata.category(character).startswith("M"))
