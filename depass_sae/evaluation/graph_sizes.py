"""What graphs of different sizes suffice for on SmolLM2 (``make graph-sizes``): docs/graph-sizes.md.

Facts that the model knows, sentences with an indirect object (both for the answer's logit) and the features of the case
studies, each with graphs of 25 to 800 nodes, grown by all ways and by what flows alone. Of every graph: what is left of
the target in the live model with its features alone, and without them; beside as many features by |effect|, and random
ones of the same layers and positions. So that a default can be chosen by what it leaves and what it takes.

Single results are kept as JSON lines, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from ..files import write_text
from ..graph.build import GraphSettings, build_graph
from ..graph.feature_game import Asked, Removal, feature_game
from ..graph.live import LiveGraph
from ..graph.masks import DRAWS, SUFFICIENT, matched
from ..graph.ways import Grow
from ..passes.settings import Settings
from ..subject import Subject
from .circuits import COUNTS, FACT, OBJECTS, STUDY, asked
from .resumed import LEVEL, Record, measure_all, median
from .rules import one_subject

SIZES = (25, 50, 100, 200, 400, 800)
GROWN: tuple[Grow, ...] = ("both", "weight")
KINDS = (FACT, OBJECTS, STUDY)
SETS = ("graph", "effect", "random")


def measured(subject: Subject, kind: str, number: int, size: int, grow: Grow) -> Record:
    """One graph. ``asked`` is false where the model does not know the answer."""
    subject = subject.asked()
    question = asked(subject, kind, number)
    record: Record = {"kind": kind, "number": number, "size": size, "grow": grow, "asked": question is not None}
    if question is None:
        return record
    start = time.monotonic()
    g = build_graph(
        subject,
        question.prompt,
        [(question.target, question.pos)],
        size=GraphSettings(max_nodes=size, grow=grow),
        settings=Settings.of(),
    )
    seconds = time.monotonic() - start
    live = LiveGraph.of(subject, g)
    members = live.members
    random = matched(members, live.players.cells, DRAWS, torch.Generator().manual_seed(0))
    sets = torch.stack([members, by_effect(subject, question, live), torch.zeros_like(members)])
    kept, lost = (play(torch.cat([sets, random])).share for play in (live.keep, live.lose))
    assert kept is not None  # the model knows the answer
    assert lost is not None
    return record | {
        "prompt": question.prompt.text,
        "nodes": len(g),
        "features": int(members.sum()),
        "active": len(members),
        "seconds": seconds,
        "kept": _told(kept),
        "lost": _told(lost),
        "no_features": float(kept[2]),
    }


def _told(share: Tensor) -> dict[str, float]:
    return {"graph": float(share[0]), "effect": float(share[1]), "random": float(share[3:].mean())}


def by_effect(subject: Subject, question: Asked, live: LiveGraph) -> Bool[Tensor, "player"]:
    """As many features as the graph has, the largest by |effect| in the live model."""
    game, *_ = feature_game(subject, question, None, Removal())
    sizes = {
        (place, pos, index): size
        for (place, index, pos), size in zip(game.named, game.effects().abs().tolist(), strict=True)
    }
    worth = torch.tensor([sizes.get(player, 0.0) for player in live.players.named], dtype=torch.float64)
    largest = torch.zeros(len(worth), dtype=torch.bool)
    largest[worth.argsort(descending=True, stable=True)[: int(live.members.sum())]] = True
    return largest


def run(out: Path, count: int, workers: int, sizes: Sequence[int] = SIZES) -> list[Record]:
    """Graphs of at most ``count`` prompts of every kind; what ``out`` (JSON lines) holds is not measured again."""
    numbers = [(kind, number) for kind in KINDS for number in range(min(count, COUNTS[kind]))]
    wanted = [(kind, number, size, grow) for size in sizes for grow in GROWN for kind, number in numbers]
    return measure_all(out, wanted, ("kind", "number", "size", "grow"), _work, "growing graphs", workers)


def _work(kind: str, number: int, size: int, grow: Grow) -> Record:
    return measured(one_subject(), kind, number, size, grow)


# ---------------------------------------------------------------------------------------------------------- the page

HEAD = """# What graphs of different sizes suffice for

Made by `make graph-sizes` on SmolLM2-135M and the SAEs shipped for it, by the defaults of `lm.graph` but for
`max_nodes` and `grow`. What is left of the target (a logit over the mean of all logits, a feature's pre-activation) in
the live model, where kept features are what the edited model makes of them, and SAE errors and constants stay:

- *alone*: with these features alone; *without*: with all others.
- *by effect*: as many features, the largest by |effect|. *Random*: as many of the same layers and positions, the mean
  of {draws} sets.
- *none*: with no features at all. *{enough:.0%}*: on so many prompts that much is left with the graph's alone.
  *Seconds*: to grow the graph, of one core, whatever else the machine does.

*Nodes* is `max_nodes`. *Grown by* is `grow`: by what flows alone, or by effects and by where heads looked, too. Medians
over the prompts that the model answers as asked, with {level:.0%} intervals (prompts drawn again with replacement).
"""
COLUMNS = (
    "\n| nodes | grown by | prompts | features | alone | by effect | random | none | {enough:.0%} | without "
    "| by effect | random | seconds |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def page(records: Sequence[Record]) -> str:
    """Markdown: all prompts, then by kind."""
    used = [record for record in records if record["asked"]]
    parts = [HEAD.format(draws=DRAWS, level=LEVEL, enough=SUFFICIENT)]
    for title, kinds in (("All prompts", KINDS), *((kind.capitalize(), (kind,)) for kind in KINDS)):
        some = [record for record in used if record["kind"] in kinds]
        if some:
            parts.append(f"\n## {title}\n{COLUMNS.format(enough=SUFFICIENT)}")
            parts += [_row(*of, some) for of in sorted({(record["size"], record["grow"]) for record in some})]
    return "".join(parts)


def _row(size: int, grow: Grow, records: Sequence[Record]) -> str:
    some = [record for record in records if (record["size"], record["grow"]) == (size, grow)]
    cells = [
        f"{size:,}", grow, str(len(some)), median([record["features"] for record in some], 0),
        *(median([record["kept"][name] for record in some], 2) for name in SETS),
        median([record["no_features"] for record in some], 2),
        f"{sum(record['kept']['graph'] >= SUFFICIENT for record in some)} of {len(some)}",
        *(median([record["lost"][name] for record in some], 2) for name in SETS),
        median([record["seconds"] for record in some], 1),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Minutes of one core per prompt, most of them for the largest graphs; a stopped run goes on where it was."""
    parser = argparse.ArgumentParser(description="Measure what graphs of different sizes suffice for on SmolLM2.")
    parser.add_argument("--prompts", type=int, default=12, help="of every kind, at most; there are 3 case studies")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="max_nodes, one or more")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, default=Path(".demo/graph-sizes.jsonl"), help="where results are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/graph-sizes.md"))
    args = parser.parse_args()
    records = run(args.work, args.prompts, args.workers, args.sizes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, page(records))


if __name__ == "__main__":
    main()
