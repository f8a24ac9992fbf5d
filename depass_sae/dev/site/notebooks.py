"""Notebooks as pages, with the outputs that they were committed with. None is run."""

from __future__ import annotations

import re
from pathlib import Path

_STYLE = re.compile(r"<style scoped>.*?</style>\s*", re.DOTALL)
_TERMINAL = re.compile(r"\x1b\[[0-9;]*m")


def page_of(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by the names that the text has for them."""
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter()
    text, resources = exporter.from_filename(
        str(notebook), resources={"unique_key": notebook.stem, "output_files_dir": f"{notebook.stem}_files"}
    )
    return _TERMINAL.sub("", _STYLE.sub("", text)), dict(resources["outputs"])
