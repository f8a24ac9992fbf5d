"""How an MLP's neurons are shared out among components: the one choice that the method makes (paper §3.2, appendix A).

A neuron f at position n adds a_f[n] v_f to the stream, a frozen. A rule splits a_f[n] into one number per component,
``hidden[n, m, f]`` with Σ_m hidden[n, m, f] = a_f[n], from

    s[n, m, f] = ⟨X̂[n, m], k_f⟩   k_f the gate's row (the first map where there is no gate), before act
    t[n, m, f] = ⟨X̂[n, m], u_f⟩   u_f the up-projection's row

where the biases of both maps are in the ``bias`` component's own s and t. Two kinds of rule:

* shares, hidden = ω·a with Σ_m ω = 1 over the components that compete: ``softmax`` (the paper's), ``linear-norm``,
  ``relu``, ``max``;
* products of the parts themselves, never through ω: ``linear`` (the paper's linear-weighted) and ``half`` (AttnLRP's
  uniform rule for a product). Each component's answer is its own, whoever else is there. ``half-qk`` is ``half``, and
  shares the product that a head moves between its pattern and its values, too (:class:`QK`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

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


Slope = Literal["local", "mean"]


@dataclass(frozen=True)
class QK:
    """How a head's queries and keys have a share in what it moves (``half-qk``; see :mod:`.mixers.sharing`).

    share: how much of a score each of its two sides has: ½ and ½ make up the score; 1 and 1, as gradients have it,
    count it twice. slope: how a pattern follows its scores: "local", as it does at the recorded scores, which is not at
    all where a head is certain; "mean", on the way from no score to the score.

    Raises UserError for what is neither.
    """

    share: float = 0.5
    slope: Slope = "local"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"qk_share is greater than 0 and at most 1, not {self.share}")
        if self.slope not in get_args(Slope):
            raise UserError(f"qk_slope is {' or '.join(get_args(Slope))}, not {self.slope!r}")


@dataclass(frozen=True)
class Rule:
    """split: leaves in s what every component gets of each neuron. couples: whether components compete.

    by_up: of a rule of products, the up-projection's share; the rest is the gate's. Both engines read it.
    may_spill: whether it can give a neuron to ``rest`` though nothing is there. shares_scores: whether queries and keys
    have a share in what heads move.
    """

    name: str
    split: Callable[[Neurons], None]
    couples: bool = True
    by_up: float = 0.0
    may_spill: bool = False
    shares_scores: bool = False
    note: str | None = None

    @classmethod
    def of_products(cls, name: str, by_up: float, shares_scores: bool = False) -> Rule:
        split = partial(product, by_up=by_up)
        return cls(name, split, couples=False, by_up=by_up, shares_scores=shares_scores)

    @property
    def aside(self) -> tuple[str, ...]:
        """The components that stand after a source's own."""
        return ("pattern", "bias", "rest") if self.shares_scores else ("bias", "rest")

    @property
    def needs_up(self) -> bool:
        """Whether it reads t."""
        return self.by_up > 0


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


def product(n: Neurons, by_up: float) -> None:
    """(1 − by_up) (act(g)/g) s u + by_up act(g) t: the non-linearity as the frozen slope through the origin.

    Without an up-projection, (act(g)/g) s.
    """
    assert n.gate is not None
    by_gate = slope(n.act, n.gate)
    if n.up is not None:
        by_gate = (1 - by_up) * by_gate * n.up
    n.s.mul_(by_gate[:, None])
    if n.up is not None and n.t is not None:
        n.s.addcmul_(n.t, (by_up * n.act(n.gate))[:, None])


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
        Rule("softmax", softmax),
        Rule("linear-norm", linear_norm),
        Rule("relu", relu, may_spill=True),
        Rule("max", winner, note=DECIDED_BY_ROUNDING),
        Rule.of_products("linear", by_up=0.0),
        Rule.of_products("half", by_up=0.5),
        Rule.of_products("half-qk", by_up=0.5, shares_scores=True),
    )
}


def rule_named(name: str) -> Rule:
    """The rule of that name. Raises UserError that lists the names there are."""
    if name not in RULES:
        raise UserError(f"unknown rule {name!r}; the rules are {', '.join(RULES)}")
    return RULES[name]
