"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: whoever looks sees the old one or the new one, never half of it.

    Raises UserError where the folder is missing or cannot be written to.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
