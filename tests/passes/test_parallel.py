"""Parallel blocks (GPT-NeoX): attention and MLP read one stream, and what lies between them is no module's."""

import pytest
import torch

from depass_sae.models.place import Place
from depass_sae.passes.sources import Heads, Modules, Neurons

from . import oracles
from .agreement import CLOSE, LAST, assert_carried, both, carried, carried_by_oracle, off, vectors
from .models import LAYERS, tiny

RULES = ("linear", "half", "softmax")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("number", range(2 * LAYERS))
@pytest.mark.parametrize("shape", ["gpt_neox", "gpt_neox_serial"])
def test_components_that_start_anywhere_are_carried_as_by_the_oracle(shape: str, number: int, rule: str) -> None:
    """From the middle on, the MLP reads a stream of which nothing is split."""
    seen, own = both(tiny(shape, torch.float64))
    at = Place(number // 2, ("resid_pre", "resid_mid")[number % 2])
    assert_carried(seen, own, vectors(seen, at, seed=number).start(seen), rule)


def test_the_middle_of_the_stream_is_what_attention_has_added() -> None:
    seen, own = both(tiny("gpt_neox", torch.float64))
    for layer in range(LAYERS):
        attn, mlp = own.io[f"{layer}.attention"][1][0], own.io[f"{layer}.mlp"][1]
        assert off(seen.resid_mid[layer], seen.resid_pre[layer] + attn) <= 1e-12
        assert off(seen.streams[2 * layer + 2], seen.resid_pre[layer] + attn + mlp) <= 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_heads_modules_and_neurons_are_carried_as_by_the_oracle(rule: str) -> None:
    seen, own = both(tiny("gpt_neox", torch.float64))
    _, added = oracles.decompose(own, oracles.per_token(own.stream(0)), 0, oracles.Rule("linear"))
    for layer in range(LAYERS):
        heads, neurons = Heads(layer).start(seen), Neurons(layer).start(seen)
        assert off(heads.rows.dense()[:, :-2], added[2 * layer].units) <= CLOSE
        assert off(neurons.rows.dense()[:, :-2], added[2 * layer + 1].units) <= CLOSE
        for start in (heads, neurons, Modules(layer, "attn").start(seen), Modules(layer, "mlp").start(seen)):
            assert off(start.rows.dense().sum(1), seen.at(start.at)) <= CLOSE
            if start.at.depth < 2 * LAYERS:
                streams, _ = carried_by_oracle(own, start, rule)
                assert off(carried(seen, start, [LAST], rule)[LAST].dense(), streams[2 * LAYERS].x) <= CLOSE


def test_a_head_does_not_reach_the_mlp_of_its_own_layer() -> None:
    seen, _ = both(tiny("gpt_neox", torch.float64))
    start, place = Heads(1).start(seen), Place(1, "mlp_out")
    out = carried(seen, start, [place], "half")[place].dense()
    assert not out[:, :-2].any()
    assert out[:, -1].any()
