"""Parts of an index on the disk: a unit's, or several that were merged. What has no manifest does not exist.

A part is a folder: of every SAE a table for each of :data:`.TABLES` and the offsets of their rows, the windows that its
contexts are in, and a manifest that is written last. It is a function of its units alone, so that it is of no matter
who makes it, in what order, or whether somebody was interrupted. So many parts that follow each other make one of the
next level, along a tree that depends on the units' numbers alone; so their number, and the disk they take, stay small.

Merging reads a block of features at a time out of all parts, and is bounded by that block, however wide an SAE is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ..errors import UserError
from ..files import write_text
from ..models.place import Place
from .arrays import Ragged
from .contexts import Choosing, window_key
from .summary import TABLES, Summary
from .tables import GROUP, Cursor, Writer, blocks, columns_of, count_rows, open_parquet
from .units import Entry, Window

TOGETHER = 16
"""So many parts become one."""
GROUPS = {"contexts": 2**13, "windows": 2**10}
"""Rows of a row group, of tables with lists in them."""
BLOCK = 2**19
"""Rows that a merge holds of all parts together, a context counting as many."""
WEIGHT = {"contexts": 16}
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Part:
    """level: 0 for a unit's. number: of it among those of its level."""

    folder: Path
    level: int
    number: int
    entries: tuple[Entry, ...]
    drawn: int

    @classmethod
    def found(cls, folder: Path) -> Part | None:
        """None where it was not finished."""
        try:
            said = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            entries = tuple(Entry(**entry) for entry in said["entries"])
            return cls(folder, said["level"], said["number"], entries, said["drawn"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{folder / MANIFEST} is damaged; remove {folder}, and the scan makes it anew") from None

    def table(self, hook: Place, name: str, offsets: Mapping[str, Any]) -> Cursor:
        return Cursor.open(self.folder / str(hook) / f"{name}.parquet", offsets[name])

    def offsets(self, hook: Place) -> dict[str, Any]:
        return columns_of(open_parquet(self.folder / str(hook) / "offsets.parquet", mapped=False).read())

    def windows(self, kept: Int[np.ndarray, "key"] | None = None) -> Iterator[dict[str, Any]]:
        """In their order, some at a time. kept: the keys of those that are wanted, sorted; None: all."""
        file = open_parquet(self.folder / "windows.parquet", mapped=False)
        for group in range(file.num_row_groups):
            found = columns_of(file.read_row_group(group, use_threads=False))
            if kept is not None:
                key = window_key(found["document"], found["window"])
                rows = np.isin(key, kept).nonzero()[0]
                found = {name: _taken(column, rows) for name, column in found.items()}
            yield found


def _taken(column: Any, rows: Int[np.ndarray, "n"]) -> Any:
    if isinstance(column, list):
        return [column[row] for row in rows]
    return column.take(rows) if isinstance(column, Ragged) else column[rows]


@dataclass(frozen=True)
class Parts:
    """The parts of a scan that lie in a folder. saes: how many features each has."""

    folder: Path
    saes: Mapping[Place, int]
    choosing: Choosing
    keep_windows: bool = False
    """Whether windows stay that no context is in, since every activation of a feature is kept."""

    def path(self, level: int, number: int) -> Path:
        return self.folder / f"{level}-{number:08d}"

    def all(self) -> list[Part]:
        """Those that are finished and in no other, by their first unit. What somebody is at stays as it is."""
        found = self._finished()
        inside = self._inside(found)
        kept = [part for part in found if (part.level, part.number) not in inside]
        return sorted(kept, key=lambda part: part.entries[0].number)

    def clean(self) -> None:
        """Removes what was not finished, or is in another; for whoever is alone in the folder."""
        kept = {part.folder for part in self.all()}
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if path not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _finished(self) -> list[Part]:
        folders = sorted(self.folder.iterdir()) if self.folder.exists() else []
        return [part for folder in folders if folder.is_dir() and (part := Part.found(folder)) is not None]

    def _inside(self, found: Sequence[Part]) -> set[tuple[int, int]]:
        """Levels and numbers of all parts that would be in these."""
        inside = {(part.level - 1, part.number * TOGETHER + i) for part in found for i in range(TOGETHER)}
        while more := {(lv - 1, n * TOGETHER + i) for lv, n in inside if lv > 0 for i in range(TOGETHER)} - inside:
            inside |= more
        return inside

    def write_unit(
        self, entry: Entry, windows: Sequence[Window], summaries: Mapping[Place, Summary], drawn: int
    ) -> Part:
        columns = {
            "document": np.array([window.document for window in windows], dtype=np.int64),
            "window": np.array([window.number for window in windows], dtype=np.int32),
            "start": np.array([window.start for window in windows], dtype=np.int64),
            "name": [window.name for window in windows],
            "tokens": Ragged.of([np.array(window.token_ids, dtype=np.int32) for window in windows]),
        }
        part = Part(self.path(0, entry.number), 0, entry.number, (entry,), drawn)
        return self._write(part, {hook: iter([summary]) for hook, summary in summaries.items()}, lambda kept: [columns])

    def merge_finished(self) -> None:
        """Whatever parts are all of those that make one of the next level become one, as long as there are any."""
        while True:
            groups: dict[tuple[int, int], list[Part]] = {}
            for part in self.all():
                groups.setdefault((part.level + 1, part.number // TOGETHER), []).append(part)
            ready = {key: parts for key, parts in groups.items() if len(parts) == TOGETHER}
            if not ready:
                return
            for (level, number), parts in ready.items():
                self.merge(parts, level, number)

    def merge(self, parts: Sequence[Part], level: int, number: int) -> Part:
        """parts: by their first unit, as :meth:`all` gives them. They are removed."""
        entries = tuple(entry for part in parts for entry in part.entries)
        whole = Part(self.path(level, number), level, number, entries, sum(part.drawn for part in parts))
        made = self._write(
            whole,
            {hook: self._merged(parts, hook) for hook in self.saes},
            lambda kept: (some for part in parts for some in part.windows(kept)),
        )
        for part in parts:
            shutil.rmtree(part.folder)
        return made

    def _merged(self, parts: Sequence[Part], hook: Place) -> Iterator[Summary]:
        offsets = [part.offsets(hook) for part in parts]
        tables = [
            {name: part.table(hook, name, at) for name in TABLES} for part, at in zip(parts, offsets, strict=True)
        ]
        for _, high in blocks([at[name] * WEIGHT.get(name, 1) for at in offsets for name in TABLES], BLOCK):
            some = [
                Summary.of_tables({name: table.until(high) for name, table in of_part.items()}) for of_part in tables
            ]
            yield Summary.merged(some, self.choosing)

    def _write(self, part: Part, summaries: Mapping[Place, Iterator[Summary]], windows: Any) -> Part:
        """windows: given the keys of those that contexts are in, their tables."""
        if part.folder.exists():
            shutil.rmtree(part.folder)
        try:
            used = [self._write_sae(part.folder / str(hook), hook, found) for hook, found in summaries.items()]
            kept = None if self.keep_windows else np.unique(np.concatenate(used))
            with Writer(part.folder / "windows.parquet", GROUPS["windows"]) as writer:
                for columns in windows(kept):
                    writer.add(columns)
            said = {
                "level": part.level, "number": part.number, "drawn": part.drawn,
                "entries": [asdict(entry) for entry in part.entries],
            }  # fmt: skip
            write_text(part.folder / MANIFEST, json.dumps(said) + "\n")
        except BaseException:
            shutil.rmtree(part.folder, ignore_errors=True)
            raise
        return part

    def _write_sae(self, folder: Path, hook: Place, found: Iterator[Summary]) -> Int[np.ndarray, "key"]:
        """The keys of the windows that its contexts are in, sorted."""
        folder.mkdir(parents=True)
        rows = {name: np.zeros(self.saes[hook], dtype=np.int64) for name in TABLES}
        used = Keys()
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(Writer(folder / f"{name}.parquet", GROUPS.get(name, GROUP)))
                for name in TABLES
            }
            for summary in found:
                for name, columns in summary.tables().items():
                    writers[name].add(columns)
                    count_rows(rows[name], columns["feature"])
                used.add(summary.contexts.key)
        write_offsets(folder / "offsets.parquet", rows)
        return used.all()


class Keys:
    """The different ones of many keys that come in pieces."""

    def __init__(self) -> None:
        self._known, self._new = np.zeros(0, dtype=np.int64), list[Any]()

    def add(self, keys: Int[np.ndarray, "n"]) -> None:
        self._new.append(np.unique(keys))
        if sum(map(len, self._new)) > max(len(self._known), 2**20):
            self.all()

    def all(self) -> Int[np.ndarray, "key"]:
        """Sorted."""
        self._known, self._new = np.unique(np.concatenate([self._known, *self._new])), []
        return self._known


def write_offsets(path: Path, rows: Mapping[str, Int[np.ndarray, "d_sae"]]) -> None:
    """Where each feature's rows begin in each table. rows: how many it has."""
    with Writer(path) as writer:
        writer.add({name: np.concatenate([[0], np.cumsum(counts)]) for name, counts in rows.items()})
