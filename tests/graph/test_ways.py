"""Graphs of models whose mechanism was put into them: what decides by where a head looks is a node by default."""

from functools import cache
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import pytest
import sae_lens
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import depass_sae as ds
from depass_sae.graph.ways import mostly, shares

from ..attribution.tiny import lens_name

BLOCKS = ("token", "place", "before", "said")
SIZE = 8
"""Tokens, and positions: a block of the stream has a channel for each, and one with its negative, so that the mean that
a LayerNorm takes off is 0.
"""
D = 2 * SIZE * len(BLOCKS)
START, A, B, C = 0, 3, 4, 5
INDUCTION = [START, A, B, C, A]
COPIED = [START, B, C, C, A]


def channel(block: str, index: int = 0) -> int:
    return BLOCKS.index(block) * SIZE + index


def block(name: str) -> slice:
    return slice(channel(name), channel(name) + SIZE)


def empty() -> Any:
    """Layers that do nothing, on tokens and positions that are told apart."""
    config = GPT2Config(
        vocab_size=SIZE, n_positions=SIZE, n_embd=D, n_layer=2, n_head=1, n_inner=4, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        for weight, name in ((model.transformer.wte.weight, "token"), (model.transformer.wpe.weight, "place")):
            weight[:, block(name)] = torch.eye(SIZE)
            weight[:, D // 2 :] = -weight[:, : D // 2]
    return model


def attend(model: Any, layer: int, query: torch.Tensor, key: torch.Tensor, copies: tuple[str, str]) -> None:
    """query, key: [half the stream, SIZE], what is asked for and what answers. copies: which block to which."""
    attention, half = model.transformer.h[layer].attn, D // 2
    with torch.no_grad():
        for number, weight in enumerate((query, key)):
            attention.c_attn.weight[:half, D * number : D * number + SIZE] = weight
        attention.c_attn.weight[block(copies[0]), 2 * D : 2 * D + SIZE] = torch.eye(SIZE)
        attention.c_proj.weight[:SIZE, block(copies[1])] = torch.eye(SIZE)
        attention.c_proj.weight[:, half:] = -attention.c_proj.weight[:, :half]


def asks(name: str, times: float = 1.0, back: int = 0) -> torch.Tensor:
    """Of a block's channels, those so many places before."""
    weight = torch.zeros(D // 2, SIZE)
    weight[block(name)] = times * torch.diag(torch.ones(SIZE - back), -back)
    return weight


def dictionary(hook: str) -> Any:
    """A feature for every channel, with its negative."""
    config = sae_lens.StandardSAEConfig(d_in=D, d_sae=D // 2, apply_b_dec_to_input=False)
    config.metadata["hook_name"] = lens_name(hook)
    sae = sae_lens.StandardSAE(config)
    for weight in sae.parameters():
        weight.data.zero_()
    sae.W_enc.data[: D // 2] = torch.eye(D // 2)
    sae.b_enc.data.fill_(-0.01)  # not by rounding
    sae.W_dec.data[:] = torch.cat([torch.eye(D // 2), -torch.eye(D // 2)], dim=1)
    return sae


def says(model: Any) -> None:
    with torch.no_grad():
        model.lm_head.weight[:, block("said")] = torch.eye(SIZE)


@cache
def induction(sure: float) -> ds.LM:
    """At a token that was there before: what came after it then. sure: of the second head."""
    model = empty()
    attend(model, 0, asks("place", 500.0, back=1), asks("place"), ("token", "before"))
    attend(model, 1, asks("token", sure), asks("before"), ("token", "said"))
    says(model)
    return ds.load(model, saes=[dictionary("0.resid_post")])


@cache
def copying(sure: float) -> ds.LM:
    """Whoever is A says what comes after B."""
    model = empty()
    wants, named = torch.zeros(D // 2, SIZE), torch.zeros(D // 2, SIZE)
    wants[channel("token", A), 0] = sure
    named[channel("token", B), 0] = 1.0
    attend(model, 1, wants, named, ("token", "said"))
    says(model)
    return ds.load(model, saes=[dictionary("0.resid_post")])


def features(g: nx.DiGraph) -> set[str]:
    return {name for name, kind in g.nodes(data="kind") if kind == "feature"}


def feature(name: str, index: int, pos: int) -> str:
    return f"feature:0/{channel(name, index)}@{pos}"


def edge(g: nx.DiGraph, source: str) -> dict[str, Any]:
    return g.edges[source, g.graph["target"][0]["node"]]


@pytest.mark.parametrize(("sure", "least"), [(30.0, 0.6), (120.0, 0.99)])
def test_an_induction_circuit_has_its_query_its_key_and_its_value(sure: float, least: float) -> None:
    lm = induction(sure)
    g = lm.graph(INDUCTION, logit=B, max_nodes=50)
    current, earlier, value = feature("token", A, 4), feature("before", A, 2), feature("token", B, 2)
    assert features(g) >= {current, earlier, value}
    assert edge(g, value)["kind"] == "flow"
    assert (edge(g, earlier)["kind"], edge(g, current)["kind"]) == ("key", "query")
    looked = lm.graph(INDUCTION, logit=B, max_nodes=50, edge_threshold=None)
    for source, way in ((earlier, "key"), (current, "query")):
        own = edge(looked, source)
        assert abs(own["weight"]) < 1e-6  # nothing of it is moved
        pattern = lm.attribute_attention(INDUCTION, layer=1, head=0, query=4, key=2).pattern
        assert pattern > least
        beyond = edge(looked, value)["weight"] * (1 - 1 / 5 / pattern)  # an even look at 5 keys
        assert own[way] == pytest.approx(beyond, rel=0.02)
    by_weight = lm.graph(INDUCTION, logit=B, max_nodes=50, grow="weight")
    assert value in features(by_weight)
    assert not {current, earlier} & features(by_weight)
    assert all("query" not in data for *_, data in by_weight.edges(data=True))


@pytest.mark.parametrize("sure", [30.0, 120.0])
def test_a_head_that_copies_has_who_asks_and_what_answers(sure: float) -> None:
    g = copying(sure).graph(COPIED, logit=B, max_nodes=50)
    asking, answering = feature("token", A, 4), feature("token", B, 1)
    assert features(g) >= {asking, answering}
    assert edge(g, asking)["kind"] == "query"
    own = edge(g, answering)  # looked at, and moved: it is in the sum
    assert own["kind"] == "flow"
    assert own["key"] > 0.3 * own["weight"] > 0


def test_both_sides_of_an_and_gate_are_there() -> None:
    model, half = empty(), D // 2
    mlp = model.transformer.h[1].mlp
    with torch.no_grad():
        for source in (channel("token", A), channel("place", 4)):
            mlp.c_fc.weight[source, 0] = 1.0
        mlp.c_fc.bias[0] = -6.0
        mlp.c_proj.weight[0, channel("said", C)], mlp.c_proj.weight[0, half + channel("said", C)] = 1.0, -1.0
    says(model)
    with torch.no_grad():
        model.lm_head.weight[:, block("token")] = torch.eye(SIZE)  # something is said everywhere
    g = ds.load(model, saes=[dictionary("0.resid_post")]).graph(INDUCTION, logit=C, max_nodes=50)
    assert features(g) == {feature("token", A, 4), feature("place", 4, 4)}


def test_influence_and_what_sums_know_flow_alone_and_reach_all_ways() -> None:
    g = induction(30.0).graph(INDUCTION, logit=B, max_nodes=50)
    earlier = feature("before", A, 2)
    assert g.nodes[earlier]["influence"] < 1e-6 < 0.1 < g.nodes[earlier]["reach"]
    for name, node in g.nodes(data=True):
        if "pre_activation" in node:
            total = sum(data["weight"] for *_, data in g.in_edges(name, data=True)) + node["constant"]
            assert total == pytest.approx(node["pre_activation"], abs=1e-5)
    small = ds.prune(g, max_nodes=8)
    assert earlier in small  # by its reach
    again = ds.prune(g, edge_threshold=0.9)
    assert edge(again, earlier)["kind"] == "key"


def test_a_share_is_the_largest_of_all_ways_and_all_sources_have_1_at_most() -> None:
    numbers = {
        "weight": np.array([3.0, -1.0, 0.0]), "effect": np.array([0.0, 0.0, 2.0]), "query": np.array([0.0, 1.0, 0.0]),
        "key": np.array([0.0, 0.0, -40.0]),
    }  # fmt: skip
    sizes = {"weight": 4.0, "effect": 4.0, "query": 1.0, "key": 50.0}
    assert shares(numbers, sizes, "weight").tolist() == [0.75, 0.25, 0.0]
    assert shares(numbers, sizes, "effect").tolist() == pytest.approx(
        [0.0, 0.25 / 1.05, 0.8 / 1.05]
    )  # queries: of what flows
    both = shares(numbers, sizes, "both")
    assert both.tolist() == pytest.approx([0.75 / 1.8, 0.25 / 1.8, 0.8 / 1.8])
    for smaller, larger in pairwise(sorted(both)):
        assert smaller <= larger
    nothing = {way: np.zeros(2) for way in numbers}
    assert shares(nothing, dict.fromkeys(numbers, 0.0), "both").tolist() == [0.0, 0.0]


def test_an_edge_is_of_the_kind_of_its_largest_number_in_the_unit_of_the_sum() -> None:
    assert mostly({"weight": -2.0, "effect": 9.0, "query": 1.0, "key": -1.5}) == "flow"
    assert mostly({"weight": -1.0, "effect": 9.0, "query": 1.2, "key": -1.5}) == "key"
    assert mostly({"weight": 0.5, "effect": 0.0}) == "flow"
