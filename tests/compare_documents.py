"""Compare the JSON documents of two folders, such as two galleries: ``python -m tests.compare_documents OLD NEW``.

Lists are compared entry by entry, numbers to a share of the largest fraction in their document; all else must be equal.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOLERANCE = 5e-5
"""Of the largest number: what float32 leaves."""
MADE_BY = ("versions",)
"""Keys that say what made a document, not what it found."""
NOTHING = object()


@dataclass(frozen=True)
class Difference:
    """A value that two documents do not share, at a JSON pointer (RFC 6901). NOTHING: there is none in this one."""

    at: str
    old: Any
    new: Any

    @property
    def is_new(self) -> bool:
        return self.old is NOTHING

    def __str__(self) -> str:
        if self.is_new:
            return f"{self.at} is new: {self.new!r:.80}"
        return f"{self.at} is gone" if self.new is NOTHING else f"{self.at}: {self.old!r:.80} became {self.new!r:.80}"


def fractions(document: Any) -> Iterator[float]:
    """Every number of a document that is no count, index or id."""
    if isinstance(document, dict | list):
        for inner in document.values() if isinstance(document, dict) else document:
            yield from fractions(inner)
    elif isinstance(document, float):
        yield document


def largest(document: Any) -> float:
    return max(map(abs, fractions(document)), default=0.0)


def differences(old: Any, new: Any, tolerance: float, at: str = "") -> Iterator[Difference]:
    """Where a new document is not what the old one was. tolerance: of numbers, as a share of the old one's largest."""
    return _differences(old, new, tolerance * largest(old), at)


def _differences(old: Any, new: Any, within: float, at: str) -> Iterator[Difference]:
    if type(old) is not type(new):
        yield Difference(at, old, new)
    elif isinstance(old, dict):
        for key in sorted((old.keys() | new.keys()) - set(MADE_BY)):
            inner = f"{at}/{key.replace('~', '~0').replace('/', '~1')}"
            yield from _differences(old.get(key, NOTHING), new.get(key, NOTHING), within, inner)
    elif isinstance(old, list):
        for i in range(max(len(old), len(new))):
            one, other = (entries[i] if i < len(entries) else NOTHING for entries in (old, new))
            yield from _differences(one, other, within, f"{at}/{i}")
    elif not (abs(old - new) <= within if isinstance(old, float) else old == new):
        yield Difference(at, old, new)


def by_key(found: Iterator[Difference]) -> list[str]:
    """A line for each key, whichever entries of lists it is in: how often it differs, and where first."""
    keys: dict[str, list[Difference]] = defaultdict(list)
    for difference in found:
        keys[re.sub(r"/\d+(?=/|$)", "/*", difference.at)].append(difference)
    return [f"{key}, {len(those)} times: {those[0]}" for key, those in keys.items()]


def folders(old: Path, new: Path) -> Iterator[str]:
    """What differs between the documents of two folders, a line each."""
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*.json")} for folder in (old, new)]
    for name in sorted(names[0] | names[1]):
        if name not in names[0] & names[1]:
            yield f"{name} is only in {old if name in names[0] else new}"
            continue
        one, other = (json.loads((folder / name).read_text(encoding="utf-8")) for folder in (old, new))
        yield from (f"{name}: {line}" for line in by_key(differences(one, other, TOLERANCE)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the JSON documents of two folders.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    given = parser.parse_args()
    lines = list(folders(given.old, given.new))
    print("\n".join(lines) or "The documents are the same.")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
