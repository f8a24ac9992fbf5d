"""An environment of its own, in which what is tried finds nothing of this one."""

from __future__ import annotations

import os
import venv
from pathlib import Path


def environment(folder: Path) -> tuple[str, list[str]]:
    """Made in a folder: its Python, and how pip installs there."""
    venv.create(folder, with_pip=True)
    run = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    return run, [run, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
