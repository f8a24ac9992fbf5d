"""Many at once: what a pack of prompts, or a batch of targets, gives is what each gives alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from depass_sae.models.load import adapter_for
from depass_sae.models.place import Place
from depass_sae.passes import support
from depass_sae.passes.backward import Level, sweep
from depass_sae.passes.choices import CONTRIBUTION
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.many import PACK, Aim, Batch, alike_in_length, in_batches, packed_start, sweep_each
from depass_sae.passes.memory import Budget
from depass_sae.passes.record import Trace, trace, traces
from depass_sae.passes.rules import RULES
from depass_sae.passes.sources import Heads, Spans, Split

from .models import EVERY, LAYERS, VOCAB, fresh, recorded_neurons, recorded_pattern, tiny
from .test_forward import OUTPUTS, POINTS, by_token, points_after

prompts = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7), min_size=1, max_size=4)


def together(shape: str, ids: list[list[int]], dtype: torch.dtype = torch.float64) -> list[Trace]:
    return traces(tiny(shape, dtype), [torch.tensor(prompt) for prompt in ids], outputs=OUTPUTS)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max())))


# ------------------------------------------------------------------------------------------------------------- tracing


@given(shape=st.sampled_from(EVERY), ids=prompts)
@settings(max_examples=30)
def test_prompts_of_different_lengths_are_recorded_in_one_pass_as_each_is_alone(
    shape: str, ids: list[list[int]]
) -> None:
    for seen, prompt in zip(together(shape, ids), ids, strict=True):
        alone = trace(tiny(shape, torch.float64), torch.tensor(prompt), outputs=OUTPUTS)
        assert seen.token_ids.tolist() == prompt
        assert seen.logits is not None
        assert alone.logits is not None
        assert close(seen.logits, alone.logits, 1e-6)  # transformers' norms round through float32
        for point in POINTS:
            assert close(seen.at(point), alone.at(point), 1e-6), point
        for layer in range(LAYERS):
            assert close(recorded_pattern(seen, layer), recorded_pattern(alone, layer), 1e-6)
            assert close(recorded_neurons(seen, layer), recorded_neurons(alone, layer), 1e-6)


def test_a_token_that_no_prompt_has_cannot_harm_any() -> None:
    adapter = adapter_for(fresh("llama"))
    adapter.model.get_input_embeddings().weight.data[0] = torch.nan
    for seen in traces(adapter, [torch.tensor([5, 6, 7]), torch.tensor([5, 6, 7, 8, 9])]):
        assert seen.resid_post.isfinite().all()


@given(st.lists(st.integers(1, 700), max_size=40), st.integers(1, 600))
def test_groups_are_of_like_length_and_fit_padding_included_or_hold_one_prompt(lengths: list[int], limit: int) -> None:
    found = alike_in_length(lengths, limit)
    assert sorted(i for group in found for i in group) == list(range(len(lengths)))
    for group in found:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= limit
    longest = [max(lengths[i] for i in group) for group in found]
    assert longest == sorted(longest)


def test_prompts_go_together_by_default_up_to_the_size_of_a_pack() -> None:
    assert [len(group) for group in alike_in_length([PACK // 4] * 10)] == [4, 4, 2]


# ------------------------------------------------------------------------------------------------------------- packing


def split(seen: Trace, number: int) -> Split:
    """Prompts are split in different ways: some by token, some by groups of tokens."""
    ids = seen.token_ids.tolist()
    if number % 2:
        return Spans([[0], [i for i in range(1, len(ids)) if i % 2]], ["first", "odd"]).start(seen)
    return by_token(ids).start(seen)


@given(shape=st.sampled_from(EVERY), rule=st.sampled_from(list(RULES)), ids=prompts, data=st.data())
@settings(max_examples=60)
def test_a_pack_carries_what_each_prompt_carries_alone(
    shape: str, rule: str, ids: list[list[int]], data: st.DataObject
) -> None:
    seen = together(shape, ids)
    starts = [split(one, number) for number, one in enumerate(seen)]
    whole = Trace.packed(seen)
    at = [data.draw(st.sets(st.integers(0, len(prompt) - 1)).map(sorted), label="read") for prompt in ids]
    reads = [start + pos for start, positions in zip(whole.starts, at, strict=True) for pos in positions]
    assume(reads)
    points = points_after((0, "resid_pre"))
    budget = Budget(data.draw(st.sampled_from([None, 1, 3000])))
    read = dict.fromkeys(points, torch.tensor(reads))
    found = propagate(whole, packed_start(starts), read, Allocation(rule), budget=budget)
    for one, start, own, first in zip(seen, starts, at, whole.starts, strict=True):
        if not own:
            continue
        alone = propagate(one, start, dict.fromkeys(points, torch.tensor(own)), Allocation(rule))
        for point in points:
            rows, expected = found[point].dense(), alone[point].dense()
            some = torch.isin(found[point].positions, torch.tensor(own) + first)
            aside = len(RULES[rule].aside)
            m = expected.shape[1] - aside
            mine = torch.cat([rows[some, :m], rows[some, -aside:]], dim=1)
            assert not rows[some, m:-aside].any()
            assert mine.shape == expected.shape
            assert close(mine, expected, 1e-6), point


def test_a_pack_of_one_is_the_trace_itself() -> None:
    (seen,) = together("llama", [[3, 4, 5]])
    assert Trace.packed([seen]) is seen


def test_heads_of_a_pack_are_those_of_its_prompts() -> None:
    seen = together("gpt2", [[3, 4, 5], [7, 8]])
    rows = Heads(1).start(Trace.packed(seen)).rows.dense()
    assert close(rows, torch.cat([Heads(1).start(one).rows.dense() for one in seen]), 1e-12)


# ------------------------------------------------------------------------------------------------------------- targets


@st.composite
def questions(draw: Any) -> tuple[str, list[list[int]], list[tuple[tuple[int, str], int, int]]]:
    """A shape, prompts, and (point, position, prompt) of some targets."""
    ids = draw(prompts)
    point = st.sampled_from(POINTS[1:])
    one = st.integers(0, len(ids) - 1).flatmap(lambda p: st.tuples(point, st.integers(0, len(ids[p]) - 1), st.just(p)))
    return draw(st.sampled_from(EVERY)), ids, draw(st.lists(one, min_size=1, max_size=6))


@given(questions(), st.sampled_from(list(CONTRIBUTION)), st.sampled_from([None, 1, 200_000]), st.sampled_from([1, 256]))
@settings(max_examples=50)
def test_targets_of_many_prompts_and_points_go_back_together_as_each_does_alone(
    case: tuple[str, list[list[int]], list], rule: str, memory: int | None, apart: int
) -> None:
    shape, ids, targets = case
    seen = together(shape, ids)
    generator = torch.Generator().manual_seed(0)
    aims = [
        Aim(point, torch.randn(seen[p].at(point).shape[1], generator=generator, dtype=torch.float64), pos, p)
        for point, pos, p in targets
    ]
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def visit(batch: Batch, levels: Iterator[Level]) -> None:
        *_, lowest = levels
        for going in batch.aims:
            assert going.which not in found
            here = (going.lane, going.span)
            found[going.which] = lowest.before[here], lowest.bias_before[here]

    told: list[tuple[int, int]] = []
    progress = lambda _what, done, of: told.append((done, of))  # noqa: E731
    with mock.patch.dict(support.APART, cpu=apart):
        sweep_each(seen, aims, CONTRIBUTION[rule], visit, Budget(memory), progress)
    assert told[-1][0] == told[-1][1]
    assert told == sorted(told)
    for i, aim in enumerate(aims):
        one = seen[aim.prompt]
        seed = torch.zeros(1, len(one.token_ids), len(aim.w), dtype=torch.float64)
        seed[0, aim.pos] = aim.w
        *_, alone = sweep(one, {aim.place: seed}, CONTRIBUTION[rule])
        gradient, bias = found[i]
        assert close(gradient, alone.before[0, : len(gradient)], 1e-9)
        assert not alone.before[0, len(gradient) :].any()
        assert bias.sum().item() == pytest.approx(alone.bias_before.sum().item(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("positions", "batches"),
    [
        ([3] * 20 + [31] * 20, [20, 20]),  # 20 targets, 28 positions less for each
        ([3] * 2 + [31] * 2, [4]),  # of which a sweep of its own saves little
        ([0] * 40 + [15] * 40 + [31] * 40, [40, 40, 40]),
        ([31] * 50, [50]),
    ],
)
def test_targets_far_before_others_go_back_without_the_positions_behind_them(
    positions: list[int], batches: list[int]
) -> None:
    (seen,) = together("llama", [[token % VOCAB for token in range(32)]])
    aims = [Aim(Place(1, "resid_post"), seen.resid_post[0], pos) for pos in positions]
    taken: list[tuple[int, int]] = []
    in_batches([seen], aims, Budget(None), lambda batch: taken.append((len(batch.aims), len(batch.trace.token_ids))))
    assert [count for count, _ in taken] == batches
    assert [length for _, length in taken] == [pos + 1 for pos in sorted(set(positions))][-len(batches) :]
