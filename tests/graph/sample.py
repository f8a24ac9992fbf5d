"""A random feature-flow graph that obeys every rule of the format, for tests of exporters, the viewer and pruning."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import networkx as nx

HOSTILE = ["</script><img onerror=alert(1) src=x>", "\x00\x0b", '"\\', "\ud800", "‮RTL", "a\nb", "]]>", "&lt;", "🦊"]


def sample_graph(
    layers: tuple[int, ...] = (5, 11), n_pos: int = 6, per_level: int = 8, n_logits: int = 2, seed: int = 0
) -> nx.DiGraph:
    """Features at some layers, errors, constants, biases, a remainder per level, and logits; conserving by design."""
    rng = random.Random(seed)
    tokens = ["<s>", *(HOSTILE[i % len(HOSTILE)] if i % 2 else f" word{i}" for i in range(n_pos - 1))]
    g = nx.DiGraph(
        schema_version=2, model="tiny/model", prompt="".join(tokens), tokens=tokens, token_ids=list(range(n_pos)),
        saes=[
            {"layer": layer, "hook": "resid_post", "release": None, "id": None, "d_sae": 4096, "l0": 12.5,
             "neuronpedia_id": f"tiny/{layer}-res", "explained_variance": 0.8}
            for layer in layers
        ],
        n_layers=max(layers) + 3, dtype="float32", rule="half", temperature=0.1, first_token="skip",
        settings={"max_nodes": 500, "node_threshold": 1.0, "edge_threshold": 0.98, "errors": "roots", "heads": False},
        groups=[],
    )  # fmt: skip
    levels: list[list[str]] = [[]]
    for pos in range(n_pos):
        g.add_node(f"token:{pos}", kind="token", layer=-1, pos=pos, token=tokens[pos])
        levels[0].append(f"token:{pos}")
    g.add_node("bias:-1", kind="bias", layer=-1)
    levels[0].append("bias:-1")
    for layer in layers:
        level = []
        for _ in range(per_level):
            pos, index = rng.randrange(1, n_pos), rng.randrange(4096)
            name = f"feature:{layer}/{index}@{pos}"
            g.add_node(name, kind="feature", layer=layer, pos=pos, token=tokens[pos], index=index,
                       activation=rng.uniform(0.1, 9.0), constant=rng.uniform(-1, 1))  # fmt: skip
            level.append(name)
        for pos in range(1, n_pos):
            g.add_node(f"error:{layer}@{pos}", kind="error", layer=layer, pos=pos, token=tokens[pos])
            level.append(f"error:{layer}@{pos}")
        g.add_node(f"token:{layer}@0", kind="token", layer=layer, pos=0, token=tokens[0])
        for kind in ("constant", "bias", "remainder"):
            g.add_node(f"{kind}:{layer}", kind=kind, layer=layer)
            level.append(f"{kind}:{layer}")
        levels.append([*level, f"token:{layer}@0"])
    logits = [f"logit:{17 + i}@{n_pos - 1}" for i in range(n_logits)]
    for i, name in enumerate(logits):
        g.add_node(name, kind="logit", layer=max(layers) + 3, pos=n_pos - 1, token=f" out{i}", index=17 + i,
                   constant=0.0, probability=0.5 / (i + 1), target=True)  # fmt: skip
    levels.append(logits)
    for below, above in pairwise(levels):
        for target in above:
            if g.nodes[target]["kind"] not in ("feature", "logit"):
                continue
            for source in below:
                if g.nodes[source].get("pos", 0) > g.nodes[target]["pos"] or rng.random() < 0.3:
                    continue
                weight = rng.gauss(0, 1)
                if source.startswith("remainder"):
                    g.add_edge(source, target, kind="remainder", weight=weight, effect=0.1, magnitude=abs(weight) + 1)
                else:
                    g.add_edge(source, target, kind="flow", weight=weight, effect=rng.gauss(0, 1))
    for name, node in g.nodes(data=True):
        node.setdefault("label", "")
        node["influence"] = rng.random()
        if node["kind"] in ("feature", "logit"):
            node["pre_activation"] = node["constant"] + sum(e["weight"] for _, _, e in g.in_edges(name, data=True))
    for name in logits:
        g.nodes[name]["activation"] = g.nodes[name]["pre_activation"]
    total = sum(g.nodes[name]["probability"] for name in logits)
    g.graph["target"] = [
        {"node": name, "name": f"logit {g.nodes[name]['token']!r}", "weight": g.nodes[name]["probability"] / total}
        for name in logits
    ]
    g.graph["scores"] = {"whole": _score(), "pruned": _score()}
    return g


def _score() -> dict[str, Any]:
    share = {"token": 0.5, "error": 0.2, "constant": 0.1, "bias": 0.1, "remainder": 0.1}
    return {"replacement": 0.7, "completeness": 0.8, "shares": share}
