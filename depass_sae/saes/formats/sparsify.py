"""EleutherAI's sparsify: a folder for each hookpoint (``layers.17``, ``layers.17.mlp``), or for each seed of one.

    cfg.json           d_in, expansion_factor or num_latents, k, activation, transcode, skip_connection
    sae.safetensors    encoder.weight [d_sae, d_in], encoder.bias, W_dec [d_sae, d_in], b_dec, W_skip [d_in, d_in]
    ../config.json     of the run: the model

An SAE subtracts b_dec before it encodes, a transcoder does not. A hookpoint is a module: an SAE is of what it puts out,
a transcoder goes from what it is given to what it puts out.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..model_types import POST_NORMED, model_type_of
from ..weights import check_tensors, count_in, flag_in, made, one_of, read_config, read_tensors, text_in
from .folder import Format, Stored, mentions, named, weights_among

if TYPE_CHECKING:
    from sae_lens import SAE

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
HOOKPOINT = re.compile(r"(?:\w+\.)*(?:layers|h)\.\d+(?:\.\w+)*")
EMBEDDINGS = ("embed_tokens", "embed_in", "wte")


def _recognises(folder: Path) -> bool:
    return (folder / WEIGHTS).exists() or mentions(folder / CONFIG, "num_latents")


def _read(folder: Path) -> list[Stored]:
    file = folder / CONFIG
    config = read_config(file)
    weights = weights_among(folder, WEIGHTS)
    d_in = count_in(file, config, "d_in")
    if config.get("num_latents"):
        d_sae = count_in(file, config, "num_latents")
    else:
        d_sae = d_in * count_in(file, config, "expansion_factor")
    k = count_in(file, config, "k", d_sae)
    activation = one_of(file, config, "activation", ("topk", "groupmax"), "topk")
    transcodes, skips, signed = (
        flag_in(file, config, key, False) for key in ("transcode", "skip_connection", "signed")
    )
    if activation == "groupmax" and d_sae % k:
        raise UserError(f"{file}: k, the number of groups, should divide {d_sae} latents, and is {k}")
    if skips and not transcodes:
        raise UserError(f"{file}: an SAE with a skip_connection is not supported, only transcoders with one")
    if signed and (transcodes or activation != "topk"):
        raise UserError(f"{file}: signed latents are supported of topk SAEs only")
    kind = "abstopk" if signed else activation
    architecture = f"{kind}{'_skip' if skips else ''}{'_transcoder' if transcodes else ''}"
    metadata = _metadata(folder, transcodes)
    return [
        Stored(str(folder), architecture, metadata, partial(_load, weights, architecture, metadata, d_in, d_sae, k))
    ]


def _load(weights: Path, architecture: str, metadata: dict[str, Any], d_in: int, d_sae: int, k: int) -> SAE:
    shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if "skip" in architecture:
        shapes["W_skip"] = (d_in, d_in)
    found = check_tensors(weights, read_tensors(weights), shapes, f"latents: {d_sae}, d_in: {d_in}")
    renamed = {"W_enc": found.pop("encoder.weight").T, "b_enc": found.pop("encoder.bias"), **found}
    return made(architecture, renamed, metadata, k=k, apply_b_dec_to_input="transcoder" not in architecture)


def _metadata(folder: Path, transcodes: bool) -> dict[str, Any]:
    """What the folders' names and the run's configuration say. A folder of another name says no hook."""
    folder = folder.resolve()
    of_seed = re.fullmatch(r"seed\d+", folder.name)
    place = folder.parent if of_seed else folder
    run = place.parent / RUN
    model = text_in(run, read_config(run), "model") if run.is_file() else None
    metadata = {"model_name": model, "sae_id": f"{place.name}/{folder.name}" if of_seed else folder.name}
    if place.name in EMBEDDINGS and not transcodes:
        return metadata | {"hook_name": "hook_embed"}
    if not HOOKPOINT.fullmatch(place.name):
        return metadata
    if not transcodes:
        return metadata | {"hf_hook_name": f"{place.name}.output"}
    if not place.name.endswith(".mlp"):
        raise UserError(f"{folder} transcodes {place.name}; only transcoders of a layer's MLP are supported")
    if model_type_of(model) in POST_NORMED:
        raise UserError(f"{folder} stands for what the MLP gives before a norm on it, which is no place here ({model})")
    return metadata | {"hf_hook_name": f"{place.name}.input", "hf_hook_name_out": f"{place.name}.output"}


FORMAT = Format("sparsify", f"{CONFIG} and {WEIGHTS}", named(WEIGHTS), _recognises, _read)
