"""``python -m depass_sae.evaluation``: measure the rules on SmolLM2 and write docs/rules.md (``make rules``)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from . import report, rules, yardstick, yardstick_report

TOKENS, PARTS = "tokens", "parts"
KEPT = Path("benchmarks/results/yardstick.jsonl.xz")
"""What tokens are worth in the live model, as measured for docs/rules.md: two hours of two cores."""


def main() -> None:
    """A minute of one core or two per sentence and protocol; a stopped run goes on where it was."""
    parser = argparse.ArgumentParser(description="Measure every rule against interventions on SmolLM2.")
    parser.add_argument(
        "what", nargs="*", default=[TOKENS, PARTS], help=f"{TOKENS}, or {PARTS} (heads and features); default: both"
    )
    parser.add_argument("--prompts", type=int, default=60, help="how many, and so many others to confirm")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="where single results are kept")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--measure-again", action="store_true", help=f"not what is kept in {KEPT}")
    args = parser.parse_args()
    if TOKENS in args.what:
        files = (args.work / "yardstick.jsonl", args.work / "rules-tokens.jsonl")
        found = yardstick.run(*files, args.prompts, args.workers, None if args.measure_again else KEPT)
        yardstick_report.write(found, args.out / "rules.md")
    if PARTS in args.what:
        report.write(rules.run(args.work / "rules.jsonl", args.prompts, args.workers), args.out / "rules-parts.md")


if __name__ == "__main__":
    main()
