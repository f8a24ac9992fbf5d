"""Prompts: text, messages or token ids, as the model will see them, with every token's text and place."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..arguments import whole_in
from ..errors import PromptWarning, UserError, warn
from ..files import check_unicode
from ..texts import characters, joined, spelled
from .adapter import Adapter
from .load import Loaded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptLike = str | Sequence[int] | Int[Tensor, "pos"] | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A text; token ids; what a tokenizer returns (``input_ids``, ``attention_mask``); or the messages of a chat."""


@dataclass(frozen=True)
class Prompt:
    """Token ids with their texts. ``special``: which are special tokens (BOS and the like).

    tokens: parts of a character as their bytes, ``⟨e2 9c⟩``; :func:`..texts.joined` makes several one text again.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    def ids(self, device: torch.device | None = None) -> Int[Tensor, "pos"]:
        return torch.tensor(self.token_ids, device=device)


def encode(loaded: Loaded, adapter: Adapter, prompt: PromptLike) -> Prompt:
    """A text is tokenized, with one start token in front; ids are taken exactly as they are given.

    Messages are written out by the tokenizer's chat template, the answer about to begin; so is a text, as a user's
    message, where the model was loaded for chats. Of what a tokenizer returns
    (one sequence), the positions that its attention mask leaves out are dropped.

    Warns of ids that begin with two start tokens, and of ids that end with padding. Raises UserError for a prompt that
    is empty, longer than the context, or has ids that the model does not know.
    """
    text, ids = None, []
    if loaded.chat and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str):
        text, ids = prompt, _tokenized(loaded, prompt)
    elif _is_chat(prompt):
        text = _written_out(loaded, prompt)  # type: ignore[arg-type]
        ids = _tokenized(loaded, text, as_written=True)
    else:
        ids = _masked(prompt) if isinstance(prompt, Mapping) else _ids(prompt)
        _warn_of_padding(loaded, ids)
    check_ids(loaded, adapter, ids)
    tokens = tuple(token_text(loaded.tokenizer, i) for i in ids)
    if ids[0] in _start_ids(loaded) and ids[:1] == ids[1:2]:
        warn(f"the prompt begins with two start tokens ({tokens[0]!r}); one of them is too many", PromptWarning)
    specials = special_ids(loaded)
    return Prompt(
        joined(tokens) if text is None else text, tuple(ids), tokens, tuple(i in specials for i in ids)
    )  # fmt: skip


def check_ids(loaded: Loaded, adapter: Adapter, ids: Sequence[int]) -> None:
    """Raises UserError for ids that are no prompt of this model."""
    if not ids:
        raise UserError("the prompt is empty")
    if adapter.context_length is not None and len(ids) > adapter.context_length:
        raise UserError(f"the prompt has {len(ids)} tokens; {loaded.name} takes {adapter.context_length} at most")
    unknown = [i for i in ids if not 0 <= i < adapter.vocab_size]
    if unknown:
        raise UserError(f"token id {unknown[0]} is not in the vocabulary; ids go from 0 to {adapter.vocab_size - 1}")


def is_prompt(given: Any) -> bool:
    """Whether this is one prompt, and no collection of several."""
    if isinstance(given, str | Tensor) or _is_chat(given):
        return True
    if isinstance(given, Mapping):
        return len(_rows(given)) < 2
    try:
        ids = list(given)
    except TypeError:
        return True
    return bool(ids) and all(hasattr(i, "__index__") and getattr(i, "ndim", 0) == 0 for i in ids)


def several(given: Any) -> list[Any]:
    """One prompt or several, a tokenizer's batch among them, as a list of prompts."""
    if is_prompt(given):
        return [given]
    return _rows(given) if isinstance(given, Mapping) else list(given)


# ---------------------------------------------------------------------------------------------------- texts and chats


def text_ids(loaded: Loaded, text: str) -> list[int]:
    """A text's ids as :func:`encode` has them, of a text of any length, which is no chat's.

    Raises UserError for an empty text, one that is no Unicode, and where there is no tokenizer.
    """
    return _tokenized(loaded, text)


def begins_with_start(loaded: Loaded, ids: Sequence[int]) -> bool:
    """Whether ids begin with a start token, as pieces of them should, too."""
    return len(ids) > 0 and ids[0] in _start_ids(loaded)


def _tokenized(loaded: Loaded, text: str, as_written: bool = False) -> list[int]:
    """A text's ids with exactly one start token, where the tokenizer or the SAEs want one, whoever wrote it.

    as_written: the tokenizer adds nothing: a chat template writes every special token itself.
    """
    if not text:
        raise UserError("the prompt is empty")
    if loaded.tokenizer is None:
        raise UserError(f"{loaded.name} came without a tokenizer, so its prompts are token ids, not text")
    check_unicode(text, "the prompt")
    ids = list(loaded.tokenizer(text, add_special_tokens=not as_written, verbose=False)["input_ids"])
    if ids[:1] == ids[1:2] and ids[:1] and ids[0] in _start_ids(loaded):
        written = list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
        if _leading(ids) > _leading(written) > 0:  # one is the text's, one the tokenizer's
            ids = ids[1:]
    if loaded.bos_id is not None and ids[:1] != [loaded.bos_id]:
        ids = [loaded.bos_id, *ids]
    return ids


def _leading(ids: list[int]) -> int:
    """How often the first id stands at the beginning."""
    return next((n for n, i in enumerate(ids) if i != ids[0]), len(ids))


def _start_ids(loaded: Loaded) -> set[int]:
    """What a text may begin with: the tokenizer's start token (without one, the configuration's) and the SAEs'."""
    named = loaded.model.config if loaded.tokenizer is None else loaded.tokenizer
    return {i for i in (getattr(named, "bos_token_id", None), loaded.bos_id) if isinstance(i, int)}


def _is_chat(prompt: Any) -> bool:
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and len(prompt) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in prompt)
    )


def _written_out(loaded: Loaded, messages: Sequence[Mapping[str, Any]]) -> str:
    if loaded.tokenizer is None:
        raise UserError(f"{loaded.name} came without a tokenizer, so its prompts are token ids, not messages")
    if not loaded.tokenizer.chat_template:
        raise UserError(f"the tokenizer of {loaded.name} has no chat template; give the prompt as a text")
    try:
        text = loaded.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    except Exception as error:  # whatever the template, a program of the tokenizer's, makes of them
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the chat template of {loaded.name} does not take these messages: {said}") from error
    return str(text)


# ----------------------------------------------------------------------------------------------------------------- ids


def _masked(prompt: Mapping[str, Any]) -> list[int]:
    """The ids of what a tokenizer returned, padding on either side left out."""
    if "input_ids" not in prompt:
        hint = "; put the message into a list" if "role" in prompt else ""
        raise UserError(f"a prompt as a mapping has input_ids, like what a tokenizer returns{hint}")
    ids, mask = (_row(prompt, name) for name in ("input_ids", "attention_mask"))
    if mask is None:
        return _ids(ids)
    ids, kept = _ids(ids), [bool(i) for i in (mask.tolist() if hasattr(mask, "tolist") else mask)]
    if len(kept) != len(ids):
        raise UserError(f"the prompt has {len(ids)} input_ids and an attention_mask of {len(kept)}")
    seen = [position for position, is_seen in enumerate(kept) if is_seen]
    if seen and len(seen) <= seen[-1] - seen[0]:
        raise UserError(
            "the prompt's attention_mask has gaps between tokens; it may leave out padding at the ends only"
        )
    return [ids[position] for position in seen]


def _rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A tokenizer's batch, sequence by sequence."""
    ids = batch.get("input_ids")
    if ids is None or not _is_batch(ids):
        return [dict(batch)]
    names = [name for name in ("input_ids", "attention_mask") if batch.get(name) is not None]
    return [{name: batch[name][row] for name in names} for row in range(len(ids))]


def _is_batch(values: Any) -> bool:
    if hasattr(values, "ndim"):
        return values.ndim == 2
    return (
        hasattr(values, "__len__")
        and len(values) > 0
        and ((isinstance(values[0], Sequence) and not isinstance(values[0], str)) or getattr(values[0], "ndim", 0) == 1)
    )


def _row(prompt: Mapping[str, Any], name: str) -> Any:
    """An entry of what a tokenizer returns, of the one sequence that it is about."""
    values = prompt.get(name)
    if values is None or not _is_batch(values):
        return values
    if len(values) != 1:
        raise UserError(f"a prompt is one sequence, not a batch of {len(values)}; give them one at a time")
    return values[0]


def _ids(prompt: Any) -> list[int]:
    if isinstance(prompt, Tensor):
        if prompt.dim() == 2 and len(prompt) > 1:
            raise UserError(f"a prompt is one sequence, not a batch of {len(prompt)}; give them one at a time")
        if prompt.dim() == 2 and len(prompt) == 1:  # what a tokenizer returns with return_tensors="pt"
            prompt = prompt[0]
        if prompt.dim() != 1 or prompt.is_floating_point() or prompt.is_complex() or prompt.dtype == torch.bool:
            raise UserError(
                f"a prompt of token ids is one-dimensional and integer, not {prompt.dtype} {list(prompt.shape)}"
            )
        return prompt.tolist()
    try:
        ids = list(prompt)
        if isinstance(prompt, bytes | bytearray | Set) or any(isinstance(i, bool) for i in ids):
            raise TypeError
        return [int(i.__index__()) for i in ids]
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            "a prompt is a text, token ids as a list of integers or a 1-d tensor, what a tokenizer returns for one "
            "text, or a list of messages"
        ) from None


def _warn_of_padding(loaded: Loaded, ids: list[int]) -> None:
    """A sequence may well end with an end token; where that pads, too, it takes two of them to look like padding."""
    named = loaded.model.config if loaded.tokenizer is None else loaded.tokenizer
    pad = getattr(named, "pad_token_id", None)
    if pad is None or ids[-1:] != [pad]:
        return
    count = _leading(ids[::-1])
    if count > (pad == getattr(named, "eos_token_id", None)):
        said = "a pad token" if count == 1 else f"{count} pad tokens"
        warn(
            f"the prompt ends with {said} ({token_text(loaded.tokenizer, pad)!r}), and the last position, where a "
            "logit is read, is one; leave padding out, or give the attention_mask with the ids",
            PromptWarning,
        )


def special_ids(loaded: Loaded) -> frozenset[int]:
    """The ids of special tokens: the tokenizer's, or, without one, those that the model's configuration names."""
    if loaded.tokenizer is not None:
        known = set(loaded.tokenizer.all_special_ids)  # only those with a role: start, end, padding ...
        known |= {i for i, token in loaded.tokenizer.added_tokens_decoder.items() if token.special}
    else:
        named = (getattr(loaded.model.config, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad"))
        known = {i for entry in named if entry is not None for i in (entry if isinstance(entry, list) else [entry])}
    return frozenset(known if loaded.bos_id is None else known | {loaded.bos_id})


def token_text(tokenizer: PreTrainedTokenizerBase | None, token_id: int) -> str:
    """The text that one token stands for, its leading space included; bytes of a part of a character: ``⟨e2 9c⟩``."""
    if tokenizer is None:
        return f"#{token_id}"
    text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    raw = tokenizer.convert_ids_to_tokens(token_id)
    if "\ufffd" in text and (known := _raw_bytes(raw)) is not None:
        return spelled(known)
    # SentencePiece drops the space that opens a text, and every token is decoded as if it did.
    return f" {text}" if isinstance(raw, str) and raw.startswith("▁") and not text.startswith(" ") else text


def _raw_bytes(raw: Any) -> bytes | None:
    """The bytes of a token as its vocabulary writes them: of byte-level BPE, or ``<0xE2>``; None where it does not."""
    if isinstance(raw, bytes):
        return raw
    if match := re.fullmatch(r"<0x([0-9A-F]{2})>", str(raw)):
        return bytes.fromhex(match[1])
    known = _byte_alphabet()
    return bytes(known[c] for c in raw) if isinstance(raw, str) and all(c in known for c in raw) else None


@cache
def _byte_alphabet() -> dict[str, int]:
    """How byte-level BPE writes bytes: printable ones as their character, the others by characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def token_id(loaded: Loaded, text: str) -> int:
    """The single token that a text is. Raises UserError where it is several, or none."""
    if loaded.tokenizer is None:
        number = whole_in(text.removeprefix("#"))
        if number is not None:
            return number
        raise UserError(f"{loaded.name} came without a tokenizer; give the logit as a token id")
    check_unicode(text, "the token")
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
    Scripts written without spaces stay character by character.
    """
    units, texts, special = _units(prompt)
    groups: list[list[int]] = []
    for i, text in enumerate(texts):
        goes_on = (
            i > 0
            and not special[i]
            and not special[i - 1]
            and (_begins_within_word(text) or _is_apostrophe_within_word(texts[i : i + 2]))
            and (_ends_within_word([texts[j] for j in groups[-1]]) or texts[i - 1] == " ")
        )
        if goes_on:
            groups[-1].append(i)
        else:
            groups.append([i])
    return _positions(units, groups)


def sentences(prompt: Prompt) -> list[list[int]]:
    """The positions of each sentence; special tokens alone. A sentence ends with . ! or ? before a space, or a line."""
    units, texts, special = _units(prompt)
    groups: list[list[int]] = []
    open_ = False
    for i, text in enumerate(texts):
        following = texts[i + 1] if i + 1 < len(texts) else " "
        if open_ and not special[i]:
            groups[-1].append(i)
        else:
            groups.append([i])
        ends = text.rstrip("\"'”’)]").endswith((".", "!", "?")) and following[:1].isspace()
        open_ = not (special[i] or ends or text.endswith("\n"))
    return _positions(units, groups)


def _units(prompt: Prompt) -> tuple[list[list[int]], list[str], list[bool]]:
    """The prompt's tokens, those with parts of one character together: positions, text, and whether it is special."""
    units = characters(prompt.tokens)
    texts = [joined(prompt.tokens[position] for position in unit) for unit in units]
    return units, texts, [prompt.special[unit[0]] for unit in units]


def _positions(units: list[list[int]], groups: list[list[int]]) -> list[list[int]]:
    return [[position for i in group for position in units[i]] for group in groups]


def _is_apostrophe_within_word(tokens: Sequence[str]) -> bool:
    return tokens[0] in ("'", "’") and len(tokens) > 1 and _is_word_character(tokens[1][:1])


def _ends_within_word(tokens: Sequence[str]) -> bool:
    return _is_word_character(tokens[-1][-1:]) or (tokens[-1] in ("'", "’") and len(tokens) > 1)


def _begins_within_word(token: str) -> bool:
    body = token[1:] if token[:1] in "'’" else token
    return _is_word_character(body[:1])


def _is_word_character(character: str) -> bool:
    if character == "\ufffd":  # part of a character, of a tokenizer that does not say which
        return True
    wide = character and unicodedata.east_asian_width(character) in "WF"
    return bool(character) and not wide and (character.isalnum() or unicodedata.category(character).startswith("M"))
