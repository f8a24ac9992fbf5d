"""Which dictionaries a graph stands on: all that can be, or those that are named; and which cannot stand together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from ..arguments import whole_in
from ..errors import UserError
from ..models.place import Place
from ..saes import CrossLayerFeatures, Stands, stands_for
from ..subject import Subject

Layers = Sequence[int | str | Place]
"""Of dictionaries: a layer for all that are there, or one of them by its hook, such as ``"17.mlp_out"``."""
NEEDS = "a feature-flow graph needs SAEs or transcoders"


def graph_hooks(subject: Subject, layers: Layers | None) -> dict[Place, Stands]:
    """The dictionaries that a graph stands on, by where they read, ascending, with what each stands for.

    layers: only these; None takes all that can be. Raises UserError where one is missing or cannot be, and for two
    that cannot stand together.
    """
    if not subject.saes:
        raise UserError(f"{NEEDS}; name some with --sae (saes=)")
    usable, refused = _usable(subject, subject.saes)
    if layers is None:
        if not usable:
            raise UserError(f"{NEEDS}; {'; '.join(f'{hook}: {why}' for hook, why in refused.items())}")
        found = set(usable)
    else:
        found = {hook for layer in layers for hook in _meant(layer, usable, refused)}
    chosen = {hook: usable[hook] for hook in sorted(found)}
    check_together(subject, chosen)
    return chosen


def layer_named(text: str) -> int | str:
    """An entry of ``layers`` as people write it: ``17`` or ``17.mlp_out``. Raises UserError for anything else."""
    number = whole_in(text.strip())
    return str(Place.parse(text)) if number is None else number


def is_whole(subject: Subject, hook: Place) -> bool:
    """Whether the features, error and constant of the SAE there are the whole stream."""
    usable, _ = _usable(subject, [hook])
    return hook.depth > 0 and any(stands.place.is_stream for stands in usable.values())


def check_together(subject: Subject, chosen: Mapping[Place, Stands]) -> None:
    """Raises UserError for two dictionaries that split one tensor, or take the place of one MLP."""
    streams = sorted((hook for hook, stands in chosen.items() if stands.place.is_stream), key=lambda hook: hook.depth)
    for below, above in pairwise(streams):
        if below.depth == above.depth:
            raise UserError(f"{below} and {above} are the same point of the stream; name the layers to use")
    instead: dict[int, Place] = {}
    crossing = {hook: sae for hook in chosen if isinstance(sae := subject.saes[hook], CrossLayerFeatures)}
    for hook, stands in chosen.items():
        if not stands.instead:
            continue
        other = instead.setdefault(hook.layer, hook)
        across = [at for at, sae in crossing.items() if at.layer < hook.layer and not _same(sae, subject.saes[hook])]
        if other != hook or across:
            first = other if other != hook else across[0]
            raise UserError(
                f"{first} and {hook} both stand for what the MLP of layer {hook.layer} adds; name the ones to use"
            )
        inside = [at for at in streams if hook < at < stands.place]
        if inside and hasattr(subject.saes[hook], "W_skip"):
            raise UserError(f"the skip connection of the transcoder at {hook} passes by the SAE at {inside[0]}")


def _same(one: CrossLayerFeatures, other: object) -> bool:
    return isinstance(other, CrossLayerFeatures) and one.whole == other.whole


def _usable(subject: Subject, hooks: Iterable[Place]) -> tuple[dict[Place, Stands], dict[Place, str]]:
    """The dictionaries that can be layers of a graph, and why the others cannot."""
    usable, refused = {}, {}
    for hook in sorted(hooks):
        try:
            usable[hook] = _stands(subject, hook, stands_for(subject.saes[hook], hook))
        except UserError as error:
            refused[hook] = str(error)
    return usable, refused


def _stands(subject: Subject, hook: Place, stands: Stands) -> Stands:
    n = subject.adapter.n_layers
    if not 0 <= hook.layer < n:
        raise UserError(f"the model's layers are 0 to {n - 1}")
    if stands.place.hook == "resid_mid" and subject.adapter.layer(hook.layer).parallel:
        raise UserError("the layer's MLP reads what its attention reads, and nothing reads the stream between them")
    return stands


def _meant(layer: int | str | Place, usable: Iterable[Place], refused: Mapping[Place, str]) -> list[Place]:
    at = Place.parse(layer) if isinstance(layer, str) else layer
    found = [hook for hook in usable if at in (hook.layer, hook)]
    if not found:
        here = [f"; {hook}: {why}" for hook, why in refused.items() if at in (hook.layer, hook)]
        what = f"at {at}" if isinstance(at, Place) else f"at layer {at}"
        raise UserError(
            f"there is no SAE or transcoder {what} that a graph can stand on{''.join(here)}; there are "
            f"{', '.join(map(str, usable)) or 'none'}"
        )
    return found
