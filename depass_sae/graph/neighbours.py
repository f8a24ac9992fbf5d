"""A feature among others: which features are like it, before it, behind it.

Behind it and before it are meant by flow. What the features at the previous SAE layer contribute to this one's
pre-activation is one backward sweep, and their first-order effect on it another; what this one contributes to the
features at the next SAE layer is its own part of the stream carried forward to there, read along their encoders. Under
the rules ``half`` and ``linear`` contributions are exact and independent of all other parts. They and the effects equal
those of a feature-flow graph's edges between the same features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attribution.votes import into_stream, writes_at
from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.record import Trace
from ..passes.settings import Settings
from ..passes.sinks import sinks
from ..passes.sources import Vectors
from ..saes import CrossLayerFeatures, encoder_directions
from ..subject import Subject
from .cuts import Standing, sae_cut
from .flow import inflow
from .reads import encoder_reads
from .standing import is_whole

if TYPE_CHECKING:
    from sae_lens import SAE

AT_ONCE = 2**13
"""So many rows of a decoder are taken to float32 at a time."""


# ------------------------------------------------------------------------------------------------- from the weights


@dataclass(frozen=True)
class Alike:
    """A feature of the same SAE, and the cosine of its decoder row with this one's."""

    index: int
    cosine: float


def nearest(sae: SAE, index: int, top: int) -> tuple[Alike, ...]:
    """The features whose decoder rows point most nearly the same way; a cross-layer transcoder's, over all layers."""
    if isinstance(sae, CrossLayerFeatures):
        row = sae.decoders(index).flatten()
        blocks: Iterable[Tensor] = (block.flatten(1) for block in sae.decoder_blocks())
    else:
        row, blocks = sae.W_dec[index].detach(), sae.W_dec.detach().split(AT_ONCE)
    own = _unit(row[None])[0]
    cosines = torch.cat([_unit(some) @ own for some in blocks])
    cosines[index] = -torch.inf
    order = cosines.argsort(descending=True, stable=True)[: min(top, len(cosines) - 1)]
    return tuple(Alike(i, cosines[i].item()) for i in order.tolist())


def _unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return torch.nn.functional.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)


# --------------------------------------------------------------------------------------------------------- by flow


def hooks_before(subject: Subject, hook: Place) -> list[Place]:
    """The SAEs on the residual stream before what a feature at ``hook`` reads, the first ones first."""
    before = [other for other in subject.saes if is_whole(subject, other) and other.depth < hook.behind]
    return sorted(before, key=lambda other: (other.depth, other))


def previous_hook(subject: Subject, hook: Place) -> Place | None:
    """The last of :func:`hooks_before`."""
    return next(reversed(hooks_before(subject, hook)), None)


def next_hook(subject: Subject, hook: Place) -> Place | None:
    """The first SAE on the residual stream behind where a feature at ``hook`` writes."""
    place = writes_at(subject, hook)
    if place is None:
        return None
    # An SAE on the place that a module writes to reads what it wrote.
    from_ = place.depth + (hook.hook == place.hook)
    behind = [other for other in subject.saes if is_whole(subject, other) and other.depth >= from_]
    return min(behind, key=lambda other: (other.depth, other), default=None)


@dataclass(frozen=True)
class ByFeature:
    """Contributions from or to the features of one SAE: an entry for each pair of a place and a feature."""

    index: Int[Tensor, "entry"]
    value: Float[Tensor, "entry"]

    @classmethod
    def joined(cls, parts: Sequence[ByFeature]) -> ByFeature:
        return cls(torch.cat([part.index for part in parts]), torch.cat([part.value for part in parts]))

    def sums(self, d_sae: int) -> Float[Tensor, "d_sae"]:
        return self.value.new_zeros(d_sae).index_add_(0, self.index, self.value)

    def counts(self, d_sae: int) -> Int[Tensor, "d_sae"]:
        return torch.bincount(self.index, minlength=d_sae)


@dataclass(frozen=True)
class Arrived:
    """What arrives at one feature at some positions from the previous SAE layer; it sums to the pre-activations.

    features: an entry per position and feature of that SAE. effects: of each of its features over all positions, in no
    sum. errors: of that SAE. other: position 0's stream, the decoder's constant, bias vectors, and the feature's own
    constant.
    """

    features: ByFeature
    effects: Float[Tensor, "d_sae"]
    errors: Float[Tensor, "read"]
    other: Float[Tensor, "read"]


def inflow_from(
    subject: Subject,
    seen: Trace,
    prompt: Prompt,
    source: Place,
    hook: Place,
    index: int,
    positions: Sequence[int],
    settings: Settings,
) -> Arrived:
    """Contributions of the features at ``source`` to one feature, at each of some positions of it."""
    cut = sae_cut(subject, seen, prompt, source)
    at = torch.tensor(list(positions), device=seen.resid_post.device)
    reads = encoder_reads(subject.encoding(seen, hook), hook, at, torch.full_like(at, index))
    arriving = inflow(seen, Standing([cut]), 0, reads, settings)
    weights, effects = arriving.weights[0].double(), arriving.effects[0][:, : cut.n_features].double().sum(0)
    roots = weights[:, cut.n_features : -2]
    is_token = torch.tensor(cut.is_token, device=roots.device)
    found = weights.new_zeros(len(at), subject.saes[source].cfg.d_sae)
    found.index_add_(1, cut.active.index, weights[:, : cut.n_features])
    return Arrived(
        features=ByFeature(found.nonzero()[:, 1], found[found != 0]),
        effects=found.new_zeros(found.shape[1]).index_add_(0, cut.active.index, effects),
        errors=roots[:, ~is_token].sum(1),
        other=roots[:, is_token].sum(1) + weights[:, -2:].sum(1) + reads.constant.double(),
    )


def outflow_to(
    subject: Subject,
    seen: Trace,
    prompt: Prompt,
    hook: Place,
    index: int,
    positions: Sequence[int],
    target: Place,
    settings: Settings,
) -> dict[int, ByFeature]:
    """What one feature, where it fires at ``positions``, contributes to the features that fire at ``target``.

    By position, from its first firing on; position 0, where it is a special token, and attention sinks are left out.
    """
    encoded, x = subject.encoding(seen, target), seen.at(target)
    present = torch.zeros(len(x), 1, dtype=torch.bool)
    present[list(positions)] = True
    reached, quiet = torch.arange(min(positions), len(x)), settings.quiet()

    def carried(place: Place, parts: Float[Tensor, "pos d_model"]) -> Float[Tensor, "reached d_model"]:
        start = Vectors(parts[:, None], ["feature"], place, present).start(seen)
        return quiet.carry(seen, start, {target: reached})[target].dense()[:, 0]

    # Under these rules parts do not depend on each other: what is written at several places goes on one by one.
    written = _written(subject, seen, hook, index, positions)
    arrived = torch.stack([carried(*part) for part in written.items() if part[0].depth <= target.depth]).sum(0)
    nowhere = {*sinks(seen, target), *([0] if prompt.special[0] else [])}
    found = {}
    for row, pos in zip(arrived, reached.tolist(), strict=True):
        if pos in nowhere:
            continue
        indices = encoded.active[pos].indices
        w = encoder_directions(encoded.sae, x[pos].expand(len(indices), -1), indices).w
        values = (w.to(row) @ row).double()
        found[pos] = ByFeature(indices[values != 0], values[values != 0])
    return found


def _written(
    subject: Subject, seen: Trace, hook: Place, index: int, positions: Sequence[int]
) -> Mapping[Place, Float[Tensor, "pos d_model"]]:
    """What the feature adds to the stream at some positions, zero elsewhere, by the place where it arrives."""
    x, sae = seen.at(hook), subject.saes[hook]
    if isinstance(sae, CrossLayerFeatures):
        own = torch.zeros(len(x), 1, dtype=torch.bool, device=x.device)
        own[list(positions)] = True
        column = subject.encoding(seen, hook).activations[:, index, None] * own
        return {Place(hook.layer + i, "resid_post"): column.to(row) * row for i, row in enumerate(sae.decoders(index))}
    found = subject.encoding(seen, hook).parts
    at: Int[Tensor, "pos"] = torch.tensor(list(positions), device=x.device)
    chosen = ((found.index == index) & torch.isin(found.pos, at)).nonzero()[:, 0]
    added = into_stream(subject, hook, found.part(chosen), seen.post_scale(hook, found.pos[chosen]))
    arrives = writes_at(subject, hook)
    assert added is not None
    assert arrives is not None
    parts = seen.resid_post.new_zeros(len(x), added.shape[1])
    parts[found.pos[chosen]] = added.to(parts)
    return {arrives: parts}
