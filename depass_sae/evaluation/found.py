"""What an evaluation found: every record, and the figures over prompts with their intervals and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._version import SCHEMA_VERSION
from ..texts import together
from ..view import words
from ..view.blocks import Block, Column, Note, Row, Table
from ..view.shown import Shown
from .figures import STATISTICS, Estimate, Figure, difference, estimate, written
from .protocols import CEILING, Protocol
from .resumed import LEVEL

if TYPE_CHECKING:
    import pandas

THE_CEILING = "the measurement with itself"
FEW = 10
"""With fewer prompts an interval says little, which is told."""


@dataclass(frozen=True)
class Record:
    """What a method gave on a prompt by a protocol."""

    prompt: str
    protocol: str
    method: str
    numbers: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "protocol": self.protocol, "method": self.method, "numbers": dict(self.numbers)}


@dataclass(frozen=True)
class Told:
    """A figure of a method. ahead: by how much it is above that of the method which all are compared with."""

    protocol: str
    figure: Figure
    method: str
    found: Estimate
    ahead: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol, "figure": self.figure.name, "better": self.figure.better, "method": self.method,
            **_estimate_dict(self.found), "ahead": None if self.ahead is None else _estimate_dict(self.ahead),
        }  # fmt: skip

    @property
    def wins(self) -> bool:
        """Whether its interval lies on the good side of the other method."""
        if self.ahead is None:
            return False
        return self.ahead.low > 0 if self.figure.better == "high" else self.ahead.high < 0


def _estimate_dict(one: Estimate) -> dict[str, Any]:
    low, high = (None if x != x else x for x in (one.low, one.high))
    return {"value": one.value, "low": low, "high": high, "n": one.n}


@dataclass(frozen=True)
class Evaluation(Shown):
    """prompts: those that were evaluated; left_out: the others, with the reason. against: what methods are compared
    with. statistic: of the prompts' numbers, where a figure is none of its own.
    """

    settings: dict[str, Any]
    methods: tuple[str, ...]
    protocols: tuple[Protocol, ...]
    prompts: tuple[dict[str, Any], ...]
    left_out: tuple[dict[str, Any], ...]
    records: tuple[Record, ...]
    against: str
    statistic: str = "mean"

    @property
    def title(self) -> str:
        return f"Which method finds the {self.settings['of']} that matter to {self.settings['model']}?"

    @property
    def note(self) -> str | None:
        n, reasons = len(self.prompts), [one["why"] for one in self.left_out]
        few = f"intervals of so few prompts ({n}) say little" if n < FEW else None
        left = [
            f"{reasons.count(why)} of {n + len(reasons)} prompts are left out: {why}" for why in dict.fromkeys(reasons)
        ]
        return together(*left, few)

    @cached_property
    def told(self) -> tuple[Told, ...]:
        """Every figure of every method, the ceiling of a protocol first where there is one."""
        return tuple(self._told())

    def _told(self) -> Iterator[Told]:
        for protocol in self.protocols:
            for figure in protocol.figures:
                of = figure.of or STATISTICS[self.statistic]
                other = self._numbers(protocol, self.against, figure)
                for method in (CEILING, *self.methods):
                    own = self._numbers(protocol, method, figure)
                    found = None if own is None else estimate(own, of)
                    if own is None or found is None:
                        continue
                    compared = method not in (CEILING, self.against) and other is not None
                    ahead = difference(own, other, of) if compared and other is not None else None
                    yield Told(protocol.name, figure, method, found, ahead)

    def _numbers(self, protocol: Protocol, method: str, figure: Figure) -> Float[Tensor, "prompt number"] | None:
        """What a figure is made of; NaN where a prompt gave nothing."""
        found = [r.numbers for r in self.records if (r.protocol, r.method) == (protocol.name, method)]
        rows = [[x for key in figure.keys for x in _several(numbers.get(key))] for numbers in found]
        if not rows:
            return None
        widest = max(map(len, rows))
        rows = [row if len(row) == widest else [None] * widest for row in rows]
        return torch.tensor([[torch.nan if x is None else x for x in row] for row in rows], dtype=torch.float64)

    def to_dict(self) -> dict[str, Any]:
        """The document. ``figures`` has every figure with its interval, ``records`` what each prompt gave."""
        return {
            "schema_version": SCHEMA_VERSION,
            **{key: value for key, value in self.settings.items() if key != "depass_sae"},
            "methods": list(self.methods),
            "protocols": [protocol.name for protocol in self.protocols],
            "statistic": self.statistic,
            "interval": LEVEL,
            "against": self.against,
            "note": self.note,
            "figures": [one.to_dict() for one in self.told],
            "prompts": list(self.prompts),
            "left_out": list(self.left_out),
            "records": [record.to_dict() for record in self.records],
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per figure and method: value, low, high, n, and how far ahead it is of ``against``."""
        import pandas

        rows = []
        for one in self.told:
            ahead = one.ahead or Estimate(torch.nan, torch.nan, torch.nan, 0)
            rows.append(
                (one.protocol, one.figure.name, one.method, one.found.value, one.found.low, one.found.high, one.found.n,
                 ahead.value, ahead.low, ahead.high)
            )  # fmt: skip
        columns = ["protocol", "figure", "method", "value", "low", "high", "n", "ahead", "ahead_low", "ahead_high"]
        return pandas.DataFrame(rows, columns=columns)

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """A table for every protocol: its figures, and how far each method is ahead by the first of them."""
        said = [Note(text, "warning") for text in [self.note] if text]
        how = Note(
            f"{words.capital(self.statistic)}s over prompts with {LEVEL:.0%} intervals (prompts drawn again with "
            f"replacement); removal: {self.settings['removal']}; seed {self.settings['seed']}. ↑, ↓: which end is "
            f"good; *: better than {self.against} by more than the interval.",
            "quiet",
        )
        return (*said, *self._tables(), how)

    def _tables(self) -> Iterator[Block]:
        for protocol in self.protocols:
            here = [one for one in self.told if one.protocol == protocol.name]
            if not here:
                continue
            figures = list({one.figure.name: one.figure for one in here}.values())
            cells = {(one.method, one.figure.name): one for one in here}
            first, *others = figures
            columns = [
                Column("method"),
                Column(_head(first)),
                Column(f"ahead of {self.against}"),
                *(Column(_head(figure)) for figure in others),
                Column("n", "count"),
            ]
            rows = []
            for method in (CEILING, *self.methods):
                own = [cells.get((method, figure.name)) for figure in figures]
                if not any(own):
                    continue
                n = next(one.found.n for one in own if one is not None)
                told, *rest = ["" if one is None else written(one.found) for one in own]
                ahead = "" if own[0] is None else _ahead(own[0])
                name = THE_CEILING if method == CEILING else method
                rows.append(Row((name, told, ahead, *rest, n), "aside" if method == CEILING else "ranked"))
            yield Table(protocol.name, tuple(columns), tuple(rows))


def _several(value: Any) -> list[float | None]:
    return value if isinstance(value, list) else [value]


def _head(figure: Figure) -> str:
    """With the end that is good."""
    return f"{figure.name} {'↑' if figure.better == 'high' else '↓'}"


def _ahead(one: Told) -> str:
    return "" if one.ahead is None else written(one.ahead, sign=True) + " *" * one.wins
