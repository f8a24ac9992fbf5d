"""What an index's manifest has, key by key. Types alone: the published JSON Schema is made of them and of Manifest."""

from __future__ import annotations

from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from ..attribution.schema import Count, DescribedSAE
from .manifest import FORMAT, SCHEMA_VERSION, Manifest

KeptActivations = Literal["all"] | list[Count]
"""The features of an SAE of which every activation is kept."""


class ModelKeys(TypedDict):
    """type, revision: as its configuration has them; null where it says nothing."""

    name: str
    dtype: str
    type: str | None
    revision: str | None
    layers: Count
    d_model: Count


class TokenizerKeys(TypedDict):
    """tokens: how many. sha256: of their texts."""

    tokens: Count
    sha256: str


class ScannedSAE(DescribedSAE):
    """sha256: of its weights."""

    sha256: str


class CorpusKeys(TypedDict):
    """windows: that are in the index. blake2b: of what was read."""

    documents: Count
    windows: Count
    blake2b: str


class ReadingKeys(TypedDict):
    """documents: what of a plain text is one. column: where the text is, in files that have columns."""

    documents: Literal["line", "paragraph", "file"]
    column: str


class KeptRows(TypedDict):
    """Of what there is no end of, how many rows a feature keeps while parts are merged."""

    tokens: Count
    before: Count
    after: Count
    partners: Count


class ScanKeys(TypedDict):
    """How it was scanned. window: tokens that the model saw at once. top, samples, repeats: of contexts. kept_tokens,
    kept_beside: a feature's rows in the tables of tokens. full: as it was asked for. unit: tokens of a unit of work.
    limit: of the corpus; null: all of it. rate: on one in so many tokens it was counted what fires together."""

    window: Count
    top: Count
    samples: Count
    repeats: bool
    kept_tokens: Count
    kept_beside: Count
    full: list[str]
    unit: Count
    limit: Count | None
    reading: ReadingKeys
    rate: Count
    kept: KeptRows


class LeftOutPlace(TypedDict):
    where: str
    why: str


class LeftOut(TypedDict):
    """What of the corpus was not read: how often, why how often, and the first places."""

    count: Count
    why: dict[str, Count]
    first: list[LeftOutPlace]


def json_schema() -> dict[str, Any]:
    """Of ``manifest.json``: what every index opens with, and the fields of :class:`.Manifest`."""
    opening = {"schema_version": Literal[SCHEMA_VERSION], "format": Literal[FORMAT]}
    document = TypedDict("IndexManifest", opening | get_type_hints(Manifest, localns=globals(), include_extras=True))  # type: ignore[misc]
    return TypeAdapter[Any](document).json_schema() | {"description": "What an index is of, and how it was made."}
