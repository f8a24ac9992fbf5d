"""Softmax attention: its pattern, left live, is the recorded one; frozen, it moves components as the oracle does."""

import pytest
import torch

from depass_sae.models.load import adapter_for
from depass_sae.models.place import Place
from depass_sae.passes.mixers.attention import Attention
from depass_sae.passes.record import trace
from depass_sae.passes.sources import tokens

from ..agreement import CLOSE, IDS, assert_carried, assert_split_by_token, both, carried, off, vectors
from ..models import DELTA, EVERY, HEADS, KV_HEADS, LAYERS, fresh, recorded_pattern, tiny

FULL = [(shape, layer) for shape in EVERY for layer in range(LAYERS) if shape not in DELTA or layer == 1]
each = pytest.mark.parametrize(("shape", "layer"), FULL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each
def test_from_the_normed_stream_comes_the_recorded_pattern(shape: str, layer: int, dtype: torch.dtype) -> None:
    seen = trace(tiny(shape, dtype), torch.tensor(IDS))
    frozen = seen.sublayer(2 * layer)
    assert isinstance(frozen.mixer, Attention)
    found, recorded = frozen.mixer.attend(frozen.norm(frozen.resid)), recorded_pattern(seen, layer)
    assert torch.allclose(found, recorded.to(found), rtol=0, atol=1e-5)
    assert torch.equal(found > 0, recorded > 0)  # the same keys are in sight


@each
def test_components_that_are_absent_here_and_there_are_moved_as_by_the_oracle(shape: str, layer: int) -> None:
    seen, own = both(tiny(shape, torch.float64))
    start = vectors(seen, Place(layer, "resid_pre"), seed=layer).start(seen)
    assert_carried(seen, own, start, until=2 * layer + 1)


@each
def test_a_head_is_split_by_what_each_token_has_of_its_output(shape: str, layer: int) -> None:
    assert_split_by_token(*both(tiny(shape, torch.float64)), layer)


@pytest.mark.parametrize("shape", EVERY)
def test_only_sinks_take_attention_away(shape: str) -> None:
    seen = trace(tiny(shape, torch.float64), torch.tensor(IDS))
    for layer in [layer for name, layer in FULL if name == shape]:
        kept = recorded_pattern(seen, layer).sum(-1)
        assert (kept < 0.99).any() if shape == "gpt_oss" else torch.allclose(kept, torch.ones_like(kept), atol=1e-6)


def test_a_value_bias_arrives_as_far_as_sinks_let_it() -> None:
    adapter = tiny("gpt_oss", torch.float64)
    seen = trace(adapter, torch.tensor(IDS))
    start = tokens(list(map(str, IDS))).start(seen)
    bias = carried(seen, start, [Place(0, "hook_z")])[Place(0, "hook_z")].dense()[:, -2]
    b_v = adapter.model.model.layers[0].self_attn.v_proj.bias.detach().unflatten(0, (2, -1)).repeat_interleave(2, dim=0)
    expected = recorded_pattern(seen, 0).sum(-1).T[..., None] * b_v
    assert off(bias, expected.flatten(1)) <= CLOSE


@pytest.mark.parametrize("shape", DELTA)
def test_a_gate_that_is_half_open_lets_half_of_what_is_moved_through(shape: str) -> None:
    model = fresh(shape, torch.float64)
    block = model.model.layers[1]
    with torch.no_grad():
        block.self_attn.q_proj.weight.unflatten(0, (HEADS, 2, -1))[:, 1] = 0  # σ(0) = ½
        seen, place = trace(adapter_for(model), torch.tensor(IDS)), Place(1, "hook_z")
        v = block.self_attn.v_proj(block.input_layernorm(seen.resid_pre[1]))
    found = carried(seen, tokens(list(map(str, IDS))).start(seen), [place])[place].dense().sum(1)
    per_head = v.unflatten(-1, (KV_HEADS, -1)).repeat_interleave(HEADS // KV_HEADS, dim=1)
    assert off(2 * found, torch.einsum("hqk,khd->qhd", recorded_pattern(seen, 1), per_head).flatten(1)) <= CLOSE
