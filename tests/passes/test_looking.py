"""What goes through one query or key, before any graph is made of it."""

from unittest import mock

import pytest
import torch

from depass_sae.passes import looking
from depass_sae.passes.frozen import Frozen
from depass_sae.passes.looking import Looking
from depass_sae.passes.mixers.attention import reach
from depass_sae.passes.rules import QK

from .agreement import IDS, both, noise
from .models import DELTA, EVERY, LAYERS, tiny

CAPPED = ("gemma2",)
FULL = QK(share=1.0, slope="mean")


@pytest.mark.parametrize("shape", [shape for shape in EVERY if shape not in CAPPED])
def test_all_queries_parts_and_all_keys_sum_to_what_a_head_carries_beyond_an_even_look(shape: str) -> None:
    """With the bias vectors; a soft-cap's slope would be in the sum, and a sink keeps its own score."""
    seen, _ = both(tiny(shape, torch.float64))
    compared = 0
    for number in range(0, 2 * LAYERS, 2):
        frozen = seen.sublayer(number)
        gradient = noise(3, len(IDS), frozen.mixer.out.d_in).to(frozen.resid)
        ways = Looking(FULL).hop(frozen, torch.cat([gradient, *[torch.zeros_like(gradient)] * 2]))
        if ways is None:
            assert shape in DELTA
            continue
        through, bias = ways
        found = torch.einsum("rpd,pd->r", through, frozen.resid) + bias.sum(1)
        heads = frozen.mixer.look()
        normed = frozen.norm(frozen.resid)
        q, k = heads.queries_and_keys(normed)
        at = torch.arange(len(IDS))
        even = heads.shares(0 * torch.einsum("qhd,khd->hqk", q, k), reach(at, at, heads.window))
        v = heads.value_map.to(normed)(normed)
        beyond = heads._move(frozen.record.pattern.to(v.dtype) - even, v)
        factor = heads._frozen_factor(normed, v, frozen.record)
        expected = torch.einsum("rpz,pz->r", gradient, beyond if factor is None else beyond * factor)
        size = (gradient * beyond).abs().sum((1, 2)).max()
        assert len(found) == 6  # three targets, by queries and by keys
        for own in found.chunk(2):
            assert (own - expected).abs().max() < 1e-4 * size  # the quadrature's
        compared += 1
    assert compared


@pytest.mark.parametrize("shape", [shape for shape in EVERY if shape not in DELTA])
def test_what_is_kept_of_scores_is_what_they_are_on_any_first_positions(shape: str) -> None:
    seen, _ = both(tiny(shape, torch.float64))
    kept_ones, n = Looking(), len(IDS)
    for first in (n // 2, n, n - 2):  # kept, replaced by what is longer, and cut
        for number in range(0, 2 * LAYERS, 2):
            frozen = seen.first(first).sublayer(number)
            gradient = noise(3 * 2, first, frozen.mixer.out.d_in).to(frozen.resid)
            kept, anew = kept_ones.hop(frozen, gradient), Looking().hop(frozen, gradient)
            assert kept is not None
            assert anew is not None
            for one, other in zip(kept, anew, strict=True):
                assert (one - other).abs().max() < 1e-4 * (other.abs().max() + 1e-9)  # the quadrature's
    assert {len(one) for one in kept_ones._kept.values()} == {n}


def test_of_a_layer_scores_are_computed_once_and_kept_as_far_as_there_is_room() -> None:
    seen, _ = both(tiny("llama", torch.float64))
    one, other = (seen.sublayer(number) for number in (0, 2))
    gradient = noise(3, len(IDS), one.mixer.out.d_in).to(one.resid)
    size = one.sharing(FULL).size  # type: ignore[union-attr]
    for room, expected in ((2**28, 2), (size + size // 2, 3), (0, 4)):
        with (
            mock.patch.object(looking, "KEPT", room),
            mock.patch.object(Frozen, "sharing", autospec=True, side_effect=Frozen.sharing) as computed,
        ):
            kept = Looking()
            for frozen in (one, other, one, other):
                kept.hop(frozen, gradient)
        assert computed.call_count == expected
