"""How things are written, the same in every medium: tokens, and numbers (nothing else writes a number).

All is plain text: what a page or a terminal needs beyond that (escapes, pointers, colours) its renderer adds. The minus
sign is U+2212; where a terminal's encoding lacks it, ``texts.make_printable`` has it printed as ``-``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..texts import visible
from .blocks import Cell, Feature, Format, Pairs, Spread, Token

POSITIVE, NEGATIVE = (31, 119, 180), (214, 96, 40)  # blue and orange: told apart with any colour vision
MINUS = "\u2212"


# -------------------------------------------------------------------------------------------------------------- tokens


def shown(token: str) -> str:
    """A token's text on one line: its leading space dropped, line breaks and control characters made visible."""
    return visible(token.strip(" ") or token.replace(" ", "␣"))


def named(token: str) -> str:
    """A token without a place, such as a logit's: spaces at its ends are seen, which alone tell it from its twins."""
    inner = token.strip(" ")
    before, _, after = token.partition(inner) if inner else (token, "", "")
    return "␣" * len(before) + visible(inner) + "␣" * len(after)


def place(token: str, pos: int, more: str = "") -> str:
    """The paper's way to name a token: ``supply (4)``. more: what else tells its place, ``supply (4, text 2)``."""
    return f"{shown(token)} ({pos}{f', {visible(more)}' if more else ''})"


def running(token: str) -> str:
    """A token within its text: its spaces kept, line breaks kept and made visible, nothing that turns directions."""
    lead = len(token) - len(token.lstrip(" "))
    return " " * lead + "".join(f"{shown(c)}\n" if c == "\n" else c if c == " " else shown(c) for c in token[lead:])


# ------------------------------------------------------------------------------------------------------------- numbers


def written(value: float, sign: str = "", digits: int = 3) -> str:
    """A number in so many decimals, in powers of ten where it is very large or small. No minus before a zero."""
    if abs(value) >= 1e5 or (digits > 2 and 0 < abs(value) < 0.5 * 10**-digits):
        text = format(float(value), f"{sign}.1e")
    else:
        text = format(float(value) if round(float(value), digits) else 0.0, f"{sign}.{digits}f")
    return text.replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """``+1.234``"""
    return "" if value is None else written(value, "+", digits)


def number(value: float | None, digits: int = 3) -> str:
    """``1.234``"""
    return "" if value is None else written(value, "", digits)


def capital(line: str) -> str:
    """A line that opens with a large letter."""
    return line[:1].upper() + line[1:]


def within(value: float, half: float, digits: int = 3) -> str:
    """A number with how far it may be off: ``0.60 ± 0.05``"""
    return f"{number(value, digits)} ± {number(half, digits)}"


def percent(value: float | None) -> str:
    """A share: ``12 %``. One that is there is not told as none: ``<0.5 %``, and below zero ``>−0.5 %``."""
    if value is None:
        return ""
    if 0 < abs(value) <= 0.005:
        return "<0.5 %" if value > 0 else f">{MINUS}0.5 %"
    return f"{100 * (value or 0):.0f} %".replace("-", MINUS)


def count(value: float | None) -> str:
    """``1,234``"""
    return "" if value is None else f"{value if abs(value) > 0.5 else 0:,.0f}".replace("-", MINUS)


def error(value: float | None) -> str:
    """``3e−07``: an error's size is what counts, not its digits."""
    return "" if value is None else (f"{value:.0e}" if value else "0").replace("-", MINUS)


def formatted(value: Cell, format: Format = "text", digits: int = 3) -> str:
    """A cell as a column of this format has it."""
    match value:
        case None:
            return ""
        case str():
            return visible(value)
        case Token():
            return named(value.text) if value.pos is None else place(value.text, value.pos, value.more)
        case Feature():
            return f"{visible(value.name)} {shown(value.label)}" if value.label else visible(value.name)
        case Spread():
            return f"{signed(value.mean, digits)} ± {number(value.std, digits)}"
        case Pairs():
            told = [f"{formatted(name)} {formatted(v, value.format, value.digits)}" for name, v in value.entries]
            return "  ".join([*told, *([f"+{value.more}"] if value.more else [])])
    match format:
        case "signed":
            return signed(value, digits)
        case "number":
            return number(value, digits)
        case "percent":
            return percent(value)
        case "count":
            return count(value)
        case "error":
            return error(value)
    return visible(str(value))


# ------------------------------------------------------------------------------------------------------------ drawings


def drawn_full(values: Iterable[float | None], digits: int = 3) -> float:
    """What is drawn at full length: the largest by size. Infinite where so many decimals show even that as 0: a bar
    there would make much of what is only rounding."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return largest if round(largest, digits) else math.inf
