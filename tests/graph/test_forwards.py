"""A graph that is grown forwards has the later features that its source drives most, and every sum."""

from __future__ import annotations

import networkx as nx
import pytest

import depass_sae as ds
from depass_sae.errors import UserError

from ..attribution.tiny import TEXT, handle, random_sae
from ..cli.calling import Files, Run, files, run

__all__ = ["files", "run"]
pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    return handle([random_sae("topk", "0.resid_post"), random_sae("topk", "1.resid_post", seed=1)])


@pytest.fixture(scope="module")
def source(lm: ds.LM) -> str:
    at = lm.features(TEXT, 0).layers[0].positions[3]
    return f"0/{at.indices[0]}@3"


def features(g: nx.DiGraph) -> set[tuple[int, int, int]]:
    return {(n["layer"], n["index"], n["pos"]) for _, n in g.nodes(data=True) if n["kind"] == "feature"}


@pytest.mark.parametrize("sort", ["total", "direct", "effect"])
def test_its_features_are_those_that_most_comes_to_and_its_edges_what_comes_directly(
    lm: ds.LM, source: str, sort: str
) -> None:
    found = lm.downstream(TEXT, source, sort=sort)  # type: ignore[arg-type]
    g = lm.downstream_graph(TEXT, source, features=6, sort=sort)  # type: ignore[arg-type]
    driven = found.ordered()[:6]
    own = next(name for name, n in g.nodes(data=True) if f"{n['layer']}/{n.get('index')}@{n.get('pos')}" == source)
    index = g.nodes[own]["index"]
    assert features(g) == {(one.layer, one.index, one.pos) for one in driven} | {(0, index, 3)}
    checked = 0
    for one in driven:
        node = next(
            name
            for name, n in g.nodes(data=True)
            if n["kind"] == "feature" and (n["layer"], n["index"], n["pos"]) == (one.layer, one.index, one.pos)
        )
        weight = g.edges[own, node]["weight"] if g.has_edge(own, node) else 0.0
        assert weight == pytest.approx(one.direct, rel=1e-4, abs=1e-5)
        checked += weight != 0
    assert checked > 2
    assert f"the 6 later features that most of it comes to, by {sort}" in g.graph["note"]
    assert {t["node"] for t in g.graph["target"]} == {name for name, n in g.nodes(data=True) if n["kind"] == "logit"}
    assert sum(t["weight"] for t in g.graph["target"]) == pytest.approx(1)


def test_every_sum_holds(lm: ds.LM, source: str) -> None:
    g = lm.downstream_graph(TEXT, source, features=5)
    for name, node in g.nodes(data=True):
        if node["kind"] in ("feature", "logit"):
            inflow = sum(edge["weight"] for *_, edge in g.in_edges(name, data=True) if edge["kind"] != "head")
            assert inflow + node["constant"] == pytest.approx(node["pre_activation"], rel=1e-4, abs=1e-4)


def test_a_token_drives_features_too(lm: ds.LM) -> None:
    g = lm.downstream_graph(TEXT, "token:2", features=4)
    assert len(features(g)) == 4
    assert "Grown from token" in g.graph["note"]


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ({"source": "head:0.1@3"}, "is none"),
        ({"source": "neuron:0/3@3"}, "is none"),
        ({"source": "token:2", "features": 0}, "1 to 500 features"),
        ({"source": "token:2", "rule": "softmax"}, "softmax"),
    ],
)
def test_what_no_graph_is_grown_from_is_told(lm: ds.LM, asked: dict, wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        lm.downstream_graph(TEXT, **asked)


def test_a_feature_without_a_position_is_no_node(lm: ds.LM, source: str) -> None:
    with pytest.raises(UserError, match="grown from one node"):
        lm.downstream_graph(TEXT, source.partition("@")[0])


def test_the_command_writes_it(run: Run, files: Files, tmp_path) -> None:
    asked = ["downstream", "token:2", "--prompt", TEXT, *files.options("saes"), "--features", "3"]
    done = run(*asked, "--graph", str(tmp_path / "g.json"), "--graph", str(tmp_path / "g.html"))
    assert done.status == 0, done.err
    assert len(features(ds.read_graph(tmp_path / "g.json"))) == 3
    assert f"wrote {tmp_path / 'g.html'}" in done.out
    wrong = run(*asked, "--graph", str(tmp_path / "g.doc"))
    assert wrong.status == 2
    assert wrong.err.count("\n") == 1
