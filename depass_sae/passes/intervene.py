"""The unfrozen model with something taken out: what interventions really do.

The model runs as it is; at the points named, an edit changes what passes by, for each prompt of a batch on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UserError
from ..models.adapter import Adapter
from .trace import Point, hooks, recording, run, watch

Edit = Callable[[Float[Tensor, "batch pos d"]], Float[Tensor, "batch pos d"]]


def intervene(
    adapter: Adapter,
    token_ids: Int[Tensor, "batch pos"],
    edits: Mapping[Point, Edit],
    reads: Collection[Point | None],
    dtype: torch.dtype | None = None,
) -> dict[Point | None, Float[Tensor, "batch d"]]:
    """Run edited copies of prompts of equal length and read their last position at some points (None: the logits).

    edits: at resid_mid, resid_post (what a layer hands on) or hook_z (heads, before W_O).
    """
    found: dict[Point | None, Tensor] = {}
    compute = adapter.compute_dtype(dtype)

    def keep(point: Point) -> Any:
        def note(x: Tensor) -> None:
            found[point] = x[:, -1].to(compute)

        return note

    with recording(adapter, dtype, patterns=False), hooks() as handles:
        for (layer, hook), edit in edits.items():
            parts = adapter.layer(layer)
            if hook == "resid_post":
                handles.append(parts.module.register_forward_hook(_output_edit(edit)))
            elif hook == "hook_z":
                handles.append(parts.attention.o_module.register_forward_pre_hook(_input_edit(edit)))
            elif hook == "resid_mid":
                handles.append(parts.attention.module.register_forward_hook(_added_edit(adapter, layer, edit, handles)))
            else:
                raise UserError(f"interventions are made at resid_mid, resid_post and hook_z, not at {hook}")
        for point in reads:  # after the edits, so that a point that is edited is read as edited
            if point is not None:
                watch(adapter, point, handles, keep(point))
        output = run(adapter, token_ids, logits_to_keep=1)
    if None in reads:
        found[None] = output.logits[:, -1].to(compute)
    return found


def _output_edit(edit: Edit) -> Any:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]).to(output[0].dtype), *output[1:])
        return edit(output).to(output.dtype)

    return hook


def _added_edit(adapter: Adapter, layer: int, edit: Edit, handles: list[Any]) -> Any:
    """No module puts out the stream between the sublayers: attention adds what the edit changes there."""
    before: list[Tensor] = []

    def note(x: Tensor) -> None:
        before[:] = [x]

    watch(adapter, (layer, "resid_pre"), handles, note)

    def hook(_module: Any, _args: Any, output: tuple) -> Any:
        stream = before[0] + output[0]
        return (output[0] + (edit(stream).to(stream.dtype) - stream), *output[1:])

    return hook


def _input_edit(edit: Edit) -> Any:
    def hook(_module: Any, args: tuple) -> Any:
        return (edit(args[0]).to(args[0].dtype), *args[1:])

    return hook
