"""The published schema of ``case.json`` has every key that is written, and nothing else passes for one of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import depass_sae as ds
from depass_sae.report.case.case import CaseStudy
from depass_sae.report.case.schema import json_schema

from ...attribution.tiny import SINK, TEXT, handle, random_sae, sinking, tokenizer
from ...schemas import mistakes, passing, unnoticed, unsaid
from .sample import firing, made, study

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing

GALLERY = sorted((Path(__file__).parents[3] / "graphs").glob("*/case.json"))
SCHEMA = json_schema()
FINDING = "features[].findings[]"
LEFT_OUT = {
    f"{FINDING}.tokens.targets[].measured",
    f"{FINDING}.tokens.targets[].contributions[].measured",
    *(f"{FINDING}.heads.targets[].heads[].{key}" for key in ("effect", "by_token", "other")),
    *(f"{FINDING}.downstream.source.{key}" for key in ("layer", "hook", "index", "pos")),
    f"{FINDING}.downstream.driven",
    f"{FINDING}.downstream.features[].label",
    "features[].card.flow.previous.features[].effect",
}
"""Keys of the gallery's studies that other documents may be without."""
OLDER_GRAPHS = f"{FINDING}.graph.verification."
"""What verifications of older graphs lack is not required of any."""


def written(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.parent.name)
def test_the_gallerys_studies_have_no_key_beyond_the_schema(path: Path) -> None:
    assert not mistakes(written(path), SCHEMA)


def test_the_gallery_has_three() -> None:
    assert len(GALLERY) == 3


def of_layer_2(pos: str = "", **settings: Any) -> CaseStudy:
    """Nothing measured, no node taken out."""
    name = firing(2, 1)[0]
    return made((f"{name.partition('@')[0]}{pos}" if pos else name,), **{"ablate": 0, "verify": 0} | settings)


def beside_the_stream() -> CaseStudy:
    """Where there is no graph."""
    lm = handle([random_sae(hook="1.attn_out")])
    return lm.case_study(TEXT, f"1/{lm.features(TEXT).layers[0].positions[5].indices[0]}@5", ablate=1)


def with_a_sink() -> CaseStudy:
    lm = ds.load(sinking(), tokenizer(adds_bos=False), saes=[random_sae(hook="1.resid_post")])
    ids = [SINK, 90, 70, 60, 75]
    index = next(i for at in lm.features(ids).layers[0].positions[1:] for i in at.indices)
    return lm.case_study(ids, f"1/{index}", ablate=0, max_nodes=12, verify=0)


STUDIES: dict[str, Callable[[], CaseStudy]] = {
    "labels, several features, two places": study,
    "nothing measured": of_layer_2,
    "where it is silent": lambda: of_layer_2("@1"),
    "queries and keys": lambda: of_layer_2(rule="half-qk"),
    "no heads by token": lambda: of_layer_2(rule="relu"),
    "no graph": beside_the_stream,
    "sinks": with_a_sink,
}


@pytest.mark.parametrize("which", STUDIES)
def test_a_study_has_the_schemas_keys_whatever_it_is_asked_for(which: str) -> None:
    assert not mistakes(STUDIES[which]().to_dict(), SCHEMA)


def test_these_studies_have_the_keys_that_others_are_without() -> None:
    (finding,) = of_layer_2(rule="relu").to_dict()["features"][0]["findings"]
    assert finding["ledger"] is finding["graph"] is None
    assert "pattern" in of_layer_2(rule="half-qk").to_dict()["features"][0]["findings"][0]["layers"][0]
    assert "sinks" in with_a_sink().to_dict()["features"][0]["card"]["prompts"][0]
    assert not beside_the_stream().to_dict()["features"][0]["findings"][0]["graph"]


def test_no_key_can_be_missing_or_of_another_kind() -> None:
    without, other = passing(written(GALLERY[1]), SCHEMA)
    assert {name for name in without if not name.startswith(OLDER_GRAPHS)} == LEFT_OUT
    assert not other


def test_a_key_that_is_not_documented_is_found_wherever_it_is() -> None:
    document = written(GALLERY[1])
    assert not unnoticed(document, SCHEMA)
    assert not list(unsaid(SCHEMA))
    jsonschema.validate(document | {"a new key": 1}, SCHEMA)  # published, the schema lets it pass
