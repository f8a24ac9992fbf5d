"""A graph against the model: take its nodes out for real, nothing frozen, and see what the target loses.

*Predicted* for a node: what flows from it to the target along all paths, Σ over paths of the product of the shares
w(x→v) / pre_v along the way and w into the target; once with weights, once with effects. *Observed*: the target's loss
when the feature's decoder part, the SAE's error or the head's output is subtracted from the stream, or a token is
replaced by random ones (the mean of a few).

Together: what is left of the target when every dictionary keeps only the graph's features, and when it loses just
these (live.py); beside random sets with as many active features of every dictionary and position. What keeping can
reach: all active features, with dictionaries' errors and without them; and what is there without any feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..attribution.agreement import Agreement
from ..attribution.measure import check_seed
from ..attribution.removal import Replacing
from ..errors import UserError
from ..passes.settings import Settings
from ..subject import Subject
from .document import LARGEST, TESTED, check_graph
from .influence import downwards
from .live import LiveGraph
from .masks import DRAWS, INTERVAL, interval, matched

if TYPE_CHECKING:
    import networkx as nx

REPLACEMENTS = 4


def predicted(g: nx.DiGraph, value: str = "weight") -> dict[str, float]:
    """What each node does to the target along all paths; ``value``: by weights or by effects."""
    worth = {target["node"]: target["weight"] for target in g.graph["target"]}
    reached = dict.fromkeys(g, 0.0)
    for node in downwards(g):
        # One unit of the node's pre-activation is worth so much of the target.
        pre = g.nodes[node].get("pre_activation")
        unit = worth.get(node, 0.0) + (reached[node] / pre if pre else 0.0)
        for source, _, edge in g.in_edges(node, data=True):
            reached[source] += unit * edge[value]
    return reached


def verify_graph(
    subject: Subject,
    g: nx.DiGraph,
    *,
    max_nodes: int = 100,
    seed: int = 0,
    replace_from: str | Path | None = None,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> nx.DiGraph:
    """A copy of the graph with ``verification`` among its attributes.

    max_nodes: how many nodes are taken out one at a time, the most influential. replace_from: a file of text whose
    tokens replace others (see :mod:`..attribution.removal`). Raises UserError where the graph is of
    another model, other SAEs or another tokenizer.
    """
    check_verifying(max_nodes, seed)
    check_graph(g, whole=True)
    if "read_from" in g.graph:
        raise UserError("this graph was made by another program, with a model of its own: there is nothing to verify")
    weights, effects = predicted(g), predicted(g, "effect")
    if not all(abs(value) <= LARGEST for value in (*weights.values(), *effects.values())):  # NaN, too
        raise UserError(
            "what the graph predicts along its paths is too large for a number; its weights cannot be right"
        )
    live, replacing = LiveGraph.of(subject, g), Replacing.by(subject, seed, replace_from)
    by_influence = sorted(g, key=lambda name: (-g.nodes[name]["influence"], name))
    targets = {target["node"] for target in g.graph["target"]}
    tested = [name for name in by_influence if g.nodes[name]["kind"] in TESTED and name not in targets][:max_nodes]
    # A target's own token heads every ranking and says nothing of it.
    at = {g.nodes[name]["pos"] for name in targets}
    own = {name for name in tested if g.nodes[name]["kind"] == "token" and g.nodes[name]["pos"] in at}
    generator = torch.Generator().manual_seed(seed)
    nodes = []
    for number, name in enumerate(tested, start=1):
        observed = live.value - _without(live, name, replacing, generator)
        nodes.append({"node": name, "weight": weights[name], "effect": effects[name], "observed": observed})
        settings.tell("taking nodes out", number, len(tested))
    verified = g.copy()
    verified.graph["verification"] = {
        "target": live.value,
        "seed": seed,
        "replacements": REPLACEMENTS,
        "nodes": nodes,
        **_agreement([node for node in nodes if node["node"] not in own], nodes),
        "together": together(live, generator),
    }
    return verified


def check_verifying(max_nodes: int, seed: int) -> None:
    """Raises UserError for numbers that cannot be."""
    if max_nodes < 0:
        raise UserError(f"max_nodes is how many nodes are taken out, and not {max_nodes}")
    check_seed(seed)


def _agreement(ranked: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Spearman's rank correlation with its 95 % interval, None for fewer than ten nodes and where there is nothing to
    rank; and the share of equal signs.
    """
    found: dict[str, Any] = {"ranked": len(ranked), "rank_correlation": {}, "rank_interval": {}, "sign_agreement": {}}
    for value in ("weight", "effect"):
        agreement = Agreement.of([node[value] for node in ranked], [node["observed"] for node in ranked])
        found["rank_correlation"][value] = None if agreement is None else agreement.rank
        found["rank_interval"][value] = None if agreement is None else [agreement.low, agreement.high]
        same = [node[value] * node["observed"] > 0 for node in nodes]
        found["sign_agreement"][value] = sum(same) / len(same) if same else None
    return found


def _without(live: LiveGraph, name: str, replacing: Replacing, generator: torch.Generator) -> float:
    """The targets' value when one node is taken out."""
    node = live.g.nodes[name]
    if node["kind"] == "token" and node["layer"] < 0:
        ids = live.prompt.ids().repeat(REPLACEMENTS, 1)
        ids[:, node["pos"]] = replacing.draw(REPLACEMENTS, 1, generator)[:, 0]
        return live.run([], ids).value.mean().item()
    taken = live.without_head(node["layer"], node["index"]) if node["kind"] == "head" else live.without_node(node)
    return live.run([taken]).value.item()


def sufficiency(subject: Subject, g: nx.DiGraph) -> dict[str, Any] | None:
    """What is left of the graph's targets where only its features are kept, and where none are, by one live pass.

    None where the model cannot be run so, or where there is next to nothing of the targets.
    """
    try:
        live = LiveGraph.of(subject, g)
        members = live.members
        share = live.keep(torch.stack([members, torch.zeros_like(members)])).share
    except UserError:
        return None
    if share is None or not share.isfinite().all():
        return None
    kept, none = share.tolist()
    return {"features": int(members.sum()), "active": len(members), "share": kept, "no_features": none}


def together(live: LiveGraph, generator: torch.Generator) -> dict[str, Any]:
    """The targets with the graph's features alone and without them, beside random features of the same dictionaries
    and positions, all features and none.
    """
    members = live.members
    random = matched(members, live.players.cells, DRAWS, generator)
    ends = torch.stack([members, torch.zeros_like(members), torch.ones_like(members)])
    kept, lost = live.keep(torch.cat([ends, random])), live.lose(torch.cat([members[None], random]))
    bare = live.keep(torch.ones_like(members)[None], errors=False)

    def told(of: str, all_of: Callable[[Tensor], Any]) -> dict[str, Any]:
        """In the target's own unit, or in shares."""
        only, without, last = (getattr(left, of) for left in (kept, lost, bare))
        return {
            "only_graph": float(only[0]),
            "without_graph": float(without[0]),
            "only_random": all_of(only[3:]),
            "without_random": all_of(without[1:]),
            "no_features": float(only[1]),
            "all_features": float(only[2]),
            "all_without_errors": float(last[0]),
        }

    own, count = (random & members).sum().item(), int(members.sum())
    return {
        "features": count,
        "active": len(members),
        "draws": DRAWS,
        **told("value", lambda draws: draws.mean().item()),
        "random_own": own / (DRAWS * count) if count else 0.0,
        "interval": INTERVAL,
        "shares": None if kept.share is None else told("share", interval),
    }
