"""The index of the demo SAEs that comes with the package: over what SmolLM2 wrote for their training.

Why the features of the three cases fire is in it, too.

Texts that were held out from the training are not in it, so that what it says of features can be held against text that
it has not seen (`python -m depass_sae.evaluation.labels`). Some ten minutes of two cores; the same files whenever it is
made on one kind of machine.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..attribution.reservoir import HOLD_OUT, written
from ..labels.kept import SHIPPED
from .cases import CASES

SMALL: Any = {"top": 8, "samples": 1, "kept_tokens": 32, "kept_beside": 8}
"""Of each feature so little that all of it is small enough to come with the package."""


def texts() -> list[str]:
    """Those that the SAEs were trained on."""
    return [text for number, text in enumerate(written()) if number % HOLD_OUT]


def main() -> None:
    """Writes it in place of the one that is there."""
    parser = argparse.ArgumentParser(description="Make the index that comes with the package.")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--tokens", type=int, help="fewer, to try it")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    from rich.progress import Progress

    from ..api import load

    lm = load("smollm2")
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        bar = progress.add_task("scanning", total=None)
        made = lm.scan(
            texts(), Path(folder) / "index", limit=asked.tokens, workers=asked.workers, **SMALL,
            progress=lambda what, done, of: progress.update(bar, description=what, completed=done, total=of or None),
        )  # fmt: skip
        for case in CASES:
            lm.why(made, case.feature)
        shutil.rmtree(asked.out, ignore_errors=True)
        shutil.copytree(made.folder, asked.out, ignore=shutil.ignore_patterns(".*"))
    size = sum(path.stat().st_size for path in asked.out.rglob("*") if path.is_file())
    print(f"{asked.out}: {made.tokens:,} tokens, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
