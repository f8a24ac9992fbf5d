"""Where gradients are: all pairs that a brute count finds, and no others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.passes.support import WORTH, Support


@st.composite
def supports(draw: st.DrawFn) -> tuple[Support, list[int], int]:
    """Of rows of several prompts side by side, the prompts' beginnings, and how many ways a target has."""
    lengths, ways = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)), draw(st.integers(1, 3))
    n, targets = sum(lengths), draw(st.integers(1, 4))
    pairs = draw(st.lists(st.tuples(st.integers(0, targets - 1), st.integers(0, n - 1)), min_size=1, max_size=6))
    row, pos = torch.tensor(pairs).T
    return Support(row, pos, targets * ways, n), [sum(lengths[:i]) for i in range(len(lengths))], ways


@given(supports())
def test_once_positions_were_seen_it_is_all_before_them_in_their_prompt_by_every_way(case) -> None:
    support, starts, ways = case
    targets = support.rows // ways
    expected = {
        (row + way * targets, p)
        for row, pos in zip(support.row.tolist(), support.pos.tolist(), strict=True)
        for p in range(max(start for start in starts if start <= pos), pos + 1)
        for way in range(ways)
    }
    found = support.looked_back(starts, ways)
    assert set(zip(found.row.tolist(), found.pos.tolist(), strict=True)) == expected
    assert (found.rows, found.n) == (support.rows, support.n)


@given(supports())
def test_what_is_taken_out_and_spread_again_is_the_same_there_and_zero_elsewhere(case) -> None:
    support, *_ = case
    gradient = torch.rand(support.rows, support.n, 2) + 1
    whole = support.spread(support.take(gradient))
    there = torch.zeros(support.rows, support.n, dtype=torch.bool)
    there[support.row, support.pos] = True
    assert torch.equal(whole, gradient * there[..., None])


@pytest.mark.parametrize(("pairs", "small"), [(int(WORTH * 20), True), (int(WORTH * 20) + 1, False)])
def test_it_is_small_up_to_a_share_of_all_rows_and_positions(pairs: int, small: bool) -> None:
    which = torch.arange(pairs)
    assert Support(which // 5, which % 5, 4, 5).is_small == small
