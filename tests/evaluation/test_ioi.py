"""Sentences with an indirect object: both orders of the names, and a name that is one token to follow."""

from __future__ import annotations

import pytest

import depass_sae as ds
from depass_sae.evaluation.ioi import NAMES, sentences


def test_the_giver_is_named_twice_and_the_indirect_object_once() -> None:
    for sentence in sentences():
        assert sentence.text.count(sentence.subject.strip()) == 2
        assert sentence.text.count(sentence.indirect_object.strip()) == 1
        assert "{" not in sentence.text


def test_each_order_of_the_names_is_as_frequent() -> None:
    first = [s.text.index(s.subject.strip()) < s.text.index(s.indirect_object.strip()) for s in sentences()]
    assert first.count(True) == first.count(False) == 12


def test_the_sentences_differ_and_are_always_the_same() -> None:
    assert len(set(sentences())) == len(sentences())
    assert sentences() == sentences()


@pytest.mark.smollm2
def test_for_smollm2_every_name_is_one_token() -> None:
    try:
        tokenizer = ds.load("smollm2", saes={}).tokenizer
    except ds.UserError as missing:
        pytest.skip(str(missing))
    assert tokenizer is not None
    assert {len(tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) for name in NAMES} == {1}
