"""What of sae-lens's registry can be used, as documents and tables: all releases, one of them, or numbers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..attribution.document import SCHEMA_VERSION
from ..errors import UserError
from ..saes.registry import ListedSAE, Release, registry, why_no_layer, why_not
from ..saes.release import layer_of_id
from ..view.blocks import Block, Column, Note, Row, Table
from ..view.words import count

SAES = Column("SAEs", "count")
LAYER = "graph layer"
"""Whether it can be a layer of a feature-flow graph."""
UNKNOWN = "?"
"""Stands for what only a file on the hub can tell."""


@dataclass(frozen=True)
class Group:
    """SAEs of a release that read at one kind of hook and are of one architecture. reason: None if they work;
    no_layer: None if they can be layers of graphs.
    """

    hook: str
    architecture: str
    reason: str | None
    no_layer: str | None
    saes: tuple[ListedSAE, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "hook": self.hook,
            "architecture": self.architecture,
            "works": self.reason is None,
            "reason": self.reason,
            "graph": self.no_layer is None,
            "graph_reason": self.no_layer,
            "sae_ids": [sae.sae_id for sae in self.saes],
        }


@dataclass(frozen=True)
class Tally:
    """How many of some SAEs can be used, and how many cannot for which reason."""

    works: int
    reasons: dict[str, int]  # the most frequent first

    @classmethod
    def of(cls, saes: Iterable[ListedSAE], why: Callable[[ListedSAE], str | None] = why_not) -> Tally:
        """why: what is asked of each; None where the answer is yes."""
        found = Counter(map(why, saes))
        works = found.pop(None, 0)
        return cls(works, {str(reason): number for reason, number in found.most_common()})

    @property
    def total(self) -> int:
        return self.works + sum(self.reasons.values())

    @property
    def said(self) -> str:
        """In a table's cell: ``yes``, the reason, or numbers and reasons where a release has both."""
        if not self.reasons:
            return "yes"
        reasons = "; ".join(self.reasons)
        return f"no: {reasons}" if not self.works else f"{self.works} of {self.total}; the others not: {reasons}"

    def to_dict(self) -> dict[str, Any]:
        return {"works": self.works, "reasons": self.reasons, "total": self.total}


def groups(release: Release) -> list[Group]:
    """In the registry's order."""
    found: dict[tuple[str, str, str | None, str | None], list[ListedSAE]] = {}
    for sae in release.saes:
        key = (hook_kind(sae), sae.architecture or UNKNOWN, why_not(sae), why_no_layer(sae))
        found.setdefault(key, []).append(sae)
    return [Group(*key, tuple(saes)) for key, saes in found.items()]


def hook_kind(sae: ListedSAE) -> str:
    """The read point without its layer; of what is none, the name that sae-lens has for it."""
    try:
        return UNKNOWN if sae.hook_name is None else sae.hook.name
    except UserError:
        return str(sae.hook_name)


def hook_kinds(release: Release) -> list[str]:
    return list(dict.fromkeys(map(hook_kind, release.saes)))


# ---------------------------------------------------------------------------------------------------------- documents


def document(release: Release | None, count: bool) -> dict[str, Any]:
    """Of all releases, or of one with its groups; count: the numbers alone."""
    asked = _asked(release)
    if count:
        return {
            "schema_version": SCHEMA_VERSION,
            **_tally(asked).to_dict(),
            "graph": _tally(asked, why_no_layer).to_dict(),
        }
    if release is None:
        return {"schema_version": SCHEMA_VERSION, "releases": [_about(each) for each in asked]}
    return {
        "schema_version": SCHEMA_VERSION,
        **_about(release),
        "groups": [group.to_dict() for group in groups(release)],
    }


def tables(release: Release | None, numbers: bool) -> tuple[Block, ...]:
    """The same for people."""
    asked = _asked(release)
    if numbers:
        return (_count_table(_tally(asked), _tally(asked, why_no_layer)),)
    return _releases_tables(asked) if release is None else _release_tables(release)


def _asked(release: Release | None) -> list[Release]:
    return list(registry().values()) if release is None else [release]


def _about(release: Release) -> dict[str, Any]:
    return {
        "release": release.name,
        "model": release.model,
        "model_type": release.model_type,
        "hooks": hook_kinds(release),
        **Tally.of(release.saes).to_dict(),
        "graph": Tally.of(release.saes, why_no_layer).to_dict(),
    }


def _tally(releases: Sequence[Release], why: Callable[[ListedSAE], str | None] = why_not) -> Tally:
    return Tally.of((sae for release in releases for sae in release.saes), why)


def _releases_tables(releases: Sequence[Release]) -> tuple[Block, ...]:
    rows, tally = [], _tally(releases)
    for release in releases:
        own = Tally.of(release.saes)
        layer = Tally.of(release.saes, why_no_layer)
        cells = (release.name, release.model, own.total, ", ".join(hook_kinds(release)), own.said, layer.said)
        rows.append(Row(cells))
    columns = (Column("release"), Column("model"), SAES, *map(Column, ("hooks", "works", LAYER)))
    said = (
        f"{count(tally.works)} of {count(tally.total)} SAEs of {count(len(releases))} releases can be used, "
        f"{count(_tally(releases, why_no_layer).works)} of them as layers of graphs"
    )
    return Note(said, "answer"), Table("", columns, tuple(rows))


def _release_tables(release: Release) -> tuple[Block, ...]:
    rows = []
    for group in groups(release):
        works, layer = ("yes" if why is None else f"no: {why}" for why in (group.reason, group.no_layer))
        about = (group.hook, group.architecture, len(group.saes), layers(group.saes), group.saes[0].sae_id)
        rows.append(Row((*about, works, layer)))
    columns = (Column("hook"), Column("architecture"), SAES, *map(Column, ("layers", "for example", "works", LAYER)))
    return (Table(f"{release.name}: {release.model}, {release.repository}", columns, tuple(rows)),)


def _count_table(tally: Tally, layer: Tally) -> Table:
    rows = [Row(("works", tally.works)), *(Row((reason, number)) for reason, number in tally.reasons.items())]
    rows += [Row((LAYER, layer.works))]
    rows += [Row((f"no {LAYER}: {why}", number)) for why, number in layer.reasons.items() if why not in tally.reasons]
    return Table("", (Column(""), SAES), (*rows, Row(("total", tally.total), "total")))


def layers(saes: Iterable[ListedSAE]) -> str:
    """``0-3, 7``: the layers that ids name; the embedding is where layer 0 begins."""
    numbers = sorted({layer_of_id(sae.sae_id) or 0 for sae in saes})
    starts = [numbers[0], *(b for a, b in pairwise(numbers) if b > a + 1)]
    ends = [*(a for a, b in pairwise(numbers) if b > a + 1), numbers[-1]]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
