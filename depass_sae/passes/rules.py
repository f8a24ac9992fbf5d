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
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UserError

Scores = Float[Tensor, "pos comp d_mlp"]
Mask = Bool[Tensor, "pos comp"]

TEMPERATURE = 0.1
"""The paper's softmax temperature."""


@dataclass(frozen=True)
class Neurons:
    """One MLP at a block of positions, as a rule sees it. The last component is ``rest``.

    A rule may overwrite s and t.

    compete: who takes part in an allocation; at least one component per position.
    gate, up: the frozen totals, biases included (up is None, and so is t, where the MLP is not gated).
    """

    s: Scores
    t: Scores | None
    compete: Mask
    gate: Float[Tensor, "pos d_mlp"]
    up: Float[Tensor, "pos d_mlp"] | None
    act: Callable[[Tensor], Tensor]
    temperature: float

    @property
    def activation(self) -> Float[Tensor, "pos d_mlp"]:
        """a: what each neuron adds along its output row."""
        return self.act(self.gate) if self.up is None else self.act(self.gate) * self.up


@dataclass(frozen=True)
class Rule:
    """hidden: the split of every neuron. couples: whether components compete, so that absent ones must be left out.

    needs_up: whether it reads t. may_spill: whether it can give a neuron to ``rest`` though nothing is there.
    """

    name: str
    hidden: Callable[[Neurons], Scores]
    couples: bool
    needs_up: bool = False
    may_spill: bool = False


def softmax(n: Neurons) -> Scores:
    """ω = softmax_m(s / T) over the components that compete (paper eq. 14, T = 0.1)."""
    # The floor keeps scores finite; at any smaller temperature the largest score takes all, as it does at this one.
    s = n.s.div_(max(n.temperature, 1e-30))
    s[(~n.compete).nonzero(as_tuple=True)] = -torch.inf  # a few rows; a mask would go over them all
    return torch.softmax(s, dim=1).mul_(n.activation[:, None])


def linear_norm(n: Neurons) -> Scores:
    """ω = (s − min_m s) / Σ_m (s − min_m s); uniform where all scores are equal."""
    compete = n.compete[..., None]
    lowest = n.s.masked_fill(~compete, torch.inf).amin(dim=1, keepdim=True)
    above = (n.s - lowest).masked_fill_(~compete, 0)
    total = above.sum(dim=1, keepdim=True)
    uniform = compete / compete.sum(dim=1, keepdim=True)
    return torch.where(total > 0, above / total, uniform.to(above.dtype)) * n.activation[:, None]


def relu(n: Neurons) -> Scores:
    """ω = relu(s) / Σ_m relu(s); to ``rest`` where no score is positive."""
    positive = n.s.relu().masked_fill_(~n.compete[..., None], 0)
    total = positive.sum(dim=1, keepdim=True)
    shares = torch.where(total > 0, positive / total, 0.0)
    shares[:, -1:] += (total == 0).to(shares.dtype)
    return shares * n.activation[:, None]


def winner(n: Neurons) -> Scores:
    """ω = 1 for the component with the largest score, 0 for all others."""
    best = n.s.masked_fill(~n.compete[..., None], -torch.inf).argmax(dim=1, keepdim=True)
    return torch.zeros_like(n.s).scatter_(1, best, n.activation[:, None])


def linear(n: Neurons) -> Scores:
    """(act(g)/g) · s · u: the non-linearity as the frozen slope through the origin, the up-projection whole."""
    ratio = slope(n.act, n.gate)
    return n.s.mul_((ratio if n.up is None else ratio * n.up)[:, None])


def half(n: Neurons) -> Scores:
    """½ (act(g)/g) s u + ½ act(g) t: each factor of the product gets half. Without a gate, the same as ``linear``."""
    if n.up is None or n.t is None:
        return linear(n)
    by_gate = 0.5 * slope(n.act, n.gate) * n.up
    return n.s.mul_(by_gate[:, None]).addcmul_(n.t, (0.5 * n.act(n.gate))[:, None])


def slope(act: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
    """act(g)/g, and act′(0) where g is 0 or too small to divide by. Real text does meet a gate of exactly 0."""
    small = g.abs() < torch.finfo(g.dtype).tiny
    with torch.enable_grad():
        zero = torch.zeros((), dtype=g.dtype, device=g.device, requires_grad=True)
        (at_zero,) = torch.autograd.grad(act(zero), zero)
    return torch.where(small, at_zero, act(g) / torch.where(small, 1.0, g))


RULES = {
    rule.name: rule
    for rule in (
        Rule("softmax", softmax, couples=True),
        Rule("linear-norm", linear_norm, couples=True),
        Rule("relu", relu, couples=True, may_spill=True),
        Rule("max", winner, couples=True),
        Rule("linear", linear, couples=False),
        Rule("half", half, couples=False, needs_up=True),
    )
}


def rule_named(name: str) -> Rule:
    """The rule of that name. Raises UserError that lists the names there are."""
    if name not in RULES:
        raise UserError(f"unknown rule {name!r}; the rules are {', '.join(RULES)}")
    return RULES[name]
