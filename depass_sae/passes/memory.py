"""How much memory there is, how much a pass may take, and where its stream goes when that is not enough."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..arguments import NUMBER
from ..errors import UserError

BLOCK = {"cpu": 8 * 2**20}
"""Bytes that a block of work takes: enough to keep matrix products busy, little enough to stay near a processor."""
WIDE_BLOCK = 2**29
"""The same on other devices, whose memory is fast and whose products want many rows."""
LEAST = 2**16
"""A block that is not halved once more."""
SWEPT = 2**29
"""Bytes that a batch of targets takes on its way back."""
SMALL = 2**28
"""A stream of fewer bytes is not worth asking how much is free."""


@dataclass(frozen=True)
class Budget:
    """How many bytes a pass may take, beside the model and what is recorded of it. It changes no result.

    memory: None is half of what is free when the pass starts. The pass works in blocks that take a small share of it;
    a stream that does not fit is kept in a temporary file, which takes longer.
    """

    memory: int | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and self.memory < 1:
            raise UserError(f"memory is a number of bytes, or a text like '4GiB', not {self.memory}")

    @classmethod
    def of(cls, memory: float | str | None) -> Budget:
        """From bytes, or from ``"4GiB"``, ``"500MB"``. Raises UserError for what is neither."""
        if isinstance(memory, float):
            if not memory.is_integer():  # nor are infinity and NaN
                raise UserError(f"memory is a number of bytes, or a text like '4GiB', not {memory}")
            memory = int(memory)
        if isinstance(memory, str):
            match = re.fullmatch(rf"\s*({NUMBER}(?:\.\d{{1,18}})?)\s*([KMGT]?)(i?)B?\s*", memory, re.IGNORECASE)
            if match is None:
                raise UserError(f"memory is a number of bytes, or a text like '4GiB', not {memory!r}")
            number, prefix, binary = match.groups()
            memory = int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))
        return cls(memory)

    @property
    def swept(self) -> int:
        """Bytes that a batch of targets may take on its way back."""
        return SWEPT if self.memory is None else max(1, min(SWEPT, self.memory // 2))

    def zeros(self, rows: int, width: int, like: Tensor) -> Tensor:
        """[rows, width], in memory or in a temporary file. Raises UserError where the file has no room."""
        need = rows * width * like.element_size()
        if like.device.type != "cpu" or self.in_memory(need):
            return like.new_zeros(rows, width)
        return _on_disk(rows, width, like.dtype)

    def in_memory(self, need: int) -> bool:
        """Whether a processor's memory is the place for so many bytes: the alternative is a temporary file.

        Without a budget that is where half of what is free is enough, and where the file would have no room.
        """
        if self.memory is not None:
            return need <= self.memory
        free = 0 if need < SMALL else available(torch.device("cpu"))
        return need < SMALL or need <= free // 2 or (need <= free and need > room_for_files())

    def kept(self, like: Tensor) -> int:
        """Bytes that may be kept for later, where ``like`` is."""
        return available(like.device) // 2 if self.memory is None else self.memory


class Blocks:
    """The blocks in which a pass works on a device: halved, for the rest of the pass, where the device is full.

    size: bytes that a block takes.
    """

    def __init__(self, budget: Budget, device: torch.device) -> None:
        usual = BLOCK.get(device.type, WIDE_BLOCK)
        self.device = device
        self.size = usual if budget.memory is None else max(1, min(usual, budget.memory // 8))

    def work(self, sizes: list[int], width: int, do: Callable[[int, int], None]) -> None:
        """do(low, high) for neighbours that fit into a block together, one range after the other.

        sizes: the rows of each; width: what a row takes, in bytes. do must not change anything that counts before it
        has all the memory that it takes: it is done again where it had not.
        """
        low = 0
        while low < len(sizes):
            high = low + next(spans(sizes[low:], width, self.size))[1]
            if fits(partial(do, low, high), self.device):
                low = high
            elif self.size <= LEAST:
                raise no_room(self.device)
            else:
                self.size //= 2


@dataclass(frozen=True)
class Need:
    """What a pass holds at once, in bytes: streams, each of them in one place, and what lies in memory beside them."""

    streams: Sequence[int]
    beside: int

    @property
    def total(self) -> int:
        return sum(self.streams) + self.beside


def check_room(need: Need, device: torch.device, budget: Budget) -> None:
    """Raises UserError where a pass has no room: in memory, and in temporary files for the streams that go there."""
    if need.total < SMALL:
        return
    free = available(device)
    if device.type != "cpu":
        _refuse_beyond(free, f"in {device}'s memory", need.total, "this pass")
        return
    filed = sum(size for size in need.streams if not budget.in_memory(size))
    if need.total - filed > free or filed > room_for_files():
        where = f"in memory and {gib(room_for_files())} in {_folder()}, of which each stream takes one"
        raise _too_large("this pass", need.total, free, where)


def no_room(device: torch.device) -> UserError:
    """Not even for a small part of a pass."""
    return UserError(
        f"{device} has no memory left for even a small part of this pass; try a shorter prompt, or the cpu"
    )


def is_full(error: RuntimeError) -> bool:
    """Whether an error says that a device has no memory left: torch's own, or a library's that it calls."""
    said = ("CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in said)


def fits(work: Callable[[], None], device: torch.device) -> bool:
    """Whether a device had the memory for some work. Of what failed nothing is kept."""
    try:
        work()
        return True
    except RuntimeError as error:
        if not is_full(error):
            raise
    # What the exception held on to is gone with it, so only now can the device give it back.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return False


def spans(sizes: list[int], width: int, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of neighbours that fit into so many bytes together, or one that is too large alone.

    sizes: the rows of each; width: what a row takes, in bytes.
    """
    low, rows = 0, 0
    for i, size in enumerate(sizes):
        if i > low and (rows + size) * width > limit:
            yield low, i
            low, rows = i, 0
        rows += size
    if sizes:
        yield low, len(sizes)


def _on_disk(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """A tensor in a file that is gone when the tensor is. Raises UserError where there is no room for it."""
    need = max(rows * width, 1) * dtype.itemsize
    try:
        with tempfile.NamedTemporaryFile(prefix="depass-sae-", dir=_folder()) as file:
            _reserve(file.fileno(), need)
            flat = torch.from_file(file.name, shared=True, size=need // dtype.itemsize, dtype=dtype)
    except (OSError, RuntimeError) as error:  # a RuntimeError: what cannot be mapped
        why = error.strerror if isinstance(error, OSError) else "it cannot be mapped into memory"
        raise UserError(
            f"a temporary file of {gib(need)} cannot be made in {_folder()}: {why}; let TMPDIR name a folder with more "
            "room, allow more memory, or try a shorter prompt"
        ) from None
    return flat[: rows * width].view(rows, width)


def _reserve(file: int, size: int) -> None:
    """Have the disk set so many bytes of a file aside, all zeros. Raises OSError where it cannot.

    A file that is only declared so long takes its room when it is written to: where there is none then, the system
    ends the process.
    """
    try:
        os.posix_fallocate(file, 0, size)
        return
    except AttributeError:  # a system that has no such call
        pass
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # a file system that has none
            raise
    zeros = memoryview(bytes(2**20))
    while size:
        size -= os.write(file, zeros[:size])


def room_for_files() -> int:
    """Free bytes where temporary files go."""
    return shutil.disk_usage(_folder()).free


def _folder() -> str:
    """Where temporary files go. Raises UserError where there is no such place."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        raise UserError("there is no folder for temporary files; let TMPDIR name one that can be written to") from None


def available(device: torch.device) -> int:
    """Free bytes on a device, those that torch holds ready among them."""
    if device.type == "cuda":
        ready = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + ready
    if device.type == "meta":  # where nothing takes any
        return sys.maxsize
    import psutil

    return int(psutil.virtual_memory().available)


def check_memory(need: int, what: str, device: torch.device) -> None:
    """Raises UserError where ``what`` needs more bytes than there are."""
    _refuse_beyond(available(device), f"in {device}'s memory", need, what)


def _refuse_beyond(free: int, where: str, need: int, what: str) -> None:
    if need > free:
        raise _too_large(what, need, free, where)


def _too_large(what: str, need: int, free: int, where: str) -> UserError:
    return UserError(
        f"{what} needs about {gib(need)}, and there are {gib(free)} free {where}; try a shorter prompt, fewer "
        "layers, or the rule half"
    )


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**26 else f"{size / 2**20:.1f} MiB"
