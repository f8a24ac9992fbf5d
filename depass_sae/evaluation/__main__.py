"""``python -m depass_sae.evaluation``: measure the rules on SmolLM2 and write docs/rules.md (``make rules``)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .report import write
from .rules import run


def main() -> None:
    """About a minute of one core per prompt and ten in all for the sentences; a stopped run goes on where it was."""
    parser = argparse.ArgumentParser(description="Measure every rule against interventions on SmolLM2.")
    parser.add_argument("--prompts", type=int, default=60, help="how many, and at most so many sentences")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, default=Path(".demo/rules.jsonl"), help="where single results are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/rules.md"))
    args = parser.parse_args()
    write(run(args.work, args.prompts, args.workers), args.out)


if __name__ == "__main__":
    main()
