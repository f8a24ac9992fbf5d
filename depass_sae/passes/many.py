"""Many at once: prompts of different lengths in one pass, and many targets in one sweep.

Prompts are packed one after the other, without padding; attention does not look across their borders. Packed, their
rows go through the same matrix products, and their targets through the same sweep: one target of each prompt shares a
lane, since no gradient crosses a border either. What comes out is what each prompt gives alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.place import Place
from .backward import Level, Seeds, sweep
from .choices import Choices
from .forward import Progress
from .memory import Budget, fits, no_room
from .record import Trace
from .rows import BIAS, Rows, on
from .sources import Split
from .support import Few, worth

PACK = 512
"""Positions that go together: matrix products gain little from more, and patterns are kept as one matrix of them."""


def alike_in_length(lengths: Sequence[int], limit: int = PACK) -> list[list[int]]:
    """Which prompts go together: alike in length, at most ``limit`` positions with what pads them; or one too long."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    found: list[list[int]] = []
    for i in order:
        if found and (len(found[-1]) + 1) * lengths[i] <= limit:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def packed_start(starts: Sequence[Split]) -> Split:
    """Each prompt split in its own way, on their packed trace: component m is the m-th of every prompt."""
    most = max(starts, key=lambda start: start.rows.n_components)
    assert all(start.at == most.at for start in starts)
    n, m = sum(len(start.rows.positions) for start in starts), most.rows.n_components
    present, first_only = torch.zeros(2, n, m, dtype=torch.bool)
    low = 0
    for start in starts:
        high, own = low + len(start.rows.positions), start.rows.n_components + BIAS
        for mask, given in ((present, start.rows.present), (first_only, start.first_only.expand(high - low, -1))):
            mask[low:high, :own] = given[:, :own]
            mask[low:high, BIAS:] = given[:, BIAS:]
        low = high
    rows = Rows(torch.arange(n), present, torch.cat([start.rows.values for start in starts]))
    return Split(most.at, rows, most.labels, first_only)


# --------------------------------------------------------------------------------------------------------- many targets


@dataclass(frozen=True)
class Aim:
    """A target of a sweep: ⟨w, x⟩ at a point, at a position of a prompt."""

    place: Place
    w: Float[Tensor, "d"]
    pos: int
    prompt: int = 0


@dataclass(frozen=True)
class Going:
    """An aim on its way back. which: of all the aims; lane: the row of the sweep that it is; span: its prompt's
    positions in the trace.
    """

    which: int
    aim: Aim
    lane: int
    span: slice


@dataclass(frozen=True)
class Batch:
    """Aims that go back together, on the packed trace of their prompts, as far as they look into these."""

    trace: Trace
    aims: list[Going]

    @classmethod
    def of(cls, traces: Sequence[Trace], aims: Sequence[Aim], which: Sequence[int]) -> Batch:
        """Those of the aims, in order of position, each prompt's one after the other."""
        prompts = _by_prompt(aims, which)
        # Of what no gradient needs nothing is packed.
        short = [traces[prompt].first(aims[own[-1]].pos + 1).without_neurons() for prompt, own in prompts.items()]
        trace = Trace.packed(short)
        spans = zip(prompts.values(), trace.prompts, strict=True)
        return cls(trace, [Going(i, aims[i], lane, span) for own, span in spans for lane, i in enumerate(own)])

    @property
    def which(self) -> list[int]:
        return [going.which for going in self.aims]

    @property
    def lanes(self) -> list[int]:
        return [going.lane for going in self.aims]

    @property
    def few(self) -> Few:
        """Each aim's lane and position, the only ones at which a seed is not zero."""
        pos = [going.span.start + going.aim.pos for going in self.aims]
        return torch.tensor(self.lanes), torch.tensor(pos)

    def seeds(self) -> Seeds:
        """Where the sweep begins."""
        n, like = len(self.trace.token_ids), self.trace.resid_post
        seeds: dict[Place, Tensor] = {}
        for point in {going.aim.place for going in self.aims}:
            some = [going for going in self.aims if going.aim.place == point]
            w = torch.stack([going.aim.w for going in some])
            lane = torch.tensor([going.lane for going in some])
            pos = torch.tensor([going.span.start + going.aim.pos for going in some])
            seeds[point] = like.new_zeros(max(self.lanes) + 1, n, w.shape[1]).index_put_((on(w, lane), on(w, pos)), w)
        return seeds


def in_batches(
    traces: Sequence[Trace], aims: Sequence[Aim], budget: Budget, work: Callable[[Batch], None], rows: int = 1
) -> None:
    """work on aims that fit into memory together: neighbours in position, so that few positions are swept in vain.

    rows: that each aim becomes in the sweep.

    Where a device runs out of memory in some work it is done again for half of its aims at a time; so nothing of it may
    count before it is done.
    """
    waiting = _shares(traces, aims, budget, rows)[::-1]
    while waiting:
        which, device = waiting.pop(), traces[0].resid_post.device
        if not fits(lambda which=which: work(Batch.of(traces, aims, which)), device):  # type: ignore[misc]
            if len(which) == 1:
                raise no_room(device)
            half = len(which) // 2
            waiting += [which[half:], which[:half]]


def _by_prompt(aims: Sequence[Aim], which: Sequence[int]) -> dict[int, list[int]]:
    """Each prompt's aims, ascending in position."""
    found: dict[int, list[int]] = {}
    for i in sorted(which, key=lambda i: aims[i].pos):
        found.setdefault(aims[i].prompt, []).append(i)
    return found


def _shares(traces: Sequence[Trace], aims: Sequence[Aim], budget: Budget, rows: int) -> list[list[int]]:
    """The aims in parts that the budget has room for."""
    prompts, seen, found = _by_prompt(aims, range(len(aims))), traces[0], []
    for together in _of_like_length(prompts, aims, rows, seen.resid_post.device):
        longest, step = max(map(len, together)), 1
        if longest > 1:
            n = sum(aims[own[-1]].pos + 1 for own in together)
            wide = seen.swept(n) + 12 * seen.adapter.d_model
            step = max(1, budget.swept // max(1, seen.resid_post.element_size() * n * wide * rows))
        found += [[i for own in together for i in own[low : low + step]] for low in range(0, longest, step)]
    return found


SWEEP = 4
"""A sweep of its own costs so many times as much as a product of its own."""


def _of_like_length(
    prompts: Mapping[int, list[int]], aims: Sequence[Aim], rows: int, device: torch.device
) -> list[list[list[int]]]:
    """Each prompt's aims, in parts in which few positions are swept in vain. Several prompts stay together."""
    if len(prompts) != 1:
        return [list(prompts.values())] if prompts else []
    (own,), least = prompts.values(), SWEEP * worth(device)

    def parted(low: int, high: int) -> list[list[list[int]]]:
        saved = [i * (aims[own[high - 1]].pos - aims[own[low + i - 1]].pos) for i in range(1, high - low)]
        most = max(saved, default=0)
        if most * rows < least:
            return [[own[low:high]]]
        cut = low + 1 + saved.index(most)
        return parted(low, cut) + parted(cut, high)

    return parted(0, len(own))


def sweep_each(
    traces: Sequence[Trace],
    aims: Sequence[Aim],
    choices: Choices,
    visit: Callable[[Batch, Iterator[Level]], None],
    budget: Budget,
    progress: Progress | None = None,
) -> None:
    """Every aim swept back to the embeddings, many of them at once.

    visit: takes a batch and the levels of its sweep, which it goes through; it may be called again with fewer aims.
    """
    steps, swept, told = _sublayers(aims), 0, 0

    def back(batch: Batch) -> None:
        nonlocal swept
        here = _sublayers([going.aim for going in batch.aims])

        def levels() -> Iterator[Level]:
            nonlocal told
            for done, level in enumerate(sweep(batch.trace, batch.seeds(), choices, few=batch.few), start=1):
                yield level
                if progress is not None:
                    told = max(told, round((swept + len(batch.aims) * done / here) / len(aims) * steps))
                    progress("sweeping back through the layers", told, steps)

        visit(batch, levels())
        swept += len(batch.aims)

    in_batches(traces, aims, budget, back)


def _sublayers(aims: Sequence[Aim]) -> int:
    """How many a sweep from the highest of them visits."""
    return max((Place(*aim.place).behind for aim in aims), default=0)
