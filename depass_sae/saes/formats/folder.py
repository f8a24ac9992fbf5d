"""What a format is: by what its folders are known, and what dictionaries are in one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class Stored:
    """A dictionary in a folder, its configuration read and its weights not.

    metadata: what sae-lens calls the model, the hooks and so on, as far as the folder says; load: in any dtype.
    """

    name: str  # for messages
    architecture: str
    metadata: Mapping[str, Any]
    load: Callable[[], SAE]


@dataclass(frozen=True)
class Format:
    """What a format's folders hold, and how one is read.

    files: for messages; weights: their paths inside a folder, by which it is found in a listing; read: raises UserError
    for a folder that is not whole.
    """

    name: str
    files: str
    weights: re.Pattern[str]
    recognises: Callable[[Path], bool]
    read: Callable[[Path], list[Stored]]


def named(*paths: str) -> re.Pattern[str]:
    """What matches these paths, and nothing else."""
    return re.compile("|".join(map(re.escape, paths)))


def mentions(file: Path, key: str) -> bool:
    """Whether a configuration has a key, as far as can be told without reading it."""
    try:
        return f'"{key}"'.encode() in file.read_bytes()
    except OSError:
        return False


def weights_among(folder: Path, *names: str) -> Path:
    """The first of these files that is there. Raises UserError where none is."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no {' or '.join(names)}")
