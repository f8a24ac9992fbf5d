"""Prompts as the model sees them: BOS, ids taken as they are, token texts, words."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.models.adapter import Adapter
from depass_sae.models.load import Loaded, adapter_for
from depass_sae.models.prompt import Prompt, encode, sentences, token_id, token_text, words

from ..attribution.tiny import BOS, EOS, HOSTILE, TEXT, VOCAB, model, tokenizer
from ..passes.models import CONTEXT


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return adapter_for(model())


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """A tokenizer that puts BOS in front by itself."""
    return Loaded(model(), tokenizer(), "tiny")


@pytest.fixture(scope="module")
def plain() -> Loaded:
    """A tokenizer that adds nothing."""
    return Loaded(model(), tokenizer(adds_bos=False), "tiny")


@pytest.fixture(scope="module")
def bare() -> Loaded:
    return Loaded(model(), None, "tiny")


def refusal(call: Any) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------------- BOS


def test_a_text_gets_exactly_one_start_token_whoever_adds_it(loaded: Loaded, plain: Loaded, adapter: Adapter) -> None:
    body = tokenizer(adds_bos=False)(TEXT)["input_ids"]
    for by_tokenizer, wanted in ((loaded, None), (loaded, BOS), (plain, BOS)):
        prompt = encode(replace(by_tokenizer, bos_id=wanted), adapter, TEXT)
        assert list(prompt.token_ids) == [BOS, *body]
        assert prompt.tokens[0] == "<bos>"
        assert prompt.special == (True, *[False] * len(body))


def test_a_start_token_is_added_only_where_one_is_wanted(plain: Loaded, adapter: Adapter) -> None:
    prompt = encode(plain, adapter, TEXT)
    assert list(prompt.token_ids) == tokenizer(adds_bos=False)(TEXT)["input_ids"]
    assert not any(prompt.special)


def test_a_start_token_in_the_text_is_not_doubled(plain: Loaded, adapter: Adapter) -> None:
    prompt = encode(replace(plain, bos_id=BOS), adapter, "<bos>supply")
    assert prompt.tokens == ("<bos>", "supply")


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("ids", [[5, 6, 7], [BOS, 5], [BOS, BOS, 5], [5, BOS]])
def test_ids_are_taken_exactly_as_they_are(loaded: Loaded, adapter: Adapter, ids: list[int], bos: int | None) -> None:
    given = [ids, tuple(ids), torch.tensor(ids), torch.tensor([ids]), torch.tensor(ids).int(), np.array(ids)]
    for form in (*given, [np.int64(i) for i in ids], list(torch.tensor(ids))):
        prompt = encode(replace(loaded, bos_id=bos), adapter, form)
        assert list(prompt.token_ids) == ids
        assert prompt.special == tuple(i == BOS for i in ids)


@given(ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=CONTEXT))
def test_ids_are_never_decoded_and_tokenized_again(ids: list[int]) -> None:
    prompt = encode(Loaded(model(), tokenizer(), "tiny", BOS), adapter_for(model()), ids)
    assert list(prompt.token_ids) == ids
    assert prompt.ids().tolist() == ids
    assert len(prompt) == len(prompt.tokens) == len(prompt.special) == len(ids)
    assert prompt.text == "".join(prompt.tokens)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_an_empty_prompt_is_refused(loaded: Loaded, plain: Loaded, adapter: Adapter) -> None:
    for nothing in ("", [], (), torch.tensor([], dtype=torch.long)):
        assert refusal(lambda: encode(loaded, adapter, nothing)) == "the prompt is empty"  # noqa: B023
        assert refusal(lambda: encode(plain, adapter, nothing)) == "the prompt is empty"  # noqa: B023


def test_a_prompt_longer_than_the_context_is_refused(loaded: Loaded, adapter: Adapter) -> None:
    assert len(encode(loaded, adapter, [5] * CONTEXT)) == CONTEXT
    expected = f"the prompt has {CONTEXT + 1} tokens; tiny takes {CONTEXT} at most"
    assert refusal(lambda: encode(loaded, adapter, [5] * (CONTEXT + 1))) == expected
    assert refusal(lambda: encode(loaded, adapter, "." * CONTEXT)) == expected


@pytest.mark.parametrize("wrong", [VOCAB, -1, 10**30])
def test_an_id_outside_the_vocabulary_is_refused(loaded: Loaded, adapter: Adapter, wrong: int) -> None:
    expected = f"token id {wrong} is not in the vocabulary; ids go from 0 to {VOCAB - 1}"
    assert refusal(lambda: encode(loaded, adapter, [5, wrong])) == expected


@pytest.mark.parametrize(
    "given",
    [
        torch.ones(3), torch.ones(2, 3, dtype=torch.long), torch.tensor(5), [1.5], ["5"], [[5, 6]], None, 5,
        {"input_ids": [5]},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_neither_text_nor_ids_is_refused(loaded: Loaded, adapter: Adapter, given: Any) -> None:
    assert "a prompt" in refusal(lambda: encode(loaded, adapter, given))


def test_a_text_that_is_not_unicode_is_refused(loaded: Loaded, adapter: Adapter) -> None:
    broken = b"caf\xe9".decode(errors="surrogateescape")  # as Python reads a command line that is not UTF-8
    assert refusal(lambda: encode(loaded, adapter, broken)) == (
        "the prompt is not valid Unicode at character 3; write it in UTF-8"
    )
    assert "the token is not valid Unicode" in refusal(lambda: token_id(loaded, broken))


def test_a_text_needs_a_tokenizer(bare: Loaded, adapter: Adapter) -> None:
    assert "without a tokenizer, so its prompts are token ids" in refusal(lambda: encode(bare, adapter, TEXT))


# --------------------------------------------------------------------------------------------------------- token texts


def test_a_tokens_text_has_its_leading_space_and_nothing_is_cleaned_up() -> None:
    prompt = encode(Loaded(model(), tokenizer(), "tiny"), adapter_for(model()), TEXT)
    assert prompt.tokens[:6] == ("<bos>", "In", " economics", ",", " supply", " and")
    assert "".join(prompt.tokens[1:]) == TEXT


def test_odd_texts_are_one_token_each_and_come_back_unchanged(loaded: Loaded, adapter: Adapter) -> None:
    prompt = encode(loaded, adapter, "".join(HOSTILE))
    assert prompt.tokens[1:] == HOSTILE


def test_without_a_tokenizer_a_token_is_shown_by_its_id(bare: Loaded, adapter: Adapter) -> None:
    prompt = encode(bare, adapter, [BOS, 5, EOS])
    assert prompt.tokens == ("#0", "#5", "#1")
    assert prompt.special == (True, False, True)  # the model's configuration says which


def test_an_id_that_only_the_model_knows_has_a_text_too(loaded: Loaded, adapter: Adapter) -> None:
    padded = encode(loaded, adapter, [5, VOCAB - 1])
    assert len(padded.tokens) == 2


def test_sentencepiece_tokens_keep_the_space_that_opens_them() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = Tokenizer(models.WordLevel({"<unk>": 0, "▁Paris": 1, "is": 2, "▁": 3}, unk_token="<unk>"))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="<unk>")
    assert [token_text(fast, i) for i in (1, 2, 3)] == [" Paris", "is", " "]


def test_the_token_that_a_text_is(loaded: Loaded, bare: Loaded) -> None:
    vocabulary = tokenizer().get_vocab()
    assert token_id(loaded, " Paris") == vocabulary["ĠParis"]
    assert token_id(loaded, "Paris") == vocabulary["Paris"]
    assert token_id(loaded, "<eos>") == EOS
    assert token_id(loaded, HOSTILE[0]) == vocabulary[HOSTILE[0]]
    assert token_id(bare, "12") == token_id(bare, "#12") == 12


def test_a_text_of_several_tokens_is_no_token(loaded: Loaded) -> None:
    said = refusal(lambda: token_id(loaded, "marked"))
    assert said.startswith("'marked' is 3 tokens (['mark', 'e', 'd']), a logit is one token's")
    assert "most words begin with a space" in said
    assert "most words begin with a space" not in refusal(lambda: token_id(loaded, " marzipan"))


# --------------------------------------------------------------------------------------------------------------- words


def grouped(*tokens: str, special: tuple[int, ...] = ()) -> list[str]:
    prompt = Prompt("".join(tokens), tuple(range(len(tokens))), tokens, tuple(i in special for i in range(len(tokens))))
    return ["|".join(tokens[p] for p in group) for group in words(prompt)]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (("In", " econ", "omics", ","), ["In", " econ|omics", ","]),
        ((" Rome", "'s", " up"), [" Rome|'s", " up"]),
        ((" Rome", "’s"), [" Rome|’s"]),
        ((" don", "'t"), [" don|'t"]),
        ((" 19", "84", "."), [" 19|84", "."]),
        ((" well", "-", "known"), [" well", "-", "known"]),
        ((" a", " ", "zig", "gurat"), [" a", " |zig|gurat"]),
        ((" a", "  ", "b"), [" a", "  ", "b"]),
        (("end", "\n", "Start"), ["end", "\n", "Start"]),
        (("end", "\n", " Start"), ["end", "\n", " Start"]),
        ((" na", "\ufffd", "\ufffd", "ve"), [" na|\ufffd|\ufffd|ve"]),
        ((" e", "\u0301", "te"), [" e|\u0301|te"]),
        ((" stra", "ße"), [" stra|ße"]),
        (("東", "京", "都"), ["東", "京", "都"]),
        (("''", "'", "s"), ["''", "'", "s"]),
        (("",), [""]),
        (("a", "", "b"), ["a", "", "b"]),
    ],
)
def test_sub_tokens_of_a_word_go_together_and_punctuation_alone(tokens: tuple[str, ...], expected: list[str]) -> None:
    assert grouped(*tokens) == expected


def test_special_tokens_are_no_part_of_a_word() -> None:
    assert grouped("<s>", "up", "<pad>", "on", special=(0, 2)) == ["<s>", "up", "<pad>", "on"]
    assert grouped("s", "up", "pad", "on", special=(0, 2)) == ["s", "up", "pad", "on"]


@given(tokens=st.lists(st.text(max_size=3), min_size=1, max_size=8), special=st.sets(st.integers(0, 7)))
def test_words_are_all_positions_in_order(tokens: list[str], special: set[int]) -> None:
    prompt = Prompt("", tuple(range(len(tokens))), tuple(tokens), tuple(i in special for i in range(len(tokens))))
    groups = words(prompt)
    assert [position for group in groups for position in group] == list(range(len(tokens)))
    for group in groups:
        assert len(group) == 1 or not any(prompt.special[position] for position in group)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((" It", " rains", ".", " We", " stay", "."), [" It| rains|.", " We| stay|."]),
        ((" pi", " is", " 3", ".", "14", ".", " Yes"), [" pi| is| 3|.|14|.", " Yes"]),
        ((' "', "No", "!", '"', " he", " said"), [' "|No|!|"| he| said']),
        ((" one", "\n", "two"), [" one|\n", "two"]),
    ],
)
def test_a_sentence_ends_with_its_stop_before_a_space_or_with_the_line(
    tokens: tuple[str, ...], expected: list[str]
) -> None:
    prompt = Prompt("", tuple(range(len(tokens))), tokens, (False,) * len(tokens))
    assert ["|".join(tokens[i] for i in group) for group in sentences(prompt)] == expected
