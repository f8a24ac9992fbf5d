"""The committed gallery is what the code makes."""

from pathlib import Path
from typing import Any

import pytest

import depass_sae as ds
from depass_sae.demo.cases import CASES, Case
from depass_sae.demo.gallery import SUFFIXES, case_graph, index

GALLERY = Path(__file__).parents[2] / "graphs"
NUMBERS = ("weight", "effect", "influence", "activation", "pre_activation", "constant")


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    try:
        return ds.load("smollm2")
    except ds.UserError as missing:
        pytest.skip(str(missing))


def differs(one: dict[str, Any], other: dict[str, Any]) -> bool:
    keys = [key for key in NUMBERS if key in one or key in other]
    return any(one.get(key) != pytest.approx(other.get(key), rel=1e-3, abs=1e-3) for key in keys)


@pytest.mark.smollm2
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_committed_graph_is_what_the_code_makes(case: Case, lm: ds.LM) -> None:
    """The same nodes and edges but for ties at a threshold, where processors round differently."""
    committed, made = ds.read_graph(GALLERY / f"{case.name}.json"), case_graph(lm, case)
    assert len(set(committed) ^ set(made)) <= 0.02 * len(made)
    assert len(set(committed.edges) ^ set(made.edges)) <= 0.03 * len(made.edges)
    same = set(committed) ^ set(made) == set() and set(committed.edges) ^ set(made.edges) == set()
    kinds = [name for name in made if name in committed and made.nodes[name]["kind"] != "remainder"]
    assert not [name for name in kinds if differs(committed.nodes[name], made.nodes[name])]
    shared = set(committed.edges) & set(made.edges)
    flow = [edge for edge in shared if same or made.edges[edge]["kind"] == "flow"]
    assert not [edge for edge in flow if differs(committed.edges[edge], made.edges[edge])]


def test_every_case_is_there_in_every_format() -> None:
    for case in CASES:
        for suffix in (*SUFFIXES, ".neuronpedia.json"):
            assert (GALLERY / f"{case.name}{suffix}").stat().st_size > 1000
        assert ds.read_graph(GALLERY / f"{case.name}.json").graph["verification"]["nodes"]


def test_the_index_leads_to_all_of_them() -> None:
    assert (GALLERY / "index.html").read_text() == index()
