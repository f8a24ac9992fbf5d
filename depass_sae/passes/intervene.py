"""The unfrozen model with something taken out: what interventions really do.

The model runs as it is; at the points named, an edit changes what passes by, for each prompt of a batch on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial, reduce
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.adapter import Adapter
from ..models.place import Place
from ..models.sublayer import given, returned
from .mixers import Experts, mixer_of
from .mixers.mixer import Whose
from .running import change, hooks, look, recording, run, watch

Edit = Callable[[Float[Tensor, "batch pos d"]], Float[Tensor, "batch pos d"]]


class Inside(NamedTuple):
    """What of a layer's MLP no place shows: its neurons, or what it gives before a norm on that.

    expert: whose neurons, where there are experts; those of one that a position is not sent to count nothing there.
    """

    layer: int
    what: Literal["neurons", "given"]
    expert: Whose | None = None


Edits = Mapping[Place, Edit] | Mapping[Place | Inside, Edit]
Where = TypeVar("Where", Place, Place | Inside)


def in_turn(edits: Mapping[Where, Sequence[Edit]]) -> dict[Where, Edit]:
    """Several edits at each place, one after the other."""

    def together(several: Sequence[Edit]) -> Edit:
        return lambda x: reduce(lambda changed, edit: edit(changed), several, x)

    return {place: together(several) for place, several in edits.items()}


def intervene(
    adapter: Adapter,
    token_ids: Int[Tensor, "batch pos"],
    edits: Edits,
    reads: Collection[Place | None],
    dtype: torch.dtype | None = None,
) -> dict[Place | None, Float[Tensor, "batch d"]]:
    """Run edited copies of prompts of equal length and read their last position at some places (None: the logits).

    edits: at any place that a module is given or returns, between the sublayers of a layer, and inside MLPs.

    Raises UserError for an edit elsewhere: ln2_normalized, which no module shows as it is, and resid_mid of a parallel
    block, where nothing passes.
    """
    with recording(adapter, dtype, patterns=False):
        return _read(adapter, token_ids, edits, reads, dtype)


def intervene_everywhere(
    adapter: Adapter,
    token_ids: Int[Tensor, "batch pos"],
    edits: Edits,
    reads: Collection[Place | None],
    dtype: torch.dtype | None = None,
) -> dict[Place | None, Float[Tensor, "batch *pos d"]]:
    """The same, places read at every position, the logits at the last one as there. edits: inside MLPs, too."""
    with recording(adapter, dtype, patterns=False):
        return _read(adapter, token_ids, edits, reads, dtype, slice(None))


def intervene_differentiably(
    adapter: Adapter,
    token_ids: Int[Tensor, "batch pos"],
    edits: Mapping[Place, Edit],
    reads: Collection[Place | None],
    dtype: torch.dtype | None = None,
) -> dict[Place | None, Float[Tensor, "batch d"]]:
    """:func:`intervene`, with gradients with respect to what the edits are made of.

    Raises UserError for a model whose weights take no part in differentiation.
    """
    if any(weight.is_inference() for weight in adapter.model.parameters()):
        raise UserError("a model that was made in torch.inference_mode has no gradients; load it outside of that")
    with recording(adapter, dtype, patterns=False), torch.enable_grad():
        return _read(adapter, token_ids, edits, reads, dtype)


def _read(
    adapter: Adapter,
    token_ids: Int[Tensor, "batch pos"],
    edits: Edits,
    reads: Collection[Place | None],
    dtype: torch.dtype | None,
    at: int | slice = -1,
) -> dict[Place | None, Float[Tensor, "batch *pos d"]]:
    """Of the model as it is being recorded. at: which positions of places are read."""
    found: dict[Place | None, Tensor] = {}
    compute = adapter.compute_dtype(dtype)

    def keep(place: Place) -> Callable[[Tensor], None]:
        def note(x: Tensor) -> None:
            found[place] = x[:, at].to(adapter.device, compute)

        return note

    with hooks() as handles:
        for place, edit in edits.items():
            if isinstance(place, Inside):
                _edit_inside(adapter, place, edit, handles)
            else:
                _edit(adapter, Place(*place), edit, handles)
        for read in reads:  # after the edits, so that a place that is edited is read as edited
            if read is not None:
                watch(adapter, Place(*read), handles, keep(read))
        output = run(adapter, token_ids, logits_to_keep=1)
    if None in reads:
        found[None] = output.logits[:, -1].to(adapter.device, compute)
    return found


def _edit_inside(adapter: Adapter, place: Inside, edit: Edit, handles: list[Any]) -> None:
    mlp = adapter.layer(place.layer).sublayers[1].mixer
    if place.what == "given":
        assert mlp.module is not None
        change(returned(mlp.module), handles, _at_home(adapter, edit))
        return
    if place.expert is None:
        module = mlp.down_module  # type: ignore[union-attr]
        assert module is not None
        change(given(module), handles, _at_home(adapter, edit))
        return
    _edit_expert(adapter, mixer_of(mlp), place.expert, edit, handles)  # type: ignore[arg-type]


def _edit_expert(adapter: Adapter, experts: Experts, whose: Whose, edit: Edit, handles: list[Any]) -> None:
    """An expert's neurons stand in no module: what it gives is changed by what follows from them."""
    seen: dict[str, Tensor] = {}
    for name, tap in {"x": given(experts.part.module), **experts.taps()}.items():
        look(tap, handles, partial(seen.__setitem__, name))

    def added(output: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        x, weights, choice = (seen[name].to(adapter.device) for name in ("x", "weights", "choice"))
        more = experts.difference(
            x.flatten(0, 1), weights.flatten(0, -2), choice.flatten(0, -2), whose,
            lambda neurons: edit(neurons.unflatten(0, x.shape[:2])).flatten(0, 1),
        )  # fmt: skip
        return output + more.view_as(output).to(output)

    change(returned(experts.part.module), handles, added)


def _at_home(adapter: Adapter, edit: Edit) -> Edit:
    """What an edit is made of lies where components do, whichever device computes the place."""
    home = adapter.device
    return lambda x: edit(x.to(home)).to(x)


def _edit(adapter: Adapter, place: Place, edit: Edit, handles: list[Any]) -> None:
    at_home = _at_home(adapter, edit)
    if place.hook != "resid_mid":
        tap = adapter.tap(place)
        if tap.derived:
            raise UserError(f"no intervention is made at {place.hook}, which no module shows as it is; try mlp_in")
        change(tap, handles, at_home)
        return
    if adapter.layer(place.layer).parallel:
        raise UserError(f"{place} is in no module's way: the layer's MLP reads what its attention reads")
    before: list[Tensor] = []
    watch(adapter, Place(place.layer, "resid_pre"), handles, lambda x: before.__setitem__(slice(None), [x]))

    def added(output: Tensor) -> Tensor:
        """No module puts out the stream between the sublayers: attention adds what the edit changes there."""
        stream = before[0] + output
        return output + (at_home(stream) - stream)

    change(adapter.tap(Place(place.layer, "attn_out")), handles, added)
