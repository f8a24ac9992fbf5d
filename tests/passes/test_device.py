"""A pass on a device other than the host: laid out ahead of it, never mixing the two, going on when it is full.

No such device is needed here. The ``meta`` device stands in for one: its tensors hold nothing, so that a pass which
looks into one fails; and memory runs out when this file says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from depass_sae.errors import UserError
from depass_sae.models.adapter import Adapter
from depass_sae.models.load import adapter_for
from depass_sae.passes.batch import Aim, Batch, sweep_each
from depass_sae.passes.memory import Budget
from depass_sae.passes.propagate import Allocation, propagate
from depass_sae.passes.rules import RULES
from depass_sae.passes.sources import Heads, Modules, Neurons, Source, Spans, Vectors
from depass_sae.passes.sublayers import CONTRIBUTION, EFFECT, Choices
from depass_sae.passes.sweep import Level
from depass_sae.passes.trace import Trace

from .models import D_MODEL, LAYERS, SHAPES, fresh, tiny
from .test_propagate import IDS, POINTS, by_token, recorded

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OneDevice(TorchDispatchMode):
    """Refuses an operation on tensors of two devices, as a real device does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()]
        if func not in COPIES:
            assert len({x.device.type for x in tensors}) <= 1, func
        return func(*args, **(kwargs or {}))


@cache
def empty(shape: str) -> Adapter:
    return adapter_for(fresh(shape).to("meta"))


def elsewhere(seen: Trace, shape: str) -> Trace:
    """The same trace, its model included, on a device whose tensors hold nothing."""
    moved = {
        name: [x.to("meta") for x in value] if isinstance(value, list) else value.to("meta")
        for name, value in vars(seen).items()
        if isinstance(value, list | Tensor) and name != "prompt_of"
    }
    outputs = {point: x.to("meta") for point, x in seen.outputs.items()}
    return replace(seen, adapter=empty(shape), outputs=outputs, **moved)


def sources() -> list[Source]:
    parts = torch.randn(len(IDS), 3, D_MODEL, generator=torch.Generator().manual_seed(0))
    groups = Spans([[0], [1, 2], [4]], ["first", "word", "token"])
    vectors = Vectors(parts, ["a", "b", "c"], (0, "resid_mid"))
    return [by_token(IDS), groups, vectors, Heads(0), Modules(0, "mlp"), Neurons(0)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_host_lays_a_pass_out_without_looking_at_what_the_device_computes(shape: str, rule: str) -> None:
    here = recorded(tiny(shape), IDS)
    there = elsewhere(here, shape)
    for source, read in zip(sources(), ([1, 4, 7], [7], list(range(8)), [3], [6, 7], [5]), strict=True):
        start = source.start(here)
        moved = replace(start, rows=start.rows.with_values(start.rows.values.to("meta")))
        points = [point for point in POINTS if point[0] == LAYERS - 1]
        reads = dict.fromkeys(points, torch.tensor(read))
        with OneDevice():
            found = propagate(there, moved, reads, Allocation(rule), budget=Budget(20_000))
        expected = propagate(here, start, reads, Allocation(rule))
        for point, rows in found.items():
            assert rows.values.device.type == "meta"
            assert torch.equal(rows.present, expected[point].present)


@pytest.mark.parametrize("choices", [*CONTRIBUTION.values(), EFFECT])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sweep_does_not_look_at_what_the_device_computes(shape: str, choices: Choices) -> None:
    there = elsewhere(recorded(tiny(shape), IDS), shape)
    aims = [Aim((LAYERS - 1, "resid_post"), torch.randn(D_MODEL, device="meta"), pos) for pos in (3, 7)]
    found = []
    with OneDevice():
        sweep_each([there], aims, choices, lambda _, levels: found.extend(levels), Budget())
    assert found[-1].before.shape == (2, len(IDS), D_MODEL)
    assert len(found) == 2 * LAYERS


# ------------------------------------------------------------------------------------------------------- out of memory


class Small(TorchDispatchMode):
    """A device that is full as soon as one operation makes a new tensor of more than so many bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.refused = limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given and x.nbytes > self.limit:
                self.refused += 1
                raise torch.OutOfMemoryError("full")
        return out


WORDS = [*IDS, *range(20, 44)]  # so long a prompt that its work is larger than its weights


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_where_the_device_runs_out_of_memory_a_pass_goes_on_in_smaller_blocks(shape: str, rule: str) -> None:
    seen = recorded(tiny(shape), WORDS)
    start = by_token(WORDS).start(seen)
    reads = {point: torch.tensor([20, 31]) for point in POINTS if point[0] == LAYERS - 1}
    expected = propagate(seen, start, reads, Allocation(rule))
    largest = start.rows.values.new_zeros(len(WORDS) * (len(WORDS) + 1) // 2 + 2 * len(WORDS), D_MODEL).nbytes
    with Small(largest) as device:
        found = propagate(seen, start, reads, Allocation(rule))
    assert device.refused
    for point, rows in found.items():
        assert torch.allclose(rows.values, expected[point].values, atol=1e-4), point


def test_where_the_device_runs_out_of_memory_fewer_targets_go_back_at_once() -> None:
    seen = recorded(tiny("llama"), WORDS)
    aims = [Aim((LAYERS - 1, "resid_post"), w, 31) for w in torch.randn(8, D_MODEL)]
    sizes, found = [], torch.zeros(2, 8, len(WORDS), D_MODEL)

    def visit(into: Tensor, batch: Batch, levels: Iterator[Level]) -> None:
        lowest = list(levels)[-1]
        sizes.append(len(batch.which))
        into[batch.which] = lowest.before

    sweep_each([seen], aims, CONTRIBUTION["half"], partial(visit, found[0]), Budget())
    with Small(3 * len(WORDS) * D_MODEL * 4) as device:
        sweep_each([seen], aims, CONTRIBUTION["half"], partial(visit, found[1]), Budget())
    assert device.refused
    assert sizes[0] == 8 == sum(sizes[1:])
    assert max(sizes[1:]) < 8
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_a_device_without_room_for_a_small_block_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded(tiny("llama"), WORDS)
    start = by_token(WORDS).start(seen)
    monkeypatch.setattr("depass_sae.passes.memory.LEAST", 2**60)
    with (
        Small(start.rows.values.nbytes * len(WORDS)),
        pytest.raises(UserError, match="cpu has no memory left for even a small part") as caught,
    ):
        propagate(seen, start, {(LAYERS - 1, "resid_post"): torch.tensor([31])}, Allocation())
    assert "\n" not in str(caught.value)
    aims = [Aim((LAYERS - 1, "resid_post"), torch.randn(D_MODEL), 31)] * 2
    with Small(1000), pytest.raises(UserError, match="cpu has no memory left for even a small part"):
        sweep_each([seen], aims, CONTRIBUTION["half"], lambda _, levels: list(levels).clear(), Budget())
