"""Documents, one after the other: of files, of a Hugging Face data set, or of whatever hands out texts.

What cannot be read is an item, too: where it is, and why. Nothing is left out without a word. How a file is read, its
name says; ``.gz``, ``.bz2`` and ``.xz`` are opened on the way. A folder is its files, in the order of their names.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import expanded
from .formats import FORMATS, Read
from .hub import rows
from .items import Broken, Item, Reading, of_value


@dataclass
class Corpus:
    """Items to go through once, from the beginning. read: how many of ``size`` bytes were read; None: nobody knows."""

    items: Callable[[Corpus], Iterator[Item]]
    size: int | None = None
    read: int = 0

    def __iter__(self) -> Iterator[Item]:
        self.read = 0
        return self.items(self)


def corpus(source: Any, how: Reading = Reading()) -> Corpus:  # noqa: B008 (frozen)
    """What people name: a path or ``hf:OWNER/NAME[/CONFIG][:SPLIT]`` as a text, a list of paths, or texts themselves.

    Texts: an iterable of them, of token ids, or of mappings with the column. A generator can be gone through once:
    where a scan is to be resumed, it is made anew.

    Raises UserError for a path that is not there, and for a file whose name says nothing known.
    """
    if isinstance(source, Corpus):
        return source
    if isinstance(source, str | os.PathLike):
        source = [Path(source) if isinstance(source, str) and source and not source.startswith("hf:") else source]
        if source == [""]:
            raise UserError("an empty name is no path")
    if (
        isinstance(source, list | tuple)
        and source
        and all(isinstance(one, os.PathLike) or (isinstance(one, str) and one.startswith("hf:")) for one in source)
    ):
        parts: list[tuple[Path | str, Callable[[Corpus], Iterator[Item]], int | None]] = []
        for one in source:
            text = os.fspath(one)
            if text.startswith("hf:"):
                parts.append((text, rows(text, how.column), None))
            else:
                paths, closed = _files(text)
                parts += [(text, partial(_closed, broken), 0) for broken in closed]
                parts += [(path, _reader(path, how), path.stat().st_size) for path in paths]
        sizes = [size for _, _, size in parts]

        def items(progress: Corpus) -> Iterator[Item]:
            before = 0
            for _, read, size in parts:
                yield from read(progress)
                before += size or 0
                progress.read = before

        return Corpus(items, None if None in sizes else sum(size or 0 for size in sizes))
    if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
        raise UserError("a corpus is a path, hf:OWNER/NAME, or texts: an iterable of them, of token ids or of mappings")
    return Corpus(lambda progress: _given(source, how.column))


def _given(source: Iterable[Any], column: str) -> Iterator[Item]:
    for number, one in enumerate(source):
        yield of_value(one.get(column) if isinstance(one, Mapping) else one, f"document {number}")


# --------------------------------------------------------------------------------------------------------------- files

OPENED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def _files(text: str) -> tuple[list[Path], list[Broken]]:
    """The files of a path, in order, and the folders in it that nobody may look into."""
    path = expanded(text)
    if path.is_dir():
        closed: list[OSError] = []
        known: list[Path] = []
        for folder, folders, names in os.walk(path, onerror=closed.append):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            paths = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
            known += [one for one in paths if _format(one) is not None and one.is_file()]
        if not known:
            raise UserError(f"{path} has no files of texts; they end with {', '.join(FORMATS)}")
        return known, [Broken(repr(error.filename), f"it cannot be opened: {error.strerror}") for error in closed]
    if not path.exists():
        raise UserError(f"there is no {path}; a corpus is a file, a folder, or a data set as hf:OWNER/NAME")
    if _format(path) is None:
        raise UserError(f"{path} does not say what it is: let it end with {', '.join(FORMATS)}")
    return [path], []


def _closed(broken: Broken, progress: Corpus) -> Iterator[Item]:
    yield broken


def _format(path: Path) -> Read | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] and suffixes[-1] in OPENED
    named = suffixes[-2:-1] if packed else suffixes[-1:]
    return FORMATS.get(named[0]) if named else None


def _reader(path: Path, how: Reading) -> Callable[[Corpus], Iterator[Item]]:
    def read(progress: Corpus) -> Iterator[Item]:
        before, items, name = progress.read, _format(path), path.name.encode("utf-8", "replace").decode()
        assert items is not None
        try:
            with path.open("rb") as raw:
                opened = OPENED.get(path.suffix.lower())
                for item in items(name, raw if opened is None else opened(raw), how):
                    progress.read = before + raw.tell()
                    yield item
        except (OSError, EOFError, lzma.LZMAError, ValueError) as error:  # a disk's, or a packed file that is damaged
            yield Broken(name, f"it cannot be read on from here: {getattr(error, 'strerror', None) or error}")

    return read
