"""Whether a change made anything slower: this tree against an older one, in turn, each time in a new process.

    git worktree add --detach /tmp/before 532c363  # the last tree whose graphs knew cuts of the whole stream alone
    python -m benchmarks.compare /tmp/before
    python -m benchmarks.compare /tmp/before --graphs --pairs 5

For every row the ratio of seconds, after over before, with its 95 % interval over the pairs: the geometric mean, and
Student's t of the logarithms. What takes little is repeated inside its process, and the fastest counts. What
the older tree does not have is left out.

``--graphs``: whole graphs instead, of 500 nodes over the SAEs shipped for SmolLM2, as the older tree grows them by
default, beside this one's by default and by what flows alone. The two ask for different things where one knows queries
and keys and the other does not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import t

ROWS = (("512x8", 64), ("smollm2", 32))
CHILD = """
import json, sys, time, torch
from benchmarks.measure import works
from benchmarks.shapes import build, prompt
torch.set_num_threads(1)
adapter, found = build(sys.argv[1]), {}
with torch.no_grad():
    for work in works(adapter, prompt(adapter, int(sys.argv[2]))):
        taken = []
        while len(taken) < 2 or (sum(taken) < 0.4 and len(taken) < 50):
            start = time.perf_counter()
            work.run()
            taken.append(time.perf_counter() - start)
        found[work.name] = min(taken)
print(json.dumps(found))
"""
GRAPH_CHILD = """
import json, sys, time, torch
import depass_sae as ds
from depass_sae.demo.corpus import documents
torch.set_num_threads(1)
lm = ds.load("smollm2")
text = "".join(document.text for document in documents(None)[:12])
ids = [lm.tokenizer.bos_token_id, *lm.tokenizer(text)["input_ids"][: int(sys.argv[2]) - 1]]
lm.graph(ids, max_nodes=60)
start = time.perf_counter()
lm.graph(ids, max_nodes=500, **json.loads(sys.argv[1]))
print(json.dumps({"graph": time.perf_counter() - start}))
"""
GRAPH_TOKENS = 35
GROWN = {"by default": {}, "by what flows": {"grow": "weight"}}


def seconds(tree: Path, child: str, first: str, length: int) -> dict[str, float]:
    """Of every work, in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", child, first, str(length)]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def graph_seconds(before: Path, after: Path, turn: int) -> dict[str, tuple[float, float]]:
    """Of a graph grown in each way, the older tree's default and this tree's, one of each in turn."""

    def taken(tree: Path, how: Mapping[str, str]) -> float:
        return seconds(tree, GRAPH_CHILD, json.dumps(how), GRAPH_TOKENS)["graph"]

    runs: list[tuple[str, Path, Mapping[str, str]]] = [
        ("", before, {}),
        *((name, after, how) for name, how in GROWN.items()),
    ]
    found = {name: taken(tree, how) for name, tree, how in (runs if turn % 2 else runs[::-1])}
    return {name: (found[""], found[name]) for name in GROWN}


def work_seconds(before: Path, after: Path, turn: int, shape: str, length: int) -> dict[str, tuple[float, float]]:
    """Of every work that both trees have, before and after."""
    order = (before, after) if turn % 2 else (after, before)
    found = {tree: seconds(tree, CHILD, shape, length) for tree in order}
    return {work: (found[before][work], found[after][work]) for work in found[after] if work in found[before]}


def interval(logs: list[float]) -> tuple[float, float, float]:
    """The geometric mean and its 95 % interval."""
    n, mean = len(logs), sum(logs) / len(logs)
    spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / (n - 1) / n) * t.ppf(0.975, n - 1)
    return math.exp(mean), math.exp(mean - spread), math.exp(mean + spread)


def compared(title: str, tokens: int, pairs: int, measure: Callable[[int], Mapping[str, tuple[float, float]]]) -> Table:
    """What ``measure`` finds in every turn, before and after: the quickest of each, and the ratio."""
    table = Table("of", "tokens", "work", "before", "after", "ratio", "95 %", box=None)
    found = defaultdict(list)
    for turn in track(range(pairs), f"{title}, {tokens} tokens", console=Console(stderr=True)):
        for work, pair in measure(turn).items():
            found[work].append(pair)
    for work, taken in found.items():
        mean, low, high = interval([math.log(after / before) for before, after in taken])
        quickest = [f"{min(side):.3f}" for side in zip(*taken, strict=True)]
        table.add_row(title, str(tokens), work, *quickest, f"{mean:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Time this tree against an older one.")
    parser.add_argument("before", type=Path)
    parser.add_argument("--pairs", type=int, default=9, help="how often, at least twice")
    parser.add_argument("--graphs", action="store_true", help="whole graphs instead of passes")
    options = parser.parse_args()
    if options.pairs < 2:
        parser.error("an interval takes two pairs at least: --pairs 2")
    before, after = options.before.resolve(), Path(__file__).parents[1]
    measures = [
        (shape, length, partial(work_seconds, before, after, shape=shape, length=length)) for shape, length in ROWS
    ]
    if options.graphs:
        measures = [("graph, 500 nodes", GRAPH_TOKENS, partial(graph_seconds, before, after))]
    for title, tokens, measure in measures:
        Console(width=140).print(compared(title, tokens, options.pairs, measure))


if __name__ == "__main__":
    main()
