"""Folders in circuit-tracer's format: a config.yaml, and transcoders of every layer in safetensors files.

    model_kind           transcoder_set                         cross_layer_transcoder
    files of layer N     layer_N                                W_enc_N, W_dec_N
    tensors              W_enc [d_sae, d_in], b_enc,            W_enc_N, b_enc_N, b_dec_N, threshold_N in the first,
                         W_dec [d_sae, d_out], b_dec, W_skip,   W_dec_N [d_sae, layers from N on, d_model] in the second
                         activation_function.threshold

The config also names the model and, as TransformerLens does, what the encoders read and what the decoders stand for.
Without thresholds the activation is a ReLU. Shapes are read off the files' headers, before any weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..models.place import Place
from ..texts import quoted
from .hook import TRANSFORMER_LENS, hook_in
from .model_types import POST_NORMED, model_type_of
from .own import at_least_float32
from .weights import check_shape, made, opened, shapes, text_in

if TYPE_CHECKING:
    from sae_lens import SAE

CONFIG = "config.yaml"
CROSS_LAYER, PER_LAYER = "cross_layer_transcoder", "transcoder_set"
FILE = re.compile(r"(W_enc|W_dec|layer)_(0|[1-9]\d{0,5})\.safetensors")
READS = tuple(
    suffix
    for suffix, hook in TRANSFORMER_LENS.items()
    if hook in ("resid_pre", "resid_mid", "ln2_normalized", "mlp_in")
)
"""What an encoder may read. ``hook_mlp_in`` means different things in different libraries."""
WRITES, MODULE = "hook_mlp_out", "mlp.hook_out"
"""What the decoders stand for: what the MLP adds to the stream, or what its module gives, before a norm on that."""
ACTIVATIONS = (None, "relu", "jump_relu", "jumprelu")
THRESHOLD = "activation_function.threshold"


@dataclass(frozen=True)
class TracerFolder:
    """What a folder's config.yaml says. reads: the hook of every encoder, behind its layer."""

    path: Path
    kind: str
    reads: str
    model: str | None
    activation: str | None

    @classmethod
    def read(cls, path: Path) -> TracerFolder:
        """Raises UserError for a config that is missing, damaged, incomplete, or of what is not supported."""
        from ..plain_yaml import read_yaml

        file = path / CONFIG
        if not file.is_file():
            raise UserError(f"{path} holds transcoders in circuit-tracer's format, and no {CONFIG}")
        config = read_yaml(file)
        if not isinstance(config, dict):
            raise UserError(f"{file} is no configuration: it holds no mapping")
        kind, reads, writes, model, activation = (
            text_in(file, config, key)
            for key in ("model_kind", "feature_input_hook", "feature_output_hook", "model_name", "activation")
        )
        if kind not in (CROSS_LAYER, PER_LAYER):
            raise UserError(f"{file}: model_kind should be {CROSS_LAYER} or {PER_LAYER}, and is {_is(kind)}")
        if "transcoders" in config:
            raise UserError(f"{file} lists transcoders that lie elsewhere; name a folder that has the weights in it")
        if reads not in READS:
            raise UserError(f"{file}: feature_input_hook should be one of {', '.join(READS)}, and is {_is(reads)}")
        if writes not in (WRITES, MODULE):
            raise UserError(f"{file}: feature_output_hook should be {WRITES}, and is {_is(writes)}")
        model_type = model_type_of(model)
        if writes == MODULE and (model_type is None or model_type in POST_NORMED):
            raise UserError(
                f"{file}: feature_output_hook {MODULE} is what the MLP gives before a norm on it, which "
                f"{model or 'a model without a name'} may have; {WRITES} is what stands here"
            )
        if activation not in ACTIVATIONS:
            raise UserError(f"{file}: activation should be relu or jump_relu, and is {quoted(activation)}")
        return cls(path, kind, reads, model, activation)

    def hook_name(self, layer: int) -> str:
        """What the encoder of a layer reads, as sae-lens writes it."""
        return f"blocks.{layer}.{self.reads}"

    def place(self, layer: int) -> Place:
        """The same as a read point. Raises UserError where the model has none there."""
        return hook_in({"hook_name": self.hook_name(layer), "model_name": self.model}, "transcoder")

    def metadata(self, layer: int) -> dict[str, Any]:
        """What sae-lens notes of a dictionary."""
        return {
            "model_name": self.model,
            "hook_name": self.hook_name(layer),
            "hook_name_out": f"blocks.{layer}.{WRITES}",
            "sae_id": f"{self.path.resolve().name}/{layer}",
        }

    def layers(self, kind: str) -> list[int]:
        """Of which there are files of a kind: W_enc, W_dec or layer."""
        found = [match for file in self.path.iterdir() if (match := FILE.fullmatch(file.name))]
        return sorted(int(match[2]) for match in found if match[1] == kind)


def is_circuit_tracers(path: Path) -> bool:
    """Whether a folder holds transcoders in circuit-tracer's format, or means to."""
    if any(FILE.fullmatch(file.name) for file in path.iterdir()):
        return True
    try:
        return b"model_kind:" in (path / CONFIG).read_bytes()
    except OSError:
        return False


# --- weights ------------------------------------------------------------------------------------------------


def layer_transcoders(folder: TracerFolder) -> dict[int, Callable[[], SAE]]:
    """The transcoders of a set by their layers, each still to be read."""

    def reader(layer: int) -> Callable[[], SAE]:
        return lambda: _transcoder(folder, layer)

    there = folder.layers("layer")
    if not there:
        raise UserError(f"{folder.path} is a {PER_LAYER} without transcoders: their files are layer_N.safetensors")
    return {layer: reader(layer) for layer in there}


def _transcoder(folder: TracerFolder, layer: int) -> SAE:
    path = folder.path / f"layer_{layer}.safetensors"
    found = shapes(path)
    d_sae, d_in = check_shape(path, found, "W_enc", (None, None), "features, what is read")
    _, d_out = check_shape(path, found, "W_dec", (d_sae, None), "features, what is written")
    expected = {"b_enc": (d_sae,), "b_dec": (d_out,), THRESHOLD: (d_sae,), "W_skip": (d_out, d_in)}
    for name, shape in expected.items():
        if name in found or name.startswith("b_"):
            check_shape(path, found, name, shape, f"features: {d_sae}, read: {d_in}, written: {d_out}")
    is_jumprelu, skips = THRESHOLD in found, "W_skip" in found
    if folder.activation is not None and is_jumprelu != (folder.activation != "relu"):
        there = "there is a threshold" if is_jumprelu else "there is none"
        raise UserError(f"{path}: the activation in {CONFIG} is {folder.activation}, and {there}")
    with opened(path) as file:
        weights = {name: file.get_tensor(name) for name in ("W_enc", "W_dec", *expected) if name in found}
    weights = {name: values.to(at_least_float32(values.dtype), copy=True) for name, values in weights.items()}
    weights["W_enc"] = weights["W_enc"].T
    if is_jumprelu:
        weights["threshold"] = weights.pop(THRESHOLD)
        if (weights["threshold"] < 0).any():
            raise UserError(f"{path}: a threshold is below 0, where sae-lens's features cannot fire")
    architecture = f"{'jumprelu_' if is_jumprelu else ''}{'skip_' if skips else ''}transcoder"
    return made(architecture, weights, folder.metadata(layer))


# --- small things -------------------------------------------------------------------------------------------


def _is(value: str | None) -> str:
    return "missing" if value is None else quoted(value)
