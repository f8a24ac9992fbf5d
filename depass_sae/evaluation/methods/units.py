"""How much each head, or neuron, is said to matter.

a rule         its contribution (paper 4.2; "DePass")
effect         ⟨∂f/∂z, z − z′⟩, attribution patching ("AtP") with nothing frozen, z′ what stands in for it: 0, its
               mean, or its value on the contrast prompt
norm           the size of what it writes (before a norm on that), over the prompt's ordinary positions
activation     of neurons, the size of the activation itself (the paper's "Coef")
leave-one-out  of heads, what is lost without it alone
random         noise
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ...attribution.components import HEADS, NEURONS, Grain, attribute_components
from ...attribution.shapley import Limits, alone
from ...passes.choices import EFFECT
from ...passes.rules import RULES
from ..games import head_game, instead, sublayers_with
from ..question import Question
from . import Method

Scores = Float[Tensor, "unit"]


def by_rule(question: Question, kind: Grain, rule: str) -> Scores:
    answer = attribute_components(
        question.subject, question.prompt, question.target, kind, pos=question.pos,
        settings=question.settings.by(rule).quiet(),
    )  # fmt: skip
    return torch.cat([row.values for row in answer.target.rows])


def effect(question: Question, kind: Grain) -> Scores:
    found = []
    for level in question.gradients(EFFECT):
        if level.number < question.place.depth and kind.of(level.frozen):
            change = level.recorded - instead(question, level.frozen)
            found.append(level.frozen.mixer.by_unit(level.inner * change, level.frozen.record)[0].cpu())
    return torch.cat(found[::-1])


def norm(question: Question, kind: Grain) -> Scores:
    found = []
    for frozen in sublayers_with(question, kind):
        z, size = frozen.recorded_z()[_ordinary(question)], frozen.mixer.n_units
        # Of a unit whose part of the output map is W, ‖z W‖² = z W Wᵀ zᵀ: no part is written out.
        weight = frozen.mixer.out.weight.to(z).unflatten(0, (size, -1))
        z = z.unflatten(1, (size, -1))
        squares = torch.einsum("nue,uef,nuf->u", z, weight @ weight.mT, z)
        found.append(squares.clamp(min=0).sqrt().cpu())
    return torch.cat(found)


def activation(question: Question, kind: Grain) -> Scores:
    ordinary = _ordinary(question)
    return torch.cat([one.recorded_z()[ordinary].norm(dim=0).cpu() for one in sublayers_with(question, kind)])


def _ordinary(question: Question) -> list[int]:
    return [pos for pos, special in enumerate(question.prompt.special) if not special]


def random(question: Question, kind: Grain) -> Scores:
    size = sum(frozen.mixer.n_units for frozen in sublayers_with(question, kind))
    return torch.rand(size, generator=question.generator)


def leave_one_out(question: Question) -> Scores:
    return alone(head_game(question), Limits()).mean


def _of(kind: Grain) -> dict[str, Method]:
    first = ("half", "linear", "half-qk")
    return {
        **{rule: partial(by_rule, kind=kind, rule=rule) for rule in first},
        "effect": partial(effect, kind=kind),
        "norm": partial(norm, kind=kind),
        "random": partial(random, kind=kind),
        **{rule: partial(by_rule, kind=kind, rule=rule) for rule in RULES if rule not in first},
    }


HEAD_METHODS: Mapping[str, Method] = {**_of(HEADS), "leave-one-out": leave_one_out}
NEURON_METHODS: Mapping[str, Method] = {**_of(NEURONS), "activation": partial(activation, kind=NEURONS)}
