"""circuit-tracer's folders: transcoders of every layer, or one that crosses layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..circuit_tracer import CROSS_LAYER, FILE, TracerFolder, is_circuit_tracers, layer_transcoders
from ..cross_layer import CrossLayer, CrossLayerFeatures
from .folder import Format, Stored


def _read(path: Path) -> list[Stored]:
    folder = TracerFolder.read(path)
    found: list[tuple[int, str, Callable[[], Any]]]
    if folder.kind == CROSS_LAYER:
        whole = CrossLayer.read(folder)
        layers = range(whole.n_layers)
        found = [(n, f"layer {n} of {path}", partial(CrossLayerFeatures.read, whole, n)) for n in layers]
    else:
        found = [(n, str(path / f"layer_{n}.safetensors"), load) for n, load in layer_transcoders(folder).items()]
    return [Stored(name, "transcoder", folder.metadata(layer), load) for layer, name, load in found]


FORMAT = Format(
    "circuit-tracer", "config.yaml with layer_N or W_enc_N and W_dec_N .safetensors", FILE, is_circuit_tracers, _read
)
