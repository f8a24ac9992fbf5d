"""What is kept of an SAE: counts, contexts and, where it is asked for, every activation. All is made to be merged.

histogram (by half octaves of activation), positions (by octaves of the position), tokens that a feature fires on,
tokens before and after these, partners that fire on the same tokens; ``missed``: by how much a count of what there is
no end of may be too low. Partners are counted on tokens drawn by the hash of their place; a feature is its own partner
on all of its tokens there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from .arrays import Ragged, first_largest, float_order, lengths_of, starts_of
from .contexts import SAMPLE, TOP, Choosing, Contexts, half_octave, octave, picked, sample_group
from .counts import Counts
from .firings import Firings, Tokens
from .settings import MOST, RATE

COUNTS = ("histogram", "positions", *MOST, "missed")
PAIRS = 2**21
"""So many pairs of features are held at a time."""


@dataclass(frozen=True)
class Activations:
    """Every activation of some features, sorted by feature and then by place."""

    feature: Int[np.ndarray, "n"]
    document: Int[np.ndarray, "n"]
    window: Int[np.ndarray, "n"]
    pos: Int[np.ndarray, "n"]
    activation: Float[np.ndarray, "n"]

    @classmethod
    def merged(cls, parts: Sequence[Activations]) -> Activations:
        columns = [np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)]
        order = np.argsort(columns[0], kind="stable")
        return cls(*(column[order] for column in columns))


@dataclass(frozen=True)
class Summary:
    """counts: by :data:`COUNTS`. drawn: on how many tokens partners were counted."""

    counts: Mapping[str, Counts]
    contexts: Contexts
    activations: Activations

    @classmethod
    def merged(cls, parts: Sequence[Summary], choosing: Choosing) -> Summary:
        """parts: in the order of their documents."""
        counts = {name: Counts.merged([part.counts[name] for part in parts]) for name in COUNTS}
        return cls(
            _bounded(counts),
            Contexts.merged([part.contexts for part in parts], choosing),
            Activations.merged([part.activations for part in parts]),
        )

    def tables(self) -> dict[str, dict[str, Any]]:
        """As columns of tables that are sorted by feature."""
        things: dict[str, Any] = {**self.counts, "contexts": self.contexts, "activations": self.activations}
        return {name: {f.name: getattr(thing, f.name) for f in fields(thing)} for name, thing in things.items()}

    @classmethod
    def of_tables(cls, tables: Mapping[str, Mapping[str, Any]]) -> Summary:
        return cls(
            {name: Counts(**tables[name]) for name in COUNTS},
            Contexts(**tables["contexts"]),
            Activations(**tables["activations"]),
        )


TABLES = (*COUNTS, "contexts", "activations")


def summarized(
    tokens: Tokens, firings: Firings, choosing: Choosing, full: tuple[int, ...] | None = (), d_sae: int = 2**23
) -> Summary:
    """Of one unit. full: of which features every activation is kept; None: of all."""
    feature, at, size = firings.feature, firings.at, np.abs(firings.activation)
    pos, token = tokens.pos[at], tokens.token[at]
    last = np.append(tokens.pos[1:] == 0, True)
    has_before, has_after = (pos > 0).nonzero()[0], (~last[at]).nonzero()[0]

    def beside(rows: Int[np.ndarray, "some"], step: int) -> Counts:
        return Counts.of(feature[rows], tokens.token[at[rows] + step], size[rows])

    counts = {
        "histogram": Counts.of(feature, half_octave(size), size),
        "positions": Counts.of(feature, np.frexp(pos)[1].astype(np.int32), size),
        "tokens": Counts.of(feature, token, size),
        "before": beside(has_before, -1),
        "after": beside(has_after, 1),
        "partners": together(firings, drawn(tokens), d_sae),
        "missed": Counts.empty(),
    }
    return Summary(_bounded(counts), _contexts(tokens, firings, choosing), _activations(tokens, firings, full))


def drawn(tokens: Tokens) -> Bool[np.ndarray, "pos"]:
    """On which tokens partners are counted: one in :data:`RATE`, by the hash of its place."""
    return tokens.counted & ((tokens.hash >> np.uint64(40)) % np.uint64(RATE) == 0)


def together(firings: Firings, chosen: Bool[np.ndarray, "pos"], d_sae: int) -> Counts:
    """How often features fire on the same one of the chosen tokens; a feature with itself, too."""
    rows = chosen[firings.at].nonzero()[0]
    rows = rows[np.argsort(firings.at[rows], kind="stable")]
    starts = starts_of(firings.at[rows])
    lengths = lengths_of(starts, len(rows))
    parts = [Counts.empty()]
    for some in _slices(lengths**2):
        low, size = starts[some], lengths[some]
        first = np.repeat(np.arange(low[0], low[-1] + size[-1]), np.repeat(size, size))
        second = Ragged.cut(np.arange(len(rows)), np.repeat(low, size), np.repeat(size, size)).values
        a, b = rows[first], rows[second]
        parts.append(Counts.of(firings.feature[a], firings.feature[b], np.abs(firings.activation[a])))
        if len(parts) > 8:
            parts = [Counts.merged(parts)]
    return Counts.merged(parts)


def _slices(weights: Int[np.ndarray, "n"]) -> Iterator[slice]:
    """Neighbours that weigh no more than PAIRS together, or one of them."""
    total, low = np.cumsum(weights), 0
    while low < len(weights):
        high = int(np.searchsorted(total, (total[low - 1] if low else 0) + PAIRS, side="right"))
        high = max(high, low + 1)
        yield slice(low, high)
        low = high


def _bounded(counts: Mapping[str, Counts]) -> dict[str, Counts]:
    """Each feature's most frequent keys, and by how much more the others' counts may be too low."""
    kept, missed = dict(counts), [counts["missed"]]
    for which, (name, most) in enumerate(MOST.items()):
        kept[name], lost = counts[name].kept(most, which)
        missed.append(lost)
    return {**kept, "missed": Counts.merged(missed)}


def _contexts(tokens: Tokens, firings: Firings, choosing: Choosing) -> Contexts:
    feature, at = firings.feature, firings.at
    size, n = np.abs(firings.activation), len(firings.at)
    window = tokens.window[at]
    starts = starts_of(feature, window)  # a run: what a feature does in a window
    lengths = lengths_of(starts, n)
    run_of = np.repeat(np.arange(len(starts)), lengths)
    peak = first_largest(size, starts)
    key = tokens.window if choosing.repeats else tokens.document
    zero = np.zeros(len(peak), dtype=np.int64)
    top = peak[picked(feature[peak], zero, float_order(size[peak]), key[at[peak]], choosing)]
    bins, hashes = octave(size), (tokens.hash >> np.uint64(32)).astype(np.uint32)[at]
    sampled = np.arange(n) if choosing.samples else np.zeros(0, dtype=np.int64)
    some = sampled[picked(feature[sampled], sample_group(bins[sampled]), hashes[sampled], key[at[sampled]], choosing)]
    rows = np.concatenate([top, some])
    kind = np.repeat(np.array([TOP, SAMPLE], dtype=np.int8), [len(top), len(some)])
    order = np.lexsort((np.arange(len(rows)), kind, feature[rows]))
    rows, kind = rows[order], kind[order]
    run = run_of[rows]
    here = at[rows]
    return Contexts(
        feature=feature[rows],
        kind=kind,
        bin=bins[rows],
        activation=firings.activation[rows],
        pos=tokens.pos[here],
        document=tokens.document[here],
        window=tokens.number[here],
        hash=hashes[rows],
        at=Ragged.cut(tokens.pos[at], starts[run], lengths[run]),
        values=narrow(Ragged.cut(firings.activation, starts[run], lengths[run])),
    )


def _activations(tokens: Tokens, firings: Firings, full: tuple[int, ...] | None) -> Activations:
    rows = slice(None) if full is None else np.isin(firings.feature, np.array(full, dtype=np.int32))
    at = firings.at[rows]
    kept = half(firings.activation[rows])
    return Activations(firings.feature[rows], tokens.document[at], tokens.number[at], tokens.pos[at], kept)


def half(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """As float16, unless one of them is too large for it."""
    return values if np.abs(values).max(initial=0) > np.finfo(np.float16).max else values.astype(np.float16)


def narrow(values: Ragged) -> Ragged:
    return Ragged(values.ends, half(values.values))
