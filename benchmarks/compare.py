"""Whether a change made anything slower: this tree against an older one, in turn, each time in a new process.

    git worktree add /tmp/before v0.1
    python -m benchmarks.compare /tmp/before

For every row the ratio of seconds, after over before, with its 95 % interval over the pairs: the geometric mean, and
Student's t of the logarithms. What takes little is repeated inside its process, and the fastest counts. What
the older tree does not have is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
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


def seconds(tree: Path, shape: str, length: int) -> dict[str, float]:
    """Of every work, in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, shape, str(length)]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def interval(logs: list[float]) -> tuple[float, float, float]:
    """The geometric mean and its 95 % interval."""
    n, mean = len(logs), sum(logs) / len(logs)
    spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / (n - 1) / n) * t.ppf(0.975, n - 1)
    return math.exp(mean), math.exp(mean - spread), math.exp(mean + spread)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time this tree against an older one.")
    parser.add_argument("before", type=Path)
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    after = Path(__file__).parents[1]
    for shape, length in ROWS:
        table = Table("shape", "tokens", "work", "before", "after", "ratio", "95 %", box=None)
        logs, last = defaultdict(list), {}
        for number in track(range(options.pairs), f"{shape}, {length} tokens", console=Console(stderr=True)):
            order = (options.before, after) if number % 2 else (after, options.before)
            last = {tree: seconds(tree, shape, length) for tree in order}
            for work in last[after].keys() & last[options.before].keys():
                logs[work].append(math.log(last[after][work] / last[options.before][work]))
        for work, found in logs.items():
            mean, low, high = interval(found)
            of = [f"{last[tree][work]:.3f}" for tree in (options.before, after)]
            table.add_row(shape, str(length), work, *of, f"{mean:.3f}", f"{low:.3f} to {high:.3f}")
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
