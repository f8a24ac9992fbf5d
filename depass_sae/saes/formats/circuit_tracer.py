"""circuit-tracer's folders: transcoders of every layer, or one that crosses layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..circuit_tracer import CROSS_LAYER, TracerFolder, is_circuit_tracers, layer_transcoders
from ..cross_layer import CrossLayer, CrossLayerFeatures
from .folder import Format, Stored


def _read(path: Path) -> list[Stored]:
    folder = TracerFolder.read(path)
    readers: dict[int, Callable[[], Any]]
    if folder.kind == CROSS_LAYER:
        whole = CrossLayer.read(folder)
        readers = {layer: partial(CrossLayerFeatures.read, whole, layer) for layer in range(whole.n_layers)}
    else:
        readers = layer_transcoders(folder)
    return [
        Stored(f"layer {layer} of {path}", "transcoder", folder.metadata(layer), load)
        for layer, load in readers.items()
    ]


FORMAT = Format(
    "circuit-tracer", "config.yaml with layer_N or W_enc_N and W_dec_N .safetensors", is_circuit_tracers, _read
)
