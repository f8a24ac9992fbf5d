"""Answers go to other processes and come back the same."""

import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import networkx as nx
import pytest
import torch

import depass_sae as ds
from depass_sae.attribution.components import MODULES

from .attribution.tiny import TEXT, handle, random_sae
from .report.case.sample import PROMPT, lm, study

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")


@cache
def one() -> ds.LM:
    return handle(random_sae())


def again(answer: Any) -> Any:
    return pickle.loads(pickle.dumps(answer))


ANSWERS: dict[str, Callable[[], Any]] = {
    "features": lambda: one().features(TEXT),
    "tokens": lambda: one().attribute_tokens(TEXT, "1/3", ablate=1, pos="all"),
    "logit": lambda: one().attribute_tokens(TEXT, logit=" Paris", by="word"),
    "direction": lambda: one().attribute_tokens(TEXT, direction=torch.ones(one().model.config.hidden_size), layer=1),
    "batch": lambda: one().attribute_tokens_batch([TEXT, "supply"], "1/3")[1],
    "each": lambda: one().attribute_tokens_each(TEXT, ["1/3", "1/4"])[1],
    "contrast": lambda: one().contrast(TEXT, "supply and price", "1/3"),
    "heads": lambda: one().attribute_heads(TEXT, "1/3"),
    "heads by token": lambda: one().attribute_heads(TEXT, "1/3", by_token=True),
    "modules": lambda: one().attribute_modules(TEXT, "1/3"),
    "neurons": lambda: one().attribute_neurons(TEXT, "1/3"),
    "subspace": lambda: one().attribute_subspace(TEXT, "1/3", subspace=one().decoder_directions(["1/4"])),
    "attention": lambda: one().attribute_attention(TEXT, 2, 1, 6, 4),
    "card": lambda: one().card("1/3", [TEXT, "supply"], labels={"1/3": "fruit"}),
    "case study": study,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_comes_back_with_the_same_document_and_the_same_face(name: str) -> None:
    answer = ANSWERS[name]()
    back = again(answer)
    assert type(back) is type(answer)
    assert back.to_dict() == answer.to_dict()
    assert repr(back) == repr(answer)
    assert back._repr_html_() == answer._repr_html_()
    assert back == answer
    assert hash(back) == hash(answer)
    assert again(answer.plot()) == answer.plot()


def test_answers_to_different_questions_differ() -> None:
    heads = one().attribute_heads(TEXT, "1/3")
    assert heads != one().attribute_heads(TEXT, "1/4")
    assert heads != one().attribute_heads(TEXT, "1/3", rule="linear")
    assert heads != one().attribute_modules(TEXT, "1/3")
    assert heads != "heads"


def test_votes_and_parts_come_back() -> None:
    votes = one().votes(TEXT, ds.Heads(1))
    assert again(votes) == votes
    parts = one().decompose(TEXT, layer=1)
    back = again(parts)
    assert torch.equal(back.parts, parts.parts)
    assert back.labels == parts.labels


def test_a_graph_comes_back() -> None:
    g = lm().verify(lm().graph(PROMPT, "logit:5", max_nodes=24), max_nodes=2)
    back = again(g)
    assert nx.utils.graphs_equal(back, g)
    assert back.graph == g.graph


def test_a_granularity_is_one_object_in_every_process() -> None:
    assert again(MODULES) is MODULES
