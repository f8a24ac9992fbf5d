"""The measurements of :mod:`.yardstick` as a page: every figure with its prompts, its interval and its ceiling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from ..files import write_text
from ..view.words import count
from .report import Cell, paired, summarise
from .rules import Measurement
from .yardstick import ALONE, AVERAGED, CEILING, CHOOSING, MIDDLE, PATTERN, REPLACED, SAMPLES, SHAPLEY

HEAD = """# What the rules are worth: tokens

Made by `make rules` on SmolLM2-135M and the SAEs shipped for it. On {sentences} sentences of 12 to 14 tokens that no
SAE was trained on, targets stand at the last word: of every SAE the feature that is most above its usual activation
there, and the logit of the predicted token over the mean logit. Heads and features: [rules-parts.md](rules-parts.md).

Two measurements in the live model, each by {samples} samples:

- **{shapley}**: what a token is worth on average over all orders in which the tokens come in, random tokens of ordinary
  text standing in for those that are not there (`--measure shapley`), by pairs of orders;
- **{alone}**: what the target loses when one token is replaced by random ones (`--measure replace`).

Each number is Spearman's rank correlation of a method's scores with a measurement over the sentence's tokens but the
start token and the last word itself, which heads every ranking; the mean over sentences with its 95 % interval. The
first row is the **ceiling**: the correlation of the measurement with a second one like it (from its two halves, by
Spearman and Brown). No method can be expected above the root of that.
"""

IDEAS = {
    "half-qk": "Attention scores get their share, so it should gain where heads choose by content: late layers.",
    "half-qk, mean slope": "The slope from no score to the recorded one does not vanish where a head is certain, so it "
    "should be ahead of the local slope.",
    "half-qk, share 1": "A score counted twice, as gradients do, should rank about as well and leave `pattern` more.",
    "half of x − mean": "A replacement has the mean embedding on average, so what a token has beyond it should rank "
    "better than all of it.",
    "half, others replaced": f"A Shapley value averages over the others’ absence; so should `half`, over {AVERAGED} "
    "texts in which half of the other tokens are replaced: closer to it than `half`.",
    "half above, half-qk below": f"A rule per layer: early attention binds words together by content, so scores may "
    f"matter below layer {MIDDLE} alone.",
    "half-qk above, half below": f"The other way round: late attention fetches by content; from layer {MIDDLE} on.",
}
"""What was tried beside the rules, and what was expected of it before it was measured."""

LIKE_LXT = """AttnLRP as [lxt](https://github.com/rachtibat/LRP-eXplains-Transformers) computes it (the gradients of a
value, of a query and key, and of a gate's two factors divided by 2, 4 and 2, norms and the slope of activations frozen,
times the embedding) gives the contributions of `half-qk` to the last digit: a test holds it. What lxt's sum lacks is
what `half-qk` says of `pattern`, the bias vectors and the constant.
"""


def tokens_page(records: Sequence[Measurement]) -> str:
    choose, confirm = ([r for r in records if (r.prompt < CHOOSING) == first] for first in (True, False))
    every = len({record.prompt for record in records})
    parts = [HEAD.format(sentences=every, samples=SAMPLES, shapley=SHAPLEY, alone=ALONE)]
    best = chosen(choose)
    parts += ["\n## Which rule\n\n", decision(choose, confirm, best)]
    for title, some in (("To choose by", choose), ("To confirm", confirm)):
        n = len({record.prompt for record in some})
        for protocol in (SHAPLEY, ALONE):
            parts += [f"\n## {title}: against {protocol} ({n} sentences)\n\n", table(some, protocol)]
    parts += ["\n## What no token has: |pattern| as a share of the pre-activation, median\n\n", shares(records)]
    parts += ["\n## What was tried, and expected before\n\n", tried(choose, confirm), "\n", LIKE_LXT]
    for protocol in dict.fromkeys(record.protocol for record in records if record.protocol.endswith("deleted")):
        parts += [f"\n## The share of the target that is lost with the {protocol} (all {every} sentences)\n\n"]
        parts += [table(records, protocol)]
    return "".join(parts)


MOST_PATTERN = 0.1
"""What a default may leave to the component that belongs to no token, as a share of the pre-activation."""
CANDIDATES = (
    "softmax", "linear", "linear-norm", "relu", "half-qk", "half-qk, mean slope", "half-qk, share 1",
    "half above, half-qk below", "half-qk above, half below",
)  # fmt: skip
"""What could be a rule: the others are no decompositions, or take more than a pass."""


def chosen(records: Sequence[Measurement]) -> str:
    """The candidate that is furthest ahead of ``half`` against features' Shapley values, on sentences to choose by."""
    return max(CANDIDATES, key=lambda method: ahead(records, "feature", method)[0])


def ahead(records: Sequence[Measurement], target: str, method: str, protocol: str = SHAPLEY) -> Cell:
    """By how much a method is ahead of ``half`` on the same sentences."""
    return paired(records, "tokens", target, method, "half").get(protocol, (-math.inf, math.nan, 0))


def decision(choose: Sequence[Measurement], confirm: Sequence[Measurement], best: str) -> str:
    feature, logit = (ahead(confirm, target, best) for target in ("feature", "logit"))
    rows = [
        f"| {name} − half | {target} | {_cell(ahead(some, target, name, protocol))} | {protocol} | {which} | "
        f"{ahead(some, target, name, protocol)[2]} |\n"
        for name in dict.fromkeys((best, "softmax", "linear"))
        for which, some in (("choose", choose), ("confirm", confirm))
        for target in ("feature", "logit")
        for protocol in (SHAPLEY, ALONE)
    ]
    unmade = [r.value for r in confirm if (r.protocol, r.method) == (PATTERN, best) and not math.isnan(r.value)]
    left = median(unmade) if unmade else 0.0
    wins = all(mean > interval for mean, interval, _ in (feature, logit))
    if not wins:
        verdict = "It is not ahead of `half` by more than its interval for both there, so the default stays `half`."
    else:
        verdict = "It is ahead of `half` by more than its interval there, for features and logits"
        verdict += (
            f", and leaves {left:.0%} to `pattern` (median), so the default stays `half`."
            if left > MOST_PATTERN
            else f" and leaves {left:.0%} to `pattern` (median): it should be the default."
        )
    return (
        f"The default for tokens changes only for a rule that wins on the sentences to confirm and leaves at most\n"
        f"{MOST_PATTERN:.0%} of the pre-activation to `pattern`. On the sentences to choose by, `{best}` is\n"
        f"furthest ahead of `half` for features. {verdict}\n\n"
        "| | target | ahead by | against | sentences | n |\n|---|---|---|---|---|---|\n" + "".join(rows)
    )


def table(records: Sequence[Measurement], protocol: str) -> str:
    """Methods x targets."""
    found = {target: methods for (_, target), methods in summarise(records).items()}
    targets = sorted(found, key=lambda name: (name == "logit", len(name), name))
    methods = list(dict.fromkeys(m for cells in found.values() for m, by in cells.items() if protocol in by))
    methods.sort(key=lambda method: method != CEILING)
    best = {
        t: max(
            cells[protocol][0] for m, cells in found[t].items() if protocol in cells and m not in (CEILING, REPLACED)
        )
        for t in targets
    }
    lines = ["| | " + " | ".join(targets) + " |\n|---|" + "---|" * len(targets) + "\n"]
    for method in methods:
        cells = [found[t].get(method, {}).get(protocol) for t in targets]
        told = [
            "" if cell is None else f"**{_number(cell)}**" if cell[0] == best[t] else _number(cell)
            for t, cell in zip(targets, cells, strict=True)
        ]
        lines.append(f"| {method} | " + " | ".join(told) + " |\n")
    return "".join(lines)


def shares(records: Sequence[Measurement]) -> str:
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record.protocol == PATTERN and not math.isnan(record.value):
            values.setdefault(record.method, {}).setdefault(record.target, []).append(record.value)
    targets = sorted({t for by in values.values() for t in by}, key=lambda name: (name == "logit", len(name), name))
    lines = ["| | " + " | ".join(targets) + " |\n|---|" + "---|" * len(targets) + "\n"]
    for method, by in values.items():
        lines.append(
            f"| {method} | " + " | ".join(f"{median(by[t]):.0%} (n {count(len(by[t]))})" for t in targets) + " |\n"
        )
    return "".join(lines)


def tried(choose: Sequence[Measurement], confirm: Sequence[Measurement]) -> str:
    lines = [
        "Ahead of `half` against Shapley values, in Spearman's correlation, on sentences to choose by / to confirm.\n\n"
        "| | expected | features | logits |\n|---|---|---|---|\n"
    ]
    for method, expected in IDEAS.items():
        cells = (
            " / ".join(_cell(ahead(some, target, method)) for some in (choose, confirm))
            for target in ("feature", "logit")
        )
        lines.append(f"| {method} | {expected} | " + " | ".join(cells) + " |\n")
    return "".join(lines)


def _cell(cell: Cell) -> str:
    mean, interval, _ = cell
    told = f"{mean:+.2f} ± {interval:.2f}"
    return f"**{told}**" if abs(mean) > interval else told


def _number(cell: Cell) -> str:
    return f"{cell[0]:.2f} ± {cell[1]:.2f}"


def write(records: Sequence[Measurement], path: Path) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, tokens_page(records))
