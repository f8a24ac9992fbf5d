"""``python -m depass_sae.evaluation.truth``: ask every question of every circuit, and write docs/truth.md."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...files import write_text
from .page import page
from .questions import verdicts
from .registry import CIRCUITS


def main() -> None:
    """About a minute of one core."""
    parser = argparse.ArgumentParser(description="Hold every rule against transformers whose mechanism is known.")
    parser.add_argument("--out", type=Path, default=Path("docs/truth.md"))
    args = parser.parse_args()
    made = [make() for make in CIRCUITS.values()]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, page([(circuit, verdicts(circuit)) for circuit in made]))


if __name__ == "__main__":
    main()
