"""Do automatic names predict where features fire? On SmolLM2, over text that no name was made of: docs/names.md.

Names come from an index of the texts that SmolLM2 wrote and the SAEs were trained on; they are tested on those that
were held out. A name of tokens says at every token whether the feature should fire there: where the token, or the one
before it for an "after" name, reads as one of the name's texts. Of such a yes or no the area under the ROC curve for
firing is (true positive rate + true negative rate) / 2: a half is chance. Beside it stand the names of other features
that fire about as often.

The scan goes on where it was stopped; what is tested takes some minutes, a second for a hundred tokens or more.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from ..attribution.reservoir import HOLD_OUT, held_out, written
from ..files import write_text
from ..index.corpus import corpus
from ..index.firings import Tokens, fired
from ..index.index import Index, open_index
from ..index.manifest import NAME as MANIFEST
from ..index.scan import scan
from ..index.settings import ScanSettings
from ..index.units import Cutter
from ..labels.automatic import Named, Spelled
from ..models.place import Place
from ..passes.forward import Progress
from ..passes.settings import Settings
from ..subject import Subject
from .bar import bar
from .resumed import LEVEL, Record, median
from .rules import one_subject

FEATURES, LEAST = 500, 5
"""So many features are drawn, of those that fire so often in the texts that are tested on."""
GROUP = 10
"""So many features that fire about equally often exchange their names."""
UNIT = 2**13
"""Tokens that are read at once."""
KINDS = ("on", "after")


@dataclass(frozen=True)
class Read:
    """What was read: what each token reads, and what the one before it reads. at: where each feature fires."""

    text: Int[np.ndarray, "token"]
    before: Int[np.ndarray, "token"]
    at: dict[tuple[Place, int], Int[np.ndarray, "firing"]]

    def says(self, name: Named, texts: dict[str, int]) -> Bool[np.ndarray, "token"]:
        """Where a feature of this name should fire. texts: the numbers of what tokens read."""
        here = self.before if name.kind == "after" else self.text
        return np.isin(here, [texts[text] for text in name.texts if text in texts])


def read(
    subject: Subject, some: Iterable[str], window: int, spelled: Spelled, limit: int | None, settings: Settings
) -> Read:
    """Texts, cut into windows as a scan cuts them. limit: of tokens."""
    text, before = list[np.ndarray](), list[np.ndarray]()
    found: dict[Place, list[tuple[np.ndarray, np.ndarray]]] = {hook: [] for hook in subject.saes}
    done = 0
    cutter = Cutter(subject.loaded, subject.adapter, window, UNIT, limit)
    for unit in cutter.units(corpus(list(some)), {}):
        tokens = Tokens.of(unit.windows)
        rows = tokens.counted.nonzero()[0]
        place = np.cumsum(tokens.counted) - 1 + done
        text.append(spelled.of[tokens.token[rows]])
        ahead = np.where(tokens.pos[rows] > 0, spelled.of[tokens.token[rows - 1]], -1)
        before.append(ahead)
        for hook, firings in fired(subject, unit.windows, tokens).items():
            found[hook].append((firings.feature, place[firings.at].astype(np.int32)))
        done += len(rows)
        settings.tell("reading held-out texts", done, limit or 0)
    at: dict[tuple[Place, int], np.ndarray] = {}
    for hook, parts in found.items():
        feature, where = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(feature, kind="stable")
        feature, where = feature[order], where[order]
        which, starts = np.unique(feature, return_index=True)
        pieces = np.split(where, starts[1:])
        at |= {(hook, i): piece for i, piece in zip(which.tolist(), pieces, strict=True)}
    return Read(np.concatenate(text), np.concatenate(before), at)


@dataclass(frozen=True)
class Candidate:
    """A feature with a name of tokens. density: over the texts that its name was made of."""

    hook: Place
    index: int
    name: Named
    density: float


def candidates(index: Index, heard: Read, count: int = FEATURES, seed: int = 0) -> list[Candidate]:
    """Drawn at random from the features that have a name of tokens and fire often enough in what was read."""
    found = []
    for (hook, i), where in sorted(heard.at.items()):
        label = index.label(hook, i)
        name = None if label is None else Named.of(label)
        if name is not None and name.kind in KINDS and len(where) >= LEAST:
            found.append(Candidate(hook, i, name, float(index.features(hook)["density"][i])))
    return random.Random(seed).sample(found, min(count, len(found)))


def exchanged(some: Sequence[Candidate], seed: int = 0) -> list[Named]:
    """For every feature the name of another that fires about equally often: of its group by density, no one its own."""
    order = sorted(range(len(some)), key=lambda i: (some[i].density, i))
    draw, names = random.Random(seed), [one.name for one in some]
    starts = list(range(0, max(len(order) - GROUP // 2, 1), GROUP))
    for begin, end in zip(starts, [*starts[1:], len(order)], strict=True):
        group = order[begin:end]
        draw.shuffle(group)
        for i, other in zip(group, group[1:] + group[:1], strict=True):
            names[i] = some[other].name
    return names


def measured(index: Index, heard: Read, some: Sequence[Candidate]) -> list[Record]:
    """Of every feature: how well its name says where it fires, and how well another's."""
    texts = {text: i for i, text in enumerate(Spelled.tokens(index.vocabulary).texts)}
    records = []
    for one, other in zip(some, exchanged(some), strict=True):
        fires = np.zeros(len(heard.text), dtype=bool)
        fires[heard.at[one.hook, one.index]] = True
        said = heard.says(one.name, texts)
        records.append({
            "sae": str(one.hook), "index": one.index, "kind": one.name.kind, "name": one.name.label,
            "density": one.density, "fires": int(fires.sum()), "said": int(said.sum()),
            "hits": float((said & fires).sum() / fires.sum()),
            "right": float((said & fires).sum() / said.sum()) if said.any() else float("nan"),
            "auc": auc(said, fires), "shuffled": auc(heard.says(other, texts), fires),
        })  # fmt: skip
    return records


def auc(said: Bool[np.ndarray, "token"], fires: Bool[np.ndarray, "token"]) -> float:
    """Of a yes or no: the mean of the shares of firings that it says, and of silences that it does not."""
    return float(said[fires].mean() + (~said[~fires]).mean()) / 2 if fires.any() and not fires.all() else float("nan")


def index_of(subject: Subject, work: Path, tokens: int | None, progress: Progress | None) -> Index:
    """Of the texts that were not held out; what is there is opened, what was begun is gone on with."""
    folder = work / f"index-{'all' if tokens is None else tokens}"
    if not (folder / MANIFEST).exists():
        some = [text for number, text in enumerate(written()) if number % HOLD_OUT]
        scan(subject, corpus(some), folder, ScanSettings(limit=tokens), Settings(progress=progress))
    return open_index(folder)


# ------------------------------------------------------------------------------------------------------------ the page

HEAD = """# Do automatic names predict where features fire?

Made by `{made}`.

SmolLM2-135M and the SAEs shipped for it. An index of {scanned:,} tokens, which SmolLM2 wrote, names features by the
tokens that they fire on, or by those before them (“after …”). The names are tested on {tested:,} tokens of other texts,
which it wrote as well, and of which neither SAEs nor names were made: {n} features, drawn at random from those that
have such a name and fire at least {least} times there.

At every token a name says whether the feature should fire: where the token, or the one before it, reads as one of the
name's texts (case and spaces aside). Of such a yes or no the area under the ROC curve is
(share of the firings that it says + share of the silences that it says) / 2; 0.5 is chance.

- *Name*: the feature's own. *Another's*: names exchanged within groups of {group} features of nearly equal density.
- *Ahead*: by how much the own name is, feature by feature.
- *Firings it says*: of the tokens at which the feature fires, those that its name says. *Right*: of the tokens that it
  says, those at which the feature fires.

Medians over features, with {level:.0%} intervals (features drawn again with replacement).

| features | n | name | another's | ahead | firings it says | right |
|---|---|---|---|---|---|---|
"""
TAIL = """
{better} of {n} features ({share:.0%}) fire more as their own name says than as another's does.

What this does not say: that a name is the feature's meaning. It knows no context, so that a feature which fires on
“bank” in texts about rivers alone is named as one that always does; it says nothing of how strongly a feature fires;
and features without such a name, which are about what many tokens say, or write, or are always on, {rest} of those that
fire often enough, are not in these numbers. Texts of one
writer, on the same topics, are alike: over other text names will do worse. Names that are made of causes are tested
where an index has them; a scan makes none. Features that exchange names may have the same one. The intervals are over
features, for these texts.
"""


def page(records: Sequence[Record], scanned: int, tested: int, nameless: float, made: str = "make names") -> str:
    """Markdown. nameless: the share of the features that fire often enough which have no name of tokens.

    made: the command.
    """
    head = {"scanned": scanned, "tested": tested, "n": len(records), "least": LEAST, "group": GROUP, "level": LEVEL}
    parts = [HEAD.format(made=made, **head)]
    named = [("all", list(records))]
    named += [(f"named {kind} tokens", [one for one in records if one["kind"] == kind]) for kind in KINDS]
    saes = sorted({one["sae"] for one in records}, key=Place.parse)
    named += [(f"of {sae}", [one for one in records if one["sae"] == sae]) for sae in saes]
    for title, some in named:
        if some:
            ahead = [one["auc"] - one["shuffled"] for one in some]
            columns = [[one[key] for one in some] for key in ("auc", "shuffled")]
            columns += [ahead, *([one[key] for one in some] for key in ("hits", "right"))]
            parts.append(f"| {title} | {len(some)} | {' | '.join(median(column, 2) for column in columns)} |\n")
    better = sum(one["auc"] > one["shuffled"] for one in records)
    share = better / max(len(records), 1)
    parts.append(TAIL.format(better=better, n=len(records), share=share, rest=f"{nameless:.0%}"))
    return "".join(parts)


def nameless(index: Index, heard: Read) -> float:
    """The share of the features that fire often enough which have no name of tokens."""
    often = [which for which, where in heard.at.items() if len(where) >= LEAST]
    names = (Named.of(index.label(hook, i) or "") for hook, i in often)
    return sum(name is None or name.kind not in KINDS for name in names) / max(len(often), 1)


def main() -> None:
    """Half an hour of one core, nearly all of it for the scan, which goes on where it was stopped."""
    parser = argparse.ArgumentParser(description="Measure whether automatic names say where features fire.")
    parser.add_argument("--tokens", type=int, help="that names are made of, at most; default: all, 360,000")
    parser.add_argument("--held-out", type=int, help="tokens that they are tested on, at most; default: all, 70,000")
    parser.add_argument("--features", type=int, default=FEATURES)
    parser.add_argument("--work", type=Path, default=Path(".demo/names"), help="where the index is kept")
    parser.add_argument("--out", type=Path, default=Path("docs/names.md"))
    args = parser.parse_args()

    subject = one_subject()
    with bar() as tell:
        index = index_of(subject, args.work, args.tokens, tell)
        window, spelled = index.manifest.settings["window"], Spelled.tokens(index.vocabulary)
        heard = read(subject, held_out(), window, spelled, args.held_out, Settings(progress=tell))
    records = measured(index, heard, candidates(index, heard, args.features))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, page(records, index.tokens, len(heard.text), nameless(index, heard), command(args)))


def command(args: argparse.Namespace) -> str:
    """As one that makes the same page is written."""
    limits = {"tokens": args.tokens, "held-out": args.held_out}
    given = [f" --{name} {value}" for name, value in limits.items() if value is not None]
    given += [f" --features {args.features}"] if args.features != FEATURES else []
    return f"python -m depass_sae.evaluation.labels{''.join(given)}" if given else "make names"


if __name__ == "__main__":
    main()
