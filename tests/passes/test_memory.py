"""How much a pass may take: what is asked for, and a stream that does not fit."""

from __future__ import annotations

import gc
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.passes.memory import SMALL, Blocks, Budget, check_memory, check_room, spans


@pytest.mark.parametrize(
    ("said", "size"),
    [("4GiB", 4 * 2**30), ("500MB", 500_000_000), ("1.5 k", 1500), ("12", 12), (7, 7), (None, None), ("2Ti", 2**41)],
)
def test_memory_is_said_in_bytes_or_in_words(said: int | str | None, size: int | None) -> None:
    assert Budget.of(said).memory == size


@pytest.mark.parametrize("said", ["1x", "", "lots", "-3", 0, -1, "0"])
def test_what_is_no_memory_gets_one_line(said: int | str) -> None:
    with pytest.raises(UserError, match="memory is a number of bytes, or a text like '4GiB'"):
        Budget.of(said)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 40), st.integers(8, 4000))
def test_blocks_are_neighbours_that_fit_or_one_that_is_too_large(sizes: list[int], width: int, memory: int) -> None:
    blocks = list(spans(sizes, width, memory))
    assert [i for low, high in blocks for i in range(low, high)] == list(range(len(sizes)))
    for low, high in blocks:
        assert high == low + 1 or sum(sizes[low:high]) * width <= memory


def test_a_stream_that_does_not_fit_lies_in_a_file_that_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    like = torch.zeros((), dtype=torch.float64)
    rows = Budget(100).zeros(1000, 8, like)
    assert (rows.shape, rows.dtype) == ((1000, 8), torch.float64)
    assert not rows.any()
    rows[999] += 1
    assert rows.sum() == 8
    del rows
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_pass_that_fits_nowhere_gets_one_line_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depass_sae.passes.memory.shutil.disk_usage", lambda _: type("Usage", (), {"free": 2**30})())
    monkeypatch.setattr("depass_sae.passes.memory.available", lambda _: 2**30)
    check_room(SMALL - 1, torch.device("cpu"))
    check_room(2**31, torch.device("cpu"))
    with pytest.raises(
        UserError, match=r"this pass needs about 4\.0 GiB, and there are 2\.0 GiB free in .*; try"
    ) as caught:
        check_room(2**32, torch.device("cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (8)"), False),
    ],
)
def test_only_a_full_device_is_given_less_work(error: RuntimeError, full: bool) -> None:
    tried: list[tuple[int, int]] = []

    def do(low: int, high: int) -> None:
        tried.append((low, high))
        if high - low > 2:
            raise error

    blocks = Blocks(Budget(), torch.device("cpu"))
    work = partial(blocks.work, [1] * 8, 2**20, do)
    if not full:
        with pytest.raises(RuntimeError, match="size of tensor"):
            work()
        return
    work()
    assert tried == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8)]


def test_work_that_needs_more_than_there_is_gets_one_line() -> None:
    with pytest.raises(UserError, match=r"a dream needs about 1048576\.0 GiB"):
        check_memory(2**50, "a dream", torch.device("cpu"))
