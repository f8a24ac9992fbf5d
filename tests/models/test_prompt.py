"""Prompts as the model sees them: BOS, ids taken as they are, token texts, words."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AddedToken, PreTrainedTokenizerFast

from depass_sae.errors import PromptWarning, UserError
from depass_sae.models.adapter import Adapter
from depass_sae.models.load import Loaded, adapter_for
from depass_sae.models.prompt import (
    Prompt,
    encode,
    is_prompt,
    sentences,
    several,
    special_ids,
    token_id,
    token_text,
    words,
)
from depass_sae.texts import joined

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


CHAT = [{"role": "user", "content": "supply"}, {"role": "assistant", "content": "and demand"}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def chatty(template: str = TEMPLATE, **options: Any) -> Loaded:
    """A tokenizer that puts BOS in front by itself, and a chat template that writes it."""
    made = copy.deepcopy(tokenizer())
    made.chat_template = template
    return Loaded(model(), made, "tiny", **options)


def test_a_text_for_a_model_that_was_loaded_for_chats_is_a_users_message(adapter: Adapter) -> None:
    asked = chatty()
    assert encode(chatty(chat=True), adapter, "supply") == encode(asked, adapter, CHAT[:1])
    assert encode(chatty(chat=True), adapter, [3, 4]) == encode(asked, adapter, [3, 4])


@pytest.mark.parametrize("bos", [None, BOS])
def test_a_start_token_that_both_the_text_and_the_tokenizer_bring_is_there_once(
    loaded: Loaded, adapter: Adapter, bos: int | None, recwarn: pytest.WarningsRecorder
) -> None:
    body = tokenizer(adds_bos=False)(TEXT)["input_ids"]
    assert list(encode(replace(loaded, bos_id=bos), adapter, f"<bos>{TEXT}").token_ids) == [BOS, *body]
    written_out = chatty().tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    once = encode(chatty(bos_id=bos), adapter, written_out)
    assert once.token_ids[0] == BOS
    assert once.token_ids.count(BOS) == 1
    assert not recwarn.list


def test_what_a_tokenizer_adds_behind_a_text_stays_where_its_start_token_goes(adapter: Adapter) -> None:
    both = copy.deepcopy(tokenizer())
    both.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    assert encode(Loaded(model(), both, "tiny"), adapter, "<bos>supply").tokens == ("<bos>", "supply", "<eos>")


def test_two_start_tokens_are_warned_of_and_kept(loaded: Loaded, plain: Loaded, bare: Loaded, adapter: Adapter) -> None:
    for asked in (loaded, replace(plain, bos_id=BOS), bare):
        with pytest.warns(PromptWarning, match=r"begins with two start tokens .*; one of them is too many") as caught:
            assert encode(asked, adapter, [BOS, BOS, 5]).token_ids == (BOS, BOS, 5)
        assert caught[0].filename == __file__
    with pytest.warns(PromptWarning, match="two start tokens"):
        assert encode(loaded, adapter, "<bos><bos>supply").tokens == ("<bos>", "<bos>", "supply")


@pytest.mark.parametrize("ids", [[BOS, 5], [5, BOS, BOS], [5, 5], [EOS, EOS, 5], [BOS]])
def test_nothing_is_said_of_ids_that_begin_well(
    loaded: Loaded, adapter: Adapter, ids: list[int], recwarn: pytest.WarningsRecorder
) -> None:
    encode(loaded, adapter, ids)
    assert not recwarn.list


# --------------------------------------------------------------------------------------- messages and tokenizers' words


def test_messages_are_written_out_by_the_chat_template_with_the_answer_about_to_begin(adapter: Adapter) -> None:
    asked = chatty()
    prompt = encode(asked, adapter, CHAT)
    expected = asked.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert list(prompt.token_ids) == expected
    assert prompt.tokens[0] == "<bos>"
    assert prompt.text == "".join(prompt.tokens) == "<bos>user: supply<eos>assistant: and demand<eos>assistant:"


def test_messages_of_a_template_without_a_start_token_get_the_one_that_the_saes_want(adapter: Adapter) -> None:
    without = TEMPLATE.replace("{{ bos_token }}", "")
    assert encode(chatty(without), adapter, CHAT).token_ids[0] != BOS
    assert encode(chatty(without, bos_id=BOS), adapter, CHAT).token_ids.count(BOS) == 1


def test_messages_that_cannot_be_written_out_are_refused(loaded: Loaded, bare: Loaded, adapter: Adapter) -> None:
    assert refusal(lambda: encode(loaded, adapter, CHAT)) == (
        "the tokenizer of tiny has no chat template; give the prompt as a text"
    )
    assert "without a tokenizer, so its prompts are token ids" in refusal(lambda: encode(bare, adapter, CHAT))
    picky = chatty("{{ raise_exception('roles must\nalternate') }}")
    assert refusal(lambda: encode(picky, adapter, CHAT)) == (
        "the chat template of tiny does not take these messages: roles must alternate"
    )
    assert "put the message into a list" in refusal(lambda: encode(loaded, adapter, CHAT[0]))


def test_what_a_tokenizer_returns_is_a_prompt(loaded: Loaded, adapter: Adapter) -> None:
    ids = loaded.tokenizer(TEXT)["input_ids"]
    tensors = loaded.tokenizer(TEXT, return_tensors="pt")
    forms = [loaded.tokenizer(TEXT), loaded.tokenizer([TEXT]), tensors, loaded.tokenizer([TEXT], return_tensors="np")]
    for form in (*forms, dict(tensors), {"input_ids": ids}, {"input_ids": list(torch.tensor(ids))}):
        assert list(encode(loaded, adapter, form).token_ids) == ids


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_padding_is_left_out_by_the_attention_mask(adapter: Adapter, side: str, tensors: str | None) -> None:
    padding = copy.deepcopy(tokenizer())
    padding.pad_token, padding.padding_side = "<eos>", side
    given = padding(TEXT, return_tensors=tensors, padding="max_length", max_length=25)
    assert list(encode(Loaded(model(), padding, "tiny"), adapter, given).token_ids) == padding(TEXT)["input_ids"]


def test_a_mask_that_fits_no_ids_is_refused(loaded: Loaded, adapter: Adapter) -> None:
    def said(mask: list[int]) -> str:
        return refusal(lambda: encode(loaded, adapter, {"input_ids": [5, 6, 7], "attention_mask": mask}))

    assert said([1, 1]) == "the prompt has 3 input_ids and an attention_mask of 2"
    assert said([0, 0, 0]) == "the prompt is empty"
    assert "gaps between tokens" in said([1, 0, 1])


def test_a_batch_is_no_prompt_but_several(loaded: Loaded, adapter: Adapter) -> None:
    texts = [TEXT, "supply"]
    batch = loaded.tokenizer(texts)
    for form in (batch, {"input_ids": torch.ones(2, 3, dtype=torch.long)}, torch.ones(2, 3, dtype=torch.long)):
        said = refusal(lambda: encode(loaded, adapter, form))  # noqa: B023
        assert said == "a prompt is one sequence, not a batch of 2; give them one at a time"
    found = [list(encode(loaded, adapter, one).token_ids) for one in several(batch)]
    assert found == [loaded.tokenizer(text)["input_ids"] for text in texts]


@pytest.mark.parametrize(
    ("given", "one"),
    [
        (TEXT, True), ([5, 6], True), ([np.int64(5)], True), (list(torch.tensor([5, 6])), True), (CHAT, True),
        (torch.tensor([5, 6]), True), ({"input_ids": [5]}, True), ({"input_ids": [[5]]}, True), (5, True),
        ([TEXT], False), ([[5, 6]], False), ([torch.tensor([5, 6])], False), ([CHAT, CHAT], False), ([], False),
        ([{"input_ids": [5]}], False), ({"input_ids": [[5], [6]]}, False),
    ],
    ids=str,
)  # fmt: skip
def test_one_prompt_is_told_from_several(given: Any, one: bool) -> None:
    assert is_prompt(given) == one
    assert (several(given) == [given]) == one or isinstance(given, list)


def test_ids_that_end_with_padding_are_warned_of(adapter: Adapter, recwarn: pytest.WarningsRecorder) -> None:
    padding = copy.deepcopy(tokenizer())
    padding.pad_token = padding.convert_ids_to_tokens(90)
    padded = Loaded(model(), padding, "tiny")
    encode(padded, adapter, [90, 5, 6])
    encode(padded, adapter, [5, EOS])
    assert not recwarn.list
    for ids, count in (([5, 6, 90], "a pad token"), ([5, 90, 90], "2 pad tokens")):
        with pytest.warns(PromptWarning, match=f"the prompt ends with {count} .* and the last position"):
            assert list(encode(padded, adapter, ids).token_ids) == ids


def test_one_end_token_is_no_padding_where_that_pads_too(adapter: Adapter, recwarn: pytest.WarningsRecorder) -> None:
    padding = copy.deepcopy(tokenizer())
    padding.pad_token = "<eos>"
    encode(Loaded(model(), padding, "tiny"), adapter, [5, EOS])
    assert not recwarn.list
    with pytest.warns(PromptWarning, match="2 pad tokens"):
        encode(Loaded(model(), padding, "tiny"), adapter, [5, EOS, EOS])


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
    decoded = tokenizer().decode(ids, clean_up_tokenization_spaces=False)
    assert prompt.text == decoded or "\ufffd" in decoded  # what is no text is spelled out
    assert "\ufffd" not in prompt.text


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
        {"ids": [5]}, {"input_ids": ["5"]}, [{"text": "no message"}],
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


def test_added_tokens_that_are_marked_special_are_special(adapter: Adapter) -> None:
    reserved = copy.deepcopy(tokenizer())
    reserved.add_tokens([AddedToken("<|header|>", special=True)])
    (added,) = reserved("<|header|>", add_special_tokens=False)["input_ids"]
    assert added not in reserved.all_special_ids
    found = special_ids(Loaded(model(), reserved, "tiny"))
    assert found == {BOS, EOS, added}


def byte_fallback() -> PreTrainedTokenizerFast:
    """A tokenizer that writes what it lacks as bytes, as Llama 2's and Mistral's do."""
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize("known", [tokenizer(adds_bos=False), byte_fallback()], ids=["byte level", "byte fallback"])
def test_characters_of_several_tokens_are_whole_in_texts_and_spelled_out_in_tokens(known: Any) -> None:
    text = "a ✨ 東é👩‍🚀"
    ids = known(text, add_special_tokens=False)["input_ids"]
    tokens = [token_text(known, i) for i in ids]
    assert "\ufffd" in "".join(known.decode([i]) for i in ids)  # the tokenizer's own word for them
    assert "\ufffd" not in "".join(tokens)
    assert "⟨e2⟩" in "".join(tokens)
    assert len(set(tokens)) == len(set(ids))
    prompt = Prompt(text, tuple(ids), tuple(tokens), (False,) * len(ids))
    assert "".join(joined(tokens[p] for p in group) for group in words(prompt)).lstrip() == text
    assert all(len(joined(tokens[p] for p in group).strip()) < 3 for group in words(prompt))


def test_a_prompt_of_ids_has_the_text_that_they_are(plain: Loaded, adapter: Adapter) -> None:
    ids = list(plain.tokenizer("a ✨")["input_ids"])  # type: ignore[misc]
    prompt = encode(plain, adapter, ids)
    assert prompt.text == "a ✨"
    assert "\ufffd" not in "".join(prompt.tokens)


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
        ((" na", "⟨c3⟩", "⟨af⟩", "ve"), [" na|⟨c3⟩|⟨af⟩|ve"]),
        ((" a", " ⟨e2 9c⟩", "⟨a8⟩", " b"), [" a", " ⟨e2 9c⟩|⟨a8⟩", " b"]),
        (("東", "⟨e4⟩", "⟨ba ac⟩", "都"), ["東", "⟨e4⟩|⟨ba ac⟩", "都"]),
        (("a", "⟨c3⟩", "b"), ["a", "⟨c3⟩", "b"]),
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
        ((" Oh", "!", " ⟨e2 9c⟩", "⟨a8⟩", " Yes"), [" Oh|!", " ⟨e2 9c⟩|⟨a8⟩| Yes"]),
    ],
)
def test_a_sentence_ends_with_its_stop_before_a_space_or_with_the_line(
    tokens: tuple[str, ...], expected: list[str]
) -> None:
    prompt = Prompt("", tuple(range(len(tokens))), tokens, (False,) * len(tokens))
    assert ["|".join(tokens[i] for i in group) for group in sentences(prompt)] == expected
