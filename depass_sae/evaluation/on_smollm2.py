"""``python -m depass_sae.evaluation.on_smollm2``: which method to believe on SmolLM2, into docs/evaluated.md
(``make evaluated``). Each table is made by a command that anyone can run on a model of their own; it stands above.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_text
from ..view.markdown import markdown
from .bar import bar

if TYPE_CHECKING:
    from .found import Evaluation

HEAD = """# Which attribution method to believe on SmolLM2

Made by `make evaluated`. Small runs, of prompts that are much alike; how far deleting, keeping and masking go on more
prompts is on [the paper's experiments](paper.md), and the rules on 120 sentences are in [rules.md](rules.md). What each
protocol does: [Which attribution method to believe](evaluate.md#what-is-asked).
"""


@dataclass(frozen=True)
class Run:
    """An evaluation. said: what is to be known before its tables are read."""

    of: str
    data: str
    limit: int
    protocols: tuple[str, ...]
    said: str
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """What makes it in a shell."""
        options = {"of": self.of, "data": self.data, **self.more, "limit": self.limit}
        said = [f"--{name} {value}" for name, value in options.items()]
        return " ".join(["depass-sae evaluate", *said, *(f"--protocol {name}" for name in self.protocols)])

    def section(self, found: Evaluation) -> str:
        tables = markdown(found.blocks(), level=3)
        return f"\n## {self.of.capitalize()}\n\n`{self.command}`\n\n{self.said}\n\n{tables.strip()}\n"


RUNS = (
    Run(
        "tokens", "facts", 10, ("replace", "shapley"),
        "All facts ask for a capital, with four tokens that may go: so few make coarse ranks.",
    ),
    Run(
        "heads", "ioi", 6, ("cpr", "cmd"),
        "Heads that are out take their values on the sentence with the giver's name exchanged. Attribution patching\n"
        "(`effect`) is the method for this question: it is a first-order account of just this removal.",
        {"removal": "contrast"},
    ),
    Run(
        "neurons", "facts", 6, ("cpr", "cmd"),
        "Neurons that are out have their mean over the prompt's tokens. CPR takes the highest scores first, CMD the\n"
        "largest by size.",
        {"removal": "mean"},
    ),
    Run(
        "features", "facts", 10, ("sets", "cpr", "cmd"),
        "Removed features are 0. The tenth that is kept or removed is by the sign of the score.",
    ),
)  # fmt: skip


def page(found: Sequence[tuple[Run, Evaluation]]) -> str:
    return HEAD + "".join(run.section(evaluation) for run, evaluation in found)


def main() -> None:
    """About a quarter of an hour of one core. What was measured is kept, so that a run that was stopped goes on."""
    parser = argparse.ArgumentParser(description="Which attribution method to believe on SmolLM2.")
    parser.add_argument("--work", type=Path, default=Path(".demo/evaluated"), help="where records are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/evaluated.md"))
    args = parser.parse_args()

    import depass_sae as ds

    lm = ds.load("smollm2")
    found = []
    with bar() as tell:
        for run in RUNS:
            evaluation = lm.evaluate(
                run.data, run.of, protocols=list(run.protocols), limit=run.limit, out=args.work / run.of,  # type: ignore[arg-type]
                progress=tell, **run.more,
            )  # fmt: skip
            found.append((run, evaluation))
    write_text(args.out, page(found))


if __name__ == "__main__":
    main()
