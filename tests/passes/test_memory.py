"""How much a pass may take: what is asked for, and a stream that does not fit."""

from __future__ import annotations

import gc
import os
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.errors import UserError
from depass_sae.passes.memory import SMALL, Blocks, Budget, Need, check_memory, check_room, spans

CPU = torch.device("cpu")


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


def free(monkeypatch: pytest.MonkeyPatch, memory: int, disk: int) -> None:
    monkeypatch.setattr("depass_sae.passes.memory.available", lambda _: memory)
    monkeypatch.setattr("depass_sae.passes.memory.shutil.disk_usage", lambda _: type("Usage", (), {"free": disk})())


def test_a_pass_that_fits_nowhere_gets_one_line_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, memory=2**30, disk=2**30)
    check_room(Need((SMALL - 1,), 0), CPU, Budget(1))
    check_room(Need((2**30,), 2**30), CPU, Budget())
    with pytest.raises(
        UserError, match=r"needs about 4\.0 GiB, and there are 1\.0 GiB free in memory and 1\.0 GiB in .*; try"
    ) as caught:
        check_room(Need((2**32,), 0), CPU, Budget())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("streams", "beside", "memory", "fits"),
    [
        ((3 * 2**29,), 0, None, False),  # more than either place, less than both together
        ((2**30, 2**30), 0, None, False),  # both go to the disk
        ((2**30,), 2**30, None, True),
        ((2**29, 2**29), 0, None, True),
        ((2**30,), 0, 1, True),
        ((2**29, 2**29), 2**29, 1, True),
        ((2**30, 2**29), 0, 1, False),
        ((2**30, 2**29), 0, 2**29, True),
        ((2**29,), 2**31, 1, False),
    ],
)
def test_free_memory_and_free_disk_are_not_added_up_for_what_has_to_lie_in_one_of_them(
    monkeypatch: pytest.MonkeyPatch, streams: tuple[int, ...], beside: int, memory: int | None, fits: bool
) -> None:
    free(monkeypatch, memory=2**30, disk=2**30)
    if fits:
        check_room(Need(streams, beside), CPU, Budget(memory))
    else:
        with pytest.raises(UserError, match="this pass needs about"):
            check_room(Need(streams, beside), CPU, Budget(memory))


def test_a_stream_for_which_the_disk_is_too_small_lies_in_memory_where_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free(monkeypatch, memory=3 * 2**30, disk=2**30)
    assert Budget().in_memory(2 * 2**30)
    assert not Budget().in_memory(4 * 2**30)
    assert not Budget(2**30).in_memory(2 * 2**30)


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """No file may grow beyond 1 MiB."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_no_file(folder: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However room is set aside there: by the system, or by writing zeros."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    for _ in range(2):
        with pytest.raises(UserError, match=f"^a temporary file of 4.0 MiB cannot be made in {folder}: {why}; let TMP"):
            Budget(1).zeros(1024, 1024, torch.zeros(()))
        assert not list(folder.iterdir())
        monkeypatch.delattr(os, "posix_fallocate", raising=False)


def test_a_file_that_may_not_grow_so_large_is_one_line_and_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_large_files: None
) -> None:
    assert_no_file(tmp_path, "File too large", monkeypatch)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_is_one_line_and_no_bus_error(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_no_file(small_disk, "No space left on device", monkeypatch)


def test_a_file_that_is_set_aside_by_writing_zeros_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    rows = Budget(1).zeros(700, 1000, torch.zeros(()))
    assert not rows.any()
    assert rows.fill_(1).sum() == 700_000


def test_temporary_files_that_have_no_place_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"cannot be made in .*missing: No such file or directory; let TMPDIR name"):
        Budget(1).zeros(1024, 1024, torch.zeros(()))


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
