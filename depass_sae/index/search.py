"""Features by words: in their labels, on the tokens that they fire on, and near the peaks of their contexts.

DuckDB reads the tables as they are. A feature whose label has the words comes first, then by what share of its
activation is on tokens that have them, then by in how many of its strongest contexts they stand where it peaks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .._version import SCHEMA_VERSION
from ..errors import UserError
from ..files import check_unicode
from ..texts import joined
from ..view.blocks import Block
from ..view.shown import Shown
from . import looks

if TYPE_CHECKING:
    import pandas
    from duckdb import DuckDBPyConnection

    from ..models.place import Place
    from .index import Index

NEAR = 12
"""Tokens before a peak, and behind it a third as many, in which words belong to it."""
LEAST = 0.02
"""A smaller share of a feature's activation is no reason to name it."""


@dataclass(frozen=True)
class Hit:
    """token_share: of its activation, on tokens with the words. contexts: of its strongest, those with them near by."""

    feature: str
    label: str | None
    in_label: bool
    token_share: float
    contexts: int
    count: int


@dataclass(frozen=True)
class Found(Shown):
    """Nearest first."""

    query: str
    model: str
    features: tuple[Hit, ...]

    @property
    def title(self) -> str:
        return f"Features for “{self.query}”"

    def to_dict(self) -> dict[str, Any]:
        features = [asdict(hit) for hit in self.features]
        return {"schema_version": SCHEMA_VERSION, "model": self.model, "query": self.query, "features": features}

    def to_frame(self) -> pandas.DataFrame:
        """One row per feature."""
        import pandas

        columns = ("feature", "label", "in_label", "token_share", "contexts", "count")
        return pandas.DataFrame([asdict(hit) for hit in self.features], columns=columns)

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        return looks.found(self.to_dict(), top)


def search(index: Index, text: str, top: int) -> Found:
    """Raises UserError for no words, and where DuckDB is missing."""
    check_query(text)
    if top < 1:
        raise UserError(f"a search gives 1 feature or more, not {top}")
    query = text.strip().casefold()
    database = connected()
    tokens = [i for i, token in enumerate(index.vocabulary) if query in token.casefold()]
    hits: list[Hit] = []
    for hook in index.saes:
        shares, contexts = _shares(database, index, hook, tokens), _contexts(database, index, hook, query)
        labelled = {i for i in _labelled(index, hook) if query in (index.given_label(hook, i) or "").casefold()}
        counts = index.features(hook)["count"]
        hits += [
            Hit(
                index.name(hook, i),
                index.label(hook, i),
                i in labelled,
                shares.get(i, 0.0),
                contexts[i],
                int(counts[i]),
            )
            for i in labelled | shares.keys() | contexts.keys()
        ]
    hits.sort(key=lambda hit: (not hit.in_label, -hit.token_share - hit.contexts / 20, -hit.count, hit.feature))
    return Found(text.strip(), index.manifest.model["name"], tuple(hits[:top]))


def check_query(text: str) -> None:
    """Raises UserError for no words, and for what is no text."""
    check_unicode(text, "the text")
    if not text.strip():
        raise UserError("search for a word, or for several: the text is empty")


def connected() -> DuckDBPyConnection:
    """A database in memory. Raises UserError where DuckDB is missing."""
    try:
        import duckdb
    except ImportError:
        raise UserError("searching needs duckdb: pip install 'depass-sae[index]'") from None
    database = duckdb.connect()
    database.execute("SET threads = 1")
    return database


def _shares(database: DuckDBPyConnection, index: Index, hook: Place, tokens: list[int]) -> dict[int, float]:
    """Of every feature, what share of its activation is on these tokens."""
    if not tokens:
        return {}
    rows = database.execute(
        "SELECT t.feature, sum(t.count * t.mean) / any_value(f.count * f.mean) AS share"
        " FROM read_parquet(?) t JOIN read_parquet(?) f USING (feature)"
        " WHERE t.token IN (SELECT unnest(?::INTEGER[])) GROUP BY t.feature HAVING share >= ?",
        [
            str(index.folder / str(hook) / "tokens.parquet"),
            str(index.folder / str(hook) / "features.parquet"),
            tokens,
            LEAST,
        ],
    ).fetchall()
    return {feature: min(float(share), 1.0) for feature, share in rows}


def _contexts(database: DuckDBPyConnection, index: Index, hook: Place, query: str) -> Counter[int]:
    """In how many of a feature's strongest contexts the words stand where it peaks."""
    rows = database.execute(
        "SELECT c.feature, w.tokens[greatest(c.pos + 1 - ?, 1) : c.pos + 1 + ?] FROM read_parquet(?) c"
        " JOIN (SELECT \"window\", tokens FROM read_parquet(?) WHERE contains(lower(text), ?)) w USING (\"window\")"
        " WHERE c.kind = 'top'",
        [
            NEAR, NEAR // 3, str(index.folder / str(hook) / "contexts.parquet"), str(index.folder / "windows.parquet"),
            query.lower(),
        ],
    ).fetchall()  # fmt: skip
    return Counter(feature for feature, ids in rows if query in joined(map(index.text, ids)).casefold())


def _labelled(index: Index, hook: Place) -> list[int]:
    """The features of an SAE that were given labels; automatic ones are made of the tokens."""
    width = index.saes[hook]
    found = []
    for key in index.labels:
        where, _, number = key.rpartition("/")
        if where in (str(hook), str(hook.layer)) and int(number) < width:
            found.append(int(number))
    return found
