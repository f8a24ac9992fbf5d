"""The index that comes with the package: of the SAEs that do, small, and with names that say what features fire on."""

from __future__ import annotations

import re

import pytest

import depass_sae as ds
from depass_sae.attribution.reservoir import held_out, written
from depass_sae.demo.cases import CASES
from depass_sae.demo.index import texts
from depass_sae.errors import UserError
from depass_sae.index.index import Index
from depass_sae.labels.kept import SHIPPED
from depass_sae.saes import load_saes
from depass_sae.saes.shipped import shipped_saes

NAMED = {"17/2601": "climate|environment|earth|nature", "11/1393": "simpl", "11/223": "econom|market|price|supply"}


@pytest.fixture(scope="module")
def index() -> Index:
    return ds.open_index("smollm2")


def test_it_is_of_the_saes_that_come_with_the_package(index: Index) -> None:
    index.check_saes(load_saes(shipped_saes()))


def test_it_is_at_most_25_mb() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 25_000_000


def test_it_is_of_all_texts_but_those_that_are_held_out(index: Index) -> None:
    assert index.manifest.corpus["documents"] == len(texts()) == len(written()) - len(held_out())
    assert not set(texts()) & set(held_out())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_cases_features_are_named_by_what_they_mean_and_have_their_causes(index: Index, case) -> None:
    found = index.feature(case.feature)
    assert found.label is not None
    assert re.search(NAMED[case.feature], found.label)
    assert len(found.contexts) == 8
    assert found.causes is not None


def test_most_features_that_fire_have_a_name(index: Index) -> None:
    for hook in index.saes:
        fires = (index.features(hook)["count"] > 0).nonzero()[0].tolist()
        named = sum(index.label(hook, i) is not None for i in fires)
        assert named > 0.99 * len(fires) > 3000
    assert ds.read_labels("smollm2")["17/2601"] == index.feature("17/2601").label


def test_a_folder_of_that_name_goes_before_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ds.open_index("smollm2").folder == SHIPPED
    (tmp_path / "smollm2").mkdir()
    with pytest.raises(UserError, match="smollm2 is no index"):
        ds.open_index("smollm2")
