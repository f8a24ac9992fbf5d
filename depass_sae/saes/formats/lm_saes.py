"""OpenMOSS's lm-saes (now llamascopium), and Llama Scope, which was made with it.

    hyperparams.json or config.json    act_fn, d_model, d_sae or expansion_factor, hook_point_in, hook_point_out, ...
    sae_weights.safetensors, or        W_E [d_model, d_sae], b_E, W_D [d_sae, d_model], b_D; before 2025 encoder.weight,
    checkpoints/*.safetensors          encoder.bias, decoder.weight, decoder.bias, as nn.Linear has them

With norm_activation "dataset-wise" what is read is multiplied by s = √d_model / its average norm, and what is written
divided by its own s; both are folded into the weights. Features keep the scale that they have there: activations are
those of its ``encode(normalize_activations(x))``. Two things depend on ``sparsity_include_decoder_norm``:

    jumprelu    pre · ‖W_D[j]‖ is compared: the threshold is divided by ‖W_D[j]‖
    topk        pre · ‖W_D[j]‖ is compared: activations are in units of it, as in its own conversion to sae-lens

Llama Scope's one ``jump_relu_threshold`` is in units of what is written, unscaled: it is multiplied by the output's s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import UserError
from ...texts import quoted
from ..circuit_tracer import READS, WRITES
from ..weights import (
    MOST,
    Tensors,
    check_tensors,
    count_in,
    flag_in,
    is_number,
    made,
    one_of,
    read_config,
    read_tensors,
    text_in,
)
from .folder import Format, Stored, mentions, named, weights_among

if TYPE_CHECKING:
    from sae_lens import SAE

CONFIGS = ("hyperparams.json", "config.json")
WEIGHTS = ("sae_weights.safetensors", "checkpoints/pruned.safetensors", "checkpoints/final.safetensors")
NORMS = "dataset_average_activation_norm"
LOG_THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
LINEAR = {"W_E": "encoder.weight", "b_E": "encoder.bias", "W_D": "decoder.weight", "b_D": "decoder.bias"}
KINDS = {"relu": "", "jumprelu": "jumprelu", "topk": "topk"}


@dataclass(frozen=True)
class Config:
    """What a configuration says of how to encode. norms: the average ones, as far as they stand in it."""

    d_model: int
    d_sae: int
    act_fn: str
    k: int | None
    threshold: float | None
    hooks: tuple[str, str]  # read, written
    norm: str
    norms: dict[str, Any]
    decoder_norm_counts: bool
    subtracts_b_D: bool
    has_b_D: bool

    @property
    def transcodes(self) -> bool:
        return self.hooks[0] != self.hooks[1]

    @property
    def architecture(self) -> str:
        kind = KINDS[self.act_fn]
        return (f"{kind}_transcoder" if kind else "transcoder") if self.transcodes else kind or "standard"


def _recognises(folder: Path) -> bool:
    return any(mentions(folder / name, "hook_point_in") for name in CONFIGS) or (folder / CONFIGS[0]).exists()


def _read(folder: Path) -> list[Stored]:
    file = weights_among(folder, *CONFIGS)
    config = _config(file, read_config(file))
    weights = weights_among(folder, *WEIGHTS)
    metadata = {
        "model_name": _model(folder / "lm_config.json"),
        "hook_name": config.hooks[0],
        "sae_id": folder.resolve().name,
    }
    if config.transcodes:
        metadata["hook_name_out"] = config.hooks[1]
    load = partial(_load, weights, config, metadata)
    return [Stored(str(folder), config.architecture, metadata, load)]


def _config(file: Path, config: dict[str, Any]) -> Config:
    if config.get("sae_type", "sae") != "sae":
        raise UserError(f"{file}: sae_type should be sae (no other is supported), and is {quoted(config['sae_type'])}")
    if flag_in(file, config, "use_glu_encoder", False):
        raise UserError(f"{file}: use_glu_encoder makes pre-activations that are not affine in what is read")
    d_model = count_in(file, config, "d_model")
    d_sae = count_in(file, config, "d_sae") if config.get("d_sae") is not None else _expanded(file, config, d_model)
    act_fn = one_of(file, config, "act_fn", tuple(KINDS), "relu")
    norm = one_of(file, config, "norm_activation", ("dataset-wise", "inference", "token-wise"), "dataset-wise")
    hooks = (text_in(file, config, "hook_point_in"), text_in(file, config, "hook_point_out"))
    if hooks[0] is None:
        raise UserError(f"{file}: hook_point_in is missing")
    known = Config(
        d_model,
        d_sae,
        act_fn,
        count_in(file, config, "top_k", d_sae) if act_fn == "topk" else None,
        _threshold(file, config) if act_fn == "jumprelu" else None,
        (hooks[0], hooks[1] or hooks[0]),
        norm,
        config[NORMS] if isinstance(config.get(NORMS), dict) else {},
        flag_in(file, config, "sparsity_include_decoder_norm", True),
        flag_in(file, config, "apply_decoder_bias_to_pre_encoder", False),
        flag_in(file, config, "use_decoder_bias", True),
    )
    if known.transcodes:
        layer = hooks[0].removeprefix("blocks.").partition(".")[0]
        if known.hooks not in [(f"blocks.{layer}.{reads}", f"blocks.{layer}.{WRITES}") for reads in READS]:
            raise UserError(
                f"{file}: it goes from {hooks[0]} to {hooks[1]}; transcoders are supported of one layer's MLP"
            )
        if norm == "token-wise":
            raise UserError(f"{file}: norm_activation token-wise is not supported of transcoders")
    return known


def _expanded(file: Path, config: dict[str, Any], d_model: int) -> int:
    factor = config.get("expansion_factor")
    if not is_number(factor) or not 1 <= factor * d_model < MOST:
        raise UserError(f"{file}: d_sae or expansion_factor should be a number, and is {quoted(factor)}")
    return int(factor * d_model)


def _threshold(file: Path, config: dict[str, Any]) -> float | None:
    """The one of all features, as Llama Scope has it; None where each has its own among the weights."""
    value = config.get("jump_relu_threshold")
    if value is None:
        return None
    if not is_number(value) or not 0 <= value < math.inf:
        raise UserError(f"{file}: jump_relu_threshold should be a number from 0, and is {quoted(value)}")
    return float(value)


def _model(file: Path) -> str | None:
    return text_in(file, read_config(file), "model_name") if file.is_file() else None


# --- weights ------------------------------------------------------------------------------------------------


def _load(file: Path, config: Config, metadata: dict[str, Any]) -> SAE:
    found = read_tensors(file)
    norms = {name: found.pop(name) for name in list(found) if name.startswith(f"{NORMS}.")}
    s_in, s_out = (_factor(file, config, norms, side) for side in range(2))
    weights, log_threshold = _checked(file, config, found)
    W_enc, b_enc, W_dec, b_dec = (weights[name] for name in ("W_E", "b_E", "W_D", "b_D"))
    if config.subtracts_b_D:
        b_enc = b_enc - b_dec @ W_enc
    length = W_dec.norm(dim=1) if config.decoder_norm_counts else torch.ones_like(b_enc)
    length = length.clamp(min=1e-30)
    made_of: dict[str, Tensor] = {}
    if config.act_fn == "topk":
        W_enc, b_enc, W_dec = W_enc * length, b_enc * length, W_dec / length[:, None]
    elif config.act_fn == "jumprelu":
        threshold = log_threshold.exp() if config.threshold is None else b_enc.new_tensor(config.threshold) * s_out
        made_of["threshold"] = threshold / length
    made_of |= {"W_enc": W_enc * s_in, "b_enc": b_enc, "W_dec": W_dec / s_out, "b_dec": b_dec / s_out}
    options: dict[str, Any] = {} if config.k is None else {"k": config.k}
    if config.norm == "token-wise":
        options["normalize_activations"] = "constant_norm_rescale"
    return made(config.architecture, made_of, metadata, **options)


def _factor(file: Path, config: Config, among_weights: Tensors, side: int) -> float:
    """What is read (side 0) or written (1) is multiplied by in training."""
    if config.norm != "dataset-wise":
        return 1.0
    hook = config.hooks[side]
    stored = among_weights.get(f"{NORMS}.{hook}")
    norm = config.norms.get(("in", "out")[side], config.norms.get(hook)) if stored is None else stored.item()
    if not is_number(norm) or not 0 < norm < math.inf:
        raise UserError(
            f"{file}: the dataset's average activation norm at {hook} ({NORMS}) should be a number above 0, and is "
            f"{'missing' if norm is None else quoted(norm)}"
        )
    return math.sqrt(config.d_model) / norm


def _checked(file: Path, config: Config, found: Tensors) -> tuple[Tensors, Tensor]:
    """The weights by their newer names, each [in, out], and the logarithm of the thresholds, where it is there."""
    of_linear = "encoder.weight" in found
    name = LINEAR if of_linear else {key: key for key in LINEAR}
    across, back = (config.d_model, config.d_sae), (config.d_sae, config.d_model)
    shapes: dict[str, tuple[int, ...]] = {
        name["W_E"]: back if of_linear else across,
        name["b_E"]: (config.d_sae,),
        name["W_D"]: across if of_linear else back,
    }
    if config.has_b_D:
        shapes[name["b_D"]] = (config.d_model,)
    threshold = next((key for key in LOG_THRESHOLDS if key in found), LOG_THRESHOLDS[0])
    if config.act_fn == "jumprelu" and config.threshold is None:
        shapes[threshold] = (config.d_sae,)
    found = check_tensors(file, found, shapes, f"d_model: {config.d_model}, d_sae: {config.d_sae}")
    weights = {key: found[name[key]] for key in LINEAR if name[key] in found}
    if of_linear:
        weights |= {key: weights[key].T for key in ("W_E", "W_D")}
    weights.setdefault("b_D", weights["W_D"].new_zeros(config.d_model))
    return weights, found.get(threshold, weights["b_E"])


FORMAT = Format(
    "lm-saes", f"{' or '.join(CONFIGS)} and {WEIGHTS[0]} or {WEIGHTS[2]}", named(*WEIGHTS), _recognises, _read
)
