"""Measurements that are resumed where they were stopped, and what is told of them: medians with their interval."""

from __future__ import annotations

import json
import math
import os
import random
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

Done = TypeVar("Done")
Record = dict[str, Any]
"""What was found, as JSON; ``keys`` of it say of what."""
RESAMPLED, LEVEL = 2000, 0.95
"""Draws of prompts with replacement for a median's interval, and its level."""


def measure_all(
    out: Path,
    wanted: Sequence[tuple[Any, ...]],
    keys: Sequence[str],
    work: Callable[..., Record],
    what: str,
    workers: int,
) -> list[Record]:
    """``work`` for every tuple that is wanted; what ``out`` (JSON lines) holds is not done again.

    keys: under which a record has the tuple. work: a function of a module, which runs in another process.
    """
    records = [json.loads(line) for line in lines(out)]
    known = {tuple(record[key] for key in keys) for record in records}
    for record in finished(work, [job for job in wanted if job not in known], what, workers, len(wanted)):
        append(out, [json.dumps(record)])
        records.append(record)
    return [record for record in records if tuple(record[key] for key in keys) in set(wanted)]


def finished(
    work: Callable[..., Done], jobs: Sequence[tuple[Any, ...]], what: str, workers: int, total: int
) -> Iterator[Done]:
    """What work gives for each job, as they end, in other processes. total: with the jobs that were done before."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    from rich.progress import Progress

    with Progress() as progress, ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        bar = progress.add_task(what, total=total, completed=total - len(jobs))
        for done in as_completed([pool.submit(work, *job) for job in jobs]):
            yield done.result()
            progress.advance(bar)


def typed(module: str, args: Namespace, parser: ArgumentParser, but: Sequence[str] = ()) -> str:
    """The command that a result was made by, as it was typed, without what is so by itself and what it does not say."""
    given = [name for name in vars(args) if name not in but and getattr(args, name) != parser.get_default(name)]
    options = [(f"--{name.replace('_', '-')}", getattr(args, name)) for name in given]
    parts = [f"--no-{option[2:]}" if value is False else f"{option} {value}" for option, value in options]
    return " ".join([f"python -m {module}", *parts])


def lines(path: Path) -> list[str]:
    """Of a file that may not be there yet, but for a last one that a run which was killed has begun."""
    if not path.exists():
        return []
    text = path.read_bytes()
    return text[: text.rfind(b"\n") + 1].decode().splitlines()


def append(path: Path, some: Sequence[str]) -> None:
    """Behind the whole lines that are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(f"{line}\n" for line in some).encode())


def median(numbers: Sequence[float], digits: int) -> str:
    """The median with its interval, by drawing the prompts again."""
    numbers = [number for number in numbers if not math.isnan(number)]
    if not numbers:
        return ""
    medians = sorted(_drawn_again(numbers, random.Random(0)))
    low, high = (medians[round(q * (len(medians) - 1))] for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return f"{statistics.median(numbers):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _drawn_again(numbers: Sequence[float], draw: random.Random) -> Iterator[float]:
    for _ in range(RESAMPLED):
        yield statistics.median(draw.choices(numbers, k=len(numbers)))
