"""The last part of a scan as the files of an index: what :mod:`docs/index-format.md` describes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..attribution.votes import decoder_row, vote_logits
from ..models.place import Place
from ..models.prompt import token_text
from ..passes.settings import Settings
from ..saes import CrossLayerFeatures
from ..subject import Subject
from ..texts import joined
from .arrays import Ragged, rank_in, starts_of
from .contexts import Choosing, low_edge, shown, window_key
from .counts import Counts
from .parts import BLOCK, WEIGHT, Part, write_offsets
from .settings import MOST
from .summary import TABLES, Summary
from .tables import GROUP, Writer, blocks, count_rows

SHOWN = {"before": 64, "after": 64, "partners": 20}
"""So many of a feature's are in the index, of those that were kept to be merged; of tokens all."""
GROUPS = {"contexts": 2**11, "features": 2**11, "windows": 2**7}
"""Rows of a row group, of tables with lists in them: few enough that reading one takes a millisecond."""
VOTES = 10
"""Tokens that a decoder raises and lowers most."""
LOGITS = 2**24
"""Logits that are held at a time."""
KINDS = ("top", "sample")


def finish_sae(
    subject: Subject, hook: Place, root: Part, folder: Path, keys: Int[np.ndarray, "window"], choosing: Choosing,
    tokens: int, full: bool, settings: Settings,
) -> None:  # fmt: skip
    """The tables of one SAE. root: the part that has all. keys: of the index's windows, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    d_sae = subject.saes[hook].cfg.d_sae
    offsets = root.offsets(hook)
    tables = {name: root.table(hook, name, offsets) for name in TABLES}
    names = ["histogram", "positions", *MOST, "contexts", *(["activations"] if full else [])]
    rows = {name: np.zeros(d_sae, dtype=np.int64) for name in names}
    votes = _votes(subject, hook, settings)
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
                "tokens": _keyed(counted["tokens"], "token"),
                **{name: _keyed(counted[name], "token", SHOWN[name]) for name in ("before", "after")},
                "partners": _partners(counted["partners"]),
                "contexts": _contexts(some, keys, choosing),
            }  # fmt: skip
            if full:
                found["activations"] = _activations(some, keys)
            for name, columns in found.items():
                count_rows(rows[name], columns["feature"])
                writers[name].add(columns)
            raised = [next(votes) for _ in range(high - low)]
            writers["features"].add({**_features(counted, low, high, tokens), **_voted(raised)})
    write_offsets(folder / "offsets.parquet", rows)


def _binned(counts: Counts, low: Any) -> dict[str, Any]:
    return {"feature": counts.feature, "low": low, "count": counts.count}


def _keyed(counts: Counts, key: str, most: int | None = None) -> dict[str, Any]:
    """Each feature's most frequent first."""
    rows = counts.most_frequent_first()
    rows = rows if most is None else rows.take(rank_in(starts_of(rows.feature), len(rows)) < most)
    return {
        "feature": rows.feature,
        key: rows.key,
        "count": rows.count,
        "mean": (rows.total / rows.count).astype(np.float32),
        "max": rows.largest,
    }


def _partners(counts: Counts) -> dict[str, Any]:
    """Those that are not the feature itself."""
    found = _keyed(counts.take(counts.feature != counts.key), "partner", SHOWN["partners"])
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


# ------------------------------------------------------------------------------------------------------------- decoders

Raised = tuple[Float[np.ndarray, "vote"], Int[np.ndarray, "vote"], Float[np.ndarray, "vote"], Int[np.ndarray, "vote"]]


def _votes(subject: Subject, hook: Place, settings: Settings) -> Iterator[Raised]:
    """Of every feature in turn, the logits and ids of the tokens that it raises and lowers most."""
    sae, vocabulary = subject.saes[hook], subject.adapter.vocab_size
    none = (np.zeros(0, np.float32), np.zeros(0, np.int32)) * 2
    step = max(LOGITS // vocabulary, 1)
    d_sae = sae.cfg.d_sae
    for begin in range(0, d_sae, step):
        end = min(begin + step, d_sae)
        with torch.no_grad():
            logits = vote_logits(subject, hook, _decoder_rows(sae, begin, end))
        settings.tell(f"what the features at {hook} write", end, d_sae)
        if logits is None:
            yield from [none] * (end - begin)
            continue
        k = min(VOTES, logits.shape[1])
        top, bottom = logits.topk(k), logits.topk(k, largest=False)
        columns = [x.cpu().numpy() for x in (top.values, top.indices, bottom.values, bottom.indices)]
        for a, b, c, d in zip(*columns, strict=True):
            yield a.astype(np.float32), b.astype(np.int32), c.astype(np.float32), d.astype(np.int32)


def _decoder_rows(sae: Any, begin: int, end: int) -> Float[torch.Tensor, "n d_out"]:
    if isinstance(sae, CrossLayerFeatures):
        return torch.stack([decoder_row(sae, i) for i in range(begin, end)])
    return sae.W_dec[begin:end].detach()


def _voted(raised: list[Raised]) -> dict[str, Ragged]:
    names = ("top_logits", "top_tokens", "bottom_logits", "bottom_tokens")
    return {name: Ragged.of(rows) for name, rows in zip(names, zip(*raised, strict=True), strict=True)}


# -------------------------------------------------------------------------------------------------- texts of the index


def write_vocabulary(subject: Subject, path: Path, tell: Callable[[int, int], None]) -> tuple[list[str], str]:
    """Every token's text; and their hash."""
    size = subject.adapter.vocab_size
    texts = []
    for i in range(size):
        texts.append(_clean(token_text(subject.loaded.tokenizer, i)))
        if i % 4096 == 0:
            tell(i, size)
    with Writer(path) as writer:
        writer.add({"token": np.arange(size, dtype=np.int32), "text": texts})
    return texts, hashlib.sha256("\0".join(texts).encode()).hexdigest()


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
