"""A graph with every kind of node and edge and every optional attribute, and one with text of one's own in it."""

from __future__ import annotations

from typing import Any

import networkx as nx
from hypothesis import strategies as st

from tests.graph.sample import sample_graph


def every_kind() -> nx.DiGraph:
    """The sample graph with groups, heads, an error that has inflow, a logit difference and a verification."""
    g = sample_graph()
    features = [name for name in g if name.startswith("feature:11/")]
    g.nodes[features[0]].update(target=True, label='plural "nouns"')
    g.graph["groups"] = [{"name": "first </script>", "nodes": features[:2]}, {"name": "second", "nodes": features[2:4]}]
    g.graph["sufficiency"] = {"features": 1, "active": 5, "share": 0.75, "no_features": 0.125}
    piece = {"pos": 1, "tokens": ["</script>", ' "a"\n', "\u202e"], "activations": [0.0, 2.5, -1.0]}
    name = features[0].removeprefix("feature:").partition("@")[0]
    g.graph["contexts"] = {
        "tokens": 1000,
        "left_out": 3,
        "features": {name: {"count": 12, "max": 2.5, "contexts": [piece] * 5}},
    }
    g.graph["verification"] = verification(features[0])
    g.add_node("head:11.3", kind="head", layer=11, index=3, influence=0.0, label="")
    g.add_edge("head:11.3", features[0], kind="head", weight=0.5, effect=0.25)
    error = "error:11@2"
    for source, weight in (("token:5@0", 0.25), ("bias:5", -0.5)):
        g.add_edge(source, error, kind="flow", weight=weight, effect=0.0)
    g.nodes[error].update(constant=0.125, pre_activation=-0.125)
    layer, pos = g.graph["n_layers"], len(g.graph["tokens"]) - 1
    difference = f"logit:3-4@{pos}"
    g.add_node(
        difference, kind="logit", layer=layer, pos=pos, token=' "Mary"', index=3, against=4, against_token=" John\n",
        activation=2.0, pre_activation=2.0, constant=0.5, target=True, influence=0.0, label="",
    )  # fmt: skip
    g.add_edge(features[0], difference, kind="flow", weight=1.5, effect=0.0)
    return g


def verification(node: str) -> dict[str, Any]:
    """What a verification that took one node out leaves."""
    together = {"features": 1, "active": 5, "draws": 5, "only_graph": 1.5, "without_graph": 0.5, "only_random": 0.25}
    around = {"mean": 0.375, "low": 0.25, "high": 0.5}
    shares = {
        "only_graph": 0.75, "without_graph": 0.25, "only_random": around, "without_random": around,
        "no_features": 0.125, "all_features": 1.0, "all_without_errors": 0.625,
    }  # fmt: skip
    together |= {"no_features": 0.25, "all_features": 2.0, "all_without_errors": 1.25, "random_own": 0.5,
                 "interval": "95 % of Student's t", "shares": shares}  # fmt: skip
    return {
        "target": 2.0, "seed": 0, "replacements": 4,
        "nodes": [{"node": node, "weight": 0.5, "effect": 0.25, "observed": 0.375}],
        "rank_correlation": {"weight": None, "effect": None}, "sign_agreement": {"weight": 1.0, "effect": 1.0},
        "together": {**together, "without_random": 1.75},
    }  # fmt: skip


def same(one: nx.DiGraph, other: nx.DiGraph) -> bool:
    """The same attributes, nodes and edges, in the same order and of the same types."""
    return contents(one) == contents(other)


def contents(g: nx.DiGraph) -> Any:
    return typed([g.graph, list(g.nodes(data=True)), list(g.edges(data=True))])


def typed(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, typed(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [typed(item) for item in value]
    return type(value), value


def _paired(text: str) -> str:
    """Two surrogates that make a pair are one character, in JSON as in UTF-16."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


_pieces = st.sampled_from(
    ["\\", "u", "\\u0041", "\\u005c", "\0", "\r\n", "\ud800", "\uffff", "]]>", "&#0;", "\u2028", " "]
)
texts = st.lists(st.text(st.characters()) | _pieces | st.characters(categories=["Cs", "Cc"])).map("".join).map(_paired)
"""Any text, lone surrogates and control characters in it, and what looks like an escape."""


def with_text(text: str) -> nx.DiGraph:
    """The sample graph, this text wherever a text may be."""
    g = sample_graph(layers=(2,), n_pos=3, per_level=2)
    g.graph |= {"tokens": [text] * 3, "prompt": text * 3, "model": text, "groups": [{"name": text, "nodes": []}]}
    for _, node in g.nodes(data=True):
        node["label"] = text
        if "token" in node:
            node["token"] = text
    return g
