"""Features that fire on the same tokens, of all SAEs of an index.

How alike two features are is the Bhattacharyya coefficient Σ √(p q) over tokens: p and q are the shares of their
activations that are on the token. It is 1 for equal shares and 0 where no token is shared. Tokens that an index does
not keep of a feature (it has 1,024 at most) count as none: a coefficient may be too low, never too high.

DuckDB reads a table once, row group by row group; what it holds is a number for each feature.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .._version import SCHEMA_VERSION
from ..errors import UserError
from ..view.blocks import Block
from ..view.shown import Shown
from . import looks
from .search import connected
from .settings import named_feature

if TYPE_CHECKING:
    import pandas
    from duckdb import DuckDBPyConnection

    from ..models.place import Place
    from .index import Index

_QUERY = """
SELECT t.feature, sum(sqrt(own.share * t.count * t.mean::DOUBLE / (f.count * f.mean::DOUBLE))) AS alike
FROM read_parquet($tokens) t JOIN own USING (token) JOIN read_parquet($features) f USING (feature)
WHERE f.count * f.mean > 0 AND t.feature <> $leave_out
GROUP BY t.feature ORDER BY alike DESC, t.feature LIMIT $top
"""


@dataclass(frozen=True)
class Alike:
    """alike: the Bhattacharyya coefficient of the tokens that both fire on."""

    feature: str
    label: str | None
    alike: float
    count: int


@dataclass(frozen=True)
class Similar(Shown):
    """The likest first."""

    model: str
    feature: str
    label: str | None
    features: tuple[Alike, ...]

    @property
    def title(self) -> str:
        return f"Features that fire on the same tokens as {self.feature}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "feature": self.feature,
            "label": self.label,
            "features": [asdict(one) for one in self.features],
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per feature."""
        import pandas

        columns = ("feature", "label", "alike", "count")
        return pandas.DataFrame([asdict(one) for one in self.features], columns=columns)

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        return looks.similar(self.to_dict(), top)


def similar(index: Index, feature: str, top: int) -> Similar:
    """Raises UserError for a feature that is not there or fires nowhere, and where DuckDB is missing."""
    if top < 1:
        raise UserError(f"a list has 1 feature or more, not {top}")
    hook, number = named_feature(feature, index.saes)
    if not index.features(hook)["count"][number]:
        raise UserError(f"feature {feature} fires nowhere in {index.folder}, so nothing fires on the same tokens")
    database = connected()
    database.execute(
        "CREATE TABLE own AS SELECT t.token, t.count * t.mean::DOUBLE / (f.count * f.mean::DOUBLE) AS share"
        " FROM read_parquet($tokens) t JOIN read_parquet($features) f USING (feature) WHERE t.feature = $feature",
        _tables(index, hook) | {"feature": number},
    )
    found = [
        (alike, other, i)
        for other in sorted(index.saes)
        for i, alike in _nearest(database, index, other, number if other == hook else -1, top)
    ]
    found.sort(key=lambda one: (-one[0], one[1], one[2]))
    return Similar(
        index.manifest.model["name"],
        index.name(hook, number),
        index.label(hook, number),
        tuple(
            Alike(index.name(other, i), index.label(other, i), alike, int(index.features(other)["count"][i]))
            for alike, other, i in found[:top]
        ),
    )


def _nearest(
    database: DuckDBPyConnection, index: Index, hook: Place, leave_out: int, top: int
) -> list[tuple[int, float]]:
    rows = database.execute(_QUERY, _tables(index, hook) | {"leave_out": leave_out, "top": top}).fetchall()
    return [(feature, min(float(alike), 1.0)) for feature, alike in rows]


def _tables(index: Index, hook: Place) -> dict[str, Any]:
    return {name: str(index.folder / str(hook) / f"{name}.parquet") for name in ("tokens", "features")}
