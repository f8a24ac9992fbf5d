"""Formats of files of texts: each a function from an open file to its documents, and to what could not be read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

from .items import LONGEST, Broken, Document, Item, Reading, of_value

Read = Callable[[str, IO[bytes], Reading], Iterator[Item]]
TOO_LONG = f"it is longer than {LONGEST // 2**20} MiB"
ROWS = 1024
"""Of Parquet, at a time."""


def plain(name: str, file: IO[bytes], how: Reading) -> Iterator[Item]:
    """Lines, paragraphs, or the file as a whole. What is blank is no document."""
    if how.documents == "file":
        raw = file.read(LONGEST + 1)
        yield Broken(name, TOO_LONG) if len(raw) > LONGEST else _decoded(name, raw)
        return
    if how.documents == "line":
        for number, line in _lines(file):
            if line is None or line.strip():
                yield Broken(f"{name}:{number}", TOO_LONG) if line is None else _decoded(f"{name}:{number}", line)
        return
    begun, held, size = 0, list[bytes](), 0
    for number, line in _lines(file):
        if line is not None and line.strip():
            begun, size = (begun if held else number), size + len(line)
            held.append(line if size <= LONGEST else b"")
            continue
        if held:
            yield _paragraph(f"{name}:{begun}", held, size)
            held, size = [], 0
        if line is None:
            yield Broken(f"{name}:{number}", TOO_LONG)
    if held:
        yield _paragraph(f"{name}:{begun}", held, size)


def _paragraph(where: str, lines: list[bytes], size: int) -> Item:
    return Broken(where, TOO_LONG) if size > LONGEST else _decoded(where, b"\n".join(lines))


def json_lines(name: str, file: IO[bytes], how: Reading) -> Iterator[Item]:
    """An object a line, its text under the column."""
    for number, line in _lines(file):
        where = f"{name}:{number}"
        if line is None:
            yield Broken(where, TOO_LONG)
        elif line.strip():
            yield _of_json(where, line, how.column)


def _of_json(where: str, line: bytes, column: str) -> Item:
    try:
        content = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Broken(where, "it is not UTF-8 text")
    except (ValueError, RecursionError):
        return Broken(where, "it is not JSON")
    if not isinstance(content, dict):
        return Broken(where, "it is no JSON object")
    if column not in content:
        return Broken(where, f"it has no {column}")
    return of_value(content[column], where)


def separated(by: str) -> Read:
    def read(name: str, file: IO[bytes], how: Reading) -> Iterator[Item]:
        """A table with names in its first row. A row that breaks ends no other."""
        number = 0

        def lines() -> Iterator[str]:
            nonlocal number
            for number, line in _lines(file):  # noqa: B007 (the reader's own)
                # Bytes that are no UTF-8 become halves of characters, which are seen below.
                yield "\udcff\n" if line is None else line.decode("utf-8", "surrogateescape") + "\n"

        rows, header = csv.reader(lines(), delimiter=by, strict=True), None
        csv.field_size_limit(LONGEST)
        while True:
            begun = number + 1
            where = f"{name}:{begun}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                lines_ = where if number == begun else f"{where} to {number}"  # all that it took in
                yield Broken(lines_, f"it is no CSV ({error})")
                continue
            if header is None:
                header = [cell.strip().removeprefix("\ufeff") for cell in row]
                if how.column not in header:
                    yield Broken(name, f"it has no column {how.column}")
                    return
            elif row:
                at = header.index(how.column)
                if len(row) != len(header):
                    yield Broken(where, "it has another number of cells than the first row")
                elif any("\udc80" <= c <= "\udcff" for c in row[at]):
                    yield Broken(where, "it is not UTF-8 text")
                else:
                    yield Document(where, row[at])

    return read


def parquet(name: str, file: IO[bytes], how: Reading) -> Iterator[Item]:
    """A column of texts, or of lists of token ids. A row group that cannot be read is told of; the next is read."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(file)
        if how.column not in table.schema_arrow.names:
            yield Broken(name, f"it has no column {how.column}")
            return
    except (pyarrow.ArrowException, OSError) as error:
        yield Broken(name, f"it is no Parquet file ({_said(error)})")
        return
    number = 0
    for group in range(table.num_row_groups):
        before = number
        try:
            for batch in table.iter_batches(ROWS, [group], [how.column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield of_value(value, f"{name}:{number}")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            yield Broken(f"{name}:{number + 1}", f"the rest of its row group cannot be read ({_said(error)})")
        number = before + table.metadata.row_group(group).num_rows


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Lines without their ends, counted from 1; None for one that is too long, which is never held as a whole."""
    number = 0
    while raw := file.readline(LONGEST + 1):
        number += 1
        if len(raw) <= LONGEST or raw.endswith(b"\n"):
            yield number, raw.rstrip(b"\r\n")
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(LONGEST + 1)
        yield number, None


def _decoded(where: str, raw: bytes) -> Item:
    try:
        return Document(where, raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Broken(where, "it is not UTF-8 text")


def _said(error: Any) -> str:
    return " ".join(str(error).split())[:120]


FORMATS: dict[str, Read] = {
    ".txt": plain,
    ".md": plain,
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".csv": separated(","),
    ".tsv": separated("\t"),
    ".parquet": parquet,
}
"""By the end of a file's name."""
