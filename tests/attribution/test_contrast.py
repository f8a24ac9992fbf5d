"""Two prompts side by side: their alignment, and what the differences sum to."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.passes.rules import RULES
from depass_sae.view.words import place, signed

from .test_tokens import assert_adds_up
from .tiny import TEXT, VOCAB, handle, random_sae

PAIRS = {
    "substitution": ("supply and demand", "supply and price"),
    "insertion": ("supply and demand", "supply and the demand"),
    "deletion": ("supply and the demand", "and the demand"),
}


def texts(found: ds.Contrast) -> list[tuple[str | None, str | None]]:
    return [(pair.source and pair.source.text, pair.against and pair.against.text) for pair in found.pairs]


def assert_differences_sum(found: ds.Contrast) -> None:
    document = found.to_dict()["difference"]
    summed = sum(entry["value"] for entry in (*document["sources"], *document["other"])) + document["constant"]
    pre = found.attribution.pre_activation - found.against.pre_activation
    assert document["pre_activation"] == found.difference == pre
    largest = max(1.0, *found.attribution.contributions.abs().tolist(), *found.against.contributions.abs().tolist())
    assert summed == pytest.approx(pre, abs=1e-4 * largest)


def test_a_word_that_gave_way_to_another_stands_beside_it(lm: ds.LM) -> None:
    found = lm.contrast(*PAIRS["substitution"], "1/3", pos=3)
    assert texts(found) == [("<bos>", "<bos>"), ("supply", "supply"), (" and", " and"), (" demand", " price")]
    assert [pair.same for pair in found.pairs] == [True, True, True, False]


def test_a_word_that_came_in_stands_beside_nothing(lm: ds.LM) -> None:
    found = lm.contrast(*PAIRS["insertion"], logit=5)
    assert texts(found)[2:] == [(" and", " and"), (None, " the"), (" demand", " demand")]
    assert found.pairs[3].value == 0
    assert found.pairs[3].difference == -found.pairs[3].against_value
    assert not found.pairs[3].same


def test_a_word_that_was_taken_out_stands_beside_nothing(lm: ds.LM) -> None:
    found = lm.contrast("a supply and the demand", "a and the demand", logit=5)
    assert texts(found)[1:4] == [("a", "a"), (" supply", None), (" and", " and")]
    assert found.pairs[2].against_value == 0
    assert found.pairs[2].difference == found.pairs[2].value


@given(
    first=st.lists(st.integers(2, 9), min_size=1, max_size=7),
    second=st.lists(st.integers(2, 9), min_size=1, max_size=7),
    rule=st.sampled_from(sorted(RULES)),
    target=st.sampled_from([{"feature": "1/3"}, {"logit": 5}]),
)
@settings(max_examples=50)
def test_the_differences_sum_to_the_difference_of_the_pre_activations(
    first: list[int], second: list[int], rule: str, target: dict[str, Any]
) -> None:
    found = handle(random_sae()).contrast(first, second, **target, rule=rule)
    assert_differences_sum(found)
    frame, ends = found.to_frame(), (found.attribution, found.against)
    for column, end in zip(("contribution", "against"), ends, strict=True):
        assert_adds_up(frame[column], end.pre_activation, end.completeness_error)
    assert (frame["contribution"] - frame["against"] == frame["difference"]).all()
    for side, answer in ((0, found.attribution), (1, found.against)):
        shown = [end[side] for end in texts(found) if end[side] is not None]
        assert shown == [source.text for source in answer.target.sources]


def test_a_prompt_against_itself_differs_nowhere(lm: ds.LM) -> None:
    found = lm.contrast(TEXT, TEXT, "1/3")
    assert found.difference == 0
    assert all(pair.same and pair.difference == 0 for pair in found.pairs)


def test_words_are_aligned_as_words(lm: ds.LM) -> None:
    found = lm.contrast("a marked apple", "a marzipan apple", logit=5, by="word")
    assert texts(found) == [("<bos>", "<bos>"), ("a", "a"), (" marked", " marzipan"), (" apple", " apple")]
    assert_differences_sum(found)


def test_a_position_holds_for_both_prompts_where_they_are_as_long(lm: ds.LM) -> None:
    for question in ({"feature": "1/3@2"}, {"feature": "1/3", "pos": 2}):
        found = lm.contrast(*PAIRS["substitution"], **question)
        assert (found.attribution.target.pos, found.against.target.pos) == (2, 2)


def test_a_longer_prompt_is_read_where_the_target_is_largest(lm: ds.LM) -> None:
    shorter, longer = PAIRS["insertion"]
    largest = lm.attribute_tokens(longer, "1/3").target.pos
    for question in ({"feature": "1/3@2"}, {"feature": "1/3", "pos": 2}):
        found = lm.contrast(shorter, longer, **question)
        assert (found.attribution.target.pos, found.against.target.pos) == (2, largest)


def test_the_document_is_the_first_prompts_with_the_second_and_the_differences(lm: ds.LM) -> None:
    prompt, against = PAIRS["insertion"]
    found = lm.contrast(prompt, against, "1/3")
    document = found.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    first = lm.attribute_tokens(prompt, "1/3").to_dict()
    assert {key: document[key] for key in first} == first
    assert document["against"] == lm.attribute_tokens(against, "1/3").to_dict()
    difference = document["difference"]
    assert difference["pos"] == first["targets"][0]["pos"]
    assert difference["against_pos"] == document["against"]["targets"][0]["pos"]
    for entry, pair in zip(difference["sources"], found.pairs, strict=True):
        assert entry["value"] == pair.difference
        if pair.source is not None:
            assert entry["source"] == pair.source.to_dict(pair.value)
        assert (entry["source"] is None, entry["against"] is None) == (pair.source is None, pair.against is None)


def test_the_frame_has_a_row_for_every_pair(lm: ds.LM) -> None:
    found = lm.contrast(*PAIRS["insertion"], logit=5)
    frame = found.to_frame()
    assert list(frame.columns) == ["kind", "token", "against_token", "contribution", "against", "difference"]
    tokens, others = frame[frame["kind"] == "token"], frame[frame["kind"] != "token"]
    assert tokens["difference"].tolist() == [pair.difference for pair in found.pairs]
    assert tokens["token"].isna().tolist() == [False, False, False, True, False]
    assert others["kind"].tolist() == ["bias", "rest", "constant"]
    assert others[["token", "against_token"]].isna().all(axis=None)


def test_the_table_has_the_largest_difference_first_and_sums_the_others(lm: ds.LM) -> None:
    found = lm.contrast(*PAIRS["substitution"], logit=5)
    special, *others = found.pairs
    pairs = sorted(others, key=lambda pair: -abs(pair.difference))
    lines = str(found.table(top=1)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("──"))
    assert signed(pairs[0].difference) in lines[start + 1]
    others = sum(pair.difference for pair in pairs[1:])
    assert "2 others" in lines[start + 2]
    assert signed(others) in lines[start + 2]
    assert place(special.source.text, 0) in lines[start + 3]
    assert any("pre-activation" in line and signed(found.difference) in line for line in lines)


def test_both_answers_are_shown_in_a_notebook(lm: ds.LM) -> None:
    html = lm.contrast(*PAIRS["substitution"], "1/3", pos=3)._repr_html_()
    assert "demand (3)" in html
    assert "price (3)" in html


def test_whatever_is_wrong_with_either_prompt_is_said(lm: ds.LM) -> None:
    with pytest.raises(UserError, match="the prompt is empty"):
        lm.contrast(TEXT, "", "1/3")
    with pytest.raises(UserError, match=f"token id {VOCAB} is not in the vocabulary"):
        lm.contrast(TEXT, [VOCAB], "1/3")
    with pytest.raises(UserError, match="outside the prompt"):
        lm.contrast(TEXT, TEXT, "1/3", pos=99)


def test_directions_are_contrasted_too(lm: ds.LM) -> None:
    assert_differences_sum(lm.contrast(*PAIRS["deletion"], direction=torch.ones(32), layer=2))
