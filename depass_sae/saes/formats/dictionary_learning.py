"""dictionary_learning and SAEBench: a folder for each trainer.

    config.json                  {"trainer": {dict_class, activation_dim, dict_size, k, layer, submodule_name, lm_name},
                                 "buffer": {io}}
    ae.pt, or ae.safetensors     the state_dict of its dict_class

What the activations were divided by in training is folded into the biases when it saves. Its AutoEncoder is rescaled
to decoder rows of length 1 when it loads, and so it is here. BatchTopK dictionaries have one threshold for inference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...errors import UserError
from ...texts import quoted
from ..weights import Tensors, check_tensors, count_in, made, one_of, read_config, read_tensors, text_in
from .folder import Format, Stored, mentions, named, weights_among

if TYPE_CHECKING:
    from sae_lens import SAE

CONFIG, WEIGHTS = "config.json", ("ae.safetensors", "ae.pt")
# How trainers and their folders call a place: "resid_post_layer_8", "mlp_out_layer3"
PLACE = re.compile(r"(resid_post|resid_out|attn_out|mlp_out)_layer_?(\d+)")
MODULES = {"resid_post": "output", "resid_out": "output", "attn_out": "self_attn.output", "mlp_out": "mlp.output"}


@dataclass(frozen=True)
class Kind:
    """A dict_class. tensors: their names here, by sae-lens's; those of nn.Linear are transposed there."""

    architecture: str
    tensors: Mapping[str, str]
    subtracts_b_dec: bool = True
    chooses: bool = False  # has a k
    of_length_1: bool = False
    of_linear: bool = True


LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
PLAIN = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
GATED = {"b_dec": "decoder_bias", "r_mag": "r_mag", "b_gate": "gate_bias", "b_mag": "mag_bias"}
TOPK = LINEAR | {"b_enc": "encoder.bias", "b_dec": "b_dec"}
KINDS = {
    "AutoEncoder": Kind("standard", LINEAR | {"b_enc": "encoder.bias", "b_dec": "bias"}, of_length_1=True),
    "AutoEncoderNew": Kind("standard", LINEAR | {"b_enc": "encoder.bias", "b_dec": "decoder.bias"}, False),
    "GatedAutoEncoder": Kind("gated", LINEAR | GATED),
    "JumpReluAutoEncoder": Kind("jumprelu", PLAIN, False, of_linear=False),
    "AutoEncoderTopK": Kind("topk", TOPK, chooses=True),
    "BatchTopKSAE": Kind("jumprelu", TOPK | {"threshold": "threshold"}, chooses=True),
    "MatryoshkaBatchTopKSAE": Kind("jumprelu", PLAIN, chooses=True, of_linear=False),
}


def _recognises(folder: Path) -> bool:
    return any((folder / name).exists() for name in WEIGHTS) or mentions(folder / CONFIG, "dict_class")


def _read(folder: Path) -> list[Stored]:
    file = folder / CONFIG
    whole = read_config(file)
    config = whole.get("trainer")
    if not isinstance(config, dict):
        raise UserError(f"{file}: trainer should be an object, and is {quoted(config)}")
    weights = weights_among(folder, *WEIGHTS)
    kind = KINDS[one_of(file, config, "dict_class", tuple(KINDS))]
    d_in, d_sae = (count_in(file, config, key) for key in ("activation_dim", "dict_size"))
    k = count_in(file, config, "k", d_sae) if kind.chooses else None
    metadata = _metadata(folder, config, whole.get("buffer"))
    return [Stored(str(folder), kind.architecture, metadata, partial(_load, weights, kind, metadata, d_in, d_sae, k))]


def _load(file: Path, kind: Kind, metadata: dict[str, Any], d_in: int, d_sae: int, k: int | None) -> SAE:
    found = _without_buffers(file, read_tensors(file), kind, k)
    shapes: dict[str, tuple[int, ...]] = {
        theirs: (d_in,) if ours == "b_dec" else (d_sae,) for ours, theirs in kind.tensors.items()
    }
    for ours, shape in (("W_enc", (d_in, d_sae)), ("W_dec", (d_sae, d_in))):
        shapes[kind.tensors[ours]] = shape[::-1] if kind.of_linear else shape
    if kind.chooses and "threshold" in kind.tensors and "threshold" in found:
        found["threshold"] = _one_threshold(file, found["threshold"]).expand(d_sae)
    found = check_tensors(file, found, shapes, f"features: {d_sae}, activations: {d_in}")
    weights = {ours: found[theirs] for ours, theirs in kind.tensors.items()}
    if kind.of_linear:
        weights |= {name: weights[name].T for name in LINEAR}
    if kind.of_length_1:
        norm = weights["W_dec"].norm(dim=1).clamp(min=1e-30)
        weights |= {"W_enc": weights["W_enc"] * norm, "b_enc": weights["b_enc"] * norm}
        weights["W_dec"] = weights["W_dec"] / norm[:, None]
    chosen = {"k": k} if kind.architecture == "topk" else {}
    return made(kind.architecture, weights, metadata, apply_b_dec_to_input=kind.subtracts_b_dec, **chosen)


def _without_buffers(file: Path, found: Tensors, kind: Kind, k: int | None) -> Tensors:
    """Without what is saved beside the weights. Raises UserError where its k is another than the configuration's."""
    if kind.chooses and "k" in found and (found["k"].numel() != 1 or found["k"].item() != k):
        raise UserError(f"{file}: k is {found['k'].tolist()}, and {k} in {CONFIG}")
    # A topk dictionary's threshold is for another way to use it; groups only matter in training.
    buffers = {"k", "group_sizes"} | ({"threshold"} - set(kind.tensors)) if kind.chooses else set()
    return {name: values for name, values in found.items() if name not in buffers}


def _one_threshold(file: Path, threshold: Tensor) -> Tensor:
    if threshold.numel() != 1 or threshold.item() < 0:
        raise UserError(
            f"{file}: threshold should be one number from 0, and is {quoted(threshold.tolist())}: where it is -1, "
            "training ended before it was set"
        )
    return threshold.reshape(())


def _metadata(folder: Path, config: dict[str, Any], buffer: Any) -> dict[str, Any]:
    """What the trainer's configuration and the folders' names say. Where neither names the place, no hook."""
    file, folder = folder / CONFIG, folder.resolve()
    metadata = {"model_name": text_in(file, config, "lm_name"), "sae_id": f"{folder.parent.name}/{folder.name}"}
    names = (text_in(file, config, "submodule_name") or "", folder.name, folder.parent.name)
    place = next((match for name in names if (match := PLACE.fullmatch(name))), None)
    io = buffer.get("io") if isinstance(buffer, dict) else None
    if place is None or io not in (None, "out"):
        return metadata
    layer = config.get("layer")
    if type(layer) is int and layer != int(place[2]):
        raise UserError(f"{file}: layer is {layer}, and the place is called {place[0]}")
    return metadata | {"hf_hook_name": f"layers.{place[2]}.{MODULES[place[1]]}"}


FORMAT = Format(
    "dictionary-learning", f"{CONFIG} and {WEIGHTS[1]} or {WEIGHTS[0]}", named(*WEIGHTS), _recognises, _read
)
