"""What is asked for in the live model: parts as they are written, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError
from .named import NamedPart

How = Literal["set", "scale", "add"]
Amount = float | str
"""A number; of a token, the one that stands in its place, by its text or id."""
Changes = Mapping[str, Amount]
"""Parts as they are written, and what becomes of each."""


@dataclass(frozen=True)
class Change:
    """One part and what becomes of it."""

    part: NamedPart
    how: How
    amount: Amount

    def __call__(self, old: Tensor) -> Tensor:
        """Of a number as it is."""
        amount = float(self.amount)
        match self.how:
            case "set":
                return torch.tensor(amount, dtype=torch.float64).to(old).expand_as(old)  # inf, where it is too large
            case "scale":
                return old * amount
            case "add":
                return old + amount

    @property
    def said(self) -> str:
        verb = {"set": "is set to", "scale": "is multiplied by", "add": "gets"}[self.how]
        return f"{self.part.name} {verb} {self.amount}"

    def to_dict(self) -> dict[str, Any]:
        return {"part": self.part.name, **self.part.to_dict(), "how": self.how, "amount": self.amount}


def changes_of(**groups: Changes | None) -> list[Change]:
    """What is asked for, by how. Raises UserError for what is no part or no amount, and where there is nothing."""
    found: list[Change] = []
    for how, group in groups.items():
        for text, amount in (group or {}).items():
            part = NamedPart.of(text)
            _check_amount(part, how, amount)
            found.append(Change(part, how, amount))  # type: ignore[arg-type]
    if not found:
        raise UserError("name what to change, for example {'17/2601@7': 0}")
    names = [change.part for change in found]
    if twice := next((part for part in names if names.count(part) > 1), None):
        raise UserError(f"{twice.name} is changed twice; say once what becomes of it")
    return found


def each_of(**groups: Sequence[Changes] | None) -> list[list[Change]]:
    """Several sets of changes. Raises UserError where the groups are of different numbers, and for what is none."""
    given = {how: list(group) for how, group in groups.items() if group is not None}
    if len({len(group) for group in given.values()}) > 1:
        said = ", ".join(f"{'changes' if how == 'set' else how} has {len(group)}" for how, group in given.items())
        raise UserError(f"every list has an entry for every set of changes, {{}} where there is nothing; {said}")
    return [changes_of(**dict(zip(given, one, strict=True))) for one in zip(*given.values(), strict=True)]


def _check_amount(part: NamedPart, how: str, amount: Amount) -> None:
    if part.kind == "token":
        if how != "set":
            raise UserError(f"a token is set to another one, not {'scaled' if how == 'scale' else 'added to'}")
        return
    if isinstance(amount, str) or not abs(amount) < float("inf"):
        raise UserError(f"{part.name} is changed by a finite number, not {amount!r}")
    if part.kind == "head" and (how == "add" or (how == "set" and amount != 0)):
        raise UserError(f"what {part.name} adds is a vector: set it to 0, or scale it")
