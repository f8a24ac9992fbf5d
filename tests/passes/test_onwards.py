"""A part carried forward is, read anywhere, what a sweep back from there gives it."""

import random

import pytest
import torch

from depass_sae.models.place import HOOKS, Place
from depass_sae.passes.backward import Cuts, steps, sweep
from depass_sae.passes.choices import CONTRIBUTION, EFFECT
from depass_sae.passes.onwards import Ends, Given, onwards
from depass_sae.passes.record import Trace
from depass_sae.passes.settings import Settings

from .agreement import IDS, both, noise
from .models import EVERY, LAYERS, PARALLEL, tiny

CHOICES = {
    "half": CONTRIBUTION["half"], "linear": CONTRIBUTION["linear"], "half-qk": Settings.of("half-qk").choices,
    "effect": EFFECT,
}  # fmt: skip


def width(seen: Trace, place: Place) -> int:
    return seen.sublayer(place.depth).mixer.out.d_in if place.hook == "hook_z" else seen.adapter.d_model


def swept(seen: Trace, at: Place, w: torch.Tensor, by: str, into: Place) -> torch.Tensor:
    """The gradient of ⟨w, what stands at a place⟩ with respect to what is put in at a lower one."""
    *_, lowest = sweep(seen, {at: w[None]}, CHOICES[by], down_to=into.depth)
    return {"hook_z": lowest.inner, "attn_out": lowest.output, "mlp_out": lowest.output}.get(into.hook, lowest.before)[
        0
    ]


@pytest.mark.parametrize("by", CHOICES)
@pytest.mark.parametrize("shape", EVERY)
def test_it_arrives_everywhere_as_the_sweep_back_says(shape: str, by: str) -> None:
    seen, _ = both(tiny(shape, torch.float64))
    rng = random.Random(f"{shape} {by}")
    streams = ["resid_pre"] if shape in PARALLEL else ["resid_pre", "resid_mid"]
    into = Place(rng.randrange(2), rng.choice([*streams, "hook_z", "attn_out", "mlp_out"]))
    part = noise(len(IDS), width(seen, into), seed=1).double()
    compared = 0
    for arrived in onwards(seen, Given(above={into: part}), CHOICES[by]):
        at = arrived.place
        if at.behind <= into.behind and at != into:
            continue  # beside what was put in
        if at.is_stream or at.depth > into.depth:
            w = noise(*arrived.above.shape, seed=2 + compared).double()
            expected = (swept(seen, at, w, by, into) * part).sum()
            assert (w * arrived.above).sum().item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-9), at
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("shape", ["llama", "gemma2", "qwen3_moe", "gpt_neox"])
def test_nothing_goes_on_where_it_ends_and_what_ends_is_handed_out(shape: str) -> None:
    seen, _ = both(tiny(shape, torch.float64))
    ends = Ends(frozenset({Place(0, "mlp_out"), Place(1, "hook_z"), Place(2, "attn_out")}))
    into, w = Place(0, "resid_pre"), noise(len(IDS), seen.adapter.d_model).double()
    part = noise(len(IDS), seen.adapter.d_model, seed=1).double()
    handed = {}

    def met(place: Place):
        return lambda gradient: handed.update({place: gradient}) or {}

    cuts = Cuts(values={place: met(place) for place in ends.values})
    last = Place(LAYERS - 1, "resid_post")
    *_, lowest = steps(seen, {last: w[None]}, EFFECT, cuts)
    for arrived in onwards(seen, Given(above={into: part}), EFFECT, ends):
        if arrived.place in ends.values:
            assert not arrived.above.any()
            assert arrived.below.any()
    expected = (lowest.before[0] * part).sum().item()
    assert (w * arrived.above).sum().item() == pytest.approx(expected, rel=1e-9)


def test_what_is_put_in_stands_above_what_arrives() -> None:
    seen, _ = both(tiny("llama", torch.float64))
    part = noise(len(IDS), seen.adapter.d_model).double()
    given = Given(above={Place(1, "resid_pre"): part})
    first = next(iter(onwards(seen, given, CONTRIBUTION["half"])))
    assert first.place in (Place(1, "resid_pre"), Place(0, "resid_post"))
    assert not first.below.any()
    assert torch.equal(first.above, part)
    hooks = [one.place.hook for one in onwards(seen, given, CONTRIBUTION["half"])]
    assert set(hooks) >= {*HOOKS} - {"resid_pre"}  # which is the resid_post of the layer before
