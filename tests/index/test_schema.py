"""The published schema of an index's manifest has every key that a scan writes, and nothing else passes for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import depass_sae
from depass_sae.index.schema import json_schema

from ..schemas import mistakes, passing, unnoticed, unsaid
from .scanned import scanned

SCHEMA = json_schema()
SHIPPED = Path(depass_sae.__file__).parent / "index/shipped"


def manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def with_gaps(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a scan that left something out, and kept every activation of a feature."""
    folder = tmp_path_factory.mktemp("gaps")
    (folder / "a.jsonl").write_bytes(b'{"text": "supply"}\n{"text": ""}\nx\n{"text": "price of a mark."}\n')
    scanned(folder / "ix", folder / "a.jsonl", full="1/3")
    return manifest(folder / "ix")


def test_the_shipped_indexs_manifest_has_the_schemas_keys_and_no_others() -> None:
    assert not mistakes(manifest(SHIPPED), SCHEMA)


def test_so_has_that_of_a_scan_whatever_it_is_asked_for(with_gaps: Any, tmp_path: Path) -> None:
    assert with_gaps["left_out"]["first"]
    assert with_gaps["full"] == {"1.resid_post": [3]}
    assert not mistakes(with_gaps, SCHEMA)
    scanned(tmp_path / "all", full="all", limit=100, top=3)
    assert not mistakes(manifest(tmp_path / "all"), SCHEMA)


def test_every_key_is_required_and_of_one_kind(with_gaps: Any) -> None:
    assert passing(with_gaps, SCHEMA) == (set(), set())


def test_a_key_that_is_not_documented_is_found_wherever_it_is(with_gaps: Any) -> None:
    assert not unnoticed(with_gaps, SCHEMA)
    assert not list(unsaid(SCHEMA))
    jsonschema.validate(with_gaps | {"a new key": 1}, SCHEMA)  # published, the schema lets it pass
