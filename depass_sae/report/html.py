"""The frame of every page here: one file that opens offline, its style and script allowed by their hashes alone.

Templates escape everything; a number goes through the filters ``signed`` and ``number``. A document that is wrapped in
:class:`At` knows where each of its values stands in the JSON, and its numbers say so on the page (``data-at``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..attribution.render import named, place, shown
from ..graph.export.html import escaping, inert, policy
from ..pages import shared

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup

STYLES = ("report.css", "card.css")


class At:
    """A value of a JSON document with its pointer (RFC 6901). Templates read it as they would read the value."""

    __slots__ = ("_pointer", "_value")

    def __init__(self, value: Any, pointer: str = "") -> None:
        self._value, self._pointer = value, pointer

    def __getitem__(self, key: str | int) -> Any:
        return _at(self._value[key], f"{self._pointer}/{str(key).replace('~', '~0').replace('/', '~1')}")

    def __iter__(self) -> Iterator[Any]:
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


def render(
    template: str,
    *,
    script: str = "",
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    **values: Any,
) -> str:
    """A page of its own.

    script: of the page. styles, scripts: what frames inside it bring along, which its policy has to allow as well.
    """
    style = shared("base.css") + "".join(asset(file) for file in STYLES)
    return (
        environment()
        .get_template(template)
        .render(
            style=inert(style),
            script=inert(script),
            policy=policy([style, *styles], [*([script] if script else []), *scripts]),
            **values,
        )
    )


@cache
def asset(file: str) -> str:
    return resources.files(__package__).joinpath("templates", file).read_text(encoding="utf-8")


@cache
def environment() -> jinja2.Environment:
    """Of all templates of this package."""
    made = escaping(asset)
    made.filters.update(
        shown=shown, named=named, running=running, signed=signed, number=number, percent=percent, count=count
    )
    made.globals.update(place=place, shade=shade)
    return made


def shade(value: float | None, largest: float, steps: int = 20) -> str:
    """Classes of the style sheet: the sign, and how much of the largest it is."""
    if not value or not largest:
        return "s0"
    return f"{'pos' if value > 0 else 'neg'} s{round(steps * min(1.0, abs(value) / largest))}"


def running(token: str) -> str:
    """A token within its text: its spaces kept, line breaks kept and made visible, nothing that turns directions."""
    lead = len(token) - len(token.lstrip(" "))
    body = token[lead:]
    return " " * lead + "".join(f"{shown(c)}\n" if c == "\n" else c if c == " " else shown(c) for c in body)


def signed(value: float | None, digits: int = 3) -> Markup:
    """``+1.234``"""
    return _number(value, "" if value is None else written(value, "+", digits))


def number(value: float | None, digits: int = 3) -> Markup:
    """``1.234``"""
    return _number(value, "" if value is None else written(value, "", digits))


def percent(value: float | None) -> Markup:
    """``12 %``"""
    return _number(value, "" if value is None else f"{_zero(100 * value, 0):.0f} %")


def count(value: float | None) -> Markup:
    """``1,234``"""
    return _number(value, "" if value is None else f"{value:,.0f}")


def written(value: float, sign: str = "", digits: int = 3) -> str:
    """A number in so many decimals, in powers of ten where it is very large or small. No minus before a zero."""
    if abs(value) >= 1e5 or (digits > 2 and 0 < abs(value) < 0.5 * 10**-digits):
        text = format(float(value), f"{sign}.1e")
    else:
        text = format(_zero(value, digits), f"{sign}.{digits}f")
    return text.replace("-", "\u2212")


def _zero(value: float, digits: int) -> float:
    return float(value) if round(float(value), digits) else 0.0


def _number(value: float | None, text: str) -> Markup:
    from markupsafe import Markup

    if isinstance(value, Whole | Fraction):
        exact = repr(int(value) if isinstance(value, int) else float(value))
        return Markup('<data value="{}" data-at="{}">{}</data>').format(exact, value.pointer, text)
    return Markup("{}").format(text)
