"""Where an SAE reads.

An SAE's file names its hook in one of two languages: a module of the Hugging Face model (``model.layers.17.output``)
or a TransformerLens hook point (``blocks.17.hook_resid_post``). Both are translated here into a layer and one of this
package's read points. The Hugging Face name goes first where there is one: some files write a TransformerLens name
that means something else there. Some names mean different things in different models, and need that the SAE's file
names its model. A name whose meaning is not certain is refused, never guessed.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..arguments import NUMBER
from ..errors import UserError
from ..models.place import Place
from .model_types import LEARNED_POSITIONS, PARALLEL, POST_NORMED, model_type_of

if TYPE_CHECKING:
    from sae_lens import SAE


# After "blocks.N."; a sublayer's output is meant after the norm on it. The last is sae-lens's name for the MLP's input.
TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_z": "hook_z",
    "hook_z": "hook_z",
    "ln2.hook_normalized": "ln2_normalized",
    "mlp.hook_in": "mlp_in",
}
# After "model.layers.N", "transformer.h.N" or "gpt_neox.layers.N", whatever the model.
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
# The same where sublayers' outputs are normed before they are added, and where they are not.
OF_POST_NORMED = {
    "post_attention_layernorm.output": "attn_out",
    "pre_feedforward_layernorm.input": "resid_mid",
}
OF_OTHERS = {
    "self_attn.output": "attn_out",
    "attention.output": "attn_out",
    "attn.output": "attn_out",
    "post_attention_layernorm.input": "resid_mid",
    "post_attention_layernorm.output": "mlp_in",
    "ln_2.input": "resid_mid",
    "ln_2.output": "mlp_in",
    "mlp.output": "mlp_out",
}
NAME_IT = 'name it: saes={"17.resid_post": path}'


class NoHookNamed(UserError):
    """An SAE's file does not say where it reads."""


def hook_of(sae: "SAE", fallback_layer: int | None = None) -> Place:
    """The hook that the SAE's own metadata names.

    `fallback_layer` is for SAEs that name none, as sae-lens's trainer saves them: they are taken to read
    ``resid_post`` of that layer. Raises UserError where no hook can be told.
    """
    return hook_in(sae.cfg.metadata.to_dict(), sae.cfg.architecture(), fallback_layer)


def hook_in(metadata: Mapping[str, Any], architecture: str, fallback_layer: int | None = None) -> Place:
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
    return Place(fallback_layer, "resid_post")


def named_hook(metadata: Mapping[str, Any], architecture: str) -> Place | None:
    """The hook that the metadata name; None where they name none, or only one that is not understood."""
    if metadata.get("hook_head_index") is not None:
        raise UserError("the SAE reads a single attention head (hook_head_index); only SAEs on all heads are supported")
    layer, model = metadata.get("hook_layer", metadata.get("hook_point_layer")), metadata.get("model_name")
    hooks = (_translated(name, layer, architecture, model_type_of(model)) for name in hook_names(metadata))
    return next((hook for hook in hooks if hook is not None), None)


def hook_names(metadata: Mapping[str, Any]) -> list[str]:
    """What the metadata call the hook, the most trustworthy name first (`hook_point` is from before sae-lens 4)."""
    return [name for key in ("hf_hook_name", "hook_name", "hook_point") if (name := metadata.get(key))]


def transformer_lens_name(hook: Place) -> str:
    """How sae-lens writes this hook."""
    suffix = next(suffix for suffix, name in TRANSFORMER_LENS.items() if name == hook.name)
    return f"blocks.{hook.layer}.{suffix}"


def _translated(name: str, layer: int | None, architecture: str, model_type: str | None) -> Place | None:
    if name == "hook_embed":
        return _embedding(model_type)
    # "{layer}": old files keep the number apart.
    if match := re.fullmatch(rf"blocks\.({NUMBER}|{{layer}})\.(.+)", name):
        number, suffix = match.groups()
        if number == "{layer}":
            if layer is None:
                return None
            number = str(layer)
        return _real(_transformer_lens_hook(int(number), suffix, architecture), name, model_type)
    if match := re.fullmatch(rf"(?:\w+\.)*(?:layers|h)\.({NUMBER})(?:\.(.+))?", name):
        kind = _hugging_face(match[2] or "", model_type)
        return None if kind is None else _real(Place(int(match[1]), kind), name, model_type)
    return None


def _embedding(model_type: str | None) -> Place | None:
    """What the first layer reads, where nothing is added to the embedding."""
    if model_type in LEARNED_POSITIONS:
        raise UserError(
            f"the SAE reads hook_embed, the tokens' embeddings before {model_type} adds its learned positions, which "
            "is not a read point here: it needs an SAE on blocks.0.hook_resid_pre"
        )
    return None if model_type is None else Place(0, "resid_pre")


def _real(hook: Place | None, name: str, model_type: str | None) -> Place | None:
    if hook is not None and hook.name == "resid_mid" and model_type in PARALLEL:
        raise UserError(
            f"the SAE reads {name!r}, which is virtual in parallel blocks ({model_type}): no such sum exists"
        )
    return hook


def _hugging_face(suffix: str, model_type: str | None) -> str | None:
    if suffix in HUGGING_FACE or model_type is None:
        return HUGGING_FACE.get(suffix)
    return (OF_POST_NORMED if model_type in POST_NORMED else OF_OTHERS).get(suffix)


def _transformer_lens_hook(layer: int, suffix: str, architecture: str) -> Place | None:
    if suffix == "hook_mlp_in":
        # In TransformerLens the residual before the norm; sae-lens writes it for transcoders that read after the norm.
        if "transcoder" not in architecture:
            raise UserError(
                f"the SAE reads blocks.{layer}.hook_mlp_in, which means different things in different libraries; "
                f'name it in its metadata as "blocks.{layer}.hook_resid_mid" or "blocks.{layer}.mlp.hook_in"'
            )
        return Place(layer, "mlp_in")
    kind = TRANSFORMER_LENS.get(suffix)
    return None if kind is None else Place(layer, kind)
