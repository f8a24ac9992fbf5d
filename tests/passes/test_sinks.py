"""Attention sinks: the rule on norms, where on the stream it looks, and how often it is wrong on real text."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import depass_sae as ds
from depass_sae.evaluation.rules import prompts
from depass_sae.models.load import adapter_for
from depass_sae.models.place import HOOKS
from depass_sae.models.prompt import encode
from depass_sae.passes.record import trace
from depass_sae.passes.sinks import FIRST, LATER, sinks, sinks_of

from .models import CONFIGS, LAYERS, SHAPES, build

SINK = 7
"""A token whose norm is massive from the embeddings on."""


def found(*places: list[float]) -> list[int]:
    return sinks_of([torch.tensor(norms) for norms in places])


def test_a_position_is_a_sink_where_its_norm_is_many_times_the_usual_one() -> None:
    assert found([1.0, 1.1, 1.0, LATER + 1, 0.9]) == [3]
    assert found([1.0, 1.1, 1.0, LATER - 1, 0.9]) == []


def test_of_the_first_position_less_has_to_be_seen() -> None:
    assert found([FIRST + 1, 1.0, 1.0]) == [0]
    assert found([FIRST - 1, 1.0, 1.0]) == []
    assert found([1.0, FIRST + 1, 1.0, 1.0]) == []


def test_short_prompts_are_judged_by_what_is_not_a_sink() -> None:
    assert found([300.0]) == []  # nothing to compare it with
    assert found([300.0, 1.0]) == [0]
    assert found([300.0, 200.0, 1.0]) == [0, 1]
    assert found([300.0, 1.0, 200.0]) == [0, 2]
    assert found([1.0, 300.0, 1.0]) == [1]


def test_a_sink_stays_one_behind_where_it_was_made() -> None:
    made, last = [1.0, 1.0, 100.0, 1.0], [1.0, 1.0, 3.0, 1.0]
    assert found(last) == []
    assert found(last, made, last) == [2]


@given(
    norms=st.lists(st.floats(1.0, FIRST), min_size=1, max_size=8),
    scale=st.floats(1e-3, 1e6),
)
def test_norms_that_are_about_alike_are_no_sinks_whatever_their_size(norms: list[float], scale: float) -> None:
    assert found([scale * norm for norm in norms]) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_ordinary_tokens_of_random_models_are_no_sinks(shape: str) -> None:
    adapter = adapter_for(build(CONFIGS[shape]()))
    seen = trace(adapter, torch.arange(2, 14))
    assert sinks(seen, (LAYERS - 1, "resid_post")) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_every_read_point_behind_the_embeddings_sees_a_sink(shape: str) -> None:
    model = copy.deepcopy(build(CONFIGS[shape]()))
    with torch.no_grad():
        model.get_input_embeddings().weight[SINK] *= 10_000
    seen = trace(adapter_for(model), torch.tensor([3, 4, SINK, 5, 6]))
    for layer in range(LAYERS):
        for hook in HOOKS:
            expected = [] if (layer, hook) == (0, "resid_pre") else [2]
            assert sinks(seen, (layer, hook)) == expected, (layer, hook)


@pytest.mark.smollm2
def test_on_real_prompts_no_token_is_taken_for_a_sink_and_the_first_position_is_one() -> None:
    try:
        subject = ds.load("smollm2", saes={})._subject
    except ds.UserError as missing:
        pytest.skip(str(missing))
    texts = prompts(60, subject)
    wrong = dict.fromkeys(range(subject.adapter.n_layers), 0)
    for seen in subject.traces(texts, subject.adapter.n_layers - 1):
        for layer in wrong:
            wrong[layer] += len(set(sinks(seen, (layer, "resid_post"))) - {0})
    tokens = sum(len(text) - 1 for text in texts)
    assert tokens == 1050
    assert max(count for layer, count in wrong.items() if layer >= 11) == 0
    assert max(wrong.values()) <= tokens / 1000
    without_start = [encode(subject.loaded, subject.adapter, text.token_ids[1:]) for text in texts[:10]]
    for seen in subject.traces(without_start, 12):
        assert [sinks(seen, (layer, "resid_post")) for layer in (2, 5, 11, 12)] == [[0]] * 4
