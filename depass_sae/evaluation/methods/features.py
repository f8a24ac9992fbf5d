"""How much each active feature below the target is said to matter.

half, linear   its contribution in the frozen pass
effect         by how much the target falls to first order where it is removed, with nothing frozen
activation     its activation
random         noise
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ...passes.choices import CONTRIBUTION
from ..question import Question
from . import Method

Scores = Float[Tensor, "feature"]


def by_rule(question: Question, rule: str) -> Scores:
    return question.features.contributions(question.seen, rule)


def effect(question: Question) -> Scores:
    return question.features.effects()


def activation(question: Question) -> Scores:
    return torch.cat([level.recorded[level.pos, level.index].cpu() for level in question.features.levels])


def random(question: Question) -> Scores:
    return torch.rand(question.features.players, generator=question.generator)


METHODS: Mapping[str, Method] = {
    **{rule: partial(by_rule, rule=rule) for rule in CONTRIBUTION},
    "effect": effect,
    "activation": activation,
    "random": random,
}
