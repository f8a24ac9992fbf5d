"""Data sets of the Hugging Face hub, streamed: their rows come as they are asked for, and nothing is kept on the disk.

``hf:OWNER/NAME``, with a configuration and a split where there are several: ``hf:OWNER/NAME/CONFIG:SPLIT``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import UserError
from .items import Broken, Item, of_value

SPLIT = "train"


def rows(text: str, column: str) -> Callable[[object], Iterator[Item]]:
    """The rows of a data set, by what it is called. Raises UserError for what is no such name."""
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::([\w.-]+))?", text)
    if found is None:
        raise UserError(
            f"a data set is written hf:OWNER/NAME, hf:OWNER/NAME/CONFIG or with :SPLIT behind, not {text!r}"
        )
    name, config, split = found[1], found[2], found[3] or SPLIT

    def read(progress: object) -> Iterator[Item]:
        for number, row in enumerate(_opened(name, config, split)):
            where = f"{name}:{split}:{number}"
            yield of_value(row[column], where) if column in row else Broken(where, f"it has no {column}")

    return read


def _opened(name: str, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Raises UserError where it cannot be had; an error on the way is told of, and the scan can be resumed."""
    from datasets import load_dataset

    try:
        yield from load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the library's, the hub's, the network's
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the data set {name} ({split}) cannot be read: {said}") from error
