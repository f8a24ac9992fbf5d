"""What is measured is what happens to the model, and each number stands with the method that it is about."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from depass_sae.attribution.logits import LogitTarget
from depass_sae.evaluation.rules import QUESTIONS, TOGETHER, Study, _heads, _scored, _sets, _without_heads
from depass_sae.models.prompt import encode

from ..attribution.tiny import TEXT, handle, model
from ..passes.models import HEADS, LAYERS

DIFFERENCE = LogitTarget(90, against=17)


def study() -> Study:
    subject = handle()._subject
    return Study.of(subject, encode(subject.loaded, subject.adapter, TEXT), 0, lambda _: {"difference": DIFFERENCE})


@torch.no_grad()
def difference(network: torch.nn.Module, ids: torch.Tensor) -> float:
    logits = network(ids[None]).logits[0, -1]
    return (logits[90] - logits[17]).item()


def test_a_head_taken_out_is_a_model_without_its_output_weights() -> None:
    asked, ids = study(), study().prompt.ids()
    sets = [[0], [6, 9], []]  # numbered through the layers
    lost = asked.losses("difference", _without_heads(asked, sets, HEADS), len(sets))
    for members, loss in zip(sets, lost.tolist(), strict=True):
        network = copy.deepcopy(model())
        for member in members:
            weight = network.model.layers[member // HEADS].self_attn.o_proj.weight.data
            weight.unflatten(1, (HEADS, -1))[:, member % HEADS] = 0
        assert loss == pytest.approx(difference(model(), ids) - difference(network, ids), abs=1e-4)


def test_of_heads_every_method_is_measured_alone_and_together() -> None:
    found = list(_heads(study(), alone=None))
    protocols = ["alone", *(f"top {k} out" for k in TOGETHER)]
    methods = ["linear", "half", "effect", "softmax", "nearness", "random"]
    assert [(method, protocol) for _, protocol, method, _ in found] == [(m, p) for m in methods for p in protocols]
    assert {name for name, *_ in found} == {"difference"}
    everything = [value for _, protocol, _, value in found if protocol == f"top {max(TOGETHER)} out"]
    assert max(TOGETHER) >= LAYERS * HEADS
    assert everything == pytest.approx([everything[0]] * len(methods), abs=1e-4)  # all heads are out


def test_a_loss_is_that_of_the_set_that_was_taken_out() -> None:
    scores = {"right": torch.arange(50.0), "wrong": -torch.arange(50.0)}
    chosen = [3, 40, 11]
    lost = torch.tensor([float(sum(members)) for members in _sets(chosen, scores)])
    found = {(method, protocol): value for _, protocol, method, value in _scored("t", scores, chosen, lost, -2.0)}
    assert found["right", "alone"] == 1
    assert found["wrong", "alone"] == -1
    for k in TOGETHER:
        assert found["right", f"top {k} out"] == sum(range(50 - k, 50)) / 2
        assert found["wrong", f"top {k} out"] == sum(range(k)) / 2


def test_a_question_has_no_more_texts_than_there_are() -> None:
    for question in QUESTIONS.values():
        assert len(question.texts(3)) == 3
        assert len(question.texts(60)) == min(60, question.most or math.inf)
