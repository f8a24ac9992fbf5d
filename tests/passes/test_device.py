"""A pass on a device other than the host: laid out ahead of it, never waiting for it, going on when it is full.

The device is made up (tests/far.py), and its memory runs out when this file says so.
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
from depass_sae.passes.backward import Level
from depass_sae.passes.choices import CONTRIBUTION, EFFECT, Choices
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.many import Aim, Batch, sweep_each
from depass_sae.passes.memory import Budget
from depass_sae.passes.mixers.mixer import Record
from depass_sae.passes.record import Trace
from depass_sae.passes.rules import QK, RULES
from depass_sae.passes.sources import Heads, Modules, Neurons, Source, Spans, Vectors

from ..far import Far, device, far_module
from .models import D_MODEL, EVERY, LAYERS, tiny
from .test_forward import IDS, POINTS, by_token, recorded

SHARED = Choices("frozen", "frozen", "half-qk", QK(slope="mean"))


@cache
def far_adapter(shape: str) -> Adapter:
    return adapter_for(far_module(tiny(shape).model))


def elsewhere(seen: Trace, shape: str) -> Trace:
    """The same trace, its model included, on the far device."""
    return replace(
        seen,
        adapter=far_adapter(shape),
        token_ids=Far(seen.token_ids),
        streams=[Far(x) for x in seen.streams],
        records=[far_record(record) for record in seen.records],
        outputs={place: Far(x) for place, x in seen.outputs.items()},
        logits=None,
        uncapped=None,
    )


def far_record(record: Record) -> Record:
    """Experts' choice stays on the host, where a pass is laid out."""
    return Record(
        None if record.pattern is None else Far(record.pattern),
        None if record.neurons is None else Far(record.neurons),
        {name: x if name == "choice" else Far(x) for name, x in record.at.items()},
    )


def sources() -> list[Source]:
    parts = torch.randn(len(IDS), 3, D_MODEL, generator=torch.Generator().manual_seed(0))
    groups = Spans([[0], [1, 2], [4]], ["first", "word", "token"])
    vectors = Vectors(parts, ["a", "b", "c"], (0, "resid_mid"))
    return [by_token(IDS), groups, vectors, Heads(0), Modules(0, "mlp"), Neurons(0)]


@pytest.mark.parametrize(
    ("shape", "rule"),
    [("llama", rule) for rule in RULES]
    + [(shape, rule) for shape in EVERY[1:] for rule in ("softmax", "half")]
    + [("gemma2", "half-qk"), ("gpt_oss", "half-qk")],
)
def test_the_host_lays_a_pass_out_without_waiting_for_what_the_device_computes(shape: str, rule: str) -> None:
    here = recorded(tiny(shape), IDS)
    there = elsewhere(here, shape)
    points = [point for point in POINTS if point[0] == LAYERS - 1]
    for source, read in zip(sources(), ([1, 4, 7], [7], list(range(8)), [3], [6, 7], [5]), strict=True):
        start = source.start(here)
        moved = replace(start, rows=start.rows.with_values(Far(start.rows.values)))
        reads = dict.fromkeys(points, torch.tensor(read))
        with device() as waits:
            found = propagate(there, moved, reads, Allocation(rule), budget=Budget(20_000))
        assert not waits
        expected = propagate(here, start, reads, Allocation(rule))
        for point, rows in found.items():
            assert torch.equal(rows.present, expected[point].present)
            assert isinstance(rows.values, Far)
            whole = expected[point].values
            assert torch.allclose(rows.values.near, whole, atol=1e-5 * max(1.0, float(whole.abs().max())))


@pytest.mark.parametrize("choices", [*CONTRIBUTION.values(), SHARED, EFFECT])
@pytest.mark.parametrize("shape", EVERY)
def test_a_sweep_does_not_wait_for_what_the_device_computes(shape: str, choices: Choices) -> None:
    here = recorded(tiny(shape), IDS)
    w = torch.randn(2, D_MODEL, generator=torch.Generator().manual_seed(0))
    point, lowest = (LAYERS - 1, "resid_post"), []

    def visit(_: Batch, levels: Iterator[Level]) -> None:
        lowest.append(list(levels)[-1].before)

    sweep_each([here], [Aim(point, w[i], pos) for i, pos in enumerate((3, 7))], choices, visit, Budget())
    there, far = elsewhere(here, shape), Far(w)
    with device() as waits:
        sweep_each([there], [Aim(point, far[i], pos) for i, pos in enumerate((3, 7))], choices, visit, Budget())
    assert not waits
    assert torch.allclose(lowest[1].near, lowest[0], atol=1e-5)


def test_a_device_that_is_waited_for_would_be_noticed() -> None:
    x = Far(torch.ones(3))
    with device() as waits:
        assert x.sum().item() == 3
        assert x[torch.tensor([True, False, True])].tolist() == [1, 1]
    assert len(waits) == 3
    with device(), pytest.raises(RuntimeError, match="of tensors on two devices"):
        x + torch.ones(3)


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
    largest *= 3 if RULES[rule].shares_scores else 1  # queries and keys lie beside the values
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


class FullAt(TorchDispatchMode):
    """A device that is full at the k-th operation on what rows hold, and has room again."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k, self.done = k, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        view = any(found.alias_info and not found.alias_info.is_write for found in func._schema.returns)
        values = any(isinstance(x, Tensor) and x.is_floating_point() for x in tree_leaves((args, kwargs)))
        self.done += values and not view
        if self.done == self.k:
            self.k = 0
            raise torch.OutOfMemoryError("full")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", ["softmax", "relu", "half"])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_whenever_memory_runs_out_the_numbers_are_right_or_there_is_one_line(shape: str, rule: str) -> None:
    seen = recorded(tiny(shape, torch.float64), IDS)
    start = by_token(IDS).start(seen)
    hooks = ("hook_z", "attn_out", "resid_mid", "mlp_in", "mlp_out")
    reads = {(1, hook): torch.tensor([5, 7]) for hook in hooks}
    expected = propagate(seen, start, reads, Allocation(rule))
    with FullAt(-1) as device:
        propagate(seen, start, reads, Allocation(rule))
    right = 0
    for k in range(1, device.done, 5):
        try:
            with FullAt(k):
                found = propagate(seen, start, reads, Allocation(rule))
        except UserError:
            continue
        right += 1
        for point in reads:
            assert torch.allclose(found[point].values, expected[point].values, atol=1e-9), (k, point)
    assert right >= 10


def test_a_device_without_room_for_a_small_block_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded(tiny("llama"), WORDS)
    start = by_token(WORDS).start(seen)
    monkeypatch.setattr("depass_sae.passes.memory.LEAST", 2**60)
    with (
        Small(start.rows.values.nbytes * len(WORDS)),
        pytest.raises(UserError, match="cpu has no memory left for even a small part") as caught,
    ):
        propagate(seen, start, {(LAYERS - 1, "resid_post"): torch.tensor([31])}, Allocation("softmax"))
    assert "\n" not in str(caught.value)
    aims = [Aim((LAYERS - 1, "resid_post"), torch.randn(D_MODEL), 31)] * 2
    with Small(1000), pytest.raises(UserError, match="cpu has no memory left for even a small part"):
        sweep_each([seen], aims, CONTRIBUTION["half"], lambda _, levels: list(levels).clear(), Budget())
