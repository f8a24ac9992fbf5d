"""What a graph stands on: places of the model where a tensor is split into sources that sum to it exactly.

At the embeddings the sources are the tokens. At a dictionary they are its active features, one error per position, and
the decoder's constant. A cut on the residual stream is *whole*: nothing passes by. All others are at the *side*: an SAE
on what a sublayer has inside or adds, or a transcoder, which stands for what the MLP adds. The features of a layer of a
cross-layer transcoder are sources of what the MLPs of all later layers add, too.

A cut's own features read what lies below it, everything else what stands on it: so a cut never feeds itself, and every
other one may feed its features, in the same layer too. Position 0, where it is a special token or an attention sink,
has no features: the whole tensor there is one source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.backward import Cuts, Met, Seeds
from ..passes.record import Trace
from ..passes.rows import Rows
from ..passes.sinks import sinks
from ..passes.sources import Split
from ..saes import CrossLayer, CrossLayerFeatures, Encoded, Fit, Stands
from ..saes.encode import explained_variance
from ..saes.own import detached
from ..subject import Subject

if TYPE_CHECKING:
    from sae_lens import SAE


class Written(Protocol):
    """What active features are at one place."""

    def part(self, some: slice | Int[Tensor, "chosen"]) -> Float[Tensor, "chosen d"]: ...


@dataclass(frozen=True)
class LayerParts:
    """What the active features of one layer of a cross-layer transcoder write into one layer: activation · row."""

    activation: Float[Tensor, "n_active"]
    rows: Float[Tensor, "n_unique d_model"] = field(repr=False)
    row_of: Int[Tensor, "n_active"] = field(repr=False)

    def part(self, some: slice | Int[Tensor, "chosen"]) -> Float[Tensor, "chosen d_model"]:
        return self.activation[some, None] * self.rows[self.row_of[some]].to(self.activation)


@dataclass(frozen=True)
class Active:
    """Active features, by position, then index."""

    pos: Int[Tensor, "n_active"]
    index: Int[Tensor, "n_active"]
    activation: Float[Tensor, "n_active"]

    @classmethod
    def of(cls, found: Float[Tensor, "pos d_sae"], like: Tensor, after: int = 0) -> Active:
        """after: no feature of the positions before it counts."""
        pos, index = found.nonzero(as_tuple=True)
        pos, index = pos[pos >= after], index[pos >= after]
        return cls(pos, index, detached(found[pos, index], like.dtype))

    @classmethod
    def none(cls, like: Tensor) -> Active:
        nothing = torch.zeros(0, dtype=torch.long, device=like.device)
        return cls(nothing, nothing, like.new_zeros(0))


@dataclass(frozen=True)
class Cut:
    """The sources at one place, in this order: features (by position, then index), one root per position, the
    constant, and, of a whole cut, the bias vectors from here to what reads it.

    hook: where its dictionary reads, after which it is named. layer: -1 stands for the embeddings. stands: what it
    splits. encoded: None at the embeddings, and where only features of earlier layers write. written: what its features
    are at each place; all that they are of the stream, but for a cross-layer transcoder's, is at the cut's own.
    roots: a token's embedding, a dictionary's error, or position 0's whole tensor. is_token: which of them are tokens.
    constant: the decoder's, zero where there is none. skip: what a transcoder hands through is ``x @ skip.T``.
    """

    layer: int
    hook: Place
    stands: Stands
    encoded: Encoded | None = field(repr=False)
    active: Active = field(repr=False)
    written: Mapping[Place, Written] = field(repr=False)
    roots: Float[Tensor, "pos d"] = field(repr=False)
    is_token: tuple[bool, ...]
    constant: Float[Tensor, "pos d"] = field(repr=False)
    skip: Float[Tensor, "d d_in"] | None = field(default=None, repr=False)
    fit: Fit | None = None

    @property
    def place(self) -> Place:
        """Of the tensor that it splits."""
        return self.stands.place

    @property
    def is_whole(self) -> bool:
        return self.place.is_stream

    @property
    def sae(self) -> SAE | None:
        return None if self.encoded is None else self.encoded.sae

    @property
    def n_features(self) -> int:
        return len(self.active.pos)

    @property
    def n_sources(self) -> int:
        return self.n_features + len(self.roots) + 2

    @cached_property
    def positions(self) -> list[int]:
        """Of every feature and root."""
        return [*self.active.pos.tolist(), *range(len(self.roots))]

    @cached_property
    def offsets(self) -> list[int]:
        """offsets[p]:offsets[p+1] are the features of position p."""
        counts = torch.bincount(self.active.pos.cpu(), minlength=len(self.roots))
        return [0, *counts.cumsum(0).tolist()]

    def part(self, some: slice | Int[Tensor, "chosen"], place: Place | None = None) -> Float[Tensor, "chosen d"]:
        """What some of the features are at a place (None: its own)."""
        return self.written[self.place if place is None else place].part(some)

    def source_of(self, pos: int, index: int) -> int | None:
        """A feature's number among the sources, where it fires."""
        found = ((self.active.pos == pos) & (self.active.index == index)).nonzero()
        return int(found[0]) if len(found) else None

    def is_error(self, source: int) -> bool:
        root = source - self.n_features
        return 0 <= root < len(self.roots) and not self.is_token[root]

    def handed(self, gradient: Float[Tensor, "target pos d"], place: Place) -> Float[Tensor, "target source"]:
        """⟨gradient, part⟩ for every source at a place; the gradient may end before the cut's last position."""
        n = gradient.shape[1]
        found = gradient.new_zeros(len(gradient), self.n_sources)
        if self.n_features:
            for pos in range(n):
                some = slice(self.offsets[pos], self.offsets[pos + 1])
                found[:, some] = gradient[:, pos] @ self.part(some, place).to(gradient).T
        if place == self.place:
            found[:, self.n_features : self.n_features + n] = torch.einsum("tpd,pd->tp", gradient, self.roots[:n])
            found[:, -2] = torch.einsum("tpd,pd->t", gradient, self.constant[:n])
        return found

    def skipped(self, gradient: Float[Tensor, "target pos d"]) -> Seeds:
        """What of a gradient goes through the skip connection, to what the transcoder reads."""
        if self.skip is None:
            return {}
        through = gradient @ self.skip.to(gradient)
        if self.is_token[0]:
            through[:, 0] = 0  # all that is there is the token's
        return {self.hook: through}

    def start(self) -> Split:
        """The sources of a whole cut for the forward engine. ``bias`` is its own, and ``rest`` stays empty."""
        n, m = len(self.roots), self.n_sources
        pos = torch.tensor(self.positions)
        present = torch.zeros(n, m + 1, dtype=torch.bool)
        present[pos, torch.arange(m - 2)] = True
        has_constant = self.constant.any(dim=-1).cpu()
        present[:, m - 2] = has_constant
        parts = [self.part(slice(None)).to(self.roots)] if self.n_features else []
        own = torch.cat([*parts, self.roots])
        order = [
            source for p in range(n) for source in (*range(self.offsets[p], self.offsets[p + 1]), self.n_features + p)
        ]
        values = self.roots.new_zeros(int(present.sum()), self.roots.shape[1])
        is_constant = present.nonzero(as_tuple=True)[1] == m - 2
        values[~is_constant] = own[order]
        values[is_constant] = self.constant[has_constant.to(self.constant.device)]
        first_only = torch.zeros(m + 1, dtype=torch.bool)
        first_only[: m - 2] = pos == 0
        labels = [str(source) for source in range(m - 2)]
        rows = Rows(torch.arange(n), present, values)
        return Split(self.place, rows, (*labels, "constant", "bias", "rest"), first_only)


@dataclass(frozen=True)
class Standing:
    """All cuts of a graph, the embeddings first, then by where their dictionaries read."""

    cuts: Sequence[Cut]

    def below(self, level: int) -> int:
        """The whole cut below what a cut's features read, or below the logits: where their sweep ends."""
        return max(number for number in range(level) if self.cuts[number].is_whole)

    def behind(self, place: Place) -> int:
        """The level of what reads a place above the cuts there: how many stand at it or below."""
        return sum(cut.place.as_post <= place.as_post for cut in self.cuts)

    def meeting(self, hand: Callable[[int, Place, Tensor], None]) -> Cuts:
        """The cuts beside the stream for a sweep. hand: is given each cut that has sources at a place, by its number,
        with the gradient there.
        """
        met = Cuts({}, {}, {})
        for cut in self.cuts:
            if not cut.is_whole:
                kind = met.values if not cut.stands.instead else met.raw if cut.stands.before_norm else met.equations
                kind[cut.place] = self._met(cut, hand)  # type: ignore[index]
        return met

    def _met(self, owner: Cut, hand: Callable[[int, Place, Tensor], None]) -> Met:
        place = owner.place
        there = [
            number
            for number, cut in enumerate(self.cuts)
            if cut is owner or (owner.stands.instead and cut.stands.instead and place in cut.written)
        ]

        def met(gradient: Float[Tensor, "target pos d"]) -> Seeds:
            for number in there:
                hand(number, place, gradient)
            return owner.skipped(gradient)

        return met


# ------------------------------------------------------------------------------------------------------ made of a trace


def embedding_cut(seen: Trace) -> Cut:
    """The tokens, position embeddings included."""
    x, place = seen.resid_pre[0], Place(0, "resid_pre")
    return Cut(-1, place, Stands(place), None, Active.none(x), {}, x, (True,) * len(x), torch.zeros_like(x))


def standing_on(subject: Subject, seen: Trace, prompt: Prompt, hooks: Mapping[Place, Stands]) -> Standing:
    """The embeddings, and the cuts of these dictionaries as far as the trace goes."""
    crossing = {hook: sae for hook in hooks if isinstance(sae := subject.saes[hook], CrossLayerFeatures)}
    cuts = [dictionary_cut(subject, seen, prompt, hook, hooks[hook]) for hook in hooks if hook not in crossing]
    if crossing:
        cuts += _crossing_cuts(subject, seen, prompt, crossing)
    return Standing([embedding_cut(seen), *sorted(cuts, key=lambda cut: cut.hook)])


def sae_cut(subject: Subject, seen: Trace, prompt: Prompt, hook: Place) -> Cut:
    """The tensor that an SAE reads and splits."""
    return dictionary_cut(subject, seen, prompt, hook, Stands(hook))


def dictionary_cut(subject: Subject, seen: Trace, prompt: Prompt, hook: Place, stands: Stands) -> Cut:
    """The tensor that an SAE or a transcoder stands for."""
    if stands.before_norm and subject.adapter.sublayer(stands.place.depth).post is None:
        stands = replace(stands, before_norm=False)
    encoded, y = subject.encoding(seen, hook), _tensor(seen, stands)
    found, skip = encoded.parts, None
    if stands.instead:
        sae = encoded.sae
        error = y - detached(sae.decode(encoded.activations), y.dtype)
        if found.skip is not None:
            error, skip = error - found.skip.to(y), detached(sae.W_skip, y.dtype)
        fit = encoded.fit_to(y, error)
    else:
        assert found.error is not None
        error, fit = found.error, encoded.fit
    roots, constant = error.to(y).clone(), found.constant.to(y).clone()
    means_nothing = _means_nothing(seen, prompt, stands.place)
    if means_nothing:
        roots[0], constant[0] = y[0], 0
        found = found.without_position_0()
    active = Active(found.pos, found.index, found.activation)
    written = {stands.place: found}
    return Cut(
        hook.layer, hook, stands, encoded, active, written, roots, _tokens(y, means_nothing), constant, skip, fit
    )


def _crossing_cuts(
    subject: Subject, seen: Trace, prompt: Prompt, crossing: Mapping[Place, CrossLayerFeatures]
) -> list[Cut]:
    """What the MLPs add from the first layer of a cross-layer transcoder on.

    Where a layer's own features are not loaded they are in its error, as is all that earlier ones would write.
    """
    whole = next(iter(crossing.values())).whole
    first = min(hook.layer for hook in crossing)
    layers = range(first, min(whole.n_layers, seen.n_layers))
    nothing = {layer: _means_nothing(seen, prompt, Place(layer, "mlp_out")) for layer in layers}
    encoded = {hook.layer: subject.encoding(seen, hook) for hook in crossing if hook.layer in layers}
    active = {
        layer: Active.of(found.activations, seen.resid_post, int(nothing[layer])) for layer, found in encoded.items()
    }
    written = {layer: _writes(whole, layer, found, nothing) for layer, found in active.items()}
    cuts = []
    for layer in layers:
        place = Place(layer, "mlp_out")
        stands, y = Stands(place, instead=True), seen.at(place)
        constant = whole.constant(layer).to(y).expand_as(y).clone()
        error = y - constant
        for earlier, found in active.items():
            if earlier <= layer:
                error.index_add_(0, found.pos, -written[earlier][place].part(slice(None)).to(error))
        own, fit = encoded.get(layer), Fit(explained_variance(y[1:].double(), error[1:].double()), 0.0, None)
        if own is not None:
            fit = own.fit_to(y, error)
            if any(earlier not in encoded for earlier in range(layer)):
                fit = replace(fit, warning=None)  # what it misses is what was not loaded
        if nothing[layer]:
            error[0], constant[0] = y[0], 0
        hook, tokens = whole.place(layer), _tokens(y, nothing[layer])
        features = active.get(layer, Active.none(y))
        cuts.append(Cut(layer, hook, stands, own, features, written.get(layer, {}), error, tokens, constant, None, fit))
    return cuts


def _writes(whole: CrossLayer, layer: int, active: Active, nothing: Mapping[int, bool]) -> dict[Place, Written]:
    """What the active features of a layer write into it and every later one; nothing where position 0 means nothing."""
    features, row_of = active.index.unique(return_inverse=True)
    rows = whole.decoders(layer, features.cpu()).to(active.activation.device)
    found: dict[Place, Written] = {}
    for into in (into for into in nothing if into >= layer):
        activation = active.activation * ~((active.pos == 0) & nothing[into])
        found[Place(into, "mlp_out")] = LayerParts(activation, rows[:, into - layer], row_of)
    return found


def _tensor(seen: Trace, stands: Stands) -> Float[Tensor, "pos d"]:
    """What the model computed where a dictionary stands."""
    if not stands.before_norm:
        return seen.at(stands.place)
    return seen.sublayer(stands.place.depth).record.at["raw"].to(seen.resid_post.dtype)


def _means_nothing(seen: Trace, prompt: Prompt, place: Place) -> bool:
    """Whether position 0 is a special token, or a sink where a tensor is computed."""
    return prompt.special[0] or 0 in sinks(seen, place)


def _tokens(x: Float[Tensor, "pos d"], means_nothing: bool) -> tuple[bool, ...]:
    return tuple(pos == 0 and means_nothing for pos in range(len(x)))
