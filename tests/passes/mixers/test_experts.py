"""Experts: each position's chosen ones, weighted, share their neurons out as one wide MLP would."""

from typing import Any

import pytest
import torch
from torch import Tensor

from depass_sae.models.adapter import Adapter
from depass_sae.models.load import adapter_for
from depass_sae.models.place import Place
from depass_sae.passes.mixers.experts import Experts
from depass_sae.passes.sources import Neurons

from .. import oracles
from ..agreement import CLOSE, assert_carried, assert_swept, both, carried, carried_by_oracle, off, vectors
from ..models import CONFIGS, LAYERS, ROUTED, build, fresh, tiny

WHERE = [(shape, layer) for shape in ROUTED for layer in range(LAYERS) if (shape, layer) != ("qwen3_moe", 1)]
each = pytest.mark.parametrize(("shape", "layer"), WHERE)
shapes = pytest.mark.parametrize("shape", ROUTED)
rules = pytest.mark.parametrize("rule", ["linear", "half", "softmax"])


def clamped() -> Adapter:
    """A gpt-oss whose clamp is met at every other neuron."""
    model = fresh("gpt_oss", torch.float64)
    for layer in model.model.layers:
        layer.mlp.experts.limit = 0.7
    return adapter_for(model)


@rules
@each
def test_components_that_are_absent_here_and_there_share_as_by_the_oracle(shape: str, layer: int, rule: str) -> None:
    seen, own = both(tiny(shape, torch.float64))
    start = vectors(seen, Place(layer, "resid_mid"), seed=layer).start(seen)
    for memory in (None, 1):
        assert_carried(seen, own, start, rule, until=2 * layer + 2, memory=memory)


@rules
def test_clamped_gates_and_up_projections_share_as_by_the_oracle(rule: str) -> None:
    adapter = clamped()
    seen, own = both(adapter)
    with torch.no_grad():
        layer = adapter.model.model.layers[0]
        g, u = (
            (layer.post_attention_layernorm(seen.resid_mid[0]) @ layer.mlp.experts.gate_up_proj[0])
            .unflatten(-1, (-1, 2))
            .unbind(-1)
        )
    assert 0.1 < (g > 0.7).double().mean() < 0.9
    assert 0.1 < (u.abs() > 0.7).double().mean() < 0.9
    assert_carried(seen, own, vectors(seen, Place(0, "resid_mid")).start(seen), rule, until=2)
    if rule != "softmax":
        assert_swept(seen, own, rule)


@pytest.mark.parametrize("shape", ["qwen3_moe", "gpt_oss", "qwen3_5_moe_text"])
def test_under_softmax_every_neuron_of_every_chosen_expert_is_shared_by_its_own_scores(shape: str) -> None:
    """Neurons that write along independent directions can be told apart in what each component adds."""
    config = CONFIGS[shape]()
    config.intermediate_size = config.moe_intermediate_size = 8
    seen, own = both(adapter_for(build(config, torch.float64)))
    place = Place(0, "mlp_out")
    start = vectors(seen, Place(0, "resid_mid")).start(seen)
    added = carried(seen, start, [place], "softmax")[place].dense()
    _, expected = carried_by_oracle(own, start, "softmax")
    hidden, rows = expected[1].hidden, rows_of(own, 0)
    assert hidden is not None
    weights = oracles.route(own, 0, normed(own, 0))
    for pos in range(len(added)):
        chosen = weights[pos].nonzero()[:, 0].tolist()
        mine = [neuron for expert in chosen for neuron in range(8 * expert, 8 * expert + 8)]
        mine += range(8 * weights.shape[1], len(rows))  # of the shared expert
        parts = [m for m in range(added.shape[1]) if m != added.shape[1] - 2]  # the biases behind are no neuron's
        found = torch.linalg.lstsq(rows[mine].T, added[pos, parts].T).solution.T
        assert off(found, hidden[pos, parts][:, mine]) <= 1e-5
        assert len(mine) == 16 + (14 if "3_5" in shape else 0)
        absent = sorted(set(range(len(rows))) - set(mine))
        assert not hidden[pos][:, absent].any()


def rows_of(own: oracles.Seen, layer: int) -> Tensor:
    """What every neuron writes along."""
    module = oracles.layers(own.model)[layer].mlp
    experts = [oracles.expert_of(module, i) for i in range(len(module.experts.gate_up_proj))]
    shared = [oracles.neurons_of(module.shared_expert)] if hasattr(module, "shared_expert") else []
    return torch.cat([expert.down.T for expert in experts + shared]).detach()


@torch.no_grad()
def normed(own: oracles.Seen, layer: int) -> Tensor:
    block = oracles.layers(own.model)[layer]
    return getattr(block, oracles.mlp_norm(block))(own.stream(2 * layer + 1))


@each
def test_the_routers_choice_and_weights_are_the_models(shape: str, layer: int) -> None:
    seen, own = both(tiny(shape, torch.float64))
    record, weights = seen.records[2 * layer + 1], oracles.route(own, layer, normed(own, layer))
    found = torch.zeros_like(weights).scatter(1, record.at["choice"], record.at["weights"].double())
    assert off(found, weights) <= CLOSE
    renormalised = not (shape == "qwen3_moe" and not own.model.config.norm_topk_prob)
    assert torch.allclose(weights.sum(1), torch.ones(len(weights)).double()) == renormalised


def test_weights_that_are_not_renormalised_are_taken_as_they_are() -> None:
    config = CONFIGS["qwen3_moe"]()
    config.norm_topk_prob = False
    seen, own = both(adapter_for(build(config, torch.float64)))
    assert (oracles.route(own, 0, normed(own, 0)).sum(1) < 0.95).any()
    assert_carried(seen, own, vectors(seen, Place(0, "resid_mid")).start(seen), "half", until=2)
    assert_swept(seen, own, "half", [1])


@shapes
def test_neurons_are_named_and_written_by_expert(shape: str) -> None:
    seen, own = both(tiny(shape, torch.float64))
    frozen = seen.sublayer(1)
    mixer: Any = frozen.mixer
    assert isinstance(mixer, Experts)
    _, added = oracles.decompose(own, oracles.per_token(own.stream(0)), 0, oracles.Rule("linear"))
    groups = [[0], [mixer.n_units - 1], [3, 1, mixer.width], list(range(mixer.n_units))]
    expected = torch.stack([added[1].units[:, group].sum(1) for group in groups], dim=1)
    assert off(frozen.written_by(groups), expected) <= CLOSE
    assert off(frozen.written(), expected[:, -1]) <= CLOSE
    shared = "3_5" in shape
    assert mixer.n_units == 5 * mixer.width + 14 * shared
    assert mixer.unit_name(mixer.width + 2) == "1.2"
    assert mixer.unit_name(mixer.n_units - 1) == ("shared.13" if shared else f"4.{mixer.width - 1}")
    labels = Neurons(0, [[mixer.width + 2], [0, 1]]).start(seen).labels
    assert labels == ("neuron 1.2", "neurons [0.0, 0.1]", "bias", "rest")
