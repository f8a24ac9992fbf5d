"""A scan shared by machines that know nothing of each other, such as the jobs of an array: its shards made one index.

Each shard is a folder with the parts of its units. Put together they are the parts of a scan, and become the same files
as if one machine had done them all. That takes no model.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..arguments import typed
from ..errors import UserError
from ..files import expanded, parse_json, read_text, write_text
from ..passes.forward import Progress
from ..passes.settings import Settings
from .finish import Asked, Scanned, decoders_of, finish
from .folder import SHARD, alone, check_index_folder, differing, same
from .index import Index, open_index

MOST = 100_000


def check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    """Raises UserError for a shard that there is not."""
    number, count = shard
    if not 1 <= number <= count <= MOST:
        raise UserError(f"a shard is one of so many, such as 1/8: a number from 1 to their count, not {number}/{count}")
    return number, count


def parse_shard(text: str) -> tuple[int, int]:
    """``1/8``. Raises UserError for what is no shard."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if found is None:
        raise UserError(f"a shard is written as 1/8, the first of eight, not {text!r}")
    return check_shard((int(found[1]), int(found[2])))


@dataclass(frozen=True)
class Shard:
    """What a finished shard says of itself: which of how many it is, and what was scanned."""

    number: int
    count: int
    scanned: Scanned

    def write(self, folder: Path) -> None:
        write_text(folder / SHARD, json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Shard:
        """Raises UserError where there is none that is finished."""
        path = folder / SHARD
        if not path.exists():
            raise UserError(f"{folder} is no finished shard of a scan: it has no {SHARD}")
        try:
            said: Any = parse_json(read_text(path))
            scanned = said["scanned"]
            return cls(
                int(said["number"]), int(said["count"]), Scanned(**scanned | {"asked": Asked(**scanned["asked"])})
            )
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}") from None


@typed
def merge_shards(shards: Sequence[str | Path], out: str | Path, progress: Progress | None = None) -> Index:
    """The index of a scan's shards (:meth:`depass_sae.LM.scan_shard`), in a folder of its own.

    The shards stay as they are; where files can have two names, they take no more disk.

    Raises UserError for shards that are missing, twice there, or of another scan, and for a folder that holds something
    else.
    """
    settings = Settings.of(progress=progress)
    folders = [expanded(one) for one in shards]
    found = {folder: Shard.read(folder) for folder in folders}
    if not found:
        raise UserError("name the folders of a scan's shards")
    first, one = next(iter(found.items()))
    for folder, shard in found.items():
        _check_alike(first, one, folder, shard)
    numbers = sorted(shard.number for shard in found.values())
    if len(numbers) != len(folders) or len(set(numbers)) != len(numbers):
        raise UserError("a shard is named twice; each is needed once")
    if missing := sorted(set(range(1, one.count + 1)) - set(numbers)):
        listed = ", ".join(f"{number}/{one.count}" for number in missing[:5]) + (", ..." if missing[5:] else "")
        raise UserError(f"shards are missing: {listed}")
    folder = check_index_folder(out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        same(folder, {"merged": [str(path.absolute()) for path in sorted(folders)], "digest": one.scanned.digest})
        parts = one.scanned.asked.parts(folder)
        parts.clean()
        for number, source in enumerate(folders):
            settings.tell("taking the shards' parts", number, len(folders))
            _link(source, folder, found[source])
        finish(folder, parts, one.scanned, settings)
    return open_index(folder)


def _check_alike(first: Path, one: Shard, folder: Path, shard: Shard) -> None:
    other = differing(vars(one.scanned.asked), vars(shard.scanned.asked))
    if other is not None or one.count != shard.count:
        raise UserError(f"{first} and {folder} are shards of different scans: {other or 'number of shards'} differs")
    if one.scanned != shard.scanned:
        raise UserError(f"{first} and {folder} are shards of different scans: their corpora differ")


def _link(source: Path, folder: Path, shard: Shard) -> None:
    """What a shard has, put into the folder as well; a part that is there stays, and one that is in another goes."""
    parts = shard.scanned.asked.parts(folder)
    there = {path.name for path in parts.folder.iterdir()} if parts.folder.exists() else set()
    for part in shard.scanned.asked.parts(source).all():
        if part.folder.name not in there:
            shutil.copytree(part.folder, parts.folder / part.folder.name, copy_function=_linked)
    if shard.number == 1:
        paths = [Path("vocabulary.parquet"), *(decoders_of(Path(), hook) for hook in parts.saes)]
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).unlink(missing_ok=True)
            _linked(str(source / path), str(folder / path))


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another disk, or one that cannot
        shutil.copy2(source, target)
