"""Norms behind a sublayer (Gemma 2 and 3): frozen they scale what each component adds; live they are differentiated."""

import pytest
import torch

from depass_sae.models.place import Place
from depass_sae.passes.sources import Heads, Modules, Neurons

from . import oracles
from .agreement import CLOSE, LAST, assert_carried, both, carried, carried_by_oracle, off, vectors
from .models import LAYERS, tiny

SHAPES = ("gemma2", "gemma3_text", "gemma3")
each = pytest.mark.parametrize("shape", SHAPES)


@pytest.mark.parametrize("rule", ["linear", "half", "softmax"])
@pytest.mark.parametrize("number", range(2 * LAYERS))
@each
def test_components_that_start_anywhere_are_carried_as_by_the_oracle(shape: str, number: int, rule: str) -> None:
    seen, own = both(tiny(shape, torch.float64))
    at = Place(number // 2, ("resid_pre", "resid_mid")[number % 2])
    assert_carried(seen, own, vectors(seen, at, seed=number).start(seen), rule)


@each
def test_what_a_sublayer_adds_is_what_stands_behind_its_norm(shape: str) -> None:
    seen, own = both(tiny(shape, torch.float64))
    for layer in range(LAYERS):
        block = oracles.layers(own.model)[layer]
        attn, mlp = (own.io[f"{layer}.{name}_layernorm"][1] for name in ("post_attention", "post_feedforward"))
        assert hasattr(block, "post_feedforward_layernorm")
        assert off(seen.streams[2 * layer + 1] - seen.streams[2 * layer], attn) <= CLOSE
        assert off(seen.sublayer(2 * layer).written(), attn) <= CLOSE  # Gemma has no biases
        assert off(seen.sublayer(2 * layer + 1).written(), mlp) <= CLOSE


@each
def test_heads_modules_and_neurons_start_behind_the_norm(shape: str) -> None:
    seen, own = both(tiny(shape, torch.float64))
    _, added = oracles.decompose(own, oracles.per_token(own.stream(0)), 0, oracles.Rule("linear"))
    for layer in range(LAYERS):
        heads, neurons = Heads(layer).start(seen), Neurons(layer).start(seen)
        assert off(heads.rows.dense()[:, :-2], added[2 * layer].units) <= CLOSE
        assert off(neurons.rows.dense()[:, :-2], added[2 * layer + 1].units) <= CLOSE
        for start in (heads, neurons, Modules(layer, "attn").start(seen), Modules(layer, "mlp").start(seen)):
            assert off(start.rows.dense().sum(1), seen.at(start.at)) <= CLOSE
            if start.at.depth < 2 * LAYERS:
                streams, _ = carried_by_oracle(own, start, "half")
                found = carried(seen, start, [LAST], "half")[LAST]
                assert off(found.dense(), streams[2 * LAYERS].x) <= CLOSE
