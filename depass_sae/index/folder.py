"""The folder that a scan works in: what it was asked for, and that nobody else works there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import check_place, expanded, write_text
from .manifest import NAME
from .tables import check_arrow

ASKED = "scan.json"
"""What a scan that is not finished was asked for."""
SHARD = "shard.json"
"""What a shard that is finished says of itself."""
LOCK = ".lock"


def check_index_folder(out: str | Path) -> Path:
    """Raises UserError for a folder that cannot be written, that is an index already, or that holds other things."""
    check_arrow()
    folder = expanded(out)
    if (folder / NAME).exists():
        raise UserError(f"{folder} is an index already, or holds a {NAME}; name another folder, or remove it")
    if (folder / SHARD).exists():
        raise UserError(f"{folder} is a finished shard; merge makes an index of it and the others")
    check_place(folder, folder=True)
    if folder.exists() and any(folder.iterdir()) and not (folder / ASKED).exists():
        raise UserError(f"{folder} holds other things; an index has a folder of its own")
    return folder


def same(folder: Path, asked: Mapping[str, Any]) -> None:
    """Raises UserError where what goes on in a folder was begun with something else."""
    path, asked = folder / ASKED, json.loads(json.dumps(asked))
    if not path.exists():
        write_text(path, json.dumps(asked, indent=1) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"cannot read {path}; remove {folder} to scan from the beginning") from None
    other = differing(asked, before)
    if other is not None:
        raise UserError(
            f"the scan in {folder} was begun with another {other}; ask for the same, or name another folder"
        )


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first thing, of settings too, that two scans were asked for differently."""
    flat, known = ({**x, **x.get("settings", {})} for x in (one, other))
    return next((key for key in sorted({*flat, *known} - {"settings"}) if flat.get(key) != known.get(key)), None)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Raises UserError where another scan works in the folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another scan is working in {folder}") from None
    try:
        yield
    finally:
        lock.release()
        if not (folder / ASKED).exists():  # nothing is to be gone on with
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()  # where there is nothing in it
