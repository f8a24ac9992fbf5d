"""The measurements of :mod:`.rules` (heads and features) as a page: means over prompts, 95 % intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..files import write_text
from .ioi import sentences
from .rules import ALONE, INDIRECT_OBJECT, Measurement

HEAD = """# What the rules are worth: heads and features

Made by `make rules` on SmolLM2-135M and the SAEs shipped for it, {count} prompts (first sentences of texts that no SAE
was trained on). Each number is a mean over prompts with its 95 % interval. Nothing in these measurements is random, so
that each would be the same a second time: their ceiling is 1. Tokens: [rules.md](rules.md).

- *alone*: Spearman's rank correlation of a method's scores with what the target really loses when one source is
  taken out, in the unfrozen model: a head's output set to zero, a feature's decoder part taken out of the stream
  ({alone} drawn at random).
- *top k out*: the share of the target that is gone when the method's highest k sources are taken out together. Above 1
  the target has changed its sign.

Targets stand at the last position: the strongest feature of an SAE, and the logit of the predicted token over the mean
logit. `softmax` is the paper's rule (T = 0.1). `effect` is gradient × part through the unfrozen network and sums to
nothing.
"""

SENTENCES = """{kept} of {made} sentences such as "{text}" → "{indirect_object}", in both orders
of the names: those for which the model prefers the name that is right. The target is its logit minus that of the other
("{subject}"), and each of the model's heads is taken out alone.

"""

Cell = tuple[float, float, int]
"""A mean over prompts, half of its 95 % interval, and over how many prompts."""


def summarise(records: Sequence[Measurement]) -> dict[tuple[str, str], dict[str, dict[str, Cell]]]:
    """(source, target) -> method -> protocol -> cell. Records that are NaN (a constant has no ranks) are left out."""
    values: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for record in records:
        if not math.isnan(record.value):
            values[record.source, record.target, record.method, record.protocol].append(record.value)
    found: dict[tuple[str, str], dict[str, dict[str, Cell]]] = {}
    for (source, target, method, protocol), numbers in values.items():
        found.setdefault((source, target), {}).setdefault(method, {})[protocol] = _cell(numbers)
    return found


COMPARED = (
    ("heads", "feature", "half", "softmax"),
    ("heads", "logit", "half", "softmax"),
    ("heads", "feature", "half", "linear"),
    ("heads", "logit", "half", "linear"),
    ("features", "feature", "half", "softmax"),
    ("features", "feature", "half", "linear"),
    ("features", "logit", "half", "softmax"),
    ("features", "logit", "half", "linear"),
    (INDIRECT_OBJECT, "logit difference", "half", "softmax"),
    (INDIRECT_OBJECT, "logit difference", "half", "linear"),
)
"""Which rule should be a source's default: (source, kind of target, rule, the rule it would have to beat)."""


def paired(records: Sequence[Measurement], source: str, target: str, rule: str, other: str) -> dict[str, Cell]:
    """protocol -> by how much ``rule`` is ahead of ``other`` on the same prompts, targets of a kind averaged first."""
    values: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for record in records:
        if record.source == source and record.target.startswith(target) and not math.isnan(record.value):
            values[record.protocol, record.method, record.prompt].append(record.value)
    means = {key: sum(numbers) / len(numbers) for key, numbers in values.items()}
    ahead: dict[str, list[float]] = defaultdict(list)
    for (protocol, method, prompt), mean in means.items():
        if method == rule and (protocol, other, prompt) in means:
            ahead[protocol].append(mean - means[protocol, other, prompt])
    return {protocol: _cell(numbers) for protocol, numbers in ahead.items()}


def _cell(numbers: Sequence[float]) -> Cell:
    n = len(numbers)
    mean = sum(numbers) / n
    deviation = math.sqrt(sum((x - mean) ** 2 for x in numbers) / (n - 1)) if n > 1 else math.nan
    return mean, 1.96 * deviation / math.sqrt(n), n


def page(records: Sequence[Measurement]) -> str:
    """Markdown, a table per source and target; the highest mean of each column is bold."""
    prompts = {record.prompt for record in records if record.source != INDIRECT_OBJECT}
    parts = [HEAD.format(count=len(prompts), alone=ALONE)]
    parts.append("\n## Rule against rule\n\nBy how much the first is ahead of the second on the same prompts; ")
    parts.append("bold where that is more than its interval.\n")
    parts.append("The defaults follow: `half` for heads, modules, neurons and subspaces.\n\n")
    parts.append("| source → target | rules | ahead by (protocol) | prompts |\n|---|---|---|---|\n")
    for source, target, rule, other in COMPARED:
        cells = paired(records, source, target, rule, other)
        if not cells:
            continue
        numbers = [
            f"**{mean:+.2f} ± {interval:.2f}** ({protocol})"
            if abs(mean) > interval
            else f"{mean:+.2f} ± {interval:.2f} ({protocol})"
            for protocol, (mean, interval, _) in cells.items()
        ]
        count = max(n for _, _, n in cells.values())
        parts.append(f"| {source} → {target} | {rule} − {other} | {', '.join(numbers)} | {count} |\n")
    for (source, target), methods in sorted(summarise(records).items()):
        protocols = list(dict.fromkeys(protocol for cells in methods.values() for protocol in cells))
        best = {p: max(cells[p][0] for cells in methods.values() if p in cells) for p in protocols}
        parts.append(f"\n## {source} → {target}\n\n")
        if source == INDIRECT_OBJECT:
            parts.append(_sentences(records))
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


def _sentences(records: Sequence[Measurement]) -> str:
    made = sentences()
    kept = {record.prompt for record in records if record.source == INDIRECT_OBJECT}
    return SENTENCES.format(kept=len(kept), made=len(made), **asdict(made[0]))


def write(records: Sequence[Measurement], path: Path) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(records))
