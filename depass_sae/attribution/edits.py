"""Changes of several prompts, as edits of one run of the live model: each prompt of the batch has its own.

A feature is set where its dictionary reads: the stream that arrives is encoded, and what the feature writes exchanged,

    x′ = x + part(new) − part(old)                what the dictionary misses of x stays as it is

in the stream, in what the MLP of a transcoder's layer gives, before a norm on that where it is trained on what comes
before, or, of a cross-layer transcoder, in what that of every later layer gives, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.intervene import Edit, Inside, in_turn
from ..saes import CrossLayerFeatures, live_activations, reconstructs, stands_for, written
from ..subject import Subject
from .changes import Change
from .live import head_slice, seen_at
from .targets import parse_feature

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class Applied:
    """A change of some of a prompt's numbers. row: the prompt in the batch. first: the first position at which they
    mean anything.
    """

    change: Change
    row: int
    own: slice
    first: int = 0

    def __call__(self, values: Float[Tensor, "batch pos d"]) -> None:
        """In place."""
        pos = self.change.part.pos
        at = slice(self.first, None) if pos is None else slice(pos, pos + 1)
        values[self.row, at, self.own] = self.change(values[self.row, at, self.own])


def edits_of(
    subject: Subject, prompts: Sequence[Prompt], changes: Sequence[Sequence[Change]]
) -> dict[Place | Inside, Edit]:
    """What is done, and where, to prompts of equal length, each of which has changes of its own.

    Raises UserError for parts that there are not.
    """
    units: dict[Place | Inside, list[Applied]] = {}
    features: dict[Place, list[Applied]] = {}
    for row, (prompt, own) in enumerate(zip(prompts, changes, strict=True)):
        for change in own:
            part = change.part
            if part.kind == "feature":
                target, _ = parse_feature(subject, part.name)
                target.check(subject)
                applied = Applied(change, row, _only(target.index), int(prompt.special[0]))
                features.setdefault(target.hook, []).append(applied)
            elif part.kind == "head":
                own_z = head_slice(subject.adapter, part.layer, part.index)
                units.setdefault(Place(part.layer, "hook_z"), []).append(Applied(change, row, own_z))
            elif part.kind == "neuron":
                units.setdefault(Inside(part.layer, "neurons", part.expert), []).append(
                    Applied(change, row, _only(part.index))
                )
    edits: dict[Place | Inside, list[Edit]] = {place: [_changing(wanted)] for place, wanted in units.items()}
    for hook, wanted in sorted(features.items()):  # where dictionaries change one place, the lower one first
        for place, edit in _feature_edits(subject, hook, wanted):
            edits.setdefault(place.as_post if isinstance(place, Place) else place, []).append(edit)
    return in_turn(edits)


def _only(index: int) -> slice:
    return slice(index, index + 1)


def _changing(wanted: Sequence[Applied]) -> Edit:
    """Heads or neurons, each of them some of the d numbers."""

    def edit(x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        x = x.clone()
        for applied in wanted:
            applied(x)
        return x

    return edit


def _feature_edits(subject: Subject, hook: Place, wanted: Sequence[Applied]) -> Iterator[tuple[Place | Inside, Edit]]:
    """Where a dictionary's features are exchanged, and how."""
    sae = subject.saes[hook]

    def difference(x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_sae"]:
        old = live_activations(sae, x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return _changing(wanted)(old) - old

    if reconstructs(sae):
        yield hook, lambda x: x + _written(sae, x, difference(x)).to(x)
        return
    kept: dict[str, Tensor] = {}
    at, made = seen_at(subject.adapter, hook)

    def note(x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        kept["read"] = made(x)
        kept["difference"] = difference(kept["read"])
        return x

    yield at, note
    before_norm = stands_for(sae, hook).before_norm
    for layer, writes in _writers(sae, hook, sorted({applied.own.start for applied in wanted})).items():

        def exchange(x: Float[Tensor, "batch pos d"], writes: _Writes = writes) -> Float[Tensor, "batch pos d"]:
            return x + writes(kept["read"], kept["difference"]).to(x)

        place = Place(layer, "mlp_out")
        normed = before_norm and subject.adapter.sublayer(place.depth).post is not None
        yield Inside(layer, "given") if normed else place, exchange


_Writes = Callable[[Float[Tensor, "batch pos d_in"], Float[Tensor, "batch pos d_sae"]], Float[Tensor, "batch pos d"]]


def _writers(sae: SAE, hook: Place, index: Sequence[int]) -> dict[int, _Writes]:
    """Of a transcoder: what these features write, by the layer that they write into."""
    if not isinstance(sae, CrossLayerFeatures):
        return {hook.layer: partial(_written, sae)}
    rows = sae.whole.decoders(sae.layer, index)  # read once, not at every step

    def writes(into: int) -> _Writes:
        return lambda _, acts: acts[..., index] @ rows[:, into].to(acts)

    return {sae.layer + into: writes(into) for into in range(rows.shape[1])}


def _written(
    sae: SAE, x: Float[Tensor, "batch pos d_in"], acts: Float[Tensor, "batch pos d_sae"]
) -> Float[Tensor, "batch pos d_out"]:
    """What features with these activations write where the dictionary reads x."""
    return written(sae, x.flatten(0, 1), acts.flatten(0, 1)).unflatten(0, x.shape[:2])
