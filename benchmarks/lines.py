"""How long the code is that asks questions and shows answers: ``python -m benchmarks.lines [TREE]``.

Counted are the lines that are neither blank nor a comment, of Python (docstrings included), templates, styles and
scripts. TREE: another checkout, such as an older one; default: this one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("attribution", "report", "graph/export", "view", "templates", "subject.py", "pages.py")
KINDS = (".py", ".html", ".css", ".js")
COMMENTS = {".py": r"\s*#", ".html": r"\s*(\{#.*#\}|<!--.*-->)\s*$", ".css": r"\s*/\*.*\*/\s*$", ".js": r"\s*//"}


def lines(path: Path) -> int:
    """Those of a file that are neither blank nor a comment."""
    comment = re.compile(COMMENTS[path.suffix])
    return sum(bool(line.strip()) and comment.match(line) is None for line in path.read_text("utf-8").splitlines())


def files(room: Path) -> Iterator[Path]:
    yield from (path for path in sorted(room.rglob("*") if room.is_dir() else [room]) if path.suffix in KINDS)


def counted(tree: Path) -> dict[str, int]:
    """By room, those that are there."""
    rooms = {name: tree / "depass_sae" / name for name in ROOMS}
    return {name: sum(map(lines, files(room))) for name, room in rooms.items() if room.exists()}


if __name__ == "__main__":
    found = counted(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]))
    for name, count in found.items():
        print(f"{name:>14} {count:6,}")
    print(f"{'in all':>14} {sum(found.values()):6,}")
