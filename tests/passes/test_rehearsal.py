"""Passes on tensors without numbers: they are the passes on real ones, counted."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from depass_sae.models.load import outline
from depass_sae.models.place import Place
from depass_sae.passes.backward import sweep
from depass_sae.passes.choices import CONTRIBUTION, EFFECT
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.plan import forecast, planned
from depass_sae.passes.record import Trace, blank, trace
from depass_sae.passes.rehearsal import Effort, rehearse
from depass_sae.passes.rules import RULES
from depass_sae.passes.sources import Heads, tokens

from .models import CONFIGS, EVERY, LAYERS, ROUTED, WHOLE, tiny
from .test_forward import IDS, recorded

END = Place(LAYERS - 1, "resid_post")
BY_TOKEN = tokens([str(pos) for pos in range(len(IDS))])


def sketched(shape: str, dtype: str = "float32") -> Trace:
    return blank(outline((CONFIGS | WHOLE)[shape](), dtype=dtype), len(IDS))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [*EVERY, *WHOLE])
def test_a_blank_trace_is_as_large_as_a_recorded_one(shape: str, dtype: str) -> None:
    real = tiny(shape, getattr(torch, dtype))
    assert sketched(shape, dtype).size == trace(real, torch.tensor(IDS)).size
    some = {"until": 1, "outputs": [Place(1, "hook_z"), Place(0, "mlp_out"), Place(0, "resid_pre")]}
    assert blank(real, len(IDS), **some).size == trace(real, torch.tensor(IDS), **some).size  # type: ignore[arg-type]


def test_a_trace_in_a_higher_dtype_is_as_large_as_its_blank() -> None:
    real = tiny("gemma2", torch.bfloat16)
    seen = trace(real, torch.tensor(IDS), dtype=torch.float32)
    assert blank(real, len(IDS), dtype=torch.float32).size == seen.size


@pytest.mark.parametrize("shape", EVERY)
def test_a_pass_without_numbers_is_forecast_as_the_pass_itself(shape: str) -> None:
    seen, sketch = recorded(tiny(shape), IDS), sketched(shape)
    for rule in RULES.values():
        for source in (BY_TOKEN, Heads(0)):
            needs = []
            for one in (seen, sketch):
                start, reads = (
                    source.start(one).under(rule),
                    {END: torch.tensor([3, 7]), Place(1, "hook_z"): torch.tensor([5])},
                )
                qk = Allocation(rule.name).qk
                needs.append(forecast(planned(one, start, reads, rule, True), one.adapter, start, reads, qk))
            assert needs[0] == needs[1]


@pytest.mark.parametrize("shape", [shape for shape in EVERY if shape not in ROUTED])  # real routers choose unevenly
def test_what_is_rehearsed_multiplies_as_much_as_the_pass_itself(shape: str) -> None:
    flops = []
    for seen in (recorded(tiny(shape), IDS), sketched(shape)):
        seeds = {END: seen.resid_post.new_empty(2, *seen.resid_post.shape)}
        works = [
            lambda seen=seen, seeds=seeds, c=c: deque(sweep(seen, seeds, c), 0) for c in (CONTRIBUTION["half"], EFFECT)
        ]
        works += [
            lambda seen=seen: propagate(seen, BY_TOKEN.start(seen), {END: torch.tensor([7])}, Allocation("softmax"))
        ]
        flops.append([rehearse(work)[0].flops for work in works])
    assert flops[0] == flops[1]
    assert min(flops[0]) > 1000


def test_memory_is_counted_once_and_given_back() -> None:
    given = torch.empty(100, 10, device="meta")

    def work() -> torch.Tensor:
        first = given @ given.T  # 40,000 bytes
        view = first[:50].T  # none
        second = view + 1  # 20,000
        del first, view
        return second.new_empty(100)  # 400 beside the second alone

    effort, result = rehearse(work)
    assert effort == Effort(2 * 100 * 10 * 100, 60_000)
    assert result.is_meta
    assert rehearse(lambda: (given.new_empty(10), given.new_empty(5), given.T))[0] == Effort(0, 60)
    assert rehearse(lambda: given.new_empty(100, 100).addmm_(given, given.T))[0].flops == 2 * 100 * 10 * 100
