"""How tokens and numbers are written."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depass_sae.texts import is_hidden
from depass_sae.view import words
from depass_sae.view.blocks import Cell, Feature, Format, Pairs, Spread, Token
from depass_sae.view.words import drawn_full, formatted, named, percent, place, running, shown, written

MINUS = "\u2212"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (" supply", "supply"), (" ", "␣"), ("  ", "␣␣"), ("a b", "a b"), ("\n", "↵"), (" \n\n", "↵↵"), ("\t", "⇥"),
        ("\r", "␍"), ("\x1b[2J", "\ufffd[2J"), ("\x07", "\ufffd"), ("\u202edrow", "\ufffddrow"), ("\u2028", "\ufffd"),
        ("é東", "é東"), ("", ""), ("[red]", "[red]"), ("\ufeff", "\ufffd"),
    ],
)  # fmt: skip
def test_a_token_is_shown_on_one_line_with_nothing_a_terminal_obeys(token: str, expected: str) -> None:
    assert shown(token) == expected
    assert place(token, 4) == f"{expected} (4)"


@pytest.mark.parametrize(
    ("token", "expected"),
    [("Paris", "Paris"), (" Paris", "␣Paris"), ("a ", "a␣"), ("  a b", "␣␣a b"), (" ", "␣"), (" \n", "␣↵"), ("", "")],
)
def test_a_token_without_a_place_shows_the_space_that_tells_it_from_its_twin(token: str, expected: str) -> None:
    assert named(token) == expected


def test_a_token_within_its_text_keeps_its_spaces_and_its_line_breaks() -> None:
    assert running("  a\nb\u202e") == "  a↵\nb\ufffd"


@pytest.mark.parametrize(
    ("value", "sign", "digits", "text"),
    [
        (1.2345, "+", 3, "+1.234"), (-2.5, "+", 3, f"{MINUS}2.500"), (0.0, "+", 3, "+0.000"), (-0.0, "", 3, "0.000"),
        (-0.00001, "+", 3, f"{MINUS}1.0e{MINUS}05"), (-0.001, "", 2, "0.00"), (123456.0, "+", 3, "+1.2e+05"),
        (99999.0, "", 1, "99999.0"), (0.0005, "", 3, "0.001"), (3, "", 2, "3.00"),
    ],
)  # fmt: skip
def test_numbers_are_written_so_that_a_reader_can_compare_them(value: float, sign: str, digits: int, text: str) -> None:
    assert written(value, sign, digits) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"), (-0.0, "0 %"), (0.12, "12 %"), (1.0, "100 %"), (0.005, "<0.5 %"), (0.0051, "1 %"),
        (-0.6, f"{MINUS}60 %"), (0.0049, "<0.5 %"), (1e-9, "<0.5 %"), (-0.0049, f">{MINUS}0.5 %"), (None, ""),
    ],
)  # fmt: skip
def test_a_share_that_is_there_is_not_told_as_none(share: float | None, text: str) -> None:
    assert percent(share) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_number_has_a_hyphen_for_a_minus_or_a_minus_before_a_zero(value: float) -> None:
    formats: tuple[Format, ...] = ("signed", "number", "percent", "count", "error")
    for format in formats:
        text = formatted(value, format)
        assert "-" not in text
        plain = text.replace(MINUS, "-").replace(",", "").lstrip("<>").removesuffix(" %")
        assert float(plain) or not text.startswith(MINUS)


@pytest.mark.parametrize(("value", "text"), [(3.4e-7, f"3e{MINUS}07"), (0.0, "0"), (None, "")])
def test_an_error_is_written_by_its_size(value: float | None, text: str) -> None:
    assert words.error(value) == text


@pytest.mark.parametrize(
    ("value", "format", "text"),
    [
        (None, "signed", ""), (12345, "count", "12,345"), (7, "text", "7"), ("a\x1b", "text", "a\ufffd"),
        (Token(" supply", 4), "text", "supply (4)"), (Token(" supply"), "text", "␣supply"),
        (Token("x", 0, "text 2"), "text", "x (0, text 2)"), (Feature("3/1", "a\nb"), "text", "3/1 a↵b"),
        (Spread(-1.234, 0.5), "signed", f"{MINUS}1.23 ± 0.50"),
        (Pairs(((Token("a", 1), 1.0), ("bias", -0.5)), more=3), "text", f"a (1) +1.00  bias {MINUS}0.50  +3"),
    ],
)  # fmt: skip
def test_every_kind_of_cell_has_a_text(value: Cell, format: Format, text: str) -> None:
    assert formatted(value, format, 2) == text
    assert not any(map(is_hidden, text))


def test_what_even_the_largest_shows_as_0_is_not_drawn() -> None:
    assert drawn_full([0.5, -2.0, None]) == 2.0
    assert drawn_full([1e-9, None]) == math.inf
    assert drawn_full([]) == math.inf
