"""A corpus read once for all features of all SAEs, into a folder that can be asked (:mod:`.index`).

Units of windows go through the model (:mod:`.engines`), and each becomes a part on the disk (:mod:`.parts`). Parts are
merged on the way; the last one becomes the index (:mod:`.finish`). A scan that was interrupted, at whatever moment,
goes on from the parts that are there, and ends with the same files, byte by byte. So does one that several machines
shared that know nothing of each other: each does a shard, and :mod:`.shards` makes the index of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..passes.settings import Settings
from ..subject import Subject
from ..view import words
from .corpus import Corpus
from .decoders import write_decoders
from .described import described_model, described_saes
from .engines import HERE, Engine
from .finish import Asked, Scanned, decoders_of, finish, write_vocabulary
from .folder import ASKED, alone, check_index_folder, same
from .parts import TOGETHER, Parts
from .settings import ScanSettings
from .shards import Shard, check_shard
from .units import Cutter, Unit
from .work import Work

if TYPE_CHECKING:
    from .schema import KeptActivations, LeftOut

WINDOW = 1024
"""Tokens of a window, where the SAEs do not say how long their contexts were."""


def scan(
    subject: Subject, corpus: Corpus, out: str | Path, how: ScanSettings, settings: Settings, engine: Engine = HERE
) -> Path:
    """The folder of the finished index. settings: for its progress alone.

    Raises UserError where there are no SAEs, where the folder holds something else, and for a corpus without documents.
    """
    with _begun(subject, out, how) as begun:
        scanned, parts = begun.units(corpus, engine, settings)
        begun.write_names(settings)
        finish(begun.folder, parts, scanned, settings)
    return begun.folder


def scan_shard(
    subject: Subject, corpus: Corpus, out: str | Path, how: ScanSettings, settings: Settings, shard: tuple[int, int],
    engine: Engine = HERE,
) -> Path:  # fmt: skip
    """The folder of one of so many shards of a scan, of which :func:`.merge_shards` makes the index. shard: (1, 8).

    The corpus is read and cut whole for each, which takes a small part of the time that the model does. Raises
    UserError as :func:`scan` does, and for a shard that there is not.
    """
    number, count = check_shard(shard)
    with _begun(subject, out, how, shard) as begun:
        scanned, _ = begun.units(corpus, engine, settings, lambda unit: unit // TOGETHER % count == number - 1)
        if number == 1:
            begun.write_names(settings)
        Shard(number, count, scanned).write(begun.folder)
        (begun.folder / ASKED).unlink()
    return begun.folder


@contextmanager
def _begun(
    subject: Subject, out: str | Path, how: ScanSettings, shard: tuple[int, int] | None = None
) -> Iterator[_Begun]:
    """Raises UserError where a scan cannot begin, or go on, in this folder."""
    if not subject.saes:
        raise UserError("no SAEs are loaded; name some with --sae (saes=)")
    folder = check_index_folder(out).absolute()
    widths = {hook: sae.cfg.d_sae for hook, sae in sorted(subject.saes.items())}
    full: dict[str, KeptActivations] = {
        str(hook): "all" if some is None else list(some) for hook, some in how.full_of(widths).items()
    }
    asked = Asked(how.to_dict(), window_of(subject, how), described_model(subject), described_saes(subject.saes), full)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        same(folder, vars(asked) | ({} if shard is None else {"shard": "/".join(map(str, shard))}))
        yield _Begun(subject, folder, how, asked)


@dataclass(frozen=True)
class _Begun:
    """A scan that has its folder for itself."""

    subject: Subject
    folder: Path
    how: ScanSettings
    asked: Asked

    def units(
        self, corpus: Corpus, engine: Engine, settings: Settings, mine: Callable[[int], bool] = lambda unit: True
    ) -> tuple[Scanned, Parts]:
        """Does the units whose numbers are to be done here. Raises UserError for a corpus without documents."""
        parts = self.asked.parts(self.folder)
        parts.clean()
        cutter = Cutter(self.subject.loaded, self.subject.adapter, self.asked.window, self.how.unit, self.how.limit)
        done = {entry.number: entry for part in parts.all() for entry in part.entries}
        pace = Pace(settings, corpus, cutter, self.how.limit)
        units = (pace.cut(unit) for unit in cutter.units(corpus, done) if mine(unit.entry.number))
        work = Work(parts, self.how.full_of(parts.saes))
        for _ in engine.run(self.subject, work, units, pace.done):
            parts.merge_finished()
        left = cutter.left
        if not cutter.documents:
            first = next(
                (f"; the first thing in it, {one['where']}, was left out: {one['why']}" for one in left.first), ""
            )
            (self.folder / ASKED).unlink()
            raise UserError(f"there are no documents in the corpus{first}")
        why = dict(sorted(left.why.items()))
        left_out: LeftOut = {"count": sum(why.values()), "why": why, "first": left.first}
        return Scanned(self.asked, cutter.documents, cutter.digest, cutter.tokens, left_out), parts

    def write_names(self, settings: Settings) -> None:
        """Tokens' texts, and what decoders write: what finishing an index takes of the model."""
        settings.tell("putting names to tokens", 0, 1)
        tell = lambda at, of: settings.tell("putting names to tokens", at, of)  # noqa: E731
        write_vocabulary(self.subject, self.folder / "vocabulary.parquet", tell)
        for hook in sorted(self.subject.saes):
            path = decoders_of(self.folder, hook)
            path.parent.mkdir(exist_ok=True)
            write_decoders(self.subject, hook, path, settings)


class Pace:
    """Tells how far a scan is. How long it still takes it says where it is known how much there is to read.

    The time is set against what of the corpus was passed in it, other shards' units too; what was done before this run
    counts in neither.
    """

    def __init__(self, settings: Settings, corpus: Corpus, cutter: Cutter, limit: int | None) -> None:
        self._settings, self._corpus, self._cutter, self._limit = settings, corpus, cutter, limit
        self._began: float | None = None
        self._before = self._here = 0
        self._waiting: dict[int, int] = {}
        """Of units that were cut, how many tokens are still to be done."""

    def cut(self, unit: Unit) -> Unit:
        """A unit that is to be done."""
        if self._began is None:
            self._began, self._before = time.monotonic(), self._cutter.tokens - unit.entry.tokens
        self._waiting[unit.entry.number] = unit.entry.tokens
        return unit

    def done(self, unit: Unit, tokens: int) -> None:
        """So many tokens of a unit are done."""
        number, left = unit.entry.number, unit.entry.tokens - tokens
        self._here += self._waiting.pop(number) - left
        self._waiting |= {number: left} if left else {}
        at = self._cutter.tokens - sum(self._waiting.values())
        seconds = max(time.monotonic() - (self._began or 0.0), 1e-9)
        total = self._total(at)
        said = f"scanning: {words.count(at)} tokens, {words.count(self._here / seconds)} tokens/s"
        if total is None:
            self._settings.tell(said, 0, 0)
            return
        minutes = (total - at) * seconds / max(at - self._before, 1) / 60
        left_over = f"about {words.count(minutes)} min" if minutes > 1 else "less than a minute"
        self._settings.tell(f"{said}, {left_over} left", at, total)

    def _total(self, at: int) -> int | None:
        """How many tokens the corpus has, by what was read of it; None: nobody knows."""
        size, read = self._corpus.size, self._corpus.read
        found = [] if self._limit is None else [self._limit]
        found += [round(self._cutter.tokens * size / read)] if size and read else []
        return max(at, min(found)) if found else None


def window_of(subject: Subject, how: ScanSettings) -> int:
    """Tokens of a window: as they are asked for, or as the SAEs were trained; the model's context at most."""
    sizes = [getattr(sae.cfg.metadata, "context_size", None) for sae in subject.saes.values()]
    known = [int(size) for size in sizes if isinstance(size, int) and size >= 4]
    longest = subject.adapter.context_length
    if how.window is not None and longest is not None and how.window > longest:
        raise UserError(
            f"{subject.loaded.name} takes {longest:,} tokens at most, and a window would have {how.window:,}"
        )
    return min(how.window or min(known, default=WINDOW), longest or WINDOW * WINDOW)
