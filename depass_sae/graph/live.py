"""A graph's prompt in the live model: some of it is taken out, nothing frozen, and the targets are read.

Features are taken out as each dictionary reads what arrives: those of a set, or all others with those that become
active where others are gone. Dictionaries' errors and constants stay as the edited model makes them. Position 0, where
features mean nothing, is left alone. A target that is a feature is read before its own dictionary is edited, whose
features do not feed it: its own part, and its neighbours', would be taken from what it reads for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attribution.live import Setting, copies_at_once, head_slice, n_heads, no_errors, seen_at
from ..attribution.logits import LogitTarget
from ..attribution.readoff import Target
from ..attribution.targets import DirectionTarget, FeatureTarget
from ..errors import UserError
from ..files import same_place
from ..models.place import Place
from ..models.prompt import Prompt, check_ids, special_ids
from ..passes.intervene import Edit, in_turn, intervene
from ..passes.memory import check_memory
from ..passes.record import Trace
from ..saes import CrossLayerFeatures, written_by
from ..subject import Subject
from .build import crossed, trace_bytes
from .cuts import Cut, standing_on
from .feature_game import LEAST
from .names import dictionary_of, logit_target
from .standing import graph_hooks

if TYPE_CHECKING:
    import networkx as nx

Edits = Mapping[Place, Edit]
Taken = Mapping[Place | None, Edits]
"""What is done at which places, by the dictionary that it is done to; None for what is no dictionary's."""


@dataclass(frozen=True)
class Aim:
    """One of the graph's targets. centred: what shares are of: a logit is then over the mean of all logits."""

    target: Target
    centred: Target
    pos: int
    weight: float

    @classmethod
    def of(cls, target: Target, pos: int, weight: float) -> Aim:
        return cls(target, target.over_mean() if isinstance(target, LogitTarget) else target, pos, weight)

    @property
    def reads(self) -> Place | None:
        """Where it is read; None for logits."""
        return self.target.place

    @property
    def read_with(self) -> tuple[int, Place | None, bool]:
        """What the targets have in common that one run reads."""
        return self.pos, self.target.place, isinstance(self.target, FeatureTarget)

    def is_above(self, hook: Place) -> bool:
        """Whether the features of a dictionary can feed it: not those of its own, whose sum a direction does read."""
        place = self.target.place
        if place is None:
            return True
        return hook < place if isinstance(self.target, FeatureTarget) else hook.as_post <= place.as_post


@dataclass(frozen=True)
class Left:
    """The targets in edited copies of the prompt: their value, and their share of what they are in the whole model, of
    logits over the mean of all logits. share is None where there is next to nothing of them.
    """

    value: Float[Tensor, "copy"]
    share: Float[Tensor, "copy"] | None


@dataclass(frozen=True)
class Players:
    """The active features that could reach the targets: below one of them, at a position that it sees."""

    hooks: Sequence[Place]
    hook: Int[Tensor, "player"]
    pos: Int[Tensor, "player"]
    index: Int[Tensor, "player"]

    def __len__(self) -> int:
        return len(self.pos)

    @property
    def cells(self) -> Int[Tensor, "player"]:
        """Of every player a number for its dictionary and position."""
        return self.hook * 2**31 + self.pos  # no prompt is as long

    @cached_property
    def named(self) -> list[tuple[Place, int, int]]:
        """Of every player its hook, position and index."""
        columns = zip(self.hook.tolist(), self.pos.tolist(), self.index.tolist(), strict=True)
        return [(self.hooks[hook], pos, index) for hook, pos, index in columns]


@dataclass(frozen=True)
class LiveGraph:
    """The graph's prompt in the model that it was made of. value, whole: of the untouched model, the latter with
    logits over the mean of all logits.
    """

    subject: Subject
    g: nx.DiGraph
    prompt: Prompt
    seen: Trace = field(repr=False)
    cuts: Mapping[Place, Cut] = field(repr=False)
    aims: Sequence[Aim]
    value: float
    whole: float

    @classmethod
    def of(cls, subject: Subject, g: nx.DiGraph) -> LiveGraph:
        """Raises UserError where the graph is of another model, other SAEs or another tokenizer."""
        if g.graph.get("average"):
            raise UserError("the graph is a mean over prompts; verify the graph of one of them")
        ids, specials = tuple(g.graph["token_ids"]), special_ids(subject.loaded)
        if not same_place(g.graph["model"], subject.loaded.name):
            raise UserError(f"the graph is of {g.graph['model']}, and {subject.loaded.name} is loaded")
        _check_fits(subject, g)
        check_memory(trace_bytes(subject, len(ids)), "recording the prompt", subject.adapter.device)
        prompt = Prompt(g.graph["prompt"], ids, tuple(g.graph["tokens"]), tuple(i in specials for i in ids))
        hooks = graph_hooks(subject, [*_hooks(g)])
        across = {Place(sae["layer"], "mlp_out") for sae in g.graph["saes"] if not sae["d_sae"]}
        targets = [(entry, _target(g, entry)) for entry in g.graph["target"]]
        for _, target in targets:
            target.check(subject)
        read_at = [target.place for _, target in targets]
        aimed = {place for place in read_at if place is not None}
        places = aimed.union(*((hook, stands.place) for hook, stands in hooks.items()))
        until = None if None in read_at else max(place.layer for place in (*hooks, *aimed))
        across = {place for place in across if until is None or place.layer <= until}
        seen = subject.trace(prompt, until, places | across | crossed(subject, hooks, until))
        cuts = {cut.hook: cut for cut in standing_on(subject, seen, prompt, hooks).cuts[1:]}
        aims, value, whole = [], 0.0, 0.0
        for entry, target in targets:
            node = g.nodes[entry["node"]]
            aim = Aim.of(target, node["pos"], entry["weight"])
            readoff = aim.target.read(subject, seen)
            pre = readoff.pre[aim.pos].item()
            if abs(pre - node["pre_activation"]) > 0.02 * max(abs(pre), 1.0):
                raise UserError(
                    f"{entry['name']} is {node['pre_activation']:.3f} in the graph and {pre:.3f} in this model: "
                    "the graph was made with other weights, SAEs or dtype"
                )
            aims.append(aim)
            value += aim.weight * readoff.now[aim.pos].item()
            whole += aim.weight * aim.centred.read(subject, seen).now[aim.pos].item()
        return cls(subject, g, prompt, seen, cuts, aims, value, whole)

    # --- one part

    def without_head(self, layer: int, head: int) -> Taken:
        own = head_slice(self.subject.adapter, layer, head)
        return {None: {Place(layer, "hook_z"): lambda z: _zeroed(z, own)}}

    def without_node(self, node: Mapping[str, Any]) -> Taken:
        """Without a feature's part, an error, or a token that stands for the whole of position 0, as recorded."""
        cut, pos = self.cuts[hook_of(self.g, node)], node["pos"]
        parts = {cut.place: cut.roots[pos]} if node["kind"] != "feature" else _parts(cut, node)
        return {cut.hook: {place.as_post: self._less(cut, place, pos, part) for place, part in parts.items()}}

    # --- sets of features

    @cached_property
    def players(self) -> Players:
        """The active features below a target, at the positions that it sees: what comes later cannot matter."""
        last = max(aim.pos for aim in self.aims)
        hooks = [
            hook
            for hook, cut in self.cuts.items()
            if cut.sae is not None and any(aim.is_above(hook) for aim in self.aims)
        ]
        actives = [self.cuts[hook].active for hook in hooks]
        here = [(active.pos <= last).cpu() for active in actives]
        number = [torch.full((int(some.sum()),), n) for n, some in enumerate(here)]
        pos, index = (
            [getattr(a, of).cpu()[some] for a, some in zip(actives, here, strict=True)] for of in ("pos", "index")
        )
        none = torch.zeros(0, dtype=torch.long)
        return Players(hooks, *(torch.cat([none, *column]) for column in (number, pos, index)))

    @cached_property
    def members(self) -> Bool[Tensor, "player"]:
        """Which of the players are the graph's."""
        nodes = [node for _, node in self.g.nodes(data=True) if node["kind"] == "feature"]
        own = {(hook_of(self.g, node), node["pos"], node["index"]) for node in nodes}
        return torch.tensor([player in own for player in self.players.named], dtype=torch.bool)

    def keep(self, sets: Bool[Tensor, "set player"], *, errors: bool = True) -> Left:
        """With each set of features alone. errors: whether what the dictionaries miss stays, too."""
        return self._played(sets, others=True, errors=errors)

    def lose(self, sets: Bool[Tensor, "set player"]) -> Left:
        """Without each set of features."""
        return self._played(sets, others=False, errors=True)

    def _played(self, sets: Bool[Tensor, "set player"], *, others: bool, errors: bool) -> Left:
        """others: whether it is not the set that goes, but all else."""
        widest = max((self.cuts[hook].sae.cfg.d_sae for hook in self.players.hooks), default=1)  # type: ignore[union-attr]
        found = []
        for some in sets.split(copies_at_once(len(self.prompt), widest)):
            gone = {hook: self._gone(hook, some, others) for hook in self.players.hooks}
            found.append(self.run(self._without(gone, errors), self.prompt.ids().repeat(len(some), 1)))
        shares = [left.share for left in found if left.share is not None]
        return Left(torch.cat([left.value for left in found]), torch.cat(shares) if shares else None)

    def _gone(self, hook: Place, sets: Bool[Tensor, "set player"], others: bool) -> Bool[Tensor, "set pos d_sae"]:
        """What goes of a dictionary's features, at every position."""
        cut, players = self.cuts[hook], self.players
        assert cut.sae is not None
        own = players.hook == players.hooks.index(hook)
        chosen = torch.zeros(len(sets), len(self.prompt), cut.sae.cfg.d_sae, dtype=torch.bool)
        chosen[:, players.pos[own], players.index[own]] = sets[:, own]
        return ~chosen if others else chosen

    # --- what is done at the dictionaries

    def _without(self, gone: Mapping[Place, Bool[Tensor, "copy pos d_sae"]], errors: bool) -> list[Taken]:
        """What dictionaries' features write is exchanged as each reads what arrives. Errors go first: what is left of
        an MLP's output without them is what is read, whatever goes of it then.
        """
        read: dict[Place, Tensor] = {}
        bare: dict[Place | None, Edits] = {}
        taken: dict[Place | None, Edits] = {}
        for hook, cut in self.cuts.items():
            if not cut.stands.instead:
                if hook in gone:
                    taken[hook] = {cut.place: self._set(cut, gone[hook], errors)}
                continue
            if not errors:
                bare[hook] = {cut.place: self._made_of_features(cut, read)}
            if hook in gone:
                at, noted = self._noting(cut, read)
                taken[hook] = {at: noted} | {
                    place: self._less_of(cut, place, gone[hook], read) for place in cut.written
                }
        return [bare, taken]

    def _set(self, cut: Cut, gone: Bool[Tensor, "copy pos d_sae"], errors: bool) -> Edit:
        """An SAE's features, as :mod:`..attribution.live` sets them."""

        def edit(x: Float[Tensor, "copy pos d"]) -> Tensor:
            n = x.shape[1]
            touched = torch.arange(n, device=x.device) >= int(cut.is_token[0])
            kept = (~gone[:, :n]).to(x.device, torch.float32)
            error = None if errors else no_errors(cut.roots[:n])
            return Setting(cut.sae, kept, torch.zeros_like(kept[0]), touched, error=error)(x)

        return edit

    def _noting(self, cut: Cut, read: dict[Place, Tensor]) -> tuple[Place, Edit]:
        """Where what a transcoder reads is seen on its way, and the edit that notes it."""
        at, made = seen_at(self.subject.adapter, cut.hook)

        def note(x: Float[Tensor, "copy pos d_in"]) -> Tensor:
            read[cut.hook] = made(x)
            return x

        return at, note

    def _less_of(
        self, cut: Cut, place: Place, gone: Bool[Tensor, "copy pos d_sae"], read: Mapping[Place, Tensor]
    ) -> Edit:
        """Without what these features of a transcoder write at a place."""

        def edit(x: Float[Tensor, "copy pos d"]) -> Tensor:
            return x - self._writes(cut, place, read[cut.hook], gone[:, : x.shape[1]].to(x.device)).to(x)

        return edit

    def _made_of_features(self, cut: Cut, read: Mapping[Place, Tensor]) -> Edit:
        """What an MLP adds without the error: the constant, what is handed through, and what all features write."""
        place = cut.place

        def edit(x: Float[Tensor, "copy pos d"]) -> Tensor:
            n = x.shape[1]
            fixed = cut.constant[:n].expand(len(x), -1, -1)
            if cut.skip is not None:
                fixed = fixed + read[cut.hook].to(fixed) @ cut.skip.T
            made = self._behind(cut, place, fixed, torch.arange(n))
            for other in self.cuts.values():
                if other.stands.instead and place in other.written and other.sae is not None:
                    every = torch.ones(len(x), n, other.sae.cfg.d_sae, dtype=torch.bool, device=x.device)
                    made = made + self._writes(other, place, read[other.hook], every).to(made)
            first = torch.arange(n, device=x.device)[:, None] < int(self._is_token(place))
            return torch.where(first, x, made.to(x))

        return edit

    def _writes(
        self, cut: Cut, place: Place, read: Float[Tensor, "copy pos d_in"], which: Bool[Tensor, "copy pos d_sae"]
    ) -> Float[Tensor, "copy pos d"]:
        """What these features of a transcoder write at a place; nothing at a position 0 that means nothing there."""
        parts = _written(cut, place, read.flatten(0, 1).float(), which.flatten(0, 1)).unflatten(0, read.shape[:2])
        if self._is_token(place):
            parts[:, 0] = 0
        return self._behind(cut, place, parts, torch.arange(read.shape[1]))

    def _is_token(self, place: Place) -> bool:
        """Whether position 0 means nothing at a place."""
        return any(cut.is_token[0] for cut in self.cuts.values() if cut.place == place)

    def _less(self, cut: Cut, place: Place, pos: int, part: Float[Tensor, "d"]) -> Edit:
        """Without a part at a position."""
        part = self._behind(cut, place, part[None], torch.tensor([pos]))[0]
        return lambda x: _less(x, pos, part)

    def _behind(
        self, cut: Cut, place: Place, parts: Float[Tensor, "*copy pos d"], positions: Int[Tensor, "pos"]
    ) -> Float[Tensor, "*copy pos d"]:
        """Of what a transcoder writes before a norm: what comes out of that, its scale as it was."""
        post = self.seen.sublayer(place.depth).post if cut.stands.before_norm else None
        return parts if post is None else post.frozen(parts, self.seen.post_scale(place, positions))

    # --- the run

    def run(self, taken: Sequence[Taken], ids: Int[Tensor, "copy pos"] | None = None) -> Left:
        """The targets in edited copies of the prompt (None: one copy), each read above what is below it alone."""
        ids = self.prompt.ids()[None] if ids is None else ids
        value = torch.zeros(len(ids), dtype=torch.float64)
        share = value.clone()
        for key in {aim.read_with: None for aim in self.aims}:
            here = [aim for aim in self.aims if aim.read_with == key]
            pos, place = here[0].pos, here[0].reads
            read = intervene(
                self.subject.adapter, ids[:, : pos + 1], _merged(taken, here[0]), {place}, self.subject.trace_dtype
            )[place]
            for aim in here:
                value += aim.weight * aim.target.live(self.subject, read).double().cpu()
                share += aim.weight * aim.centred.live(self.subject, read).double().cpu()
        return Left(value, None if abs(self.whole) < LEAST else share / self.whole)


def _merged(taken: Sequence[Taken], aim: Aim) -> Edits:
    """What is done below a target, at each place one after the other."""
    edits: dict[Place, list[Edit]] = {}
    for some in taken:
        for hook, own in some.items():
            if hook is None or aim.is_above(hook):
                for place, edit in own.items():
                    edits.setdefault(place.as_post, []).append(edit)
    return in_turn(edits)


# ------------------------------------------------------------------------------------------- what the graph stands on


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
    named = [logit_target(node) for node in logits]
    largest = max((token for target in named for token in (*target.tokens, *target.others)), default=0)
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
        if node["kind"] == "head" and node["index"] >= (n := n_heads(adapter, node["layer"])):
            raise UserError(f"the graph has a head {node['layer']}.{node['index']}, and the heads are 0 to {n - 1}")


def _hooks(g: nx.DiGraph) -> dict[Place, int]:
    """Where the graph's dictionaries read, and how many features each has; but for layers of a cross-layer transcoder
    whose own features were not loaded.
    """
    return {Place(sae["layer"], sae["hook"]): sae["d_sae"] for sae in g.graph["saes"] if sae["d_sae"]}


def hook_of(g: nx.DiGraph, node: Mapping[str, Any]) -> Place:
    """Where the dictionary of a node reads."""
    sae = dictionary_of(g, node)
    assert sae is not None
    return Place(sae["layer"], sae["hook"])


def _target(g: nx.DiGraph, entry: Mapping[str, Any]) -> Target:
    node = g.nodes[entry["node"]]
    if node["kind"] == "feature":
        return FeatureTarget(hook_of(g, node), node["index"])
    if node["kind"] == "direction":
        return DirectionTarget(torch.tensor(entry["direction"]), Place(node["layer"], node["hook"]), entry["name"])
    return logit_target(node)


# ------------------------------------------------------------------------------------------------------------- parts


def _parts(cut: Cut, node: Mapping[str, Any]) -> dict[Place, Float[Tensor, "d"]]:
    """What a feature is at each place; nothing where it does not fire."""
    found = ((cut.active.pos == node["pos"]) & (cut.active.index == node["index"])).nonzero()[:, 0]
    return {place: cut.part(found, place).sum(0) for place in cut.written}


def _written(
    cut: Cut, place: Place, x: Float[Tensor, "row d_in"], which: Bool[Tensor, "row d_sae"]
) -> Float[Tensor, "row d"]:
    """What these features of a transcoder write at a place."""
    if not isinstance(cut.sae, CrossLayerFeatures):
        return written_by(cut.sae, x, which)
    acts = cut.sae.encode(x) * which
    index = acts.any(0).nonzero()[:, 0]
    return acts[:, index] @ cut.sae.whole.decoder(cut.layer, index.cpu(), place.layer).to(acts)


def _less(x: Float[Tensor, "copy pos d"], pos: int, part: Float[Tensor, "d"]) -> Tensor:
    x = x.clone()
    if pos < x.shape[1]:
        x[:, pos] -= part.to(x)
    return x


def _zeroed(z: Float[Tensor, "copy pos d"], own: slice) -> Tensor:
    z = z.clone()
    z[..., own] = 0
    return z
