"""What circuits written by hand are written with: named dimensions, planted SAEs, and mutants.

What is true of a circuit is a formula of its own few constants, which no model is asked for. ``swapped`` and ``sign``
plant mutants: the same circuit with two heads of a layer exchanged, or a neuron's output with another sign, while what
is held to be true stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from .neutral import C, Layer, Mechanism, balanced

if TYPE_CHECKING:
    from sae_lens import SAE

CERTAIN = 20.0
"""A score so far above others that a head looks nowhere else: e⁻²⁰."""

SILENT = 1e-6
"""What a planted feature has to exceed to fire, so that none fires by rounding."""


class Stream:
    """Named dimensions of a stream, in a row: ``stream["cur"]`` is their slice."""

    def __init__(self, **widths: int) -> None:
        self.slices, self.width = {}, 0
        for name, width in widths.items():
            self.slices[name] = slice(self.width, self.width + width)
            self.width += width

    def __getitem__(self, name: str) -> slice:
        return self.slices[name]

    def reads(self, name: str, matrix: Tensor | None = None) -> Float[Tensor, "stream some"]:
        """A map from these dimensions to what ``matrix`` makes of them (default: themselves)."""
        matrix = torch.eye(self[name].stop - self[name].start) if matrix is None else matrix
        whole = torch.zeros(self.width, matrix.shape[1], dtype=torch.float64)
        whole[self[name]] = matrix.double()
        return whole

    def writes(self, name: str, matrix: Tensor | None = None) -> Float[Tensor, "some stream"]:
        return self.reads(name, None if matrix is None else matrix.T).T

    def embeds(self, **parts: Tensor) -> Float[Tensor, "row stream"]:
        """Rows that have these parts."""
        rows = max(len(part) for part in parts.values())
        whole = torch.zeros(rows, self.width, dtype=torch.float64)
        for name, part in parts.items():
            whole[:, self[name]] = part.double()
        return whole


def one_hot(words: Sequence[object], named: Sequence[object]) -> Float[Tensor, "word name"]:
    """1 where a word is the name."""
    return torch.tensor([[float(word == name) for name in named] for word in words])


def shift(n: int, by: int) -> Float[Tensor, "n n"]:
    """To one-hot positions those so many before them."""
    return torch.diag(torch.ones(n - by), -by)


def planted(hook: str, directions: Float[Tensor, "feature stream"], d: int, centred: bool = True) -> SAE:
    """An SAE whose features are these orthonormal directions of the stream; its constant is what keeps norms neutral.

    d: what it reads. centred: of :func:`.gpt2_of`, else of :func:`.llama_of`.
    """
    from sae_lens import StandardSAE, StandardSAEConfig

    n, stream = directions.shape
    config = StandardSAEConfig(d_in=d, d_sae=n, dtype="float64", apply_b_dec_to_input=True)
    layer, name = hook.split(".")
    config.metadata.hook_name = f"blocks.{layer}.hook_{name}"
    sae = StandardSAE(config)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.zero_()
        sae.W_enc[:stream] = directions.T
        sae.b_enc.fill_(-SILENT)
        if centred:
            sae.W_dec[:, : stream + 1] = balanced(directions)
            sae.b_dec[stream + 1], sae.b_dec[stream + 2] = C, -C
        else:
            sae.W_dec[:, :stream] = directions
            sae.b_dec[stream] = C
    return sae


def axes(stream: Stream, *names: str) -> Float[Tensor, "feature stream"]:
    """The dimensions of these parts as directions."""
    return torch.cat([stream.writes(name) for name in names])


def softmax(scores: Sequence[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def swap(mechanism: Mechanism) -> Mechanism:
    """In every layer heads 0 and 1 exchanged, whichever there are."""
    return replace(mechanism, layers=[_swapped(layer) for layer in mechanism.layers])


def _swapped(layer: Layer) -> Layer:
    return replace(layer, heads={1 - head if head < 2 else head: maps for head, maps in layer.heads.items()})


def turn(mechanism: Mechanism, layer: int, neuron: int) -> Mechanism:
    """With another sign to what one neuron writes."""
    layers = list(mechanism.layers)
    neurons = layers[layer].neurons
    assert neurons is not None
    out = neurons.out.clone()
    out[neuron] *= -1
    layers[layer] = replace(layers[layer], neurons=replace(neurons, out=out))
    return replace(mechanism, layers=layers)
