"""The feature-flow graph of a prompt: from tokens through the features of every dictionary to the targets.

SAEs and transcoders cut the network (cuts.py): where one stands, features, errors and constant are exactly what the
model computed there, and a node is fed by the cuts from which something reaches it through no other:

    Σ incoming weights + constant = pre-activation          at every feature and logit, before and after pruning

The graph is grown backwards from its targets (grow.py), never built whole. Every edge has a ``weight``, its
contribution under the rule, and an ``effect``, its first-order effect in the unfrozen network, which sums to nothing;
and ``query`` and ``key``, what its source does to its target by where heads looked, which is no part of the sum either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from ..attribution.document import Heading, allocation_dict
from ..attribution.logits import SPOKEN, LogitTarget, listed, logit_name
from ..attribution.positions import Pos, choose_positions
from ..attribution.readoff import Target
from ..attribution.targets import DirectionTarget, FeatureTarget
from ..errors import SAEFitWarning, UserError, warn
from ..models.place import Place
from ..models.prompt import Prompt, token_text
from ..passes.choices import CONTRIBUTION
from ..passes.forward import Allocation
from ..passes.memory import check_memory
from ..passes.record import Trace, blank
from ..passes.rules import rule_named
from ..passes.settings import Settings
from ..saes import CrossLayerFeatures, Stands, describe
from ..subject import Subject
from ..texts import together
from ..view.words import named
from .cuts import Cut, Standing, standing_on
from .document import SCHEMA_VERSION
from .grow import KEPT_SOURCES, RULES, Goal, Grown, Growth, Others, grow
from .influence import influence, reach, scores
from .names import node_id, written_ids
from .pairs import MOST as MOST_PAIRED
from .pairs import find_pairs
from .prune import check_thresholds, fold, pruned
from .reads import target_read
from .standing import Layers, graph_hooks
from .ways import LOOKED, Grow, looks

if TYPE_CHECKING:
    import networkx as nx

Errors = Literal["roots", "through"]
MOST_NODES = 2**31 - 1
"""A graph's file says how many nodes were asked for, and other programs read it."""
SHOWN_PAIRS = 10
"""Of so many nodes Neuronpedia's file lists the pairs of queries and keys, where nobody says of how many."""
HEADS_PER_NODE = 5
"""How many of the heads that a node's inflow came through are shown."""
TOP_LOGITS, LOGIT_PROBABILITY = 10, 0.95
"""Without a target: the likeliest tokens, at most so many, until their probabilities sum to this."""


@dataclass(frozen=True)
class GraphSettings:
    """How large a graph becomes, and what it shows.

    max_nodes: of all kinds. grow: by what nodes join: by what flows ("weight"), by its effect and by where heads looked
    ("effect"), or by whichever says most ("both"; ways.py); edges have ``query`` and ``key`` where these count.
    node_threshold, edge_threshold: see :func:`.prune`. errors: "roots", or "through" to follow SAE errors further
    upstream, along the target's gradient. heads: a second view of the inflow, by attention head. pairs: of so many
    nodes, the most influential, it is found which pairs of a query and a key decided where heads looked (pairs.py).
    """

    max_nodes: int = 200
    node_threshold: float | None = None
    edge_threshold: float | None = 0.98
    errors: Errors = "roots"
    heads: bool = False
    grow: Grow = "both"
    pairs: int = 0

    def check(self, rule: str) -> None:
        if (why := no_graph_by(rule)) is not None:
            raise UserError(why)
        if self.grow not in get_args(Grow):
            raise UserError(f"a graph grows by {' or '.join(get_args(Grow))}, not {self.grow!r}")
        if self.errors not in ("roots", "through"):
            raise UserError(f'errors are "roots" or followed "through", not {self.errors!r}')
        if rule not in CONTRIBUTION and (self.errors == "through" or self.heads):
            raise UserError(f"heads and errors followed through need a rule of {' and '.join(CONTRIBUTION)}")
        if self.max_nodes < 2:
            raise UserError(f"max_nodes {self.max_nodes} is too few for a graph")
        if self.max_nodes > MOST_NODES:
            raise UserError(f"max_nodes is {MOST_NODES} at most, which no graph has, not {self.max_nodes}")
        check_thresholds(self.node_threshold, self.edge_threshold)
        if not 0 <= self.pairs <= MOST_PAIRED:
            raise UserError(f"pairs are found of 0 to {MOST_PAIRED} nodes, not of {self.pairs:,}")
        if self.pairs and not self.knows_pairs(rule):
            raise UserError(
                f"pairs of a query and a key need a rule of {' and '.join(CONTRIBUTION)}, and a graph that grows by "
                "both or by effect"
            )

    def knows_pairs(self, rule: str) -> bool:
        """Whether the graph knows for whom heads looked."""
        return looks(self.grow) and rule in CONTRIBUTION


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
    layers: Layers | None = None,
    size: GraphSettings = GraphSettings(),
    settings: Settings,
) -> nx.DiGraph:
    """The graph of one prompt.

    targets: features, logits or directions with their positions (None: where they are strongest); none at all stands
    for the top predicted tokens, over the vocabulary's mean. layers: of the SAEs and transcoders that it stands on (an
    entry may also be one's hook, such as ``"17.mlp_out"``); None takes all that a graph can stand on.
    """
    size.check(settings.rule)
    hooks = _hooks(subject, targets, layers, settings.rule)
    check_memory(trace_bytes(subject, len(prompt)), "recording the prompt", subject.adapter.device)
    read_at = [target.place for target, _ in targets]
    aimed = {place for place in read_at if place is not None}
    until = None if None in read_at or not targets else max(place.layer for place in (*hooks, *aimed))
    places = aimed.union(*((hook, stands.place) for hook, stands in hooks.items()))
    seen = subject.trace(prompt, until, places | crossed(subject, hooks, until))
    standing = standing_on(subject, seen, prompt, hooks)
    levels = _Levels.of(standing)
    wanted, nodes, notes = _wanted(subject, seen, prompt, standing, levels, targets or _top_logits(subject, seen))
    standing = Standing(standing.cuts[: max(goal.level + (goal.feature is not None) for goal in wanted)])
    cuts = standing.cuts
    _check_size(standing, settings.rule, size.max_nodes)
    shared = sum(bool(cut.constant.any()) + cut.is_whole + 1 for cut in cuts)  # constant, bias and remainder
    room = size.max_nodes - shared
    if room < len(wanted):
        raise UserError(f"max_nodes {size.max_nodes} is too few here: it takes {shared + len(wanted) + 1} at least")
    through = size.errors == "through"
    growth = grow(seen, standing, wanted, room, by=size.grow, errors_through=through, settings=settings)
    worst = max(growth.expanded, key=lambda node: node.completeness_error)
    layer, hook = worst.read.place
    first = next(iter(hooks))
    subject.warn_incomplete(f"a node that is read at {hook} of layer {layer}", worst.completeness_error, first)
    assembled = _assemble(growth, prompt, levels, wanted, nodes, size.heads)
    g = assembled.graph
    g.graph = _attributes(subject, prompt, standing, seen, settings.allocation, size) | {
        "target": [
            {"node": node, "name": attributes["name"], "weight": goal.worth, **goal.told}
            for goal, (node, attributes) in zip(wanted, nodes, strict=True)
        ],
        "groups": [],
    }
    if (note := together(*notes, settings.allocation.note)) is not None:
        g.graph["note"] = note
    for name, value in influence(g).nodes.items():
        g.nodes[name]["influence"] = value
    if size.grow != "weight":
        for name, value in reach(g).nodes.items():
            g.nodes[name]["reach"] = value
    g.graph["scores"] = dict.fromkeys(("whole", "pruned"), scores(g))
    if size.node_threshold is not None or size.edge_threshold is not None:
        g = pruned(g, size.node_threshold, size.edge_threshold)
    if size.pairs:
        g.graph["pairs"] = _pairs(g, growth, assembled, size.pairs)
    return g


# ------------------------------------------------------------------------------------------------------------- targets


def _hooks(
    subject: Subject, targets: Sequence[tuple[Target, Pos | None]], layers: Layers | None, rule: str
) -> dict[Place, Stands]:
    """What the graph stands on; nothing above the highest target is needed where all are features and directions."""
    features = [target for target, _ in targets if isinstance(target, FeatureTarget)]
    own = None if layers is None else [*layers, *(target.hook for target in features)]
    hooks = graph_hooks(subject, own)
    for target in features:
        if target.hook not in hooks:
            graph_hooks(subject, [target.hook])  # which says why
        if target.path != "magnitude":
            raise UserError(f"a graph's target is a feature's magnitude, not its {target.path}")
    read = [target for target, _ in targets if target.place is not None]
    if targets and len(read) == len(targets):
        hooks = {hook: stands for hook, stands in hooks.items() if any(_feeds(hook, stands, one) for one in read)}
    if not hooks:
        raise UserError(
            f"no dictionary stands at or below {read[0].place}: a graph is of the features that a target is made of"
        )
    for one in read:
        split = isinstance(one, DirectionTarget) and hooks.get(one.place) == Stands(one.place)
        if split and one.place is not None and not one.place.is_stream:
            raise UserError(
                f"at {one.place} an SAE splits what the direction is read from; read the direction on the stream, or "
                "name layers without that SAE"
            )
    beside = [hook for hook, stands in hooks.items() if not stands.place.is_stream]
    if beside and rule not in CONTRIBUTION:
        raise UserError(
            f"the rule {rule} shares out a whole stream, and what stands at {beside[0]} is beside it: take "
            f"{' or '.join(CONTRIBUTION)}, or layers with SAEs on the residual stream alone"
        )
    return hooks


def _feeds(hook: Place, stands: Stands, target: Target) -> bool:
    """Whether a dictionary is at or below what is read at a place; a direction is read of all that stands there."""
    assert target.place is not None
    if isinstance(target, DirectionTarget):
        return stands.place.as_post <= target.place.as_post
    return hook <= target.place


def crossed(subject: Subject, hooks: Iterable[Place], until: int | None) -> set[Place]:
    """What the MLPs add that a cross-layer transcoder writes into, beside those of its own layers."""
    across = [hook.layer for hook in hooks if isinstance(subject.saes[hook], CrossLayerFeatures)]
    last = subject.adapter.n_layers - 1 if until is None else until
    return {Place(layer, "mlp_out") for layer in range(min(across), last + 1)} if across else set()


@dataclass(frozen=True)
class _Levels:
    """Where nodes stand, as their attributes say it: the hook only where a layer has several dictionaries."""

    places: tuple[dict[str, Any], ...]
    numbers: Mapping[Place, int]

    @classmethod
    def of(cls, standing: Standing) -> _Levels:
        several = Counter(cut.layer for cut in standing.cuts)
        places = tuple(
            {"layer": cut.layer} | ({"hook": cut.hook.hook} if several[cut.layer] > 1 else {}) for cut in standing.cuts
        )
        return cls(places, {cut.hook: number for number, cut in enumerate(standing.cuts) if number})

    @property
    def logits(self) -> int:
        return len(self.places)


def _top_logits(subject: Subject, seen: Trace) -> list[tuple[Target, Pos | None]]:
    assert seen.logits is not None
    probabilities, tokens = seen.logits[-1].softmax(-1).sort(descending=True)
    count = min(TOP_LOGITS, int((probabilities.cumsum(0) < LOGIT_PROBABILITY).sum()) + 1)
    return [
        (LogitTarget(token, "mean", logit_name([token_text(subject.loaded.tokenizer, token)], "mean")), None)
        for token in tokens[:count].tolist()
    ]


def _wanted(
    subject: Subject,
    seen: Trace,
    prompt: Prompt,
    standing: Standing,
    levels: _Levels,
    targets: Sequence[tuple[Target, Pos | None]],
) -> tuple[list[Goal], list[tuple[str, dict[str, Any]]], list[str | None]]:
    """The targets with their readings, the nodes that they become, and what has to be said of the choice.

    Logits count by probability, if all are.
    """
    found: list[tuple[Goal, str, dict[str, Any]]] = []
    notes = []
    directions: list[DirectionTarget] = []
    for asked, pos in targets:
        readoff = asked.read(subject, seen)
        chosen = choose_positions(prompt, seen, asked, readoff, pos)
        notes.append(chosen.note)
        for position in chosen.positions:
            target = asked.at(seen, position)
            read = target_read(subject, seen, target, position)
            place = {"pos": position, "token": prompt.tokens[position]}
            value = {"pre_activation": read.pre.item(), "constant": read.constant.item(), "target": True}
            if isinstance(target, FeatureTarget):
                assert readoff.activation is not None
                level = levels.numbers[target.hook]
                node = {"kind": "feature", **levels.places[level], **place, "index": target.index}
                node |= {"activation": readoff.activation[position].item(), **value}
                found.append((Goal(level, read, 1.0, target.index), node_id(node), node | {"name": target.name}))
            elif isinstance(target, DirectionTarget):
                number = next((i for i, one in enumerate(directions) if _same(one, target)), len(directions))
                directions += [target] if number == len(directions) else []
                node = {"kind": "direction", **target.place._asdict(), **place, "index": number}
                node |= {"activation": value["pre_activation"], **value, "name": target.name}
                goal = Goal(standing.behind(target.place), read, 1.0, told={"direction": target.w.double().tolist()})
                found.append((goal, node_id(node), node))
            else:
                assert isinstance(target, LogitTarget)
                found.append((Goal(levels.logits, read, 1.0), *_logit_node(subject, seen, target, position, value)))
    unique = {name: (wanted, node) for wanted, name, node in found}
    chances = [node.get("probability") for _, node in unique.values()]
    worths = [1.0 if None in chances else float(chance) for chance in chances]  # type: ignore[arg-type]
    wanted = [replace(w, worth=worth / sum(worths)) for (w, _), worth in zip(unique.values(), worths, strict=True)]
    return wanted, [(name, node) for name, (_, node) in unique.items()], notes


def _logit_node(
    subject: Subject, seen: Trace, target: LogitTarget, pos: int, value: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    assert seen.logits is not None

    def text(token: int) -> str:
        return token_text(subject.loaded.tokenizer, token)

    own = {"token": text(target.token), "index": target.token}
    node = {"kind": "logit", "layer": subject.adapter.n_layers, "pos": pos, **own}
    node |= {"activation": value["pre_activation"], **value, "name": target.name}
    if target.more:
        node |= {"plus": written_ids(target.more), "plus_token": " + ".join(named(text(one)) for one in target.more)}
    elif not isinstance(target.against, int):
        node["probability"] = seen.logits[pos].softmax(-1)[target.token].item()
    match target.against:
        case int() as other:
            node |= {"against": other, "against_token": text(other)}
        case tuple() as others:
            node |= {"against": written_ids(others), "against_token": listed([text(one) for one in others])}
        case str() as standard:
            node |= {"against": standard, "against_token": SPOKEN[standard]}
    return node_id(node), node


def _same(one: DirectionTarget, other: DirectionTarget) -> bool:
    return one.place == other.place and torch.equal(one.w, other.w)


# ------------------------------------------------------------------------------------------------------ from arrays


@dataclass(frozen=True)
class _Assembled:
    """names: of sources, by their numbers. grown: what each node that has an inflow was made of."""

    graph: nx.DiGraph
    names: Mapping[int, str]
    grown: Mapping[str, Grown]


def _assemble(
    growth: Growth,
    prompt: Prompt,
    levels: _Levels,
    wanted: Sequence[Goal],
    named: Sequence[tuple[str, dict[str, Any]]],
    heads: bool,
) -> _Assembled:
    import networkx as nx

    g, grown = nx.DiGraph(), dict[str, Grown]()
    names: dict[int, str] = {}
    for number in sorted(growth.members):
        level, source = growth.at(number)
        node = _source_node(growth.standing.cuts[level], source, prompt, levels.places[level])
        names[number] = node_id(node)
        g.add_node(names[number], **node)
    for name, node in named:
        g.add_node(name, **{key: value for key, value in node.items() if key != "name"}, influence=0.0, label="")
    for number, found in enumerate(growth.expanded):
        is_target = number < len(wanted)
        target = named[number][0] if is_target else names[found.source]  # type: ignore[index]
        grown[target] = found
        g.nodes[target].update(pre_activation=found.pre, constant=found.read.constant.item())
        _connect(g, growth, levels, names, found, target)
        if heads:
            _connect_heads(g, found, target)
    return _Assembled(fold(g, g, g.edges), names, grown)


def _source_node(cut: Cut, source: int, prompt: Prompt, place: Mapping[str, Any]) -> dict[str, Any]:
    pos = cut.positions[source]
    node = {**place, "pos": pos, "token": prompt.tokens[pos], "influence": 0.0, "label": ""}
    if source < cut.n_features:
        index, activation = int(cut.active.index[source]), cut.active.activation[source].item()
        return {**node, "kind": "feature", "index": index, "activation": activation}
    return {"kind": "token" if cut.is_token[pos] else "error", **node}


def _connect(
    g: nx.DiGraph, growth: Growth, levels: _Levels, names: Mapping[int, str], node: Grown, target: str
) -> None:
    """A node's inflow: from every cut that feeds it an edge from every member, and one from what is no member."""
    numbers, starts = node.sources, growth.starts
    cuts = np.searchsorted(starts, numbers, side="right") - 1
    shown = np.isin(numbers, [*names]) | np.isin(numbers, growth.stands_for_many)
    for cut in sorted({*cuts.tolist(), *node.others}):
        own = cuts == cut
        rest = {number: _shared(kind, levels.places[cut]) for number, kind in _for_many(starts[cut + 1])}
        columns = (node.numbers[way][own & shown].tolist() for way in node.numbers)
        for number, w, e, *looked in zip(numbers[own & shown].tolist(), *columns, strict=True):
            if number in rest:
                name = node_id(rest[number])
                if name not in g:
                    g.add_node(name, **rest[number])
            else:
                name = names[number]
            g.add_edge(name, target, kind="flow", weight=w, effect=e, **dict(zip(LOOKED, looked, strict=False)))
        others, left = node.others.get(cut, Others()), own & ~shown
        weights = node.weights[left]
        if magnitude := others.magnitude + float(np.abs(weights).sum()):
            remainder, effects = _shared("remainder", levels.places[cut]), node.numbers["effect"][left]
            g.add_node(node_id(remainder), **remainder)
            g.add_edge(
                node_id(remainder), target, kind="remainder", weight=others.weight + float(weights.sum()),
                effect=others.effect + float(effects.sum()), magnitude=magnitude,
            )  # fmt: skip


def _for_many(end: int) -> tuple[tuple[int, str], tuple[int, str]]:
    """The last two sources of a cut."""
    return (end - 2, "constant"), (end - 1, "bias")


def _shared(kind: str, place: Mapping[str, Any]) -> dict[str, Any]:
    """A node that stands for many."""
    return {"kind": kind, **place, "influence": 0.0, "label": ""}


def _connect_heads(g: nx.DiGraph, node: Grown, target: str) -> None:
    for layer, head, weight, effect in sorted(node.heads, key=lambda h: -abs(h[2]))[:HEADS_PER_NODE]:
        name = f"head:{layer}.{head}"
        g.add_node(name, kind="head", layer=layer, index=head, influence=0.0, label="")
        g.add_edge(name, target, kind="head", weight=weight, effect=effect)


def _pairs(g: nx.DiGraph, growth: Growth, assembled: _Assembled, count: int) -> list[dict[str, Any]]:
    """Of the most influential nodes, and of sources that are left in the graph."""
    able = [name for name in assembled.grown if name in g and g.nodes[name]["kind"] != "error"]
    asked = sorted(able, key=lambda name: (-g.nodes[name]["influence"], name))[:count]
    names = {number: name for number, name in assembled.names.items() if name in g}
    tell = partial(growth.settings.tell, "finding which pairs decided where heads looked")
    found = find_pairs(growth, [assembled.grown[name] for name in asked], names, tell)
    return [
        {"node": name, "query": names[pair.query], "key": names[pair.key], "value": pair.value}
        for name, pairs in zip(asked, found, strict=True)
        for pair in pairs
    ]


def _attributes(
    subject: Subject,
    prompt: Prompt,
    standing: Standing,
    seen: Trace,
    allocation: Allocation,
    size: GraphSettings,
) -> dict[str, Any]:
    heading = Heading.of(subject, prompt)
    saes = []
    for cut in standing.cuts[1:]:
        assert cut.fit is not None
        if cut.fit.warning:
            warn(cut.fit.warning, SAEFitWarning)
        about = {"d_sae": 0} if cut.sae is None else describe(cut.sae)
        saes.append(
            {
                "layer": cut.layer,
                "hook": cut.hook.hook,
                "explained_variance": cut.fit.explained_variance,
                "l0": cut.fit.l0,
            }
            | {key: about.get(key) for key in ("release", "id", "neuronpedia_id", "d_sae")}
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
    """What the inflow of so many nodes takes, so many sources feeding each at most."""
    return 24 * nodes * min(sources, KEPT_SOURCES)


def _check_size(standing: Standing, rule: str, max_nodes: int) -> None:
    """Raises UserError before the work starts, where its result would not fit into memory."""
    cuts = standing.cuts
    device, d_model = cuts[0].roots.device, cuts[0].roots.shape[1]
    feeding = [0] * len(cuts)
    for number, cut in enumerate(cuts):
        feeding[number if cut.is_whole else standing.below(number)] += cut.n_sources
    widest = max(feeding)
    nodes = min(max_nodes, sum(cut.n_sources for cut in cuts) + 1)
    need = graph_bytes(nodes, widest)
    if rule not in CONTRIBUTION:
        for cut in cuts:
            rows = sum(len(cut.roots) - pos for pos in cut.positions)
            need = max(need, 6 * 4 * rows * d_model)
    check_memory(need, f"a graph with {widest} active features under the rule {rule}", device)
