"""The page of models and SAEs: what is committed is what is made now."""

from pathlib import Path

from depass_sae.demo.models_table import FAMILY_ROWS, QUESTIONS, page
from depass_sae.models.load import FAMILIES
from depass_sae.saes.registry import registry

COMMITTED = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_committed_page_is_what_is_made_now() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == page(), "make models-table"


def test_every_supported_type_and_every_release_has_a_row() -> None:
    rows = {line.split(" | ")[0].strip("|` "): line.count(" | ") + 1 for line in page().splitlines() if "|" in line}
    for family in FAMILIES:
        for model_type in family.model_types:
            assert rows[model_type] == 2 + len(QUESTIONS)
            assert set(FAMILY_ROWS[model_type][1]) <= set(QUESTIONS)
    assert all(rows[name] == 6 for name in registry())
