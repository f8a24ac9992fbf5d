"""Parquet files that are sorted by feature, and the rows of one feature in them.

zstd; whole numbers as differences, where they are packed best; activations plain, which everything can read. Row groups
are small and all of one size, and a file of offsets says in which row a feature's begin: reading a feature touches the
few groups that it is in, and searches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Shaped

from ..errors import UserError
from .arrays import Ragged

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = 2**14
"""Rows of a row group; of tables with lists in them, fewer."""
Column = Shaped[np.ndarray, "n"] | Ragged | list[str]


def check_arrow() -> None:
    """Raises UserError where pyarrow is missing."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError("an index needs pyarrow: pip install 'depass-sae[index]'") from None


def arrow_table(columns: Mapping[str, Column]) -> pa.Table:
    import pyarrow as pa

    def array(values: Column) -> pa.Array:
        if isinstance(values, Ragged):
            return pa.ListArray.from_arrays(pa.array(values.ends.astype(np.int32)), pa.array(values.values))
        return pa.array(values, pa.string()) if isinstance(values, list) else pa.array(values)

    return pa.table({name: array(values) for name, values in columns.items()})


def columns_of(table: pa.Table) -> dict[str, Any]:
    """As numpy arrays; lists as :class:`Ragged`, texts as a list."""
    import pyarrow as pa

    found: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        whole = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        if pa.types.is_list(whole.type):
            ends = whole.offsets.to_numpy().astype(np.int64)
            values = whole.values.to_numpy(zero_copy_only=False)
            found[name] = Ragged(ends - ends[0], values[ends[0] : ends[-1]])
        elif pa.types.is_string(whole.type):
            found[name] = whole.to_pylist()
        else:
            found[name] = whole.to_numpy(zero_copy_only=False)
    return found


@dataclass
class Writer:
    """Writes rows that come sorted, into row groups of one size. Raises UserError where the disk takes no more."""

    path: Path
    group: int = GROUP
    _writer: Any = None
    _held: list[Any] = field(default_factory=list)
    _rows: int = 0
    written: int = 0

    def add(self, columns: Mapping[str, Column]) -> None:
        table = arrow_table(columns)
        self._held.append(table)
        self._rows += table.num_rows
        self.written += table.num_rows
        while self._rows >= self.group:
            self._flush(self.group)

    def close(self) -> None:
        import pyarrow as pa

        if self._rows or self._writer is None:
            self._flush(self._rows)
        with _told(self.path):
            self._writer.close()
        pa.default_memory_pool().release_unused()  # it keeps what it freed, which a scan has better use for

    def _flush(self, rows: int) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        if not self._held:
            raise AssertionError("a table has columns, though no rows")
        table = pa.concat_tables(self._held)
        with _told(self.path):
            if self._writer is None:
                self._writer = ParquetWriter(self.path, table.schema, compression="zstd", **_encodings(table.schema))
            if rows or not self.written:
                self._writer.write_table(table.slice(0, rows), row_group_size=max(rows, 1))
        self._held, self._rows = [table.slice(rows)], self._rows - rows

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._writer is not None:
            with suppress(Exception):  # what was not finished is no part of anything
                self._writer.close()


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    import pyarrow as pa

    found = {}
    for column in schema:
        inner = column.type.value_type if pa.types.is_list(column.type) else column.type
        path = f"{column.name}.list.element" if pa.types.is_list(column.type) else column.name
        small = pa.types.is_integer(inner) and inner.bit_width < 32
        if not pa.types.is_string(inner):
            found[path] = "DELTA_BINARY_PACKED" if pa.types.is_integer(inner) and not small else "PLAIN"
    texts = [column.name for column in schema if pa.types.is_string(column.type)]
    return {"use_dictionary": texts, "column_encoding": found}


class _told:
    """A disk that takes no more is told in a line that says what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, OSError):
            said = str(error).rpartition("Detail: ")[2] or error.strerror
            raise UserError(
                f"cannot write {self._path}: {said}; what is done is kept, and the same command goes on from there"
            ) from error


def offsets_of(feature: Int[np.ndarray, "n"], d_sae: int) -> Int[np.ndarray, "d_sae+1"]:
    """In which row each feature's begin, of rows sorted by feature."""
    return np.searchsorted(feature, np.arange(d_sae + 1)).astype(np.int64)


@dataclass(frozen=True)
class Sorted:
    """A file that is sorted by feature, open for reading. offsets: where each feature's rows begin."""

    path: Path
    offsets: Int[np.ndarray, "d_sae+1"]
    _file: Any = field(default=None, repr=False)

    @classmethod
    def open(cls, path: Path, offsets: Int[np.ndarray, "d_sae+1"]) -> Sorted:
        return cls(path, offsets, open_parquet(path))

    def feature(self, index: int, first: int | None = None) -> dict[str, Any]:
        """One feature's rows, or the first of them."""
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.rows(begin, end if first is None else min(end, begin + first))

    def rows(self, begin: int, end: int) -> dict[str, Any]:
        return columns_of(rows_of(self._file, begin, end))


@dataclass
class Cursor:
    """Reads a file that is sorted by feature from its beginning, each row group once; not mapped, so that what was read
    is gone."""

    offsets: Int[np.ndarray, "d_sae+1"]
    _file: Any
    _group: int = 0
    _at: int = 0
    _held: Any = None

    @classmethod
    def open(cls, path: Path, offsets: Int[np.ndarray, "d_sae+1"]) -> Cursor:
        return cls(offsets, open_parquet(path, mapped=False))

    def until(self, feature: int) -> dict[str, Any]:
        """The rows that were not read yet, of all features before this one."""
        import pyarrow as pa

        wanted = int(self.offsets[feature]) - self._at
        held = [self._file.schema_arrow.empty_table() if self._held is None else self._held]
        while sum(table.num_rows for table in held) < wanted:
            held.append(self._file.read_row_group(self._group, use_threads=False))
            self._group += 1
        table = pa.concat_tables(held)
        self._held, self._at = table.slice(wanted), self._at + wanted
        return columns_of(table.slice(0, wanted))


def rows_of(file: Any, begin: int, end: int, columns: list[str] | None = None) -> pa.Table:
    """Rows of an open file whose row groups are all of one size, but the last. columns: None is all of them."""
    group = max(file.metadata.row_group(0).num_rows, 1)
    first = begin // group
    groups = range(first, -(-end // group)) if end > begin else ()
    return file.read_row_groups(list(groups), columns, use_threads=False).slice(begin - first * group, end - begin)


def open_parquet(path: Path, mapped: bool = True) -> Any:
    """A file open for reading. Raises UserError where it is none."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path, memory_map=mapped, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def count_rows(rows: Int[np.ndarray, "d_sae"], feature: Int[np.ndarray, "n"]) -> None:
    """Adds to how many rows each feature has. feature: sorted."""
    if len(feature):
        counts = np.bincount(feature - feature[0])
        rows[feature[0] : feature[0] + len(counts)] += counts


def blocks(offsets: Sequence[Int[np.ndarray, "d_sae+1"]], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of features that have at most so many rows over all files together, or one feature each."""
    rows = np.sum(offsets, axis=0)
    low, last = 0, len(rows) - 1
    while low < last:
        high = int(np.searchsorted(rows, rows[low] + most, side="right")) - 1
        high = min(max(high, low + 1), last)
        yield low, high
        low = high
