"""Texts that are not ours: characters that are cut into several tokens are whole again where tokens are joined."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from depass_sae.texts import characters, is_whole, joined, spelled


def cut(text: str, places: list[int]) -> list[str]:
    """A text's bytes as tokens, cut anywhere."""
    raw = text.encode()
    ends = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [spelled(raw[a:b]) for a, b in pairwise(ends)]


@given(text=st.text(min_size=1, max_size=8), places=st.lists(st.integers(0, 40), max_size=8))
def test_tokens_joined_are_the_text_wherever_they_were_cut(text: str, places: list[int]) -> None:
    tokens = cut(text, places)
    assert joined(tokens) == text
    groups = characters(tokens)
    assert [position for group in groups for position in group] == list(range(len(tokens)))
    whole = [joined(tokens[position] for position in group) for group in groups]
    assert "".join(whole) == text
    assert [len(group) > 1 for group in groups] == [
        any(not is_whole(tokens[position]) for position in group) for group in groups
    ] or "\ufffd" in text


def test_parts_of_a_character_are_shown_as_their_bytes_so_that_no_two_look_alike() -> None:
    assert cut(" ✨", [3]) == [" ⟨e2 9c⟩", "⟨a8⟩"]
    assert len({spelled(bytes([byte])) for byte in range(256)}) == 256


def test_bytes_that_are_no_text_stay_spelled_out() -> None:
    assert joined(["a", "⟨ff⟩", "⟨e2 9c⟩", "b"]) == "a⟨ff e2 9c⟩b"
    assert characters(["⟨e2⟩", "b", "⟨9c⟩", "⟨e2⟩", "⟨c3⟩"]) == [[0], [1], [2], [3], [4]]
    assert joined(["⟨", "e2", "⟩"]) == "⟨e2⟩"  # which the text itself may say
