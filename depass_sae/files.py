"""Files that are whole or not there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from .errors import UserError


def read_text(path: Path) -> str:
    """A file of UTF-8 text, a byte order mark left out. Raises UserError with one line that does not name the file."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"it is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(str(error.strerror)) from None


def check_place(path: Path) -> None:
    """Raises UserError where a file cannot be written for want of its folder, or because it is one."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"cannot write {path}: {'it is a folder' if path.is_dir() else 'there is no such folder'}")


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: whoever looks sees the old one or the new one, never half of it.

    Raises UserError where the folder is missing or cannot be written to.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """The same for what is no text."""
    # Not tempfile: its files can be read by their owner alone, and would stay so.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
