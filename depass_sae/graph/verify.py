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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..attribution.measure import check_seed
from ..attribution.removal import Replacing
from ..attribution.targets import FeatureTarget, LogitTarget, Target
from ..errors import UserError
from ..files import same_place
from ..models.adapter import Adapter
from ..models.place import Place
from ..models.prompt import Prompt, check_ids, special_ids
from ..passes.intervene import Edit, intervene
from ..passes.memory import check_memory
from ..passes.mixers import mixer_of
from ..passes.record import Trace
from ..passes.settings import Settings
from ..saes import written_by
from ..subject import Subject
from .build import trace_bytes
from .cuts import Cut, sae_cut
from .document import LARGEST, TESTED, check_graph
from .influence import downwards

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
        **_agreement(nodes),
        "together": study.together(generator),
    }
    return verified


def check_verifying(max_nodes: int, seed: int) -> None:
    """Raises UserError for numbers that cannot be."""
    if max_nodes < 0:
        raise UserError(f"max_nodes is how many nodes are taken out, and not {max_nodes}")
    check_seed(seed)


def _agreement(nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Spearman's rank correlation and the share of equal signs; None where there is nothing to rank."""
    from scipy.stats import spearmanr

    found: dict[str, Any] = {"rank_correlation": {}, "sign_agreement": {}}
    observed = [node["observed"] for node in nodes]
    for value in ("weight", "effect"):
        said = [node[value] for node in nodes]
        varies = len(set(said)) > 1 and len(set(observed)) > 1
        found["rank_correlation"][value] = float(spearmanr(said, observed).statistic) if varies else None
        same = [a * b > 0 for a, b in zip(said, observed, strict=True)]
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
    hooks = {Place(sae["layer"], sae["hook"]): sae["d_sae"] for sae in g.graph["saes"]}
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
    cuts: dict[int, Cut]
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
        hooks = {sae["layer"]: Place(sae["layer"], sae["hook"]) for sae in g.graph["saes"]}
        seen = subject.trace(prompt, None)
        cuts = {layer: sae_cut(subject, seen, prompt, hook) for layer, hook in hooks.items()}
        targets, value = [], 0.0
        for target in g.graph["target"]:
            node = g.nodes[target["node"]]
            at: Target
            if node["kind"] == "feature":
                at = FeatureTarget(hooks[node["layer"]], node["index"])
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
        cut, pos = self.cuts[node["layer"]], node["pos"]
        part = cut.roots[pos] if node["kind"] != "feature" else self._part(cut, node)
        return self._value({cut.place.as_post: lambda x: _less(x, pos, part)})

    def together(self, generator: torch.Generator) -> dict[str, Any]:
        """The targets with the graph's features alone, without them, and the same for random active features."""
        masks, candidates, counts, last = {}, {}, 0, max(pos for _, pos, _ in self.targets)
        for layer, cut in self.cuts.items():
            assert cut.features is not None
            wanted = {
                (node["pos"], node["index"])
                for _, node in self.g.nodes(data=True)
                if node["kind"] == "feature" and node["layer"] == layer
            }
            pairs = zip(cut.features.pos.tolist(), cut.features.index.tolist(), strict=True)
            masks[layer] = torch.tensor([pair in wanted for pair in pairs], dtype=torch.bool)
            candidates[layer] = cut.features.pos.cpu() <= last  # what comes later cannot matter
            counts += int(masks[layer].sum())
        random = [
            {layer: _shuffled(mask, candidates[layer], generator) for layer, mask in masks.items()}
            for _ in range(DRAWS)
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

    def _part(self, cut: Cut, node: Mapping[str, Any]) -> Float[Tensor, "d_model"]:
        assert cut.features is not None
        found = ((cut.features.pos == node["pos"]) & (cut.features.index == node["index"])).nonzero()[:, 0]
        return cut.features.part(found).sum(0)  # nothing where it does not fire

    def _edits(self, masks: Mapping[int, Bool[Tensor, "active"]], *, drop: bool) -> dict[Place, Edit]:
        """At every SAE: drop these active features (at their positions), or all others."""
        edits = {}
        for layer, cut in self.cuts.items():
            assert cut.features is not None
            assert cut.sae is not None
            chosen = torch.zeros(len(self.prompt), cut.sae.cfg.d_sae, dtype=torch.bool)
            some = masks[layer]
            chosen[cut.features.pos.cpu()[some], cut.features.index.cpu()[some]] = True
            gone = chosen if drop else ~chosen
            if cut.is_token[0]:
                gone[0] = False  # features mean nothing there
            edits[cut.place.as_post] = _without_features(cut, gone)
        return edits

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


def _without_features(cut: Cut, gone: Bool[Tensor, "pos d_sae"]) -> Edit:
    """Subtract what these features write, as the SAE reads the stream that arrives."""

    def edit(x: Float[Tensor, "batch pos d_model"]) -> Tensor:
        which = gone[: x.shape[1]].to(x.device).repeat(len(x), 1)
        return x - written_by(cut.sae, x.flatten(0, 1).float(), which).view_as(x).to(x)

    return edit


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
