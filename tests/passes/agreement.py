"""A recorded pass beside the oracles' view of the same model, and how far apart the two are."""

from collections.abc import Iterable

import torch
from torch import Tensor

from depass_sae.models.adapter import Adapter
from depass_sae.models.place import Place, stream_at
from depass_sae.passes.backward import sweep
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.memory import Budget
from depass_sae.passes.record import Trace, trace
from depass_sae.passes.rows import Rows
from depass_sae.passes.rules import rule_named
from depass_sae.passes.settings import Settings
from depass_sae.passes.sources import Split, Vectors, tokens

from . import oracles
from .models import D_MODEL, LAYERS
from .oracles import Added, Parts, Rule, Seen

IDS = (0, 17, 5, 33, 5, 40, 21, 9)
STREAMS = [stream_at(depth, LAYERS) for depth in range(2 * LAYERS + 1)]
LAST = STREAMS[-1]
CLOSE = 3e-6
"""Relative, in float64: transformers' own norms, router and delta rule round through float32."""


def both(adapter: Adapter, ids: Iterable[int] = IDS) -> tuple[Trace, Seen]:
    ids = torch.tensor(list(ids))
    return trace(adapter, ids), oracles.look(adapter.model, ids)


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    assert found.shape == expected.shape
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def vectors(seen: Trace, at: Place, n_parts: int = 4, seed: int = 0) -> Vectors:
    """Random parts of a stream, absent here and there; the second comes from position 0 alone."""
    generator, n = torch.Generator().manual_seed(seed), len(seen.token_ids)
    present = torch.rand(n, n_parts, generator=generator) < 0.6
    parts = torch.randn(n, n_parts, D_MODEL, generator=generator).double() * present[..., None]
    first_only = torch.arange(n_parts) == 1
    return Vectors(parts, [f"part {m}" for m in range(n_parts)], at, present, first_only)


By = str | Allocation
"""A rule, perhaps with its settings."""


def allocation_of(rule: By) -> Allocation:
    return Allocation(rule) if isinstance(rule, str) else rule


def theirs(rule: By, barred: Tensor | None = None) -> Rule:
    """The same for the oracle."""
    own = allocation_of(rule)
    return Rule(own.rule, barred, qk_share=own.qk_share, qk_slope=own.qk_slope)


def carried(
    seen: Trace, start: Split, places: Iterable[Place], rule: By = "linear", memory: int | None = None
) -> dict[Place, Rows]:
    """At every position."""
    reads, allocation = dict.fromkeys(places, torch.arange(len(seen.token_ids))), allocation_of(rule)
    return propagate(seen, start, reads, allocation, budget=Budget(memory))


def carried_by_oracle(own: Seen, start: Split, rule: By = "linear") -> tuple[dict[int, Parts], dict[int, Added]]:
    start = start.under(rule_named(allocation_of(rule).rule))
    parts = Parts(start.rows.dense(), start.rows.present)
    barred = start.first_only & (torch.arange(len(parts.x)) > 0)[:, None]
    return oracles.decompose(own, parts, start.at.depth, theirs(rule, barred))


def assert_carried(
    seen: Trace, own: Seen, start: Split, rule: By = "linear", *, until: int = 2 * LAYERS, memory: int | None = None
) -> None:
    """Every component, at every place of the stream and inside and behind every sublayer, from the start on."""
    streams, added = carried_by_oracle(own, start, rule)
    inside = {Place(n // 2, hook): parts for n, one in added.items() if n < until for hook, parts in one.inside.items()}
    on_stream = {place: streams[place.depth] for place in STREAMS if start.at.depth <= place.depth <= until}
    found = carried(seen, start, [*on_stream, *inside], rule, memory)
    for place, parts in (on_stream | inside).items():
        assert off(found[place].dense(), parts.x) <= CLOSE, place
        if place.is_stream:
            assert torch.equal(found[place].present, parts.present), place


def assert_swept(seen: Trace, own: Seen, rule: By, numbers: Iterable[int] = range(2 * LAYERS)) -> None:
    """Gradients of the stream before every sublayer, what its heads or neurons contribute, and what biases do."""
    target = noise(2, len(seen.token_ids), D_MODEL)
    reading = (target * seen.resid_post).sum((1, 2))
    by, choices = theirs(rule), Settings(allocation_of(rule)).choices
    _, added = oracles.decompose(own, oracles.per_token(own.stream(0), by.aside), 0, by)
    for level in sweep(seen, {LAST: target}, choices):
        if level.number not in numbers:
            continue
        before, after = (oracles.gradients(own, target, level.number + step, by) for step in (0, 1))
        assert off(level.before, before) <= CLOSE, level.number
        assert off(level.units(), torch.einsum("tnd,nud->tu", after, added[level.number].units)) <= CLOSE, level.number
        constants = (level.bias_before + level.pattern_before).sum(1)
        summed = (before * own.stream(level.number)).sum((1, 2)) + constants
        if not (own.parallel and level.number % 2):  # there attention's input is read again
            assert off(summed, reading) <= CLOSE, level.number


def assert_split_by_token(seen: Trace, own: Seen, layer: int, rule: By = "half") -> None:
    """What each head contributes, by the token that it moved: ⟨gradient, that token's share of hook_z⟩."""
    start = tokens([str(token) for token in seen.token_ids.tolist()]).start(seen)
    _, added = carried_by_oracle(own, start, rule)
    rows = carried(seen, start, [Place(layer, "resid_pre")], rule)[Place(layer, "resid_pre")]
    target = noise(2, len(seen.token_ids), D_MODEL)
    choices = Settings(allocation_of(rule)).choices
    level = next(x for x in sweep(seen, {LAST: target}, choices) if x.number == 2 * layer)
    found = level.frozen.mixer.split_by_source(level.frozen, level.inner, rows, choices.qk)
    z = added[2 * layer].inside["hook_z"].x.unflatten(-1, (found.shape[1], -1))
    assert off(found, torch.einsum("tnhe,nmhe->thm", level.inner.unflatten(-1, z.shape[2:]), z)) <= CLOSE
