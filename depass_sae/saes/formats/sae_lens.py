"""sae-lens's own: cfg.json and sae_weights.safetensors, as its trainers save them for inference."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...texts import quoted
from ..own import one_line
from ..weights import MOST, read_config
from .folder import Format, Stored, named

if TYPE_CHECKING:
    from sae_lens import SAE

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
TEXTS = (
    *("architecture", "hf_hook_name", "hook_name", "hook_point", "model_name", "release", "sae_id", "neuronpedia_id"),
    *("activation_fn", "activation_fn_str"),
)
"""What is a text, or nothing, in a configuration."""


def _recognises(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / WEIGHTS).exists()


def _read(folder: Path) -> list[Stored]:
    config = read_config(folder / CONFIG)
    if wrong := _wrong_in(config):
        raise UserError(f"{folder / CONFIG}: {wrong}")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}")
    metadata = config["metadata"] if isinstance(config.get("metadata"), dict) else config
    architecture = str(config.get("architecture", "standard"))
    return [Stored(str(folder), architecture, metadata, partial(_load, folder, config))]


def _wrong_in(config: Mapping[str, Any]) -> str | None:
    """What sae-lens would take as it is, or stumble over, in a configuration."""
    metadata = config.get("metadata", {})
    if not isinstance(metadata, dict):
        return f"metadata should be an object, and is {quoted(metadata)}"
    for key in TEXTS:
        for place in (config, metadata):
            if not isinstance(place.get(key), str | None):
                return f"{key} should be a text, and is {quoted(place[key])}"
    for key in ("d_in", "d_sae"):
        if not _is_count(config.get(key)):
            return (
                f"{key} should be a whole number from 1, and is {quoted(config[key]) if key in config else 'missing'}"
            )
    old = config.get("activation_fn_kwargs")  # before sae-lens 6
    k = config.get("k", old.get("k") if isinstance(old, dict) else None)
    is_topk = config.get("architecture") in ("topk", "abstopk") or "topk" in (
        config.get("activation_fn"), config.get("activation_fn_str"),
    )  # fmt: skip
    if is_topk and not (_is_count(k) and k <= config["d_sae"]):
        # A missing one is 100 to sae-lens, whatever the SAE was trained with.
        is_ = "is missing" if k is None else f"is {quoted(k)}"
        return f"k, the number of features that are active, should be from 1 to d_sae ({config['d_sae']}), and {is_}"
    layer = metadata.get("hook_layer", config.get("hook_layer"))
    if not (layer is None or layer == 0 or _is_count(layer)):
        return f"hook_layer should be a whole number from 0, and is {quoted(layer)}"
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < MOST


def _load(path: Path, config: Mapping[str, Any]) -> "SAE":
    from sae_lens import SAE
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
    from safetensors import SafetensorError

    from .. import choosing  # noqa: F401 (sae-lens knows these architectures from then on)

    architecture = config.get("architecture", "standard")
    if architecture in SAE_TRAINING_CLASS_REGISTRY and architecture not in SAE_CLASS_REGISTRY:
        raise UserError(
            f"this is a training checkpoint ({architecture}): save the SAE with save_inference_model instead"
        )
    if architecture not in SAE_CLASS_REGISTRY:
        raise UserError(f"sae-lens knows no architecture {architecture!r}; it knows {', '.join(SAE_CLASS_REGISTRY)}")
    try:
        sae = SAE.load_from_disk(path, device="cpu", dtype="float64" if config.get("dtype") == "float64" else "float32")
    except SafetensorError as error:
        raise UserError(f"{WEIGHTS} is damaged or cut short ({one_line(error)}); copy it again") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError, OSError) as error:
        raise UserError(
            f"{CONFIG} and {WEIGHTS} do not fit together: {type(error).__name__}: {one_line(error)}"
        ) from error
    sae.cfg.metadata.sae_id = path.resolve().name
    return sae


FORMAT = Format("sae-lens", f"{CONFIG} and {WEIGHTS}", named(WEIGHTS), _recognises, _read)
