"""The gated delta rule: its pattern is that of the layer's own kernel, and what it moves is what the oracle moves."""

from dataclasses import replace

import pytest
import torch

from depass_sae.errors import UserError
from depass_sae.models.place import Place
from depass_sae.passes.mixers.delta import DeltaRule
from depass_sae.passes.record import Trace, trace
from depass_sae.passes.sources import Vectors, tokens

from .. import oracles
from ..agreement import IDS, LAST, assert_carried, assert_split_by_token, both, carried, noise, off, vectors
from ..models import D_MODEL, DELTA, VOCAB, attention_of, recorded_pattern, tiny

LONG = tuple((7 * n + n * n) % VOCAB for n in range(100))
"""More than the kernel takes at once: it goes in chunks of 64."""
each = pytest.mark.parametrize("layer", [0, 2])
shapes = pytest.mark.parametrize("shape", DELTA)


@pytest.mark.parametrize("ids", [IDS[:1], IDS[:3], IDS, LONG], ids=len)
@each
@shapes
def test_the_pattern_is_what_the_kernel_makes_of_values_that_tell_the_keys_apart(
    shape: str, layer: int, ids: tuple[int, ...]
) -> None:
    adapter = tiny(shape, torch.float64)
    seen = trace(adapter, torch.tensor(ids))
    block = adapter.model.model.layers[layer]
    with torch.no_grad():
        own = oracles.delta_pattern(block.linear_attn, block.input_layernorm(seen.resid_pre[layer]))
    assert off(recorded_pattern(seen, layer), own) <= 1e-5
    assert (own < -1e-3).any() or len(ids) == 1  # it is no share of attention


@each
@shapes
def test_components_that_are_absent_here_and_there_are_moved_as_by_the_oracle(shape: str, layer: int) -> None:
    seen, own = both(tiny(shape, torch.float64))
    start = vectors(seen, Place(layer, "resid_pre"), seed=layer).start(seen)
    for memory in (None, 1):
        assert_carried(seen, own, start, until=2 * layer + 1, memory=memory)


@shapes
def test_a_component_that_first_appears_late_is_moved_by_what_stood_before_it_too(shape: str) -> None:
    """The slope of the convolution's activation is that of all positions, wherever the component begins."""
    seen, own = both(tiny(shape, torch.float64))
    at, n = Place(0, "resid_pre"), len(IDS)
    present = (torch.arange(n) >= 5)[:, None]
    parts = seen.at(at)[:, None] * present[..., None]
    assert_carried(seen, own, Vectors(parts, ["late"], at, present).start(seen), until=1, memory=1)


@each
@shapes
def test_a_head_is_split_by_what_each_token_has_of_its_output(shape: str, layer: int) -> None:
    assert_split_by_token(*both(tiny(shape, torch.float64)), layer)


@shapes
def test_a_token_reaches_all_later_positions_and_no_earlier_one(shape: str) -> None:
    seen = trace(tiny(shape, torch.float64), torch.tensor(IDS))
    rows = carried(seen, tokens(list(map(str, IDS))).start(seen), [Place(0, "attn_out")])[Place(0, "attn_out")]
    here = rows.dense()[:, : len(IDS)].abs().amax(-1) > 0
    assert torch.equal(here, torch.ones(len(IDS), len(IDS)).tril().bool())


@shapes
def test_the_convolution_does_not_look_into_the_prompt_before(shape: str) -> None:
    adapter = tiny(shape, torch.float64)
    first, second = (trace(adapter, torch.tensor(ids)) for ids in (IDS, (4, 7, 30)))
    packed = Trace.packed([first, second])
    for layer in (0, 2):
        z = packed.sublayer(2 * layer).recorded_z()
        assert off(z[len(IDS) :], second.sublayer(2 * layer).recorded_z()) <= 1e-12
    whole = packed.resid_pre[0]
    parts = whole[:, None] * (torch.arange(len(whole)) < len(IDS))[:, None, None]
    start = Vectors(parts, ["the first prompt"], Place(0, "resid_pre")).start(packed)
    assert not carried(packed, start, [LAST], "half")[LAST].dense()[len(IDS) :, 0].any()


def test_neighbours_in_a_long_prompt_fade_as_exactly_as_in_a_short_one() -> None:
    """What has faded since the beginning is large there, and its rounding no part of what they differ by."""
    part = attention_of(tiny("qwen3_5_text"), 0)
    fast = replace(part, decay=replace(part.decay, act=lambda t: -20 * torch.nn.functional.softplus(t)))
    normed = noise(500, D_MODEL).float()
    assert off(DeltaRule(fast).attend(normed).double(), DeltaRule(fast).attend(normed.double())) <= 1e-5


def test_no_score_stands_behind_its_pattern() -> None:
    seen = trace(tiny("qwen3_5_text"), torch.tensor(IDS))
    with pytest.raises(UserError, match="ask a layer of full attention"):
        seen.sublayer(0).mixer.look()
    assert seen.sublayer(2).mixer.look() is not None
