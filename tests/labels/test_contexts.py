"""Contexts from Neuronpedia's API, played by a local server: taken as they are where they are right, and never else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from depass_sae.errors import UserError
from depass_sae.labels.contexts import LONGEST, MOST_CONTEXTS, Context, PublicFeature, fetch_feature, text_of

from .test_neuronpedia import SAE, Answer, Neuronpedia, server  # noqa: F401

PAGE: dict[str, Any] = {
    "modelId": "gpt2-small",
    "explanations": [],
    "frac_nonzero": 0.0125,
    "maxActApprox": 7.5,
    "freq_hist_data_bar_values": [0.5, 1.5],
    "freq_hist_data_bar_heights": [30, 4],
    "pos_str": [" plus", " more"],
    "pos_values": [1.5, 0.5],
    "neg_str": [" less"],
    "neg_values": [-1.25],
    "activations": [
        {"tokens": ["a", " b"], "values": [0, 2.5], "maxValue": 2.5, "maxValueTokenIndex": 1},
        {"tokens": ["<bos>", "c", " d"], "values": [0, 7.5, 1], "maxValue": 7.5},
        {"tokens": ["a", " b"], "values": [0, 2.5], "maxValue": 2.5},
        {"tokens": ["silent"], "values": [0]},
    ],
}


def answered(page: Any = PAGE) -> Answer:
    return 200, {}, json.dumps(page).encode()


def ask(server: Neuronpedia, cache: Path, index: int = 1, **options: Any) -> PublicFeature:  # noqa: F811
    return fetch_feature(SAE, index, base_url=server.url, cache_dir=cache, **options)


def test_all_that_a_page_has_of_a_feature_is_taken_the_strongest_context_first(
    server: Neuronpedia,  # noqa: F811
    tmp_path: Path,
) -> None:
    server.answer(1, answered())
    assert ask(server, tmp_path) == PublicFeature(
        contexts=(Context(("<bos>", "c", " d"), (0, 7.5, 1)), Context(("a", " b"), (0, 2.5))),
        density=0.0125,
        largest=7.5,
        histogram=((0.5, 30), (1.5, 4)),
        top=((" plus", 1.5), (" more", 0.5)),
        bottom=((" less", -1.25),),
    )


def test_one_request_is_made_and_its_answer_kept(server: Neuronpedia, tmp_path: Path) -> None:  # noqa: F811
    server.answer(1, answered())
    first = ask(server, tmp_path)
    assert ask(server, tmp_path) == first
    assert len(server.requests) == 1
    (kept,) = tmp_path.rglob("1.contexts.json")
    for damaged in ("", "{", "[]", '{"activations": 1}'):
        kept.write_text(damaged)
        assert ask(server, tmp_path) == first
    assert len(server.requests) == 5


def test_a_page_that_says_little_is_enough(server: Neuronpedia, tmp_path: Path) -> None:  # noqa: F811
    server.answer(1, answered({"activations": [], "frac_nonzero": None, "pos_str": ["a"], "pos_values": []}))
    assert ask(server, tmp_path) == PublicFeature(())


@pytest.mark.parametrize(
    "page",
    [
        [],
        {},
        {"activations": {}},
        {"activations": [7]},
        {"activations": [{"tokens": ["a"], "values": [1, 2]}]},
        {"activations": [{"tokens": ["a"], "values": ["1"]}]},
        {"activations": [{"tokens": [1], "values": [1]}]},
        {"activations": [{"tokens": "a", "values": [1]}]},
        {"activations": [{"tokens": ["a"], "values": [float("nan")]}]},
        {"activations": [{"tokens": ["a"], "values": [10**400]}]},
        {"activations": [], "frac_nonzero": True},
        {"activations": [], "freq_hist_data_bar_values": 3},
    ],
)
def test_what_is_no_answer_of_its_api_is_refused_in_one_line(
    server: Neuronpedia,  # noqa: F811
    tmp_path: Path,
    page: Any,
) -> None:
    server.answer(1, answered(page))
    with pytest.raises(UserError, match=r"gpt2-small/6-res-jb/1 could not be had: .* not the JSON"):
        ask(server, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_too_many_contexts_and_too_long_ones_are_left_out(server: Neuronpedia, tmp_path: Path) -> None:  # noqa: F811
    many = [{"tokens": [f"t{i}"], "values": [i + 1]} for i in range(3 * MOST_CONTEXTS)]
    long = [
        {"tokens": ["a"] * (LONGEST + 1), "values": [999] * (LONGEST + 1)},
        {"tokens": ["a" * 999], "values": [999]},
    ]
    server.answer(1, answered({"activations": many + long}))
    found = ask(server, tmp_path).contexts
    assert len(found) == MOST_CONTEXTS
    assert [context.largest for context in found[:2]] == [3 * MOST_CONTEXTS, 3 * MOST_CONTEXTS - 1]


def test_what_the_network_does_is_told_in_one_line(server: Neuronpedia, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="has no feature gpt2-small/6-res-jb/1"):
        ask(server, tmp_path)
    server.answer(1, (500, {}, b""))
    with pytest.raises(UserError, match="status 500"):
        ask(server, tmp_path)
    with pytest.raises(UserError, match="does not say where it is"):
        fetch_feature(None, 1, base_url=server.url, cache_dir=tmp_path)
    with pytest.raises(UserError, match="does not say where it is"):
        fetch_feature("../../etc", 1, base_url=server.url, cache_dir=tmp_path)
    with pytest.raises(UserError, match="cannot be reached"):
        fetch_feature(SAE, 1, base_url="http://127.0.0.1:1", cache_dir=tmp_path)


def test_tokens_are_joined_to_their_text_without_special_ones_before_it() -> None:
    values = (1.0,) * 3
    assert text_of(Context(("<bos>", "c", " d"), values), ["<bos>"]) == ("c d", 1)
    assert text_of(Context(("\u2581c", "\u2581d", "e"), values)) == (" c de", 0)
    assert text_of(Context(("c", "\u0120d", "\u010a"), values)) == ("c d\n", 0)
    assert text_of(Context(("\u0120al", "arm", " d"), values)) == ("\u0120alarm d", 0)  # a letter of Maltese
