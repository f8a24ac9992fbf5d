"""``python -m depass_sae.dev TASK``: what ``make`` and CI do, by one name on every system.

lint: ruff. types: mypy. test: the suite, but for what takes long. docs: the site, into site/. wheel: sdist and wheel
into dist/, and a trial of the wheel in an environment of its own. lowest: a part of the suite, with the lowest versions
of dependencies that pyproject.toml allows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(*arguments: str, **environment: str) -> None:
    """A module run by this Python at the repository's root. Ends everything where it fails."""
    ended = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env={**os.environ, **environment})
    if ended.returncode:
        raise SystemExit(ended.returncode)


def lint(more: Sequence[str]) -> None:
    python("ruff", "check", *more, ".")
    python("ruff", "format", "--check", ".")


def types(more: Sequence[str]) -> None:
    python("mypy", *more)


def test(more: Sequence[str]) -> None:
    chosen = more or ("-n", "auto", "--maxprocesses", "4", "-m", "not long")
    python("pytest", "-q", *chosen, OMP_NUM_THREADS="1")


def docs(more: Sequence[str]) -> None:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))  # hooks import this very package
    python("mkdocs", "build", "--strict", "--quiet", *more, NO_MKDOCS_2_WARNING="1", PYTHONPATH=path)
    print(f"{ROOT / 'site' / 'index.html'} is the site: it opens from disk")


def wheel(more: Sequence[str]) -> None:
    from .wheel import build_and_try

    build_and_try(ROOT, more)


def lowest(more: Sequence[str]) -> None:
    from .lowest import try_lowest

    try_lowest(ROOT, more)


TASKS: dict[str, Callable[[Sequence[str]], None]] = {
    task.__name__: task for task in (lint, types, test, docs, wheel, lowest)
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m depass_sae.dev", description="What is done to the repository.")
    parser.add_argument("task", choices=TASKS)
    task, more = parser.parse_known_args()
    TASKS[task.task](more)


if __name__ == "__main__":
    main()
