"""The paper's three case studies on SmolLM2: ``python -m depass_sae.demo``, or ``make demo``."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from depass_sae.demo.cases import CASES
from depass_sae.demo.smollm2 import prepare
from depass_sae.errors import UserError


def main() -> None:
    """For each case: what the feature means, and which tokens made it fire late in the prompt."""
    console = Console(highlight=False)
    try:
        prepare(say=lambda what: print(what, file=sys.stderr))
        import depass_sae as ds

        lm = ds.load("smollm2")
        for case in CASES:
            console.rule(Text(f"{case.name}: feature {case.feature}", style="bold"))
            console.print(Text(f"{case.meaning}\n", style="italic"))
            console.print(lm.attribute_tokens(case.prompt, feature=f"{case.feature}@{case.position}").table(top=8))
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
