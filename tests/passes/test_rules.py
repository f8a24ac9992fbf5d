"""The allocation rules by themselves: what each does with a handful of scores."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu, silu

from depass_sae.errors import UserError
from depass_sae.passes.rules import RULES, Neurons, rule_named

SHARING = [name for name, rule in RULES.items() if rule.couples]


def neurons(
    s: Tensor, t: Tensor | None = None, compete: Tensor | None = None, act: Callable = silu, temperature: float = 0.1
) -> Neurons:
    """One MLP whose totals are the sums of its scores."""
    gate, up = s.sum(1), None if t is None else t.sum(1)
    activation = act(gate) if up is None else act(gate) * up
    taking_part = s if compete is None else s.masked_fill(~compete[..., None], -torch.inf)
    return Neurons(taking_part, t, activation, gate, up, act, temperature)


def split(rule: str, n: Neurons) -> Tensor:
    """What every component gets of each neuron."""
    RULES[rule].split(n)
    return n.s


def one_neuron(
    *s: float, t: tuple[float, ...] | None = None, act: Callable = silu, temperature: float = 0.1
) -> Neurons:
    column = lambda values: torch.tensor(values, dtype=torch.float64)[None, :, None]  # noqa: E731
    return neurons(column(s), None if t is None else column(t), act=act, temperature=temperature)


def shares(rule: str, n: Neurons) -> list[float]:
    return (split(rule, n) / n.activation[:, None]).flatten().tolist()


@given(
    rule=st.sampled_from(list(RULES)),
    gated=st.booleans(),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)),
    temperature=st.sampled_from([0.01, 0.1, 2.0]),
    seed=st.integers(0, 2**16),
)
def test_the_shares_of_every_neuron_sum_to_its_activation(
    rule: str, gated: bool, shape: tuple[int, int, int], temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    compete = torch.rand(shape[:2], generator=generator) < 0.6
    compete[:, -1] |= ~compete.any(dim=1)
    s, t = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * compete[..., None]
    n = neurons(s, t if gated else None, compete if rule in SHARING else None, temperature=temperature)
    hidden = split(rule, n)
    assert torch.allclose(hidden.sum(1), n.activation, atol=1e-10)
    absent = ~compete
    absent[:, -1] = False  # where nobody has a claim, rest takes it, present or not
    assert (hidden[absent] == 0).all()


def test_softmax_is_the_softmax_of_the_scores_over_the_temperature() -> None:
    assert shares("softmax", one_neuron(0.2, 0.1, temperature=0.1)) == pytest.approx([0.7310585786, 0.2689414214])


@pytest.mark.parametrize("temperature", [1e30, 1e39, 1e308])
def test_softmax_shares_out_evenly_at_any_high_temperature(temperature: float) -> None:
    compete = torch.tensor([[True, True, False]])
    n = neurons(torch.tensor([[[5.0], [-3.0], [9.0]]]), compete=compete, temperature=temperature)
    assert shares("softmax", n) == pytest.approx([0.5, 0.5, 0])


def test_linear_norm_counts_from_the_lowest_score() -> None:
    assert shares("linear-norm", one_neuron(2.0, 0.0, 1.0)) == pytest.approx([2 / 3, 0, 1 / 3])
    assert shares("linear-norm", one_neuron(0.5, 0.5, 0.5)) == pytest.approx([1 / 3] * 3)


def test_relu_counts_positive_scores_and_gives_to_rest_where_there_is_none() -> None:
    assert shares("relu", one_neuron(1.0, -3.0, 3.0)) == pytest.approx([0.25, 0, 0.75])
    assert shares("relu", one_neuron(-1.0, -3.0, -2.0)) == pytest.approx([0, 0, 1])


def test_max_gives_all_to_the_largest_score() -> None:
    assert shares("max", one_neuron(0.3, 0.4, -9.0)) == [0, 1, 0]


def test_linear_gives_in_proportion_to_the_score_and_may_go_beyond_the_whole() -> None:
    n = one_neuron(3.0, -2.0, t=(1.0, 1.0))
    assert shares("linear", n) == pytest.approx([3, -2])


def test_half_gives_each_factor_half() -> None:
    n = one_neuron(3.0, -2.0, t=(0.5, 1.5))
    assert shares("half", n) == pytest.approx([0.5 * 3 + 0.5 * 0.25, -0.5 * 2 + 0.5 * 0.75])


def test_half_is_linear_where_the_mlp_is_not_gated() -> None:
    assert torch.equal(split("half", one_neuron(3.0, -2.0)), split("linear", one_neuron(3.0, -2.0)))


@pytest.mark.parametrize(("act", "slope"), [(silu, 0.5), (gelu, 0.5), (torch.relu, 0.0), (torch.tanh, 1.0)])
def test_where_scores_cancel_to_a_gate_of_exactly_zero_linear_takes_the_slope_at_zero(
    act: Callable, slope: float
) -> None:
    hidden = split("linear", one_neuron(2.0, -2.0, t=(1.0, 4.0), act=act))
    assert hidden.flatten().tolist() == pytest.approx([slope * 2 * 5, -slope * 2 * 5])


def test_very_large_scores_overflow_nowhere() -> None:
    for rule in SHARING:
        assert split(rule, one_neuron(1e30, -1e30, 3.0, act=torch.tanh)).isfinite().all(), rule


def test_an_unknown_rule_is_refused_with_the_rules_there_are() -> None:
    with pytest.raises(UserError, match="unknown rule 'taylor'; the rules are softmax, linear-norm, relu, max, linear"):
        rule_named("taylor")
