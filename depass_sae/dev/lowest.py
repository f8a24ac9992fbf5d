"""Whether pyproject.toml's lower bounds hold: the lowest versions that it allows, in an environment of their own, and a
part of the tests with them.

torch alone is taken as constraints.txt has it: an old one has no build for a new Python. What our dependencies ask for
themselves comes in its newest version, as for anyone who installs today.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from .alone import environment

EXTRAS = ("demo", "notebook", "index", "paper")
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "jsonschema")
TESTS = (
    "tests/test_api.py", "tests/attribution", "tests/cli/test_questions.py", "tests/graph/test_build.py",
    "tests/graph/test_document.py", "tests/graph/export", "tests/index/test_format.py", "tests/index/test_index.py",
    "tests/models/test_load.py", "tests/passes/test_official.py", "tests/passes/test_plain.py", "tests/saes",
    "tests/view",
)  # fmt: skip
"""One part of the tests for each library: what reads models, SAEs, graphs and indexes, and what writes."""
OF_A_GPU = re.compile(r"nvidia|cuda|triton")


def lowest(root: Path, python: str) -> list[str]:
    """``name==version`` of everything, the lowest of what pyproject.toml names. Needs uv, which the extra dev has."""
    torch = next(
        line
        for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("torch==")
    )
    with TemporaryDirectory() as folder:
        fixed = Path(folder) / "fixed.txt"
        fixed.write_text(torch)
        asked = [part for extra in EXTRAS for part in ("--extra", extra)]
        done = subprocess.run(
            [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *asked,
             "--resolution", "lowest-direct", "--constraint", str(fixed), "--python-version", python,
             str(root / "pyproject.toml")],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return [line for line in done.stdout.splitlines() if line and not OF_A_GPU.match(line)]


def try_lowest(root: Path, more: Sequence[str] = ()) -> None:
    """Installs them and runs the tests. more: options of pytest. Ends with what failed."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        run, install = environment(place / "venv")
        versions = lowest(root, f"{sys.version_info.major}.{sys.version_info.minor}")
        (place / "lowest.txt").write_text("\n".join(versions))
        subprocess.run([*install, "--no-deps", "-r", str(place / "lowest.txt")], check=True)
        subprocess.run([*install, "-c", str(place / "lowest.txt"), *TOOLS], check=True)
        alone = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        chosen = more or ("-n", "auto", "--maxprocesses", "4", "-m", "not long and not browser and not smollm2", *TESTS)
        done = subprocess.run([run, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen], cwd=root, env=alone)
        if done.returncode:
            raise SystemExit(done.returncode)
    direct = re.compile(r"(torch|transformers|sae-lens|safetensors|huggingface-hub|numpy|networkx)==")
    print("passed with " + ", ".join(version for version in versions if direct.match(version)))
