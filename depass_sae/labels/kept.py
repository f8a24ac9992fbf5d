"""Names that an index keeps of its features: ``labels.parquet`` in the folder of every SAE, and ``causes/labels.json``.

The second are of features whose causes are known; they go before the first.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from ..errors import UserError
from ..files import parse_json, read_text

NAME = "labels.parquet"
SHIPPED = Path(__file__).parents[1] / "index" / "shipped"
"""The index that comes with the package: of SmolLM2's SAEs."""
CAUSED = Path("causes") / "labels.json"
HOOK = re.compile(r"(\d{1,9})\.[a-z][a-z0-9_]{0,30}", re.ASCII)


def index_folder(path: str | os.PathLike[str]) -> Path:
    """Where an index is: ``smollm2`` stands for the one that comes with the package, unless a folder has that name."""
    return SHIPPED if os.fspath(path) == "smollm2" and not os.path.isdir(path) else Path(path)


def read_kept(folder: Path) -> dict[int, str]:
    """The names of one SAE's features; none in an index of before there were any.

    Raises UserError for a broken file, and where pyarrow is missing.
    """
    return read_made(folder) | read_caused(folder)


def read_caused(folder: Path) -> dict[int, str]:
    """The names that were made of causes."""
    path = folder / CAUSED
    if not path.exists():
        return {}
    try:
        found = parse_json(read_text(path))
        return {int(feature): str(label) for feature, label in found.items()}
    except (UserError, ValueError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def read_made(folder: Path) -> dict[int, str]:
    """The names that a scan made.

    Raises UserError for a broken file, and where pyarrow is missing.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import read_table
    except ImportError:
        raise UserError("an index needs pyarrow: pip install 'depass-sae[index]'") from None

    path = folder / NAME
    if not path.exists():
        return {}
    try:
        found = read_table(path, use_threads=False)
        return dict(zip(found["feature"].to_pylist(), found["label"].to_pylist(), strict=True))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def read_index_labels(folder: Path) -> dict[str, str]:
    """Every name in an index, by ``layer/index``, or ``layer.hook/index`` where a layer has several SAEs.

    Raises UserError for a folder that is no index.
    """
    if not (folder / "manifest.json").is_file():
        raise UserError(f"there is no index in {folder}; scan makes one")
    hooks = {path.name: found[1] for path in sorted(folder.iterdir()) if (found := HOOK.fullmatch(path.name))}
    shared = Counter(hooks.values())
    return {
        f"{hook if shared[layer] > 1 else layer}/{index}": label
        for hook, layer in hooks.items()
        for index, label in read_kept(folder / hook).items()
    }
