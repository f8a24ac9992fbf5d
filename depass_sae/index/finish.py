"""The last part of a scan as the files of an index: what docs/index-format.md describes. It takes no model."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Int

from ..labels.automatic import Spelled
from ..models.place import Place
from ..models.prompt import token_text
from ..passes.settings import Settings
from ..subject import Subject
from ..texts import joined
from .arrays import rank_in, starts_of
from .contexts import Choosing, low_edge, shown, window_key
from .counts import Counts
from .folder import ASKED
from .manifest import Manifest
from .naming import write_labels
from .parts import BLOCK, WEIGHT, Part, Parts, write_offsets
from .settings import MOST
from .summary import TABLES, Summary
from .tables import GROUP, Writer, blocks, columns_of, count_rows, open_parquet, rows_of

if TYPE_CHECKING:
    from .schema import KeptActivations, LeftOut, ModelKeys, ScanKeys, ScannedSAE

PARTNERS = 20
"""So many of a feature's are in the index, of those that were kept to be merged."""
GROUPS = {"contexts": 2**11, "features": 2**11, "windows": 2**7}
"""Rows of a row group, of tables with lists in them: few enough that reading one takes a millisecond."""
KINDS = ("top", "sample")
TABLES_OF_TOKENS = {"tokens": "tokens", "before": "beside", "after": "beside"}


@dataclass(frozen=True)
class Asked:
    """What a scan was asked for, of what: JSON all through. full: of which features every activation is kept."""

    settings: dict[str, Any]
    window: int
    model: ModelKeys
    saes: dict[str, ScannedSAE]
    full: dict[str, KeptActivations]

    def parts(self, folder: Path) -> Parts:
        """The parts that are in a scan's folder."""
        widths = {Place.parse(hook): int(sae["d_sae"]) for hook, sae in self.saes.items()}
        choosing = Choosing(*(self.settings[name] for name in ("top", "samples", "repeats")))
        return Parts(folder / "parts", dict(sorted(widths.items())), choosing, keep_windows=bool(self.full))


@dataclass(frozen=True)
class Scanned:
    """What was found of a corpus. tokens: at which features count. left_out: see :class:`.Manifest`."""

    asked: Asked
    documents: int
    digest: str
    tokens: int
    left_out: LeftOut


def decoders_of(folder: Path, hook: Place) -> Path:
    """Where what an SAE's decoder writes is kept until a scan is finished."""
    return folder / "decoders" / f"{hook}.parquet"


def finish(folder: Path, parts: Parts, scanned: Scanned, settings: Settings) -> None:
    """Makes the index in a scan's folder, and removes what it was made of."""
    left, asked = parts.all(), scanned.asked
    root = left[0] if len(left) == 1 else parts.merge(left, max(part.level for part in left) + 1, 0)
    texts = columns_of(open_parquet(folder / "vocabulary.parquet", mapped=False).read(["text"]))["text"]
    spelled = Spelled.tokens(texts)
    keys = write_windows(root, folder / "windows.parquet", texts)
    kept = {name: asked.settings[f"kept_{of}"] for name, of in TABLES_OF_TOKENS.items()}
    for hook, d_sae in parts.saes.items():
        finish_sae(
            hook, d_sae, root, decoders_of(folder, hook), folder / str(hook), keys, parts.choosing, kept,
            scanned.tokens, str(hook) in asked.full, partial(settings.tell, f"writing what was found at {hook}"),
        )  # fmt: skip
        write_labels(folder / str(hook), spelled)
    Manifest(
        model=asked.model,
        tokenizer={"tokens": len(texts), "sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest()},
        saes=asked.saes,
        corpus={"documents": scanned.documents, "windows": len(keys), "blake2b": scanned.digest},
        settings=cast("ScanKeys", {**asked.settings, "window": asked.window}),
        tokens=scanned.tokens,
        drawn=root.drawn,
        full=asked.full,
        left_out=scanned.left_out,
    ).write(folder)
    shutil.rmtree(parts.folder)
    shutil.rmtree(folder / "decoders")
    (folder / ASKED).unlink()


def finish_sae(
    hook: Place, d_sae: int, root: Part, decoders: Path, folder: Path, keys: Int[np.ndarray, "window"],
    choosing: Choosing, kept: Mapping[str, int], tokens: int, full: bool, tell: Callable[[int, int], None],
) -> None:  # fmt: skip
    """The tables of one SAE. root: the part that has all. keys: of the index's windows, in their order.

    kept: of the tables of tokens, how many rows a feature has. decoders: what :func:`.write_decoders` wrote. tell: is
    called with how many features are done, of how many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    offsets = root.offsets(hook)
    tables = {name: root.table(hook, name, offsets) for name in TABLES}
    names = ["histogram", "positions", *MOST, "contexts", *(["activations"] if full else [])]
    rows = {name: np.zeros(d_sae, dtype=np.int64) for name in names}
    votes = open_parquet(decoders, mapped=False)
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(Writer(folder / f"{name}.parquet", GROUPS.get(name, GROUP)))
            for name in [*names, "features"]
        }
        for low, high in blocks([offsets[name] * WEIGHT.get(name, 1) for name in TABLES], BLOCK):
            some = Summary.of_tables({name: table.until(high) for name, table in tables.items()})
            counted = some.counts
            found: dict[str, dict[str, Any]] = {
                "histogram": _binned(counted["histogram"], low_edge(counted["histogram"].key)),
                "positions": _binned(counted["positions"], np.where(
                    counted["positions"].key > 0, 2.0 ** (counted["positions"].key - 1), 0).astype(np.int64)),
                **{name: _keyed(counted[name], "token", most) for name, most in kept.items()},
                "partners": _partners(counted["partners"]),
                "contexts": _contexts(some, keys, choosing),
            }  # fmt: skip
            if full:
                found["activations"] = _activations(some, keys)
            for name, columns in found.items():
                count_rows(rows[name], columns["feature"])
                writers[name].add(columns)
            raised = columns_of(rows_of(votes, low, high))
            writers["features"].add({**_features(counted, low, high, tokens), **raised})
            tell(high, d_sae)
    write_offsets(folder / "offsets.parquet", rows)


def _binned(counts: Counts, low: Any) -> dict[str, Any]:
    return {"feature": counts.feature, "low": low, "count": counts.count}


def _keyed(counts: Counts, key: str, most: int) -> dict[str, Any]:
    """Each feature's most frequent first."""
    rows = counts.most_frequent_first()
    rows = rows.take(rank_in(starts_of(rows.feature), len(rows)) < most)
    return {
        "feature": rows.feature,
        key: rows.key,
        "count": rows.count,
        "mean": (rows.total / rows.count).astype(np.float32),
        "max": rows.largest,
    }


def _partners(counts: Counts) -> dict[str, Any]:
    """Those that are not the feature itself."""
    found = _keyed(counts.take(counts.feature != counts.key), "partner", PARTNERS)
    return {name: found[name] for name in ("feature", "partner", "count")}


def _features(counts: Mapping[str, Counts], low: int, high: int, tokens: int) -> dict[str, Any]:
    """A row for each feature from low on, before high, those that never fired among them."""
    n = high - low

    def summed(rows: Counts, column: Any) -> Any:
        return np.bincount(rows.feature - low, weights=column, minlength=n)

    every = counts["histogram"]
    fired = summed(every, every.count).astype(np.int64)
    largest = np.zeros(n, dtype=np.float32)
    np.maximum.at(largest, every.feature - low, every.largest)
    own = counts["partners"].take(counts["partners"].feature == counts["partners"].key)
    missed = counts["missed"]
    by_table = {
        f"{name}_missed": summed(rows, rows.count).astype(np.int64)
        for which, name in enumerate(MOST)
        for rows in [missed.take(missed.key == which)]
    }
    with np.errstate(invalid="ignore"):
        mean = (summed(every, every.total) / fired).astype(np.float32)
    return {
        "feature": np.arange(low, high, dtype=np.int32),
        "count": fired,
        "density": fired / max(tokens, 1),
        "mean": np.where(fired > 0, mean, np.float32(0)),
        "max": largest,
        "drawn": summed(own, own.count).astype(np.int64),
        **by_table,
    }


def _contexts(some: Summary, keys: Int[np.ndarray, "window"], choosing: Choosing) -> dict[str, Any]:
    found = some.contexts.take(shown(some.contexts, choosing))
    return {
        "feature": found.feature,
        "kind": [KINDS[kind] for kind in found.kind.tolist()],
        "activation": found.activation,
        "pos": found.pos,
        "window": np.searchsorted(keys, found.key),
        "at": found.at,
        "activations": found.values,
    }


def _activations(some: Summary, keys: Int[np.ndarray, "window"]) -> dict[str, Any]:
    found = some.activations
    return {
        "feature": found.feature,
        "window": np.searchsorted(keys, window_key(found.document, found.window)),
        "pos": found.pos,
        "activation": found.activation,
    }


# -------------------------------------------------------------------------------------------------- texts of the index


def write_vocabulary(subject: Subject, path: Path, tell: Callable[[int, int], None]) -> None:
    """Every token's text."""
    size = subject.adapter.vocab_size
    texts = []
    for i in range(size):
        texts.append(_clean(token_text(subject.loaded.tokenizer, i)))
        if i % 4096 == 0:
            tell(i, size)
    with Writer(path) as writer:
        writer.add({"token": np.arange(size, dtype=np.int32), "text": texts})


def write_windows(root: Part, path: Path, texts: list[str]) -> Int[np.ndarray, "window"]:
    """The windows with numbers of their own, and their texts. Their keys, in order."""
    keys, number = [], 0
    with Writer(path, GROUPS["windows"]) as writer:
        for found in root.windows():
            n = len(found["document"])
            rows = [found["tokens"].row(i).tolist() for i in range(n)]
            writer.add(
                {
                    "window": np.arange(number, number + n, dtype=np.int64),
                    "document": found["document"],
                    "name": found["name"],
                    "start": found["start"],
                    "tokens": found["tokens"],
                    "text": [joined(texts[i] for i in row) for row in rows],
                }
            )
            keys.append(window_key(found["document"], found["window"]))
            number += n
    return np.concatenate(keys)


def _clean(text: str) -> str:
    """Halves of characters, which no file of texts can hold, are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
