"""A JSON document whose numbers know where in it they stand, so that what shows them can say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class At:
    """A value of a JSON document with its pointer (RFC 6901). It is read as the value would be."""

    __slots__ = ("_pointer", "_value")

    def __init__(self, value: Any, pointer: str = "") -> None:
        self._value, self._pointer = value, pointer

    def __getitem__(self, key: str | int) -> Any:
        return _at(self._value[key], f"{self._pointer}/{str(key).replace('~', '~0').replace('/', '~1')}")

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self._value else default

    def __contains__(self, key: object) -> bool:
        return key in self._value

    def __iter__(self) -> Iterator[Any]:
        """Its values: an object's in the order of its keys."""
        keys = self._value if isinstance(self._value, dict) else range(len(self._value))
        return (self[key] for key in keys)

    def __len__(self) -> int:
        return len(self._value)


class Fraction(float):
    """A number that knows its pointer."""

    pointer: str


class Whole(int):
    """A whole number that knows its pointer."""

    pointer: str


def _at(value: Any, pointer: str) -> Any:
    """Lists and objects lead on, numbers remember where they are from, all else is itself."""
    if isinstance(value, dict | list):
        return At(value, pointer)
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = Whole(value) if isinstance(value, int) else Fraction(value)
        number.pointer = pointer
        return number
    return value
