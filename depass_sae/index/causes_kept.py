"""What was found of a feature's causes, kept in the index: ``17.resid_post/causes/2601.json``, and names made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import parse_json, read_text, write_text
from ..labels.automatic import caused_label
from ..labels.kept import CAUSED, read_caused, read_made
from ..models.place import Place
from .causes import Causes
from .manifest import Manifest

if TYPE_CHECKING:
    from .index import Index

LOCK = ".lock"


def answer_of(manifest: Manifest, hook: Place) -> dict[str, Any]:
    """Of which model and SAE an answer is, as the manifest has them."""
    return {"model": manifest.model, "sae": manifest.saes[str(hook)]["sha256"]}


def read_causes(index: Index, hook: Place, feature: int) -> Causes | None:
    """With today's labels; None where nothing is kept, or where it is of another model or SAE than the index.

    Raises UserError for a file that is broken.
    """
    path = _path(index, hook, feature)
    if not path.exists():
        return None
    try:
        found = Causes.from_dict(parse_json(read_text(path)))
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        said = str(error) if isinstance(error, UserError) else "it is no document of causes"
        raise UserError(f"cannot read {path}: {said}; remove it, and ask again") from None
    if found.asked.get("of") != answer_of(index.manifest, hook) or (found.hook, found.index) != (hook, feature):
        return None
    return found.with_labels(index.label)


def keep_causes(index: Index, causes: Causes) -> None:
    """Written whole. The feature's name may be made of it.

    Raises UserError where it cannot be written.
    """
    path = _path(index, causes.hook, causes.index)
    write_text(path, json.dumps(causes.to_dict(), ensure_ascii=False, allow_nan=False) + "\n")
    folder = path.parent.parent
    label = caused_label(read_made(folder).get(causes.index), causes.shares.earlier, causes.before)
    _keep_label(folder, causes.index, label)
    index.forget_labels(causes.hook)


def _keep_label(folder: Path, feature: int, label: str | None) -> None:
    """Whoever else is at it waits: a name that is written meanwhile would be lost."""
    from filelock import FileLock

    with FileLock(folder / CAUSED.parent / LOCK):
        labels = read_caused(folder)
        if labels.get(feature) == label:
            return
        labels.pop(feature, None)
        named = sorted((labels if label is None else labels | {feature: label}).items())
        write_text(
            folder / CAUSED, json.dumps({str(i): text for i, text in named}, ensure_ascii=False, indent=1) + "\n"
        )


def _path(index: Index, hook: Place, feature: int) -> Path:
    return index.folder / str(hook) / "causes" / f"{feature}.json"
