"""Files that are whole or not there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from .errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: whoever looks sees the old one or the new one, never half of it.

    Raises UserError where the folder is missing or cannot be written to.
    """
    # Not tempfile: its files can be read by their owner alone, and would stay so.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
