"""Cross-layer transcoders, whole.

A feature of layer l reads one place of its layer and writes, with a decoder of its own for each, into what the MLP of
layer l and of every later layer adds to the stream:

    mlp_out(m) = Σ_{l ≤ m} f_l · W_dec[l → m] + b_dec[m] + error(m)

:class:`CrossLayer` is the whole of it. The decoders are most of its size: they stay on disk, and only the rows that a
question needs are read. :class:`CrossLayerFeatures` are the features of one layer, which are read like an SAE's; there
is no single decoder that they could be given (sae-lens's single layers have the sum of all, written into one place).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UserError
from ..files import expanded
from ..models.place import Place
from .circuit_tracer import CROSS_LAYER, TracerFolder
from .own import at_least_float32
from .weights import check_shape, opened, shapes

if TYPE_CHECKING:
    from sae_lens.saes.sae import SAEMetadata

AT_ONCE = 2**24
"""So many numbers of a decoder are read at a time."""


@dataclass(frozen=True)
class Encoder:
    """Of one layer; threshold None stands for a ReLU."""

    W: Float[Tensor, "d_in d_sae"] = field(repr=False)
    b: Float[Tensor, "d_sae"] = field(repr=False)
    threshold: Float[Tensor, "d_sae"] | None = field(repr=False)


@dataclass(frozen=True)
class CrossLayerParts:
    """What the active features of one layer write into one layer: by position, then index."""

    pos: Int[Tensor, "n_active"]
    index: Int[Tensor, "n_active"]
    activation: Float[Tensor, "n_active"]
    parts: Float[Tensor, "n_active d_model"] = field(repr=False)


@dataclass(frozen=True)
class CrossLayer:
    """A cross-layer transcoder in a folder in circuit-tracer's format.

    d_sae: of every layer. jumprelu: with thresholds, else with a ReLU.
    """

    folder: TracerFolder
    d_model: int
    d_sae: tuple[int, ...]
    jumprelu: bool

    @classmethod
    def read(cls, path: str | Path | TracerFolder) -> CrossLayer:
        """What is in the folder, checked; no weights yet. Raises UserError for what is missing or does not fit."""
        folder = path if isinstance(path, TracerFolder) else TracerFolder.read(expanded(path))
        if folder.kind != CROSS_LAYER:
            raise UserError(f"{folder.path} is a {folder.kind}, not a {CROSS_LAYER}")
        there = [folder.layers(kind) for kind in ("W_enc", "W_dec")]
        n_layers, d_model, d_sae, thresholds = 1, None, [], []
        layer = 0
        while layer < n_layers:
            for name, numbers in zip(("W_enc", "W_dec"), there, strict=True):
                if layer not in numbers:
                    raise UserError(f"{folder.path} has no {name}_{layer}.safetensors; a {CROSS_LAYER} is one piece")
            found = _checked_layer(folder.path, layer, None if layer == 0 else n_layers, d_model)
            n_layers, d_model = found.n_layers, found.d_model
            d_sae.append(found.d_sae)
            thresholds.append(found.has_threshold)
            layer += 1
        assert d_model is not None
        if deeper := [number for number in there[0] + there[1] if number >= n_layers]:
            raise UserError(f"{folder.path} has files of layer {deeper[0]}, and W_dec_0 writes into {n_layers} layers")
        if len(set(thresholds)) > 1:
            layer = thresholds.index(not thresholds[0])
            raise UserError(f"{folder.path}: W_enc_{layer} and W_enc_0 do not both have thresholds")
        return cls(folder, d_model, tuple(d_sae), thresholds[0])

    @property
    def n_layers(self) -> int:
        return len(self.d_sae)

    def place(self, layer: int) -> Place:
        """What the features of a layer read."""
        return self.folder.place(self._layer(layer))

    # --- reading

    def encoder(self, layer: int) -> Encoder:
        path = self._file("W_enc", self._layer(layer))
        with opened(path) as file:
            W, b = (_copied(file.get_tensor(f"{name}_{layer}")) for name in ("W_enc", "b_enc"))
            threshold = _copied(file.get_tensor(f"threshold_{layer}")) if self.jumprelu else None
        return Encoder(W.T, b, threshold)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "pos d_model"], layer: int) -> Float[Tensor, "pos d_sae"]:
        """The activations of a layer's features, from what it reads."""
        if x.ndim != 2 or x.shape[1] != self.d_model:
            raise UserError(f"layer {layer} reads activations [pos, {self.d_model}], not {list(x.shape)}")
        encoder, x = self.encoder(layer), x.to(at_least_float32(x.dtype))
        return activated(x @ encoder.W.to(x) + encoder.b.to(x), encoder.threshold)

    # --- writing

    def decoder(self, layer: int, index: Sequence[int] | Int[Tensor, "n"], into: int) -> Float[Tensor, "n d_model"]:
        """The rows of some features of a layer for what they write into a layer, in float32 at least, on the CPU."""
        self._check_into(layer, into)
        rows = self._features(layer, index)
        with opened(self._file("W_dec", layer)) as file:
            on_disk = file.get_slice(f"W_dec_{layer}")
            found = [on_disk[row, into - layer] for row in rows]
        return self._finite(layer, _stacked(found, (self.d_model,)))

    def decoders(self, layer: int, index: Sequence[int] | Int[Tensor, "n"]) -> Float[Tensor, "n written d_model"]:
        """The same for all layers that they write into, their own first."""
        rows = self._features(self._layer(layer), index)
        with opened(self._file("W_dec", layer)) as file:
            on_disk = file.get_slice(f"W_dec_{layer}")
            found = [on_disk[row] for row in rows]
        return self._finite(layer, _stacked(found, (self.n_layers - layer, self.d_model)))

    def decoder_blocks(self, layer: int) -> Iterator[Float[Tensor, "some written d_model"]]:
        """All features' decoders, a block at a time."""
        n = max(1, AT_ONCE // ((self.n_layers - self._layer(layer)) * self.d_model))
        with opened(self._file("W_dec", layer)) as file:
            on_disk = file.get_slice(f"W_dec_{layer}")
            for first in range(0, self.d_sae[layer], n):
                yield self._finite(layer, _copied(on_disk[first : first + n]))

    def constant(self, into: int) -> Float[Tensor, "d_model"]:
        """b_dec of a layer: what is written into it where no feature fires."""
        with opened(self._file("W_enc", self._layer(into))) as file:
            return _copied(file.get_tensor(f"b_dec_{into}"))

    @torch.no_grad()
    def parts(self, layer: int, activations: Float[Tensor, "pos d_sae"], into: int) -> CrossLayerParts:
        """What each active feature of a layer writes into a layer, where it fires."""
        self._check_acts(layer, activations)
        pos, index = activations.nonzero(as_tuple=True)
        activation = activations[pos, index].to(at_least_float32(activations.dtype))
        features, back = index.unique(return_inverse=True)
        rows = self.decoder(layer, features, into).to(activation)
        return CrossLayerParts(pos, index, activation, activation[:, None] * rows[back])

    @torch.no_grad()
    def written(self, activations: Mapping[int, Float[Tensor, "pos d_sae"]], into: int) -> Float[Tensor, "pos d_model"]:
        """What the active features of all layers write into a layer together, without the constant.

        activations: by layer; those of deeper layers do not count. Raises UserError where one that writes there is
        missing.
        """
        for layer in range(self._layer(into) + 1):
            if layer not in activations:
                raise UserError(f"features of layer {layer} write into layer {into}: their activations are missing")
            self._check_acts(layer, activations[layer])
        own = activations[into]
        total = own.new_zeros(len(own), self.d_model, dtype=at_least_float32(own.dtype))
        for layer in range(into + 1):
            acts = activations[layer].to(total)
            active = acts.any(dim=0).nonzero()[:, 0]
            for some in active.split(max(1, AT_ONCE // self.d_model)):
                total += acts[:, some] @ self.decoder(layer, some, into).to(total)
        return total

    @torch.no_grad()
    def error(
        self,
        mlp_out: Float[Tensor, "pos d_model"],
        activations: Mapping[int, Float[Tensor, "pos d_sae"]],
        into: int,
    ) -> Float[Tensor, "pos d_model"]:
        """What the features and the constant miss of what the MLP of a layer adds."""
        written = self.written(activations, into)
        if mlp_out.shape != written.shape:
            raise UserError(f"mlp_out of layer {into} is {list(written.shape)} here, not {list(mlp_out.shape)}")
        return mlp_out.to(written.dtype) - written - self.constant(into).to(written)

    # --- checks

    def _file(self, name: str, layer: int) -> Path:
        return _file(self.folder.path, name, layer)

    def _layer(self, layer: int) -> int:
        if not 0 <= layer < self.n_layers:
            raise UserError(f"there is no layer {layer}: the transcoder's layers are 0 to {self.n_layers - 1}")
        return layer

    def _finite(self, layer: int, rows: Tensor) -> Tensor:
        if not rows.isfinite().all():
            raise UserError(f"{self._file('W_dec', layer)} holds NaN or infinite values; get another copy")
        return rows

    def _check_into(self, layer: int, into: int) -> None:
        if self._layer(into) < self._layer(layer):
            raise UserError(f"features of layer {layer} write into layer {layer} and later ones, not into {into}")

    def _features(self, layer: int, index: Sequence[int] | Int[Tensor, "n"]) -> list[int]:
        rows: list[int] = torch.as_tensor(index, dtype=torch.long).tolist()
        for row in rows:
            if not 0 <= row < self.d_sae[layer]:
                raise UserError(f"there is no feature {row}: those of layer {layer} are 0 to {self.d_sae[layer] - 1}")
        return rows

    def _check_acts(self, layer: int, activations: Tensor) -> None:
        width = self.d_sae[self._layer(layer)]
        if activations.ndim != 2 or activations.shape[1] != width:
            raise UserError(f"activations of layer {layer} are [pos, {width}], not {list(activations.shape)}")


def activated(pre: Float[Tensor, "pos d_sae"], threshold: Float[Tensor, "d_sae"] | None) -> Float[Tensor, "pos d_sae"]:
    """A ReLU, or what is above the threshold and nothing else."""
    return pre.relu() if threshold is None else pre * (pre > threshold.to(pre.device))


# --- one layer's features as what questions are asked of ----------------------------------------------------


@dataclass
class CrossLayerConfig:
    """What this package asks of an SAE's configuration."""

    d_in: int
    d_sae: int
    jumprelu: bool
    metadata: SAEMetadata
    normalize_activations: str = "none"
    apply_b_dec_to_input: bool = False

    def architecture(self) -> str:
        return f"jumprelu_{CROSS_LAYER}" if self.jumprelu else CROSS_LAYER


class CrossLayerFeatures(nn.Module):
    """The features of one layer of a cross-layer transcoder, ``whole``. They are read as an SAE's are."""

    threshold: nn.Parameter | None

    def __init__(self, whole: CrossLayer, layer: int, encoder: Encoder, metadata: SAEMetadata) -> None:
        super().__init__()
        self.whole, self.layer = whole, layer
        self.cfg = CrossLayerConfig(whole.d_model, whole.d_sae[layer], whole.jumprelu, metadata)
        self.W_enc, self.b_enc = (nn.Parameter(v.detach(), requires_grad=False) for v in (encoder.W, encoder.b))
        threshold = encoder.threshold
        self.threshold = None if threshold is None else nn.Parameter(threshold.detach(), requires_grad=False)
        self.hook_sae_acts_pre = nn.Identity()

    @classmethod
    def read(cls, whole: CrossLayer, layer: int) -> CrossLayerFeatures:
        from sae_lens.saes.sae import SAEMetadata

        return cls(whole, layer, whole.encoder(layer), SAEMetadata(**whole.folder.metadata(layer)))

    def again(self) -> CrossLayerFeatures:
        """A new object over the same weights."""
        encoder = Encoder(self.W_enc, self.b_enc, self.threshold)
        return CrossLayerFeatures(self.whole, self.layer, encoder, copy.deepcopy(self.cfg.metadata))

    def encode(self, x: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos d_sae"]:
        return activated(self.hook_sae_acts_pre(x.to(self.W_enc.dtype) @ self.W_enc + self.b_enc), self.threshold)

    def decoders(self, index: int) -> Float[Tensor, "written d_model"]:
        """A feature's rows for every layer that it writes into, its own first, beside the encoder."""
        return self.whole.decoders(self.layer, [index])[0].to(self.W_enc.device)

    def decoder_blocks(self) -> Iterator[Float[Tensor, "some written d_model"]]:
        """Those of all features, a block at a time."""
        for block in self.whole.decoder_blocks(self.layer):
            yield block.to(self.W_enc.device)

    @property
    def W_dec(self) -> NoReturn:
        raise UserError(self._no_decoder)

    def decode(self, acts: Float[Tensor, "pos d_sae"]) -> NoReturn:
        raise UserError(self._no_decoder)

    @property
    def _no_decoder(self) -> str:
        return (
            f"features of a cross-layer transcoder have no one decoder: those of layer {self.layer} have one for each "
            f"of the layers {self.layer} to {self.whole.n_layers - 1} that they write into (.whole.decoder, .decoders)"
        )


# --- small things -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LayerShapes:
    n_layers: int
    d_model: int
    d_sae: int
    has_threshold: bool


def _checked_layer(path: Path, layer: int, n_layers: int | None, d_model: int | None) -> _LayerShapes:
    """The shapes of one layer's files. n_layers, d_model: as the first layer's say."""
    encoder, decoder = _file(path, "W_enc", layer), _file(path, "W_dec", layer)
    found = shapes(encoder)
    d_sae, width = check_shape(encoder, found, f"W_enc_{layer}", (None, d_model), "features, d_model")
    check_shape(encoder, found, f"b_enc_{layer}", (d_sae,), "features")
    check_shape(encoder, found, f"b_dec_{layer}", (width,), "d_model")
    if has_threshold := f"threshold_{layer}" in found:
        check_shape(encoder, found, f"threshold_{layer}", (d_sae,), "features")
    written = None if n_layers is None else n_layers - layer
    means = f"features, layers from {layer} on, d_model"
    shape = check_shape(decoder, shapes(decoder), f"W_dec_{layer}", (d_sae, written, width), means)
    if skips := [name for name in found if name.startswith("W_skip")]:
        raise UserError(f"{encoder} has {skips[0]}: cross-layer transcoders with a skip connection are not supported")
    return _LayerShapes(shape[1] if n_layers is None else n_layers, width, d_sae, has_threshold)


def _file(path: Path, name: str, layer: int) -> Path:
    return path / f"{name}_{layer}.safetensors"


def _stacked(rows: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return _copied(torch.stack(list(rows))) if rows else torch.zeros(0, *shape)


def _copied(values: Tensor) -> Tensor:
    """In float32 at least, and no part of the file any more, which may be written anew."""
    return values.to(at_least_float32(values.dtype), copy=True)
