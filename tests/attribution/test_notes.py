"""What has to be said with an answer: of its rule, and of a token that is hardly what was meant."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.graph.export.html import to_html

from .tiny import D_MODEL, TEXT, fitting_sae, model, tokenizer

W = torch.linspace(-1, 1, 2 * D_MODEL).view(2, D_MODEL)
SAID = "under the rule max a neuron goes to one part alone"

ANSWERS: dict[str, Callable[[ds.LM, str], Any]] = {
    "tokens": lambda lm, rule: lm.attribute_tokens(TEXT, "1/3", rule=rule),
    "several": lambda lm, rule: lm.attribute_tokens_each(TEXT, ["1/3@5"], rule=rule)[0],
    "contrast": lambda lm, rule: lm.contrast(TEXT, "supply and demand", "1/3", rule=rule).against,
    "heads": lambda lm, rule: lm.attribute_heads(TEXT, logit=5, rule=rule),
    "modules": lambda lm, rule: lm.attribute_modules(TEXT, "1/3", rule=rule),
    "neurons": lambda lm, rule: lm.attribute_neurons(TEXT, "1/3", rule=rule),
    "subspace": lambda lm, rule: lm.attribute_subspace(TEXT, "1/3", subspace=ds.Subspace(W, 1), rule=rule),
    "attention": lambda lm, rule: lm.attribute_attention(TEXT, 1, 0, 6, 2, rule=rule),
    "votes": lambda lm, rule: lm.votes(TEXT, ds.Subspace(W, 1), rule=rule),
    "parts": lambda lm, rule: lm.decompose(TEXT, layer=1, rule=rule),
    "card": lambda lm, rule: lm.card("1/3", TEXT, rule=rule, strongest=1),
}


@pytest.fixture(scope="module")
def fitting() -> ds.LM:
    return ds.load(model(), tokenizer(), saes=fitting_sae())


@pytest.mark.parametrize("question", ANSWERS)
def test_every_answer_by_the_rule_max_says_that_rounding_decides_it(fitting: ds.LM, question: str) -> None:
    answer = ANSWERS[question](fitting, "max")
    assert SAID in answer.note
    assert SAID not in (ANSWERS[question](fitting, "half").note or "")
    if hasattr(answer, "table"):
        assert SAID in " ".join(str(answer.table()).split()).lower()
    if hasattr(answer, "to_dict"):
        assert answer.to_dict()["note"] == answer.note


def test_graphs_and_case_studies_by_the_rule_max_say_so_too(fitting: ds.LM) -> None:
    g = fitting.graph(TEXT, "1/3", rule="max", max_nodes=12)
    assert SAID in g.graph["note"]
    assert SAID in fitting.verify(g, max_nodes=1).graph["note"]
    assert SAID in to_html(g)
    assert "note" not in fitting.graph(TEXT, "1/3", max_nodes=12).graph
    study = fitting.case_study(TEXT, "1/3", rule="max", ablate=0, max_nodes=12, verify=0)
    assert SAID in study.to_dict()["features"][0]["note"]


def test_features_of_a_score_are_not_shared_out_by_the_rule(fitting: ds.LM) -> None:
    lm = ds.load(model(), tokenizer(), saes=fitting_sae("0.resid_post"))
    assert lm.attribute_attention(TEXT, 1, 0, 6, 2, by="features", rule="max").note is None


@pytest.fixture(scope="module")
def sure() -> ds.LM:
    """A model that goes on after TEXT with " Paris"."""
    made, known = copy.deepcopy(model()), tokenizer()
    with torch.no_grad():
        last = made.model(torch.tensor([known(TEXT)["input_ids"]])).last_hidden_state[0, -1]
        made.lm_head.weight[known.get_vocab()["ĠParis"]] = 10 * last / last.norm()
    return ds.load(made, known, saes=fitting_sae())


def test_a_token_without_its_space_is_noted_where_the_one_with_it_is_much_likelier(sure: ds.LM) -> None:
    said = "'Paris' is another token than ' Paris', which the model gives a probability of "
    for answer in (
        sure.attribute_tokens(TEXT, logit="Paris"),
        sure.attribute_heads(TEXT, logit_diff=("Paris", " Rome")),
        sure.attribute_tokens_each(TEXT, ["logit:Paris"])[0],
    ):
        assert answer.note.startswith(said)
        assert answer.to_dict()["note"] == answer.note
    assert sure.graph(TEXT, "logit:Paris", max_nodes=12).graph["note"].startswith(said)


def test_nothing_is_noted_of_a_token_that_is_meant(sure: ds.LM) -> None:
    paris = tokenizer().get_vocab()["Paris"]
    for settings in ({"logit": " Paris"}, {"logit": "Rome"}, {"logit": paris}):
        assert sure.attribute_tokens(TEXT, **settings).note is None
    assert "note" not in sure.graph(TEXT, max_nodes=12).graph
