"""How an MLP's neurons are shared out among components: the one choice that the method makes (paper §3.2, appendix A).

A neuron f at position n adds a_f[n] v_f to the stream, a frozen. A rule splits a_f[n] into one number per component,
``hidden[n, m, f]`` with Σ_m hidden[n, m, f] = a_f[n], from

    s[n, m, f] = ⟨X̂[n, m], k_f⟩   k_f the gate's row (the first map where there is no gate), before act
    t[n, m, f] = ⟨X̂[n, m], u_f⟩   u_f the up-projection's row

where the biases of both maps are in the ``bias`` component's own s and t. Two kinds of rule:

* shares, hidden = ω·a with Σ_m ω = 1 over the components that compete: ``softmax`` (the paper's), ``linear-norm``,
  ``relu``, ``max``;
* products of the parts themselves, never through ω: ``linear`` (the paper's linear-weighted) and ``half`` (AttnLRP's
  uniform rule for a product). Each component's answer is its own, whoever else is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError

Scores = Float[Tensor, "pos comp d_mlp"]

TEMPERATURE = 0.1
"""The paper's softmax temperature."""


@dataclass(frozen=True)
class Neurons:
    """One MLP at a block of positions, as a rule sees it. The last component is ``rest``.

    s: under a rule by which components compete, −∞ for those that do not take part; somebody does at every position.
    activation: a, what each neuron adds along its output row.
    gate, up: the frozen totals, biases included (up is None, and so is t, where the MLP is not gated); of no use, and
    None, under a rule by which components compete.
    """

    s: Scores
    t: Scores | None
    activation: Float[Tensor, "pos d_mlp"]
    gate: Float[Tensor, "pos d_mlp"] | None
    up: Float[Tensor, "pos d_mlp"] | None
    act: Callable[[Tensor], Tensor]
    temperature: float


@dataclass(frozen=True)
class Rule:
    """split: leaves in s what every component gets of each neuron. couples: whether components compete.

    needs_up: whether it reads t. may_spill: whether it can give a neuron to ``rest`` though nothing is there.
    """

    name: str
    split: Callable[[Neurons], None]
    couples: bool
    needs_up: bool = False
    may_spill: bool = False
    note: str | None = None


def softmax(n: Neurons) -> None:
    """ω = softmax_m(s / T) over the components that compete (paper eq. 14, T = 0.1)."""
    # The bounds keep scores finite: at any smaller temperature the largest score takes all, as it does at 1e-30, and at
    # any larger one those that compete have equal shares, as they do at 1e30.
    s = n.s.div_(min(max(n.temperature, 1e-30), 1e30))
    torch.mul(torch.softmax(s, dim=1), n.activation[:, None], out=s)


def linear_norm(n: Neurons) -> None:
    """ω = (s − min_m s) / Σ_m (s − min_m s); uniform where all scores are equal."""
    absent = n.s == -torch.inf
    lowest = n.s.masked_fill(absent, torch.inf).amin(dim=1, keepdim=True)
    above = n.s.sub_(lowest).masked_fill_(absent, 0)
    total = above.sum(dim=1, keepdim=True)
    uniform = ~absent / (~absent).sum(dim=1, keepdim=True)
    above.copy_(torch.where(total > 0, above / total, uniform.to(above.dtype)) * n.activation[:, None])


def relu(n: Neurons) -> None:
    """ω = relu(s) / Σ_m relu(s); to ``rest`` where no score is positive."""
    positive = n.s.relu_()
    total = positive.sum(dim=1, keepdim=True)
    shares = torch.where(total > 0, positive / total, 0.0)
    shares[:, -1:] += total == 0
    torch.mul(shares, n.activation[:, None], out=n.s)


def winner(n: Neurons) -> None:
    """ω = 1 for the component with the largest score, 0 for all others."""
    best = n.s.argmax(dim=1, keepdim=True)
    n.s.zero_().scatter_(1, best, n.activation[:, None])


def linear(n: Neurons) -> None:
    """(act(g)/g) · s · u: the non-linearity as the frozen slope through the origin, the up-projection whole."""
    assert n.gate is not None
    ratio = slope(n.act, n.gate)
    n.s.mul_((ratio if n.up is None else ratio * n.up)[:, None])


def half(n: Neurons) -> None:
    """½ (act(g)/g) s u + ½ act(g) t: each factor of the product gets half. Without a gate, the same as ``linear``."""
    if n.up is None or n.t is None or n.gate is None:
        linear(n)
    else:
        by_gate = 0.5 * slope(n.act, n.gate) * n.up
        n.s.mul_(by_gate[:, None]).addcmul_(n.t, (0.5 * n.act(n.gate))[:, None])


def slope(act: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
    """act(g)/g, and act′(0) where g is 0 or too small to divide by. Real text does meet a gate of exactly 0."""
    small = g.abs() < torch.finfo(g.dtype).tiny
    with torch.enable_grad():
        zero = torch.zeros((), dtype=g.dtype, device=g.device, requires_grad=True)
        (at_zero,) = torch.autograd.grad(act(zero), zero)
    return torch.where(small, at_zero, act(g) / torch.where(small, 1.0, g))


DECIDED_BY_ROUNDING = (
    "under the rule max a neuron goes to one part alone, and between parts that are nearly equal rounding decides: on "
    "a real model float32 and float64 may differ by a tenth of the largest entry and more"
)
RULES = {
    rule.name: rule
    for rule in (
        Rule("softmax", softmax, couples=True),
        Rule("linear-norm", linear_norm, couples=True),
        Rule("relu", relu, couples=True, may_spill=True),
        Rule("max", winner, couples=True, note=DECIDED_BY_ROUNDING),
        Rule("linear", linear, couples=False),
        Rule("half", half, couples=False, needs_up=True),
    )
}


def rule_named(name: str) -> Rule:
    """The rule of that name. Raises UserError that lists the names there are."""
    if name not in RULES:
        raise UserError(f"unknown rule {name!r}; the rules are {', '.join(RULES)}")
    return RULES[name]
