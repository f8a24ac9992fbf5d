"""The measurements of :mod:`.rules` as a page: means over prompts, 95 % intervals, one table per question."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..files import write_text
from .rules import Record

HEAD = """# What the rules are worth

Made by `make rules` on SmolLM2-135M and the SAEs shipped for it, {count} prompts (first sentences of texts that no SAE
was trained on). Each number is a mean over prompts with its 95 % interval.

- *alone*: Spearman's rank correlation of a method's scores with what the target really loses when one source is
  taken out, in the unfrozen model: a token replaced by random tokens (the mean of 4), a head's output set to zero, a
  feature's decoder part taken out of the stream.
- *top k out*, *top 20 % deleted*: the share of the target that is gone when the method's highest k sources are taken
  out together (tokens are deleted from the text). Above 1 the target has changed its sign.

Targets stand at the last position: the strongest feature of an SAE, and the logit of the predicted token over the mean
logit. `softmax` is the paper's rule (T = 0.1). Where parts compete their number is a cost: the softmax rows for heads
and features are means over fewer prompts. `effect` is gradient × part through the unfrozen network and sums to nothing.
"""


Cell = tuple[float, float, int]
"""A mean over prompts, half of its 95 % interval, and over how many prompts."""


def summarise(records: Sequence[Record]) -> dict[tuple[str, str], dict[str, dict[str, Cell]]]:
    """(source, target) -> method -> protocol -> cell. Records that are NaN (a constant has no ranks) are left out."""
    values: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for record in records:
        if not math.isnan(record.value):
            values[record.source, record.target, record.method, record.protocol].append(record.value)
    found: dict[tuple[str, str], dict[str, dict[str, Cell]]] = {}
    for (source, target, method, protocol), numbers in values.items():
        n = len(numbers)
        mean = sum(numbers) / n
        deviation = math.sqrt(sum((x - mean) ** 2 for x in numbers) / (n - 1)) if n > 1 else math.nan
        cell = (mean, 1.96 * deviation / math.sqrt(n), n)
        found.setdefault((source, target), {}).setdefault(method, {})[protocol] = cell
    return found


def page(records: Sequence[Record]) -> str:
    """Markdown, a table per source and target; the highest mean of each column is bold."""
    parts = [HEAD.format(count=len({record.prompt for record in records}))]
    for (source, target), methods in sorted(summarise(records).items()):
        protocols = list(dict.fromkeys(protocol for cells in methods.values() for protocol in cells))
        best = {p: max(cells[p][0] for cells in methods.values() if p in cells) for p in protocols}
        parts.append(f"\n## {source} → {target}\n\n")
        parts.append("| | " + " | ".join(protocols) + " | prompts |\n|---|" + "---|" * (len(protocols) + 1) + "\n")
        for method, cells in methods.items():
            row = []
            for protocol in protocols:
                if protocol not in cells:
                    row.append("")
                    continue
                mean, interval, _ = cells[protocol]
                number = f"{mean:.2f} ± {interval:.2f}"
                row.append(f"**{number}**" if mean == best[protocol] else number)
            count = max(n for _, _, n in cells.values())
            parts.append(f"| {method} | " + " | ".join(row) + f" | {count} |\n")
    return "".join(parts)


def write(records: Sequence[Record], path: Path) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(records))
