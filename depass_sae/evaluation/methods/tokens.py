"""How much each token is said to matter: the rules, gradients along a path or at a point, attention, and baselines.

With x the embeddings (position embeddings in them, where they are learned) and f the target in the live model:

    effect        ⟨∂f/∂x_i, x_i⟩: gradient times input, attribution patching to 0
    ig            ⟨∫ ∂f/∂x_i(αx) dα, x_i⟩: integrated gradients from embeddings of 0 (Sundararajan et al. 2017)
    ig-logprob    the same of the log-probability of the target's tokens
    attnlrp       AttnLRP as lxt computes it (Achtibat et al. 2024): gradient times input with norms and the slopes of
                  activations frozen, and half of the gradient of each factor of a product (gate and up-projection;
                  pattern and value, the pattern's half again halved between query and key). That is what ``half-qk``
                  gives tokens, whatever its settings here are.
    rollout       Π_l (½ I + ½ mean_h A) (Abnar and Zuidema 2020), the row of the target's position
    attention     mean_h A of the last layer below the target, that row
    norm          ‖x_i‖
    nearness      the position
    leave-one-out f without the token, which is deleted, all others there
    random        noise
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ...attribution.logits import LogitTarget
from ...attribution.readoff import Target
from ...attribution.removal import DELETE
from ...attribution.shapley import Limits, alone
from ...attribution.tokens import attribute_tokens_each
from ...errors import UserError
from ...models.place import Place
from ...passes.choices import EFFECT
from ...passes.intervene import intervene_differentiably
from ...passes.rules import RULES
from ...passes.settings import Settings
from ..games import token_game, token_players
from ..question import Question
from . import Method

Scores = Float[Tensor, "pos"]

STEPS = 50
"""Points on the path of integrated gradients, by Gauss and Legendre, as many as captum takes."""


def by_rule(question: Question, rule: str) -> Scores:
    settings = question.settings.by(rule).quiet()
    return attribute_tokens_each(question.subject, [question.asked], settings=settings)[0].target.contributions


def attnlrp(question: Question) -> Scores:
    settings = replace(Settings.of("half-qk"), budget=question.settings.budget)
    return attribute_tokens_each(question.subject, [question.asked], settings=settings)[0].target.contributions


def effect(question: Question) -> Scores:
    *_, first = question.gradients(EFFECT)
    return (first.before[0] * question.seen.resid_pre[0]).sum(-1)


def integrated(question: Question, target: Target | None = None, steps: int = STEPS) -> Scores:
    """Integrated gradients of a target (None: the question's own), from embeddings of 0."""
    subject, target = question.subject, target or question.target
    x, ids, place = question.seen.resid_pre[0], question.prompt.ids(), question.place
    points, weights = path(steps, x)
    total, at_once = torch.zeros_like(x), max(1, 512 // len(x))
    for some in torch.arange(steps).split(at_once):
        with torch.enable_grad():
            inputs = (points[some, None, None] * x).requires_grad_()
            edits = {Place(0, "resid_pre"): lambda _, inputs=inputs: inputs}
            read = intervene_differentiably(
                subject.adapter, ids.expand(len(some), -1), edits, {place}, subject.trace_dtype
            )[place]
            (found,) = torch.autograd.grad(read, inputs, target.slope(subject, read.detach()).to(read))
        total += (weights[some, None, None] * found).sum(0)
    return (total * x).sum(-1)


def path(steps: int, like: Tensor) -> tuple[Float[Tensor, "step"], Float[Tensor, "step"]]:
    """Points between 0 and 1, and what each counts."""
    from numpy.polynomial.legendre import leggauss

    points, weights = leggauss(steps)
    return torch.tensor((points + 1) / 2).to(like), torch.tensor(weights / 2).to(like)


def integrated_logprob(question: Question) -> Scores:
    target = question.target
    if not isinstance(target, LogitTarget):
        raise UserError(f"ig-logprob is of a token's log-probability, which {target.name} has none of; leave it out")
    return integrated(question, replace(target, against="softmax"))


def rollout(question: Question) -> Scores:
    found = torch.eye(question.pos + 1)
    for pattern in _patterns(question):
        mixed = (pattern + torch.eye(len(pattern))) / 2
        found = mixed / mixed.sum(-1, keepdim=True) @ found
    return found[question.pos]


def attention(question: Question) -> Scores:
    return _patterns(question)[-1][question.pos]


def _patterns(question: Question) -> list[Float[Tensor, "query key"]]:
    """Each layer's below the target, its heads' mean."""
    below = question.seen.records[: question.place.depth]
    found = [record.pattern.float().mean(0).cpu() for record in below if record.pattern is not None]
    if not found:
        raise UserError(f"no attention lies below {question.target.name}: rollout and attention say nothing of it")
    return found


def norm(question: Question) -> Scores:
    return question.seen.resid_pre[0].norm(dim=-1)


def nearness(question: Question) -> Scores:
    return torch.arange(question.pos + 1.0)


def random(question: Question) -> Scores:
    return torch.rand(question.pos + 1, generator=question.generator)


def leave_one_out(question: Question) -> Scores:
    """Tokens that stay in any case have 0."""
    scores, players = torch.zeros(question.pos + 1, dtype=torch.float64), token_players(question)
    if players:
        scores[players] = alone(token_game(question, DELETE), Limits()).mean
    return scores


METHODS: Mapping[str, Method] = {
    **{rule: partial(by_rule, rule=rule) for rule in ("half", "softmax", "linear")},
    "attnlrp": attnlrp,
    "effect": effect,
    "ig": integrated,
    "ig-logprob": integrated_logprob,
    "rollout": rollout,
    "attention": attention,
    "norm": norm,
    "nearness": nearness,
    "leave-one-out": leave_one_out,
    "random": random,
    **{rule: partial(by_rule, rule=rule) for rule in RULES if rule not in ("half", "softmax", "linear")},
}
