"""The feature-flow graph of a prompt: from tokens through the features of every SAE to the targets.

SAEs on the residual stream at layers l₁ < … < l_k cut the network into segments. At each of them features, errors and
constant are the whole stream, so that no path by-passes them, and what a node has comes from the cut right below:

    Σ incoming weights + constant = pre-activation          at every feature and logit, before and after pruning

The graph is grown backwards from its targets (grow.py), never built whole. Every edge has a ``weight``, its
contribution under the rule, and an ``effect``, its first-order effect in the unfrozen network, which sums to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..attribution.document import Heading, allocation_dict
from ..attribution.positions import Pos, choose_positions
from ..attribution.targets import FeatureTarget, LogitTarget, Target
from ..errors import SAEFitWarning, UserError, warn
from ..models.place import Place
from ..models.prompt import Prompt, token_text
from ..passes.choices import CONTRIBUTION
from ..passes.forward import Allocation
from ..passes.memory import check_memory
from ..passes.record import Trace, blank
from ..passes.rules import rule_named
from ..passes.settings import Settings
from ..saes import describe
from ..subject import Subject
from ..texts import together
from .cuts import Cut, embedding_cut, graph_hooks, sae_cut
from .document import SCHEMA_VERSION
from .grow import KEPT_SOURCES, RULES, Goal, Grown, Growth, grow
from .influence import influence, scores
from .prune import check_thresholds, fold, prune
from .reads import target_read

if TYPE_CHECKING:
    import networkx as nx

Errors = Literal["roots", "through"]
MOST_NODES = 2**31 - 1
"""A graph's file says how many nodes were asked for, and other programs read it."""
HEADS_PER_NODE = 5
"""How many of the heads that a node's inflow came through are shown."""
TOP_LOGITS, LOGIT_PROBABILITY = 10, 0.95
"""Without a target: the likeliest tokens, at most so many, until their probabilities sum to this."""


@dataclass(frozen=True)
class GraphSettings:
    """How large a graph becomes, and what it shows.

    max_nodes: of all kinds. node_threshold, edge_threshold: see :func:`.prune`. errors: "roots", or "through" to follow
    SAE errors further upstream, along the target's gradient. heads: a second view of the inflow, by attention head.
    """

    max_nodes: int = 200
    node_threshold: float | None = None
    edge_threshold: float | None = 0.98
    errors: Errors = "roots"
    heads: bool = False

    def check(self, rule: str) -> None:
        if (why := no_graph_by(rule)) is not None:
            raise UserError(why)
        if self.errors not in ("roots", "through"):
            raise UserError(f'errors are "roots" or followed "through", not {self.errors!r}')
        if rule not in CONTRIBUTION and (self.errors == "through" or self.heads):
            raise UserError(f"heads and errors followed through need a rule of {' and '.join(CONTRIBUTION)}")
        if self.max_nodes < 2:
            raise UserError(f"max_nodes {self.max_nodes} is too few for a graph")
        if self.max_nodes > MOST_NODES:
            raise UserError(f"max_nodes is {MOST_NODES} at most, which no graph has, not {self.max_nodes}")
        check_thresholds(self.node_threshold, self.edge_threshold)


def no_graph_by(rule: str) -> str | None:
    """Why a rule makes no graph; None where it makes one."""
    if rule in RULES:
        return None
    named = "a graph, whose flow is what heads move as they look," if rule_named(rule).shares_scores else "a graph"
    return f"{named} takes the rules {', '.join(RULES)}, not {rule}"


def build_graph(
    subject: Subject,
    prompt: Prompt,
    targets: Sequence[tuple[Target, Pos | None]],
    *,
    layers: Sequence[int] | None = None,
    size: GraphSettings = GraphSettings(),
    settings: Settings,
) -> nx.DiGraph:
    """The graph of one prompt.

    targets: features or logits with their positions (None: where they are strongest); none at all stands for the top
    predicted tokens. layers: of the SAEs that it stands on; None takes all on the residual stream.
    """
    size.check(settings.rule)
    hooks = _hooks(subject, targets, layers)
    check_memory(trace_bytes(subject, len(prompt)), "recording the prompt", subject.adapter.device)
    until = None if not targets or any(t.place is None for t, _ in targets) else max(hook.layer for hook in hooks)
    seen = subject.trace(prompt, until)
    cuts = [embedding_cut(seen), *(sae_cut(subject, seen, prompt, hook) for hook in hooks)]
    wanted, named, notes = _wanted(subject, seen, prompt, hooks, targets or _top_logits(subject, seen))
    cuts = cuts[: max(target.level for target in wanted) + 1]
    _check_size(cuts, settings.rule, size.max_nodes)
    shared = sum(bool(cut.constant.any()) + 2 for cut in cuts)  # constant, bias and remainder
    room = size.max_nodes - shared
    if room < len(wanted):
        raise UserError(f"max_nodes {size.max_nodes} is too few here: it takes {shared + len(wanted) + 1} at least")
    through = size.errors == "through"
    growth = grow(seen, cuts, wanted, room, errors_through=through, settings=settings)
    worst = max(growth.expanded, key=lambda node: node.completeness_error)
    layer, hook = worst.read.place
    subject.warn_incomplete(f"a node that is read at {hook} of layer {layer}", worst.completeness_error, hooks[0])
    g = _assemble(growth, prompt, wanted, named, size.heads)
    g.graph = _attributes(subject, prompt, hooks, seen, settings.allocation, size) | {
        "target": [
            {"node": node, "name": attributes["name"], "weight": target.worth}
            for target, (node, attributes) in zip(wanted, named, strict=True)
        ],
        "groups": [],
    }
    if (note := together(*notes, settings.allocation.note)) is not None:
        g.graph["note"] = note
    for name, value in influence(g).nodes.items():
        g.nodes[name]["influence"] = value
    g.graph["scores"] = dict.fromkeys(("whole", "pruned"), scores(g))
    if size.node_threshold is None and size.edge_threshold is None:
        return g
    return prune(g, node_threshold=size.node_threshold, edge_threshold=size.edge_threshold)


# ------------------------------------------------------------------------------------------------------------- targets


def _hooks(subject: Subject, targets: Sequence[tuple[Target, Pos | None]], layers: Sequence[int] | None) -> list[Place]:
    """The SAEs of the graph; nothing above the highest feature is needed where all targets are features."""
    features = [target for target, _ in targets if isinstance(target, FeatureTarget)]
    own = None if layers is None else sorted({*layers, *(target.hook.layer for target in features)})
    hooks = graph_hooks(subject, own)
    for target in features:
        if target.hook not in hooks:
            raise UserError(f"{target.hook} is no SAE on the residual stream, so its features are no targets of graphs")
        if target.path != "magnitude":
            raise UserError(f"a graph's target is a feature's magnitude, not its {target.path}")
    for other, _ in targets:
        if not isinstance(other, FeatureTarget | LogitTarget):
            raise UserError(f"a graph's targets are features and logits, not a {other.name}")
    if targets and len(features) == len(targets):
        highest = max(target.hook.depth for target in features)
        hooks = [hook for hook in hooks if hook.depth <= highest]
    return hooks


def _top_logits(subject: Subject, seen: Trace) -> list[tuple[Target, Pos | None]]:
    assert seen.logits is not None
    probabilities, tokens = seen.logits[-1].softmax(-1).sort(descending=True)
    count = min(TOP_LOGITS, int((probabilities.cumsum(0) < LOGIT_PROBABILITY).sum()) + 1)
    return [
        (LogitTarget(token, name=f"logit {token_text(subject.loaded.tokenizer, token)!r}"), None)
        for token in tokens[:count].tolist()
    ]


def _wanted(
    subject: Subject,
    seen: Trace,
    prompt: Prompt,
    hooks: Sequence[Place],
    targets: Sequence[tuple[Target, Pos | None]],
) -> tuple[list[Goal], list[tuple[str, dict[str, Any]]], list[str | None]]:
    """The targets with their readings, the nodes that they become, and what has to be said of the choice.

    Logits count by probability, if all are.
    """
    found: list[tuple[Goal, str, dict[str, Any]]] = []
    notes = []
    for target, pos in targets:
        readoff = target.read(subject, seen)
        chosen = choose_positions(prompt, seen, target, readoff, pos)
        notes.append(chosen.note)
        for position in chosen.positions:
            read = target_read(subject, seen, target, position)
            place = {"pos": position, "token": prompt.tokens[position]}
            value = {"pre_activation": read.pre.item(), "constant": read.constant.item(), "target": True}
            if isinstance(target, FeatureTarget):
                assert readoff.activation is not None
                level = hooks.index(target.hook) + 1
                node = {"kind": "feature", "layer": target.hook.layer, **place, "index": target.index}
                node |= {"activation": readoff.activation[position].item(), **value}
                name = f"feature:{target.hook.layer}/{target.index}@{position}"
                found.append((Goal(level, read, 1.0, target.index), name, node | {"name": target.name}))
            else:
                assert isinstance(target, LogitTarget)
                found.append((Goal(len(hooks) + 1, read, 1.0), *_logit_node(subject, seen, target, position, value)))
    unique = {name: (wanted, node) for wanted, name, node in found}
    chances = [node.get("probability") for _, node in unique.values()]
    worths = [1.0 if None in chances else float(chance) for chance in chances]  # type: ignore[arg-type]
    wanted = [
        Goal(w.level, w.reads, worth / sum(worths), w.feature)
        for (w, _), worth in zip(unique.values(), worths, strict=True)
    ]
    return wanted, [(name, node) for name, (_, node) in unique.items()], notes


def _logit_node(
    subject: Subject, seen: Trace, target: LogitTarget, pos: int, value: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    assert seen.logits is not None
    text = token_text(subject.loaded.tokenizer, target.token)
    node = {"kind": "logit", "layer": subject.adapter.n_layers, "pos": pos, "token": text, "index": target.token}
    node |= {"activation": value["pre_activation"], **value, "name": target.name}
    if target.against is None:
        return f"logit:{target.token}@{pos}", node | {"probability": seen.logits[pos].softmax(-1)[target.token].item()}
    against = {"against": target.against, "against_token": token_text(subject.loaded.tokenizer, target.against)}
    return f"logit:{target.token}-{target.against}@{pos}", node | against


# ------------------------------------------------------------------------------------------------------ from arrays


def _assemble(
    growth: Growth, prompt: Prompt, wanted: Sequence[Goal], named: Sequence[tuple[str, dict[str, Any]]], heads: bool
) -> nx.DiGraph:
    import networkx as nx

    g = nx.DiGraph()
    names: list[dict[int, str]] = []
    for level, cut in enumerate(growth.cuts):
        names.append({})
        for source in sorted(growth.members[level]):
            name, node = _source_node(cut, source, prompt)
            names[level][source] = name
            g.add_node(name, **node)
    for name, node in named:
        g.add_node(name, **{key: value for key, value in node.items() if key != "name"}, influence=0.0, label="")
    for number, found in enumerate(growth.expanded):
        is_target = number < len(wanted)
        target = named[number][0] if is_target else names[found.level][found.source]  # type: ignore[index]
        g.nodes[target].update(pre_activation=found.pre, constant=found.read.constant.item())
        _connect(g, growth.cuts[found.level - 1], names[found.level - 1], found, target)
        if heads:
            _connect_heads(g, found, target)
    return fold(g, g, g.edges)


def _source_node(cut: Cut, source: int, prompt: Prompt) -> tuple[str, dict[str, Any]]:
    pos = cut.positions[source]
    node = {"layer": cut.layer, "pos": pos, "token": prompt.tokens[pos], "influence": 0.0, "label": ""}
    if source < cut.n_features:
        assert cut.features is not None
        index = int(cut.features.index[source])
        node |= {"kind": "feature", "index": index, "activation": cut.features.activation[source].item()}
        return f"feature:{cut.layer}/{index}@{pos}", node
    if not cut.is_token[pos]:
        return f"error:{cut.layer}@{pos}", {"kind": "error", **node}
    return f"token:{pos}" if cut.layer < 0 else f"token:{cut.layer}@{pos}", {"kind": "token", **node}


def _connect(g: nx.DiGraph, cut: Cut, names: dict[int, str], node: Grown, target: str) -> None:
    """A node's inflow: an edge from every member of the cut below, one from what is no member."""
    named = {**names, cut.n_sources - 2: f"constant:{cut.layer}", cut.n_sources - 1: f"bias:{cut.layer}"}
    is_member = np.isin(node.sources, list(named))
    for source, weight, effect in zip(
        node.sources[is_member].tolist(),
        node.weights[is_member].tolist(),
        node.effects[is_member].tolist(),
        strict=True,
    ):
        name = named[source]
        if weight or effect:
            if name not in g:
                kind = name.partition(":")[0]
                g.add_node(name, kind=kind, layer=cut.layer, influence=0.0, label="")
            g.add_edge(name, target, kind="flow", weight=weight, effect=effect)
    others = node.weights[~is_member]
    magnitude = node.other_magnitude + float(np.abs(others).sum())
    if magnitude:
        name = f"remainder:{cut.layer}"
        g.add_node(name, kind="remainder", layer=cut.layer, influence=0.0, label="")
        g.add_edge(
            name,
            target,
            kind="remainder",
            weight=node.other_weight + float(others.sum()),
            effect=node.other_effect + float(node.effects[~is_member].sum()),
            magnitude=magnitude,
        )


def _connect_heads(g: nx.DiGraph, node: Grown, target: str) -> None:
    for layer, head, weight, effect in sorted(node.heads, key=lambda h: -abs(h[2]))[:HEADS_PER_NODE]:
        name = f"head:{layer}.{head}"
        g.add_node(name, kind="head", layer=layer, index=head, influence=0.0, label="")
        g.add_edge(name, target, kind="head", weight=weight, effect=effect)


def _attributes(
    subject: Subject,
    prompt: Prompt,
    hooks: Sequence[Place],
    seen: Trace,
    allocation: Allocation,
    size: GraphSettings,
) -> dict[str, Any]:
    heading = Heading.of(subject, prompt)
    saes = []
    for hook in hooks:
        how = subject.encoding(seen, hook).fit
        if how.warning:
            warn(how.warning, SAEFitWarning)
        about = describe(subject.saes[hook])
        saes.append(
            {"layer": hook.layer, "hook": hook.name, "explained_variance": how.explained_variance, "l0": how.l0}
            | {key: about[key] for key in ("release", "id", "neuronpedia_id", "d_sae")}
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "model": heading.model,
        "saes": saes,
        "n_layers": subject.adapter.n_layers,
        "prompt": prompt.text,
        "tokens": list(prompt.tokens),
        "token_ids": list(prompt.token_ids),
        "dtype": heading.dtype,
        **allocation_dict(allocation),
        "settings": asdict(size),
    }


# -------------------------------------------------------------------------------------------------------------- memory


def trace_bytes(subject: Subject, n: int) -> int:
    """What a trace holds, once as it is and once as cuts and their work space."""
    return 2 * blank(subject.adapter, n, dtype=subject.trace_dtype).size


def graph_bytes(nodes: int, sources: int) -> int:
    """What the inflow of so many nodes takes, the widest cut having so many sources."""
    return 24 * nodes * min(sources, KEPT_SOURCES)


def _check_size(cuts: Sequence[Cut], rule: str, max_nodes: int) -> None:
    """Raises UserError before the work starts, where its result would not fit into memory."""
    device, d_model = cuts[0].roots.device, cuts[0].roots.shape[1]
    widest = max(cut.n_sources for cut in cuts)
    nodes = min(max_nodes, sum(cut.n_sources for cut in cuts) + 1)
    need = graph_bytes(nodes, widest)
    if rule not in CONTRIBUTION:
        for cut in cuts:
            rows = sum(len(cut.roots) - pos for pos in cut.positions)
            need = max(need, 6 * 4 * rows * d_model)
    check_memory(need, f"a graph with {widest} active features under the rule {rule}", device)
