"""What a pass has to carry, known before it starts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.models.place import Place
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.plan import forecast, planned
from depass_sae.passes.record import trace
from depass_sae.passes.rules import RULES

from .models import D_MODEL, EVERY, LAYERS, VOCAB, tiny
from .test_forward import IDS, by_token, points_after, recorded


@given(
    shape=st.sampled_from(EVERY),
    rule=st.sampled_from(list(RULES)),
    ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8),
    data=st.data(),
)
@settings(max_examples=60)
def test_what_is_carried_is_what_was_planned(shape: str, rule: str, ids: list[int], data: st.DataObject) -> None:
    seen = recorded(tiny(shape), ids)
    start = by_token(ids).start(seen)
    positions = st.sets(st.integers(0, len(ids) - 1), min_size=1).map(lambda found: torch.tensor(sorted(found)))
    points = data.draw(st.sets(st.sampled_from(points_after(start.at)), min_size=1))
    reads = {point: data.draw(positions) for point in points}
    skip = data.draw(st.booleans())
    start = start.under(RULES[rule])
    steps = planned(seen, start, reads, RULES[rule], skip)
    found = propagate(seen, start, reads, Allocation(rule, first_token="skip" if skip else "compete"))
    carried, before = start.rows.positions, start.rows.present
    for step in steps:
        for point in step.output_reads:
            there = step.present if point.is_output or point.hook == "hook_z" else step.inside
            assert torch.equal(found[point].present, there[torch.isin(step.produced, reads[point])])
        for point in step.state_reads:
            assert torch.equal(found[point].present, before[torch.isin(carried, reads[point])])
        carried, before = step.produced, step.present
    assert sum(len(step.state_reads) + len(step.output_reads) for step in steps) == len(points)


@given(
    shape=st.sampled_from(EVERY),
    rule=st.sampled_from(list(RULES)),
    points=st.sets(st.sampled_from(points_after((0, "resid_pre"))), min_size=1),
    every=st.booleans(),
)
@settings(max_examples=60)
def test_a_pass_holds_no_more_than_was_forecast(shape: str, rule: str, points: set[Place], every: bool) -> None:
    adapter, seen = tiny(shape), recorded(tiny(shape), IDS)
    start = by_token(IDS).start(seen)
    reads = {point: torch.arange(len(IDS)) if every else torch.tensor([2, 7]) for point in points}
    plan = planned(seen, start.under(RULES[rule]), reads, RULES[rule], True)
    found = propagate(seen, start, reads, Allocation(rule))
    kept = {rows.values.untyped_storage().data_ptr(): rows.values.nbytes for rows in found.values()}
    assert sum(kept.values()) <= forecast(plan, adapter, start, reads, Allocation(rule).qk).total


def test_a_pass_of_tokens_is_forecast_as_the_stream_before_and_after_its_first_sublayer() -> None:
    adapter, seen = tiny("qwen3"), recorded(tiny("qwen3"), IDS)
    start, n = by_token(IDS).start(seen), len(IDS)
    triangle, row = n * (n + 1) // 2, D_MODEL * 4
    needs = {}
    for what, reads in {
        "all": {Place(LAYERS - 1, "resid_post"): torch.arange(n)},
        "last": {Place(LAYERS - 1, "resid_post"): torch.tensor([n - 1])},
        "heads": {Place(LAYERS - 1, "hook_z"): torch.arange(n)},
    }.items():
        needs[what] = forecast(planned(seen, start, reads, RULES["half"], True), adapter, start, reads).total
    assert needs["all"] == (n + triangle) * row
    assert needs["last"] == (triangle + n) * row
    attention = adapter.layer(0).sublayers[0].mixer
    assert needs["heads"] == triangle * (row + attention.n_heads * attention.d_head * 4)


def test_a_pass_that_takes_much_says_how_much_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = trace(tiny("gpt2"), torch.tensor(IDS))
    told: list[str] = []
    reads = {(0, "resid_post"): torch.tensor([7])}
    propagate(seen, by_token(IDS).start(seen), reads, progress=lambda what, *_: told.append(what))
    assert set(told) == {"carrying components through the layers"}
    monkeypatch.setattr("depass_sae.passes.forward.SMALL", 1)
    propagate(seen, by_token(IDS).start(seen), reads, progress=lambda what, *_: told.append(what))
    assert told[-1] == "carrying components through the layers, 0.0 MiB"


def test_nothing_is_computed_of_a_pass_that_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = trace(tiny("gpt2"), torch.tensor(IDS))
    monkeypatch.setattr("depass_sae.passes.memory.SMALL", 1)
    monkeypatch.setattr("depass_sae.passes.memory.available", lambda _: 0)
    monkeypatch.setattr("depass_sae.passes.memory.shutil.disk_usage", lambda _: type("Usage", (), {"free": 0})())
    called: list[str] = []
    reads = {(0, "resid_post"): torch.tensor([7])}
    with pytest.raises(UserError, match="this pass needs about"):
        propagate(seen, by_token(IDS).start(seen), reads, progress=lambda what, *_: called.append(what))
    assert not called
