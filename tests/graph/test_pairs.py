"""Which two nodes together decided where heads looked."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch

import depass_sae as ds
from depass_sae.graph import pairs

from ..attribution.tiny import random_sae, width
from ..test_documents import InFloat64
from .test_cuts import grown, loaded
from .test_ways import INDUCTION, A, B, feature, induction

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing
MIXES = {
    "on the stream": (("1.resid_post", "jumprelu"),),
    "beside the stream": (("0.mlp_out", "standard"), ("1.attn_out", "jumprelu"), ("1.hook_z", "standard")),
    "in the MLP's place": (("0.mlp_in", "skip_transcoder"), ("1.mlp_in", "transcoder"), ("1.resid_mid", "standard")),
}


def without_constants(shape: str, mix: str) -> ds.LM:
    """What bias vectors ask for is no node's, so there are none."""
    saes = []
    with InFloat64():
        for seed, (hook, kind) in enumerate(MIXES[mix]):
            sae = random_sae(kind, hook, d_in=width(shape, hook), seed=seed, dtype="float64")
            with torch.no_grad():
                sae.b_enc -= 3.0
                sae.b_dec.zero_()
            saes.append(sae)
    return loaded(shape, saes)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("shape", ["qwen3", "gemma2"])
def test_all_pairs_sum_to_what_each_source_did_as_part_of_queries_and_of_keys(
    shape: str, mix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "QUERIES", 10_000)
    monkeypatch.setattr(pairs, "PAIRS", 10_000_000)
    g = grown(without_constants(shape, mix), pairs=6)
    sums: dict[str, dict[tuple[str, str], float]] = {"query": defaultdict(float), "key": defaultdict(float)}
    asked = {pair["node"] for pair in g.graph["pairs"]}
    assert len(asked) > 1
    for pair in g.graph["pairs"]:
        for side, total in sums.items():
            total[pair[side], pair["node"]] += pair["value"]
    for side, total in sums.items():
        edges = {(u, v): edge.get(side, 0.0) for u, v, edge in g.edges(data=True) if v in asked}
        size = max(map(abs, edges.values()))
        assert size > 0
        for edge in edges.keys() | total.keys():
            assert total.get(edge, 0.0) == pytest.approx(edges.get(edge, 0.0), abs=1e-9 * size), (side, edge)


@pytest.fixture(scope="module")
def inducing() -> nx.DiGraph:
    return induction(30.0).graph(INDUCTION, logit=B, max_nodes=50, pairs=3)


def test_an_induction_head_looks_by_the_token_that_asks_and_the_token_before(inducing: nx.DiGraph) -> None:
    target = inducing.graph["target"][0]["node"]
    first = next(pair for pair in inducing.graph["pairs"] if pair["node"] == target)
    assert (first["query"], first["key"]) == (feature("token", A, 4), feature("before", A, 2))
    assert first["value"] == pytest.approx(inducing.edges[first["query"], target]["query"], rel=0.05)


def test_a_node_has_ten_at_most_the_largest_first_and_all_are_of_nodes_that_are_left(inducing: nx.DiGraph) -> None:
    for node in {pair["node"] for pair in inducing.graph["pairs"]}:
        sizes = [abs(pair["value"]) for pair in inducing.graph["pairs"] if pair["node"] == node]
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) <= pairs.PAIRS
    small = ds.prune(inducing, max_nodes=8)
    assert 0 < len(small.graph["pairs"]) < len(inducing.graph["pairs"])
    assert all({pair["node"], pair["query"], pair["key"]} <= set(small) for pair in small.graph["pairs"])


def test_pairs_are_written_and_read(inducing: nx.DiGraph, tmp_path: Path) -> None:
    ds.write_graph(inducing, tmp_path / "g.json")
    assert ds.read_graph(tmp_path / "g.json").graph["pairs"] == inducing.graph["pairs"]
    document: dict[str, Any] = json.loads((tmp_path / "g.json").read_text())
    document["graph"]["pairs"][0]["query"] = "token:99"
    (tmp_path / "wrong.json").write_text(json.dumps(document))
    with pytest.raises(ds.UserError, match=r"graph.pairs: there is no node .token:99"):
        ds.read_graph(tmp_path / "wrong.json")


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"pairs": 101}, "0 to 100 nodes"),
        ({"pairs": -1}, "0 to 100 nodes"),
        ({"pairs": 1, "grow": "weight"}, "grows by both or by effect"),
        ({"pairs": 1, "rule": "softmax"}, "half"),
    ],
)
def test_what_has_no_pairs_is_refused(options: dict[str, Any], wrong: str) -> None:
    with warnings.catch_warnings(), pytest.raises(ds.UserError, match=wrong):
        induction(30.0).graph(INDUCTION, logit=B, **options)
