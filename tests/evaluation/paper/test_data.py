"""The sentences of the paper's experiments."""

from collections import Counter

from depass_sae.evaluation.paper.statements import statements
from depass_sae.evaluation.paper.translated import COUNTRIES, LANGUAGES, TEMPLATES, translated


def test_every_statement_has_a_right_answer_and_anothers_as_its_wrong_one() -> None:
    every = statements()
    assert len({one.prompt for one in every}) == len(every) > 50
    right = {one.right for one in every}
    assert all(one.wrong != one.right and one.wrong in right for one in every)
    assert all(one.right.startswith(" ") and one.wrong.startswith(" ") for one in every)
    assert every[0].with_answer(every[0].wrong) == f"{every[0].prompt}{every[0].wrong}."


def test_both_halves_of_the_statements_have_some_of_every_relation() -> None:
    ends = [one.prompt.split()[0] for one in statements()]
    assert set(ends[::2]) >= {"The", "In", "A"} <= set(ends[1::2])


def test_every_meaning_is_there_once_in_every_language() -> None:
    every = translated()
    assert len({one.text for one in every}) > 0.95 * len(every)  # "Cuba" is spelled alike in some
    counts = Counter((one.meaning, one.language) for one in every)
    assert set(counts.values()) == {1}
    assert len(counts) == len(COUNTRIES) * len(TEMPLATES) * len(LANGUAGES)
    assert all(one.text[0].isupper() and "{" not in one.text for one in every)
