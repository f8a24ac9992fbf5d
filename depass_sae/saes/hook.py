"""Where an SAE reads.

An SAE's file names its hook in one of two languages: a module of the Hugging Face model (``model.layers.17.output``)
or a TransformerLens hook point (``blocks.17.hook_resid_post``). Both are translated here into a layer and one of this
package's read points. The Hugging Face name goes first where there is one: some files write a TransformerLens name
that means something else there. A name whose meaning is not certain is refused, never guessed.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..arguments import NUMBER
from ..errors import UserError
from ..models.place import Place

if TYPE_CHECKING:
    from sae_lens import SAE

Hook = Place
"""What an SAE reads, as it was called before."""

# After "blocks.N."; the last of them is sae-lens's name for the MLP input with the norm's gain.
TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "ln2.hook_normalized": "ln2_normalized",
    "attn.hook_z": "hook_z",
    "hook_z": "hook_z",
    "mlp.hook_in": "mlp_in",
}
# After "model.layers.N" or "transformer.h.N". Names that mean one thing in one family and another in the next, such as
# post_attention_layernorm.output or mlp.output, are left out on purpose.
HUGGING_FACE = {
    "": "resid_post",
    "output": "resid_post",
    "input": "resid_pre",
    "self_attn.o_proj.input": "hook_z",
    "attn.c_proj.input": "hook_z",
    "attention.dense.input": "hook_z",
    "mlp.input": "mlp_in",
    "pre_feedforward_layernorm.output": "mlp_in",
    "post_feedforward_layernorm.output": "mlp_out",
}
NAME_IT = 'name it: saes={"17.resid_post": path}'


class NoHookNamed(UserError):
    """An SAE's file does not say where it reads."""


parse_hook = Place.parse


def hook_of(sae: "SAE", fallback_layer: int | None = None) -> Hook:
    """The hook that the SAE's own metadata names.

    `fallback_layer` is for SAEs that name none, as sae-lens's trainer saves them: they are taken to read
    ``resid_post`` of that layer. Raises UserError where no hook can be told.
    """
    return hook_in(sae.cfg.metadata.to_dict(), sae.cfg.architecture(), fallback_layer)


def hook_in(metadata: Mapping[str, Any], architecture: str, fallback_layer: int | None = None) -> Hook:
    """`hook_of`, from an SAE's metadata as its configuration file has them."""
    found = named_hook(metadata, architecture)
    if found is not None:
        return found
    names = hook_names(metadata)
    if names:
        raise UserError(
            f"the SAE reads {names[0]!r}, which is not a read point here; if it is the same as one, {NAME_IT}"
        )
    if fallback_layer is None:
        raise NoHookNamed(f"the SAE's file does not say which hook it reads; {NAME_IT}")
    return Hook(fallback_layer, "resid_post")


def named_hook(metadata: Mapping[str, Any], architecture: str) -> Hook | None:
    """The hook that the metadata name; None where they name none, or only one that is not understood."""
    if metadata.get("hook_head_index") is not None:
        raise UserError("the SAE reads a single attention head (hook_head_index); only SAEs on all heads are supported")
    layer = metadata.get("hook_layer", metadata.get("hook_point_layer"))
    hooks = (_translated(name, layer, architecture) for name in hook_names(metadata))
    return next((hook for hook in hooks if hook is not None), None)


def hook_names(metadata: Mapping[str, Any]) -> list[str]:
    """What the metadata call the hook, the most trustworthy name first (`hook_point` is from before sae-lens 4)."""
    return [name for key in ("hf_hook_name", "hook_name", "hook_point") if (name := metadata.get(key))]


def transformer_lens_name(hook: Hook) -> str:
    """How sae-lens writes this hook."""
    suffix = next(suffix for suffix, name in TRANSFORMER_LENS.items() if name == hook.name)
    return f"blocks.{hook.layer}.{suffix}"


def _translated(name: str, layer: int | None, architecture: str) -> Hook | None:
    # "{layer}": old files keep the number apart.
    if match := re.fullmatch(rf"blocks\.({NUMBER}|{{layer}})\.(.+)", name):
        number, suffix = match.groups()
        if number == "{layer}":
            if layer is None:
                return None
            number = str(layer)
        return _transformer_lens_hook(int(number), suffix, architecture)
    if match := re.fullmatch(rf"(?:\w+\.)*(?:layers|h)\.({NUMBER})(?:\.(.+))?", name):
        kind = HUGGING_FACE.get(match[2] or "")
        return None if kind is None else Hook(int(match[1]), kind)
    return None


def _transformer_lens_hook(layer: int, suffix: str, architecture: str) -> Hook | None:
    if suffix == "hook_mlp_in":
        # In TransformerLens the residual before the norm; sae-lens writes it for transcoders that read after the norm.
        if "transcoder" not in architecture:
            raise UserError(
                f"the SAE reads blocks.{layer}.hook_mlp_in, which means different things in different libraries; "
                f'name it in its metadata as "blocks.{layer}.hook_resid_mid" or "blocks.{layer}.mlp.hook_in"'
            )
        return Hook(layer, "mlp_in")
    kind = TRANSFORMER_LENS.get(suffix)
    return None if kind is None else Hook(layer, kind)
