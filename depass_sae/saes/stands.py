"""What a dictionary stands for: the tensor of the model that its features, its constant and its error are together.

    an SAE on the stream                   the stream where it reads
    an SAE on hook_z, attn_out, mlp_out    what it reads: a part of one sublayer
    a transcoder                           what the MLP of its layer adds, whatever it reads of that layer

A feature-flow graph can stand on these, and on nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..models.place import Place

if TYPE_CHECKING:
    from sae_lens import SAE

ENCODED = ("resid_pre", "resid_mid", "ln2_normalized", "mlp_in")
"""What of its layer a transcoder may read."""
SPLIT = ("resid_pre", "hook_z", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""What an SAE may split."""
ADDED = ("hook_mlp_out", "post_feedforward_layernorm.output")
"""Names of what an MLP adds to the stream, behind "blocks.N." or "model.layers.N."."""
GIVEN = ("mlp.hook_out", "mlp.output")
"""Names of what its module gives, before a norm on that."""
SUMMED = "decoders_summed"
"""Noted in the metadata of a layer of a cross-layer transcoder whose decoders sae-lens has summed."""
SUMMING = "mntss_clt_layer_transcoder"
"""What sae-lens's registry calls the loader that does it."""


@dataclass(frozen=True)
class Stands:
    """place: of the tensor. instead: whether it takes the place of the MLP. before_norm: of what the MLP gives, before
    the norm on that, where there is one.
    """

    place: Place
    instead: bool = False
    before_norm: bool = False


def stands_for(sae: SAE, hook: Place) -> Stands:
    """What a dictionary that reads at ``hook`` stands for. Raises UserError where it is nothing of the above."""
    return standing(hook, sae.cfg.architecture(), sae.cfg.metadata.to_dict())


def standing(hook: Place, architecture: str, metadata: Mapping[str, Any]) -> Stands:
    """The same, from a configuration."""
    if "transcoder" not in architecture:
        if hook.hook not in SPLIT:
            raise UserError(
                f"an SAE on {hook.hook} splits what the MLP reads; only transcoders are layers of graphs there"
            )
        return Stands(hook)
    if metadata.get(SUMMED):
        raise UserError(
            "it is one layer of a cross-layer transcoder with all its decoders summed, which no layer of the model is; "
            "load the transcoder itself"
        )
    if hook.hook not in ENCODED:
        raise UserError(f"a transcoder that reads {hook.hook} does not stand for its layer's MLP")
    named = metadata.get("hf_hook_name_out") or metadata.get("hook_name_out")
    match = re.fullmatch(r"(?:\w+\.)*(?:blocks|layers|h)\.(\d+)\.(.+)", named or f"blocks.{hook.layer}.hook_mlp_out")
    if match is None or int(match[1]) != hook.layer or match[2] not in ADDED + GIVEN:
        raise UserError(f"it decodes to {named!r}, which is not what the MLP of layer {hook.layer} gives")
    return Stands(Place(hook.layer, "mlp_out"), instead=True, before_norm=match[2] in GIVEN)
