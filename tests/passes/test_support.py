"""Parts of a sweep hold every row where its gradient can be, once, and little else."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from depass_sae.passes import support
from depass_sae.passes.support import Support

CPU = torch.device("cpu")


def covered(found: Support, shape: tuple[int, int]) -> Tensor:
    """How many parts hold each row at each position."""
    count = torch.zeros(shape)
    for part in found.far or ():
        more = torch.zeros(shape)
        part.put(part.of(torch.ones(shape)), more)
        count += more
    return count


@given(
    st.lists(st.integers(0, 11), min_size=1, max_size=8),
    st.integers(1, 3),
    st.integers(1, 60),
    st.randoms(use_true_random=False),
)
def test_every_row_is_held_once_up_to_its_last_position_and_little_behind_it(
    positions: list[int], ways: int, apart: int, order: object
) -> None:
    n = max(positions) + 1
    lanes = list(range(len(positions)))
    order.shuffle(lanes)  # type: ignore[attr-defined]
    shape = len(lanes) * ways, n
    with mock.patch.dict(support.APART, cpu=apart):
        found = Support.of((torch.tensor(lanes), torch.tensor(positions)), [0], shape, ways, CPU)
    held = torch.ones(shape) if found.far is None else covered(found, shape)
    last = torch.tensor([pos for _, pos in sorted(zip(lanes, positions, strict=True))] * ways)
    needed = torch.arange(n) <= last[:, None]
    assert (held <= 1).all()
    assert held[needed].all()
    for part in found.far or ():  # what could be parted once more to save as much is parted
        for cut in range(int(part.positions[0]) + 1, int(part.positions[-1]) + 1):
            idle = int((last[part.rows[:, 0]] < cut).sum())
            assert idle * (int(part.positions[-1]) + 1 - cut) < max(apart, ways) + ways


def test_where_no_part_is_smaller_everything_is_one() -> None:
    for positions, starts in ([5, 5, 5], [0]), ([5, 1, 0], [0, 3]):
        with mock.patch.dict(support.APART, cpu=1):
            few = torch.arange(3), torch.tensor(positions)
            assert Support.of(few, starts, (6, 6), 2, CPU).far is None


@pytest.mark.parametrize(("device", "far"), [("cpu", True), ("meta", False)])
def test_only_where_positions_cost_time_are_they_parted(device: str, far: bool) -> None:
    few = torch.arange(40), torch.tensor([3] * 20 + [31] * 20)
    found = Support.of(few, [0], (40, 32), 1, torch.device(device))
    assert (found.far is not None) == far


def test_a_position_of_its_own_is_all_that_is_near() -> None:
    few = torch.tensor([1, 0]), torch.tensor([2, 4])
    found = Support.of(few, [0], (4, 5), 2, CPU)
    gradient = torch.arange(20.0).view(4, 5)
    assert found.near.of(gradient).tolist() == [[7.0, 4.0]]
    assert found.rows == 2
