"""``make bench``: every pass against its limit, as a table and as JSON. About 20 minutes on two cores.

Each shape and length runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from depass_sae.files import write_text

from .big import big
from .frames import frames
from .graphs import every_layer, graph
from .long_scan import long_scan
from .measure import Row, measured
from .scale import scale
from .scan import scan
from .shapley import shapley
from .start import start
from .wide import wide

CPU = {
    "512x8": (32, 64, 128, 512),
    "1024x8": (64, 128),
    "gemma2-512x8": (64, 128),
    "moe-512x8": (64, 128),
    "smollm2": (32, 128, 512),
}
GPU = {"llama-3.1-8b": (32, 128, 512)}
GRAPHS = (35, 200)
PRINTED = {"start": start, "shapley": shapley, "scan": scan, "wide": wide, "scale": scale, "frames": frames}
"""What is timed on its own, and printed."""
COSTLY = 128
"""The longest prompt on which a large model's tokens are carried forward, too; on longer ones, only the sweep."""


def rows(threads: int, gpu: bool, only: str | None) -> Iterator[Row]:
    """only: of one shape; ``graphs`` for the graphs alone."""
    for shape, lengths in (GPU if gpu else CPU).items():
        for length in lengths if only in (None, shape) else ():
            everything = length <= COSTLY or shape == "512x8"
            yield from _apart(measured, threads, shape, length, everything)
    if not gpu and only in (None, "graphs"):
        for length in GRAPHS:
            yield from _apart(graph, threads, length)
        yield from _apart(every_layer, threads, GRAPHS[0])


def _apart(work: Any, threads: int, *arguments: Any) -> list[Row]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, threads, *arguments).result()


COLUMNS = ("shape", "tokens", "work", "seconds", "limit", "ratio", "rows/s", "peak GiB")


def cells(row: Row) -> tuple[str, ...]:
    limited = row.limit_seconds is not None
    return (
        row.shape,
        str(row.length),
        row.work,
        f"{row.seconds:.3f}",
        f"{row.limit_seconds:.3f} ({row.limit})" if limited else "",
        f"{row.ratio:.2f}" if limited else "",
        "" if row.rows is None else f"{row.rows / row.seconds:,.0f}",
        f"{row.peak_gib:.2f}",
    )


def table(found: list[Row]) -> Table:
    view = Table(box=None)
    for column in COLUMNS:
        view.add_column(column, justify="left" if column in ("shape", "work") else "right")
    for row in found:
        view.add_row(*cells(row))
    return view


def markdown(about: dict[str, Any], found: list[Row]) -> str:
    lines = [", ".join(f"{key}: {value}" for key, value in about.items()) + "; made by `make bench`", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + [f"| {' | '.join(cells(row))} |" for row in found]) + "\n"


def merged(old: list[dict[str, Any]], new: list[Row]) -> list[Row]:
    """The old rows in their order, those that were measured again by their new numbers; then what was not there."""
    again = {(row.shape, row.length, row.work): row for row in new}
    before = [Row(**{key: value for key, value in row.items() if key != "ratio"}) for row in old]
    return [again.pop((row.shape, row.length, row.work), row) for row in before] + list(again.values())


def machine(threads: int, gpu: bool) -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "processor": torch.cuda.get_device_name() if gpu else processor(),
        "threads": threads,
        "torch": torch.__version__,
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _name(options: argparse.Namespace) -> str:
    return "big" if options.big else "gpu" if options.gpu else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time every pass against its limit.")
    parser.add_argument(
        "work", nargs="?", choices=("passes", "long-scan", *PRINTED), default="passes",
        help="start: of one command; shapley: of a measurement; scan, long-scan: of a corpus; wide: memory of a scan",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="Llama-3.1-8B's shape in bfloat16, on a CUDA device")
    parser.add_argument("--big", action="store_true", help="the same shape, most of it on the disk (16 GB)")
    parser.add_argument("--folder", type=Path, help="where these weights lie, or what long-scan makes")
    parser.add_argument("--layers", type=int, help="how many of its layers are written")
    parser.add_argument("--only", help="one shape, or graphs; the other rows of the last run are kept")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args()
    if options.work in PRINTED:
        for line in PRINTED[options.work](options.threads):
            print(line)
        return
    if options.work == "long-scan":
        for line in long_scan(options.threads, options.folder or Path("long-scan")):
            print(line)
        return
    out = options.out or Path(__file__).parent / "results" / f"{_name(options)}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    found = []
    if options.big:
        every = iter(_apart(big, options.threads, options.folder or Path("llama-3.1-8b-random"), options.layers))
    else:
        every = rows(options.threads, options.gpu, options.only)
    for row in every:
        found.append(row)
        Console(stderr=True).print(f"{row.shape} {row.length} {row.work}: {row.seconds:.3f} s", highlight=False)
    about = machine(options.threads, options.gpu)
    if options.only is not None and out.exists():
        found = merged(json.loads(out.read_text())["rows"], found)
    document = {"machine": about, "rows": [row.to_dict() for row in found]}
    write_text(out, json.dumps(document, indent=1) + "\n")
    write_text(out.with_suffix(".md"), markdown(about, found))
    Console(width=140).print(", ".join(f"{key}: {value}" for key, value in about.items()), table(found), sep="\n")


if __name__ == "__main__":
    main()
