"""A graph's features in an index: their contexts, in what order, how much of them, and beside which graphs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import networkx as nx
import pytest

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.graph import contexts
from depass_sae.graph.contexts import CONTEXTS, with_contexts
from depass_sae.graph.document import document_of, graph_of
from depass_sae.graph.export.graphml import from_graphml, to_graphml
from depass_sae.graph.export.html import to_html
from depass_sae.graph.names import feature_text
from depass_sae.index.index import Index

from ..attribution.tiny import HOSTILE, handle, random_sae
from ..index.scanned import lm, scanned, texts


@cache
def plain() -> nx.DiGraph:
    return lm().graph("Mary gave John the price of supply and demand", logit=5, max_nodes=60)


pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")


BEFORE, BEHIND = 3, 2


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """Contexts so short that they are cut on both sides, in windows that are short themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "BEFORE", BEFORE)
        patch.setattr(contexts, "BEHIND", BEHIND)
        yield


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Of texts in which every fourth token or so is one that HTML could stumble over."""
    source = [text.replace(" of", f" {HOSTILE[0]}").replace(" a", f" {HOSTILE[0]}") for text in texts()]
    return scanned(tmp_path_factory.mktemp("contexts") / "ix", source)


@pytest.fixture(scope="module")
def graph(index: Index) -> nx.DiGraph:
    return with_contexts(plain(), index)


def features_of(g: nx.DiGraph) -> list[dict[str, Any]]:
    return [node for _, node in g.nodes(data=True) if node["kind"] == "feature"]


def test_every_feature_has_its_strongest_contexts_cut_around_their_peaks(graph: nx.DiGraph, index: Index) -> None:
    found = graph.graph["contexts"]
    names = {feature_text(node) for node in features_of(graph)}
    assert found["tokens"] == index.tokens
    assert found["left_out"] == 0
    assert found["features"].keys() == names
    cut: set[bool] = set()
    for name in names:
        about, whole = found["features"][name], index.feature(name)
        assert about["count"] == whole.count
        assert about["max"] == pytest.approx(whole.largest, rel=5e-3)
        assert len(about["contexts"]) == min(len(whole.contexts), CONTEXTS)
        for piece, context in zip(about["contexts"], whole.contexts, strict=False):
            kept = range(max(0, context.pos - BEFORE), min(len(context.tokens), context.pos + BEHIND + 1))
            assert piece["tokens"] == [context.tokens[i] for i in kept]
            assert piece["activations"] == pytest.approx([context.activations[i] for i in kept], rel=5e-3)
            assert kept[piece["pos"]] == context.pos
            assert max(piece["activations"], key=abs) == piece["activations"][piece["pos"]]
            cut |= {kept.start > 0, kept.stop < len(context.tokens)}
    assert cut == {True, False}


def test_the_rest_of_the_graph_is_as_it_was_but_for_labels_where_there_were_none(index: Index) -> None:
    name = feature_text(features_of(plain())[0])
    labelled = ds.with_labels(plain(), {name: "mine"})
    before = json.dumps(document_of(labelled))
    found = with_contexts(labelled, index)
    assert json.dumps(document_of(labelled)) == before  # it is a copy
    for node in features_of(found):
        own = feature_text(node)
        assert node["label"] == ("mine" if own == name else index.feature(own).label or "")
    for node in features_of(found):
        node["label"] = next(n["label"] for n in features_of(labelled) if feature_text(n) == feature_text(node))
    del found.graph["contexts"]
    assert document_of(found) == document_of(labelled)


def test_where_there_is_no_room_the_strongest_are_kept_and_the_others_counted(graph: nx.DiGraph, index: Index) -> None:
    whole = graph.graph["contexts"]["features"]
    reach: dict[str, float] = {}
    for node in features_of(graph):
        name = feature_text(node)
        reach[name] = max(reach.get(name, 0.0), node["influence"], node.get("reach", 0.0))
    kept_before: set[str] = set()
    for most in (0, 500, 2000, 5000, 10**6):
        found = with_contexts(plain(), index, most=most).graph["contexts"]
        kept = found["features"]
        assert found["left_out"] == len(whole) - len(kept)
        assert all(kept[name] == whole[name] for name in kept)
        assert min((reach[n] for n in kept), default=1.0) >= max((reach[n] for n in whole.keys() - kept), default=0.0)
        assert len(json.dumps(kept, separators=(",", ":"))) <= most + len(kept) + 2
        assert kept_before <= kept.keys()
        kept_before = set(kept)
    assert kept_before == whole.keys()
    assert 0 < len(with_contexts(plain(), index, most=2000).graph["contexts"]["features"]) < len(whole)


def test_a_page_grows_by_no_more_than_contexts_may_take(index: Index) -> None:
    def size(g: nx.DiGraph) -> int:
        text = re.search(r'<script [^>]*id="graph"[^>]*>(.*?)</script>', to_html(g), re.DOTALL)
        assert text
        return len(text[1])

    for most in range(1000, 4000, 200):
        found = with_contexts(plain(), index, most=most)
        labels = ds.with_labels(plain(), {feature_text(n): n["label"] for n in features_of(found) if n["label"]})
        assert size(found) - size(labels) <= most + 60
    assert "<script>" in json.dumps(found.graph["contexts"])
    assert f"contexts of {found.graph['contexts']['left_out']} features of least influence are left out" in to_html(
        found
    )
    assert "of least influence are left out" not in to_html(with_contexts(plain(), index))


def test_files_keep_it_and_a_broken_one_is_told(graph: nx.DiGraph, tmp_path: Path) -> None:
    for path in (tmp_path / "g.json", tmp_path / "g.graphml"):
        ds.write_graph(graph, path)
        assert ds.read_graph(path).graph["contexts"] == graph.graph["contexts"]
    assert from_graphml(to_graphml(graph)).graph["contexts"] == graph.graph["contexts"]
    name = next(iter(graph.graph["contexts"]["features"]))
    for wrong in ({"pos": -1}, {"tokens": [5]}, {"activations": "x"}, {"activations": [1e39]}):
        document = json.loads(json.dumps(document_of(graph)))
        document["graph"]["contexts"]["features"][name]["contexts"][0].update(wrong)
        with pytest.raises(UserError, match="contexts"):
            graph_of(document)


def test_the_address_of_cards_is_kept_where_it_is_one(index: Index) -> None:
    g = with_contexts(plain(), index, cards="http://127.0.0.1:8000/")
    assert g.graph["contexts"]["cards"] == "http://127.0.0.1:8000"
    assert "cards" not in with_contexts(plain(), index).graph["contexts"]
    for wrong in ("javascript:alert(1)", "127.0.0.1:8000", 'http://x" onclick="', "http://x?y"):
        with pytest.raises(UserError, match="the address of an index's browser"):
            with_contexts(plain(), index, cards=wrong)
        document = json.loads(json.dumps(document_of(g)))
        document["graph"]["contexts"]["cards"] = wrong
        with pytest.raises(UserError, match="cards"):
            graph_of(document)


def test_the_address_is_that_of_the_page_that_a_browsed_index_has_of_the_feature(index: Index) -> None:
    with index.browse(0) as browsing:
        g = with_contexts(plain(), index, cards=browsing.address)
        name = next(iter(g.graph["contexts"]["features"]))
        with urlopen(f"{g.graph['contexts']['cards']}/feature/{name}") as answer:
            assert name in answer.read().decode()


def test_what_was_pruned_keeps_its_contexts(graph: nx.DiGraph) -> None:
    assert ds.prune(graph, node_threshold=0.5).graph["contexts"] == graph.graph["contexts"]


def test_an_index_of_something_else_is_refused(index: Index, tmp_path: Path) -> None:
    g = plain().copy()
    g.graph["model"] = "another"
    with pytest.raises(UserError, match="the graph is of 'another', and the index of"):
        with_contexts(g, index)
    with pytest.raises(UserError, match=r"an index, as ds\.open_index"):
        with_contexts(plain(), "ix")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="0 bytes or more"):
        with_contexts(plain(), index, most=-1)
    other = handle([random_sae("topk", "1.attn_out")]).scan(["supply and demand"] * 3, tmp_path / "other")
    with pytest.raises(UserError, match=r"none of the graph's SAEs; it has 1\.attn_out"):
        with_contexts(plain(), other)
    g = plain().copy()
    g.graph["saes"] = [{**sae, "d_sae": sae["d_sae"] + 1} for sae in g.graph["saes"]]
    with pytest.raises(UserError, match="features, and the index's"):
        with_contexts(g, index)
