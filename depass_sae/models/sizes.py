"""A model directory's config.json, looked at before anything is made of it.

transformers makes a model of whatever sizes are in there and only then looks for its weights: a wrong size can take all
memory, and no layers at all are a model to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import parse_json, read_text
from ..texts import quoted

LAYERS, WIDTH, HEADS, NEURONS, TABLE, VOCABULARY = (
    ("num_hidden_layers", "n_layer"),
    ("hidden_size", "n_embd"),
    ("num_attention_heads", "n_head"),
    ("intermediate_size", "n_inner"),
    ("n_positions",),
    ("vocab_size",),
)
"""What families call a size; `TABLE`: of learned positions."""
OTHERS = ("num_key_value_heads", "head_dim", "max_position_embeddings")
FAR_MORE = 4
"""Fewer than so many times the checkpoint's numbers are left to transformers, which says which weight is wrong."""


def check_config(directory: Path) -> None:
    """Raises UserError, in one line, for a config.json that is no JSON object, or of sizes that cannot be."""
    path = directory / "config.json"
    try:
        config = parse_json(read_text(path), twice=True)
        if not isinstance(config, dict):
            raise UserError(f"it should hold an object, not {quoted(config)}")
        text = config.get("text_config")
        for part in (config, text) if isinstance(text, dict) else (config,):
            _check_sizes(part)
        if "quantization_config" not in config:
            _check_amount(text if isinstance(text, dict) else config, directory)
    except UserError as error:
        raise UserError(f"cannot use {path}: {error}") from None


def _check_sizes(config: Mapping[str, Any]) -> None:
    for name in (*LAYERS, *WIDTH, *HEADS, *NEURONS, *TABLE, *VOCABULARY, *OTHERS):
        size = config.get(name)
        if size is not None and (type(size) is not int or size < 1):
            raise UserError(f"{name} should be a whole number from 1, and is {quoted(size)}")
    width, heads, pairs = (_size(config, names) for names in (WIDTH, HEADS, ("num_key_value_heads",)))
    if config.get("head_dim") is None and width and heads and width % heads:
        raise UserError(f"{heads} heads do not share a width of {width} evenly")
    if heads and pairs and heads % pairs:
        raise UserError(f"num_key_value_heads should divide the number of heads, {heads}, and is {pairs}")


def _check_amount(config: Mapping[str, Any], directory: Path) -> None:
    held = _held(directory)
    if held is None:
        return
    tensors, numbers = held
    width, heads = _size(config, WIDTH), _size(config, HEADS)
    layers, neurons = _size(config, LAYERS), _size(config, NEURONS)
    if layers > tensors:
        raise UserError(f"it says {layers} layers, and the checkpoint holds {tensors} weights in all")
    inside = heads * (config.get("head_dim") or width // (heads or 1))
    need = width * (_size(config, VOCABULARY) + _size(config, TABLE) + layers * (2 * neurons + inside))
    if need > FAR_MORE * numbers:
        raise UserError(f"a model of its sizes has {need} numbers at least, and the checkpoint holds {numbers}")


def _size(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """0 where it is not said: what follows from it is then a lower bound."""
    return next((config[name] for name in names if config.get(name) is not None), 0)


def _held(directory: Path) -> tuple[int, int] | None:
    """How many tensors, and how many numbers, the checkpoint holds. None where that cannot be told."""
    from safetensors import SafetensorError, safe_open

    tensors = numbers = 0
    try:
        for path in directory.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
            tensors, numbers = tensors + len(shapes), numbers + sum(map(math.prod, shapes))
    except (OSError, SafetensorError):
        return None
    return (tensors, numbers) if tensors else None
