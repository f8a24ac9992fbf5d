"""A graph against the model: take its nodes out for real, nothing frozen, and see what the target loses.

*Predicted* for a node: what flows from it to the target along all paths, Σ over paths of the product of the shares
w(x→v) / pre_v along the way and w into the target; once with weights, once with effects. *Observed*: the target's loss
when the feature's decoder part, the SAE's error or the head's output is subtracted from the stream, or a token is
replaced by random ones (the mean of a few).

Together: what is left of the target when every SAE keeps only the graph's features, and when it loses just these; and
the same for as many active features drawn at random, at positions that the targets can see. There the SAEs run live:
each edit encodes the stream that reaches it, so that nothing is taken out twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.agreement import Agreement
from ..attribution.measure import check_seed
from ..attribution.removal import Replacing
from ..attribution.targets import FeatureTarget, LogitTarget, Target
from ..errors import UserError
from ..files import same_place
from ..models.adapter import Adapter
from ..models.place import Place
from ..models.prompt import Prompt, check_ids, special_ids
from ..passes.frozen import INSIDE
from ..passes.intervene import Edit, intervene
from ..passes.memory import check_memory
from ..passes.mixers import mixer_of
from ..passes.record import Trace
from ..passes.settings import Settings
from ..saes import CrossLayerFeatures, written_by
from ..subject import Subject
from .build import crossed, trace_bytes
from .cuts import Cut, standing_on
from .document import LARGEST, TESTED, check_graph
from .influence import downwards
from .names import dictionary_of
from .standing import graph_hooks

if TYPE_CHECKING:
    import networkx as nx

REPLACEMENTS = 4
DRAWS = 5


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
    weights, effects = predicted(g), predicted(g, "effect")
    if not all(abs(value) <= LARGEST for value in (*weights.values(), *effects.values())):  # NaN, too
        raise UserError(
            "what the graph predicts along its paths is too large for a number; its weights cannot be right"
        )
    study = _Study.of(subject, g, Replacing.by(subject, seed, replace_from))
    by_influence = sorted(g, key=lambda name: (-g.nodes[name]["influence"], name))
    targets = {target["node"] for target in g.graph["target"]}
    tested = [name for name in by_influence if g.nodes[name]["kind"] in TESTED and name not in targets][:max_nodes]
    # A target's own token heads every ranking and says nothing of it.
    at = {g.nodes[name]["pos"] for name in targets}
    own = {name for name in tested if g.nodes[name]["kind"] == "token" and g.nodes[name]["pos"] in at}
    generator = torch.Generator().manual_seed(seed)
    nodes = []
    for number, name in enumerate(tested, start=1):
        observed = study.value - study.without(name, generator)
        nodes.append({"node": name, "weight": weights[name], "effect": effects[name], "observed": observed})
        settings.tell("taking nodes out", number, len(tested))
    verified = g.copy()
    verified.graph["verification"] = {
        "target": study.value,
        "seed": seed,
        "replacements": REPLACEMENTS,
        "nodes": nodes,
        **_agreement([node for node in nodes if node["node"] not in own], nodes),
        "together": study.together(generator),
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


def _check_fits(subject: Subject, g: nx.DiGraph) -> None:
    """Raises UserError where the graph has what the model or its SAEs do not have."""
    adapter, name = subject.adapter, subject.loaded.name
    if g.graph["n_layers"] != adapter.n_layers:
        raise UserError(f"the graph is of a model with {g.graph['n_layers']} layers, and {name} has {adapter.n_layers}")
    try:
        check_ids(subject.loaded, adapter, g.graph["token_ids"])
    except UserError as error:
        raise UserError(f"the graph does not fit this model: {error}") from None
    logits = [node for node in g.nodes.values() if node["kind"] == "logit"]
    largest = max((max(node["index"], node.get("against", 0)) for node in logits), default=0)
    if largest >= adapter.vocab_size:
        raise UserError(f"the graph has a logit of token {largest}, and the tokens are 0 to {adapter.vocab_size - 1}")
    hooks = _hooks(g)
    missing = [str(hook) for hook in hooks if hook not in subject.saes]
    if missing:
        raise UserError(f"the graph stands on SAEs at {', '.join(missing)}, which are not loaded")
    for hook, d_sae in hooks.items():
        if d_sae != (loaded := subject.saes[hook].cfg.d_sae):
            raise UserError(f"the graph stands on an SAE of {d_sae} features at {hook}, and one of {loaded} is loaded")
    for node in g.nodes.values():
        if node["kind"] == "head" and node["index"] >= (n := _n_heads(adapter, node["layer"])):
            raise UserError(f"the graph has a head {node['layer']}.{node['index']}, and the heads are 0 to {n - 1}")


def _n_heads(adapter: Adapter, layer: int) -> int:
    return mixer_of(adapter.sublayer(Place(layer, "hook_z").depth).mixer).n_units


@dataclass(frozen=True)
class _Study:
    """The graph's prompt in the model that it was made of. value: the targets, each by what it counts for."""

    subject: Subject
    g: nx.DiGraph
    prompt: Prompt
    seen: Trace
    cuts: dict[Place, Cut]
    targets: Sequence[tuple[Target, int, float]]
    value: float
    replacing: Replacing

    @classmethod
    def of(cls, subject: Subject, g: nx.DiGraph, replacing: Replacing) -> _Study:
        ids, specials = tuple(g.graph["token_ids"]), special_ids(subject.loaded)
        if not same_place(g.graph["model"], subject.loaded.name):
            raise UserError(f"the graph is of {g.graph['model']}, and {subject.loaded.name} is loaded")
        _check_fits(subject, g)
        check_memory(trace_bytes(subject, len(ids)), "recording the prompt", subject.adapter.device)
        prompt = Prompt(g.graph["prompt"], ids, tuple(g.graph["tokens"]), tuple(i in specials for i in ids))
        hooks = graph_hooks(subject, [*_hooks(g)])
        across = {Place(sae["layer"], "mlp_out") for sae in g.graph["saes"] if not sae["d_sae"]}
        places = {place for hook, stands in hooks.items() for place in (hook, stands.place)}
        seen = subject.trace(prompt, None, places | across | crossed(subject, hooks, None))
        cuts = {cut.hook: cut for cut in standing_on(subject, seen, prompt, hooks).cuts[1:]}
        targets, value = [], 0.0
        for target in g.graph["target"]:
            node = g.nodes[target["node"]]
            at: Target
            if node["kind"] == "feature":
                at = FeatureTarget(_hook_of(g, node), node["index"])
            else:
                at = LogitTarget(node["index"], node.get("against"))
            readoff = at.read(subject, seen)
            pre = readoff.pre[node["pos"]].item()
            if abs(pre - node["pre_activation"]) > 0.02 * max(abs(pre), 1.0):
                raise UserError(
                    f"{target['name']} is {node['pre_activation']:.3f} in the graph and {pre:.3f} in this model: "
                    "the graph was made with other weights, SAEs or dtype"
                )
            targets.append((at, node["pos"], target["weight"]))
            value += target["weight"] * readoff.now[node["pos"]].item()
        return cls(subject, g, prompt, seen, cuts, targets, value, replacing)

    def without(self, name: str, generator: torch.Generator) -> float:
        """The targets' value when one node is taken out."""
        node = self.g.nodes[name]
        if node["kind"] == "token" and node["layer"] < 0:
            return self._replaced(node["pos"], generator)
        if node["kind"] == "head":
            place = Place(node["layer"], "hook_z")
            d_head = self.subject.adapter.width(place) // _n_heads(self.subject.adapter, node["layer"])
            own = slice(node["index"] * d_head, (node["index"] + 1) * d_head)
            return self._value({place: lambda z: _zeroed(z, own)})
        cut, pos = self.cuts[_hook_of(self.g, node)], node["pos"]
        parts = {cut.place: cut.roots[pos]} if node["kind"] != "feature" else self._parts(cut, node)
        return self._value({place.as_post: self._less(cut, place, pos, part) for place, part in parts.items()})

    def together(self, generator: torch.Generator) -> dict[str, Any]:
        """The targets with the graph's features alone, without them, and the same for random active features."""
        masks, candidates, counts, last = {}, {}, 0, max(pos for _, pos, _ in self.targets)
        features = [node for _, node in self.g.nodes(data=True) if node["kind"] == "feature"]
        at = [(_hook_of(self.g, node), node["pos"], node["index"]) for node in features]
        for hook, cut in self.cuts.items():
            wanted = {(pos, index) for other, pos, index in at if other == hook}
            pairs = zip(cut.active.pos.tolist(), cut.active.index.tolist(), strict=True)
            masks[hook] = torch.tensor([pair in wanted for pair in pairs], dtype=torch.bool)
            candidates[hook] = cut.active.pos.cpu() <= last  # what comes later cannot matter
            counts += int(masks[hook].sum())
        random = [
            {hook: _shuffled(mask, candidates[hook], generator) for hook, mask in masks.items()} for _ in range(DRAWS)
        ]
        only, without = ([self._value(self._edits(mask, drop=drop)) for mask in random] for drop in (False, True))
        return {
            "features": counts,
            "active": sum(int(mask.sum()) for mask in candidates.values()),
            "draws": DRAWS,
            "only_graph": self._value(self._edits(masks, drop=False)),
            "without_graph": self._value(self._edits(masks, drop=True)),
            "only_random": sum(only) / DRAWS,
            "without_random": sum(without) / DRAWS,
        }

    def _parts(self, cut: Cut, node: Mapping[str, Any]) -> dict[Place, Float[Tensor, "d"]]:
        """What a feature is at each place; nothing where it does not fire."""
        found = ((cut.active.pos == node["pos"]) & (cut.active.index == node["index"])).nonzero()[:, 0]
        return {place: cut.part(found, place).sum(0) for place in cut.written}

    def _less(self, cut: Cut, place: Place, pos: int, part: Float[Tensor, "d"]) -> Edit:
        """Without a part at a position."""
        part = self._behind(cut, place, part[None], torch.tensor([pos]))[0]
        return lambda x: _less(x, pos, part)

    def _behind(
        self, cut: Cut, place: Place, parts: Float[Tensor, "*batch pos d"], positions: Int[Tensor, "pos"]
    ) -> Float[Tensor, "*batch pos d"]:
        """Of what a transcoder writes before a norm: what comes out of that, its scale as it was."""
        post = self.seen.sublayer(place.depth).post if cut.stands.before_norm else None
        return parts if post is None else post.frozen(parts, self.seen.post_scale(place, positions))

    def _edits(self, masks: Mapping[Place, Bool[Tensor, "active"]], *, drop: bool) -> dict[Place, Edit]:
        """At every dictionary: drop these active features (at their positions), or all others."""
        edits: dict[Place, list[Edit]] = {}
        for hook, cut in self.cuts.items():
            if cut.sae is None:
                continue
            chosen = torch.zeros(len(self.prompt), cut.sae.cfg.d_sae, dtype=torch.bool)
            some = masks[hook]
            chosen[cut.active.pos.cpu()[some], cut.active.index.cpu()[some]] = True
            gone = chosen if drop else ~chosen
            if cut.is_token[0]:
                gone[0] = False  # features mean nothing there
            for place, edit in self._without_features(cut, gone).items():
                edits.setdefault(place.as_post, []).append(edit)
        return {place: partial(_one_by_one, several) for place, several in edits.items()}

    def _without_features(self, cut: Cut, gone: Bool[Tensor, "pos d_sae"]) -> dict[Place, Edit]:
        """Subtract what these features write, as the dictionary reads what arrives."""
        if not cut.stands.instead:
            return {cut.place: _without(cut, gone)}
        read: list[Tensor] = []
        at, made = self._read_by(cut)

        def note(x: Float[Tensor, "batch pos d_in"]) -> Tensor:
            read[:] = [made(x)]
            return x

        def less(place: Place) -> Edit:
            def edit(x: Float[Tensor, "batch pos d"]) -> Tensor:
                which = gone[: x.shape[1]].to(x.device).repeat(len(x), 1)
                written = _written(cut, place, read[0].flatten(0, 1).float(), which).view_as(x)
                if self._is_token(place):
                    written[:, 0] = 0
                return x - self._behind(cut, place, written, torch.arange(x.shape[1])).to(x)

            return edit

        return {at: note} | {place: less(place) for place in cut.written}

    def _read_by(self, cut: Cut) -> tuple[Place, Callable[[Tensor], Tensor]]:
        """Where what a transcoder reads can be seen on its way, and what it makes of that."""
        if INSIDE.get(cut.hook.hook) != "bare":
            return cut.hook, lambda x: x
        part = self.subject.adapter.sublayer(cut.hook.depth)

        def bare(x: Float[Tensor, "batch pos d_model"]) -> Tensor:
            norm = part.norm.to(x)
            return norm.bare(x, norm.scale(x))

        return part.reads, bare

    def _is_token(self, place: Place) -> bool:
        """Whether position 0 means nothing at a place."""
        return any(cut.is_token[0] for cut in self.cuts.values() if cut.place == place)

    def _replaced(self, pos: int, generator: torch.Generator) -> float:
        ids = self.prompt.ids().repeat(REPLACEMENTS, 1)
        ids[:, pos] = self.replacing.draw(REPLACEMENTS, 1, generator)[:, 0]
        return self._value({}, ids)

    def _value(self, edits: Mapping[Place, Edit], ids: Tensor | None = None) -> float:
        """The targets' value in the edited model, the mean over copies of the prompt."""
        ids = self.prompt.ids()[None] if ids is None else ids
        value = 0.0
        for pos in {pos for _, pos, _ in self.targets}:
            here = [(target, weight) for target, p, weight in self.targets if p == pos]
            read = intervene(
                self.subject.adapter, ids[:, : pos + 1], edits, {t.place for t, _ in here}, self.subject.trace_dtype
            )
            value += sum(w * target.live(self.subject, read[target.place]).mean().item() for target, w in here)
        return value


def _hooks(g: nx.DiGraph) -> dict[Place, int]:
    """Where the graph's dictionaries read, and how many features each has; but for layers of a cross-layer transcoder
    whose own features were not loaded.
    """
    return {Place(sae["layer"], sae["hook"]): sae["d_sae"] for sae in g.graph["saes"] if sae["d_sae"]}


def _hook_of(g: nx.DiGraph, node: Mapping[str, Any]) -> Place:
    """Where the dictionary of a node reads."""
    sae = dictionary_of(g, node)
    assert sae is not None
    return Place(sae["layer"], sae["hook"])


def _without(cut: Cut, gone: Bool[Tensor, "pos d_sae"]) -> Edit:
    """Subtract what these features of an SAE write, as it reads what arrives."""

    def edit(x: Float[Tensor, "batch pos d"]) -> Tensor:
        which = gone[: x.shape[1]].to(x.device).repeat(len(x), 1)
        return x - written_by(cut.sae, x.flatten(0, 1).float(), which).view_as(x).to(x)

    return edit


def _written(
    cut: Cut, place: Place, x: Float[Tensor, "row d_in"], which: Bool[Tensor, "row d_sae"]
) -> Float[Tensor, "row d"]:
    """What these features of a transcoder write at a place."""
    if not isinstance(cut.sae, CrossLayerFeatures):
        return written_by(cut.sae, x, which)
    acts = cut.sae.encode(x) * which
    index = acts.any(0).nonzero()[:, 0]
    return acts[:, index] @ cut.sae.whole.decoder(cut.layer, index.cpu(), place.layer).to(acts)


def _one_by_one(edits: Sequence[Edit], x: Float[Tensor, "batch pos d"]) -> Tensor:
    for edit in edits:
        x = edit(x)
    return x


def _less(x: Float[Tensor, "batch pos d"], pos: int, part: Float[Tensor, "d"]) -> Tensor:
    x = x.clone()
    if pos < x.shape[1]:
        x[:, pos] -= part.to(x)
    return x


def _zeroed(z: Float[Tensor, "batch pos d"], own: slice) -> Tensor:
    z = z.clone()
    z[..., own] = 0
    return z


def _shuffled(
    mask: Bool[Tensor, "active"], candidates: Bool[Tensor, "active"], generator: torch.Generator
) -> Bool[Tensor, "active"]:
    """As many, drawn from the candidates."""
    shuffled, places = torch.zeros_like(mask), candidates.nonzero()[:, 0]
    shuffled[places] = mask[places][torch.randperm(len(places), generator=generator)]
    return shuffled
