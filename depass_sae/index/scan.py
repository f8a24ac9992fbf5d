"""A corpus read once for all features of all SAEs, into a folder that can be asked (:mod:`.index`).

Units of windows go through the model one after the other, and each becomes a part on the disk (:mod:`.parts`). Parts
are merged on the way; the last one becomes the index. A scan that was interrupted, at whatever moment, goes on from the
parts that are there, and ends with the same files, byte by byte.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import check_place, expanded, write_text
from ..labels.automatic import Spelled
from ..models.place import Place
from ..passes.settings import Settings
from ..subject import Subject
from ..view import words
from .corpus import Corpus
from .described import described_model, described_saes
from .finish import finish_sae, write_vocabulary, write_windows
from .firings import Tokens, fired
from .manifest import NAME, Manifest
from .naming import write_labels
from .parts import Part, Parts
from .settings import ScanSettings
from .summary import Summary, drawn, summarized
from .tables import check_arrow
from .units import Cutter, Unit

WINDOW = 1024
"""Tokens of a window, where the SAEs do not say how long their contexts were."""
ASKED = "scan.json"
"""What a scan that is not finished was asked for."""
LOCK = ".lock"


def scan(subject: Subject, corpus: Corpus, out: str | Path, how: ScanSettings, settings: Settings) -> Path:
    """The folder of the finished index. settings: for its progress alone.

    Raises UserError where there are no SAEs, where the folder holds something else, and for a corpus without documents.
    """
    if not subject.saes:
        raise UserError("no SAEs are loaded; name some with --sae (saes=)")
    folder = check_index_folder(out)
    widths = {hook: sae.cfg.d_sae for hook, sae in sorted(subject.saes.items())}
    full = how.full_of(widths)
    window = window_of(subject, how)
    saes = described_saes(subject.saes)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _same(folder, {"settings": how.to_dict(), "window": window, "model": described_model(subject), "saes": saes})
        parts = Parts(folder / "parts", widths, how.choosing, keep_windows=bool(full))
        cutter = Cutter(subject.loaded, subject.adapter, window, how.unit, how.limit)
        done = {entry.number: entry for part in parts.all() for entry in part.entries}
        pace = Pace(settings, corpus, cutter, how.limit)
        for unit in cutter.units(corpus, done):
            do_unit(subject, parts, unit, full, pace.of(unit))
            parts.merge_finished()
        left = parts.all()
        if not left:
            first = cutter.left.first[0] if cutter.left.first else None
            why = f"; the first thing in it, {first['where']}, was left out: {first['why']}" if first else ""
            (folder / ASKED).unlink()
            raise UserError(f"there are no documents in the corpus{why}")
        root = left[0] if len(left) == 1 else parts.merge(left, max(part.level for part in left) + 1, 0)
        settings.tell("putting names to tokens", 0, 1)
        tell = lambda at, of: settings.tell("putting names to tokens", at, of)  # noqa: E731
        texts, vocabulary = write_vocabulary(subject, folder / "vocabulary.parquet", tell)
        spelled = Spelled.tokens(texts)
        keys = write_windows(root, folder / "windows.parquet", texts)
        for hook in widths:
            finish_sae(
                subject, hook, root, folder / str(hook), keys, how.choosing, cutter.tokens, hook in full, settings
            )
            write_labels(folder / str(hook), spelled)
        Manifest(
            model=described_model(subject),
            tokenizer={"tokens": len(texts), "sha256": vocabulary},
            saes=saes,
            corpus={"documents": cutter.documents, "windows": len(keys), "blake2b": cutter.digest},
            settings={**how.to_dict(), "window": window},
            tokens=cutter.tokens,
            drawn=root.drawn,
            full={str(hook): "all" if some is None else list(some) for hook, some in full.items()},
            left_out={
                "count": sum(cutter.left.why.values()),
                "why": dict(sorted(cutter.left.why.items())),
                "first": cutter.left.first,
            },
        ).write(folder)
        shutil.rmtree(parts.folder)
        (folder / ASKED).unlink()
    return folder


def do_unit(
    subject: Subject,
    parts: Parts,
    unit: Unit,
    full: Mapping[Place, tuple[int, ...] | None],
    tell: Callable[[int], None] = lambda done: None,
) -> Part:
    """A unit as a part on the disk. tell: is called with how many of its tokens are done."""
    tokens = Tokens.of(unit.windows)
    found = fired(subject, unit.windows, tokens, tell)
    summaries: dict[Place, Summary] = {}
    for hook in parts.saes:
        summaries[hook] = summarized(tokens, found.pop(hook), parts.choosing, full.get(hook, ()))
    return parts.write_unit(unit.entry, unit.windows, summaries, int(drawn(tokens).sum()))


class Pace:
    """Tells how far a scan is. How long it still takes it says where it is known how much there is to read.

    The time of this run's units is set against what they are of the corpus; what was done before counts in neither.
    """

    def __init__(self, settings: Settings, corpus: Corpus, cutter: Cutter, limit: int | None) -> None:
        self._settings, self._corpus, self._cutter, self._limit = settings, corpus, cutter, limit
        self._began: float | None = None
        self._here = 0

    def of(self, unit: Unit) -> Callable[[int], None]:
        """What is to be called with how many tokens of the unit are done."""
        before, here = self._cutter.tokens - unit.entry.tokens, self._here
        if self._began is None:
            self._began = time.monotonic()
        self._here += unit.entry.tokens
        return lambda done: self._tell(before + done, here + done)

    def _tell(self, at: int, here: int) -> None:
        """at: tokens of the corpus that are done. here: of them, in this run."""
        seconds = max(time.monotonic() - (self._began or 0.0), 1e-9)
        total = self._total(at)
        said = f"scanning: {words.count(at)} tokens, {words.count(here / seconds)} tokens/s"
        if total is None:
            self._settings.tell(said, 0, 0)
            return
        minutes = (total - at) * seconds / here / 60
        left = f"about {words.count(minutes)} min" if minutes > 1 else "less than a minute"
        self._settings.tell(f"{said}, {left} left", at, total)

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


def check_index_folder(out: str | Path) -> Path:
    """Raises UserError for a folder that cannot be written, that is an index already, or that holds other things."""
    check_arrow()
    folder = expanded(out)
    if (folder / NAME).exists():
        raise UserError(f"{folder} is an index already, or holds a {NAME}; name another folder, or remove it")
    check_place(folder, folder=True)
    if folder.exists() and any(folder.iterdir()) and not (folder / ASKED).exists():
        raise UserError(f"{folder} holds other things; an index has a folder of its own")
    return folder


def _same(folder: Path, asked: Mapping[str, Any]) -> None:
    """Raises UserError where the scan in a folder was begun with something else."""
    path, asked = folder / ASKED, json.loads(json.dumps(asked))
    if not path.exists():
        write_text(path, json.dumps(asked, indent=1) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"cannot read {path}; remove {folder} to scan from the beginning") from None
    flat, known = ({**x, **x.get("settings", {})} for x in (asked, before))
    for name in sorted(flat.keys() - {"settings"}):
        if flat[name] != known.get(name):
            raise UserError(
                f"the scan in {folder} was begun with another {name}; ask for the same, or name another folder"
            )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises UserError where another scan works in the folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another scan is working in {folder}") from None
    try:
        yield
    finally:
        lock.release()
        if not (folder / ASKED).exists():  # nothing is to be gone on with
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()  # where there is nothing in it
