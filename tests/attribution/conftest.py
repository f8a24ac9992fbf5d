"""Handles that the tests of attributions share. A random SAE fits nothing, and need not be told so each time."""

import pytest

import depass_sae as ds

from .tiny import handle, random_sae

UNFITTING = "ignore::depass_sae.errors.SAEFitWarning"


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.parent.name == "attribution":
        item.add_marker(pytest.mark.filterwarnings(UNFITTING))


@pytest.fixture(scope="session")
def lm() -> ds.LM:
    """A Llama with a jumprelu SAE on resid_post of layer 1."""
    return handle(random_sae())
