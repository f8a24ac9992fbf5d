"""An SAE of our own: what a user hands over is read, never changed.

Whatever the SAE was (a training object, half precision, gradients on, heads reshaped), what comes out is sae-lens's
inference form of it: evaluation mode, no gradients, flat inputs, float32 unless asked otherwise. A jumprelu threshold
keeps at least float32 whatever the weights' dtype: rounding it turns features on and off.
"""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models.place import Place
from ..models.weights import without_gradient
from .hook import hook_of, named_hook, transformer_lens_name

if TYPE_CHECKING:
    from sae_lens import SAE

DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


def inference_form(sae: "SAE") -> "SAE":
    """A new inference SAE over the same weights. A batchtopk trainer's becomes the jumprelu SAE it is saved as.

    Raises UserError for an architecture that sae-lens has no inference form of.
    """
    from sae_lens import SAE, TrainingSAE

    parameters = sae.state_dict(keep_vars=True)
    state: dict[str, Any] = {name: without_gradient(values) for name, values in parameters.items()}
    try:
        if isinstance(sae, TrainingSAE):
            config = sae.cfg.get_inference_sae_cfg_dict()
            sae.process_state_dict_for_saving_inference(state)
            if hasattr(sae, "topk_threshold"):  # sae-lens writes it in the weights' dtype, which may be half precision
                state["threshold"] = torch.full((sae.cfg.d_sae,), float(sae.topk_threshold), device=sae.W_enc.device)
        else:
            config = sae.cfg.to_dict()
        own: SAE = SAE.from_dict({**config, "device": "meta"})
        own.load_state_dict(state, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"cannot use this {type(sae).__name__} for inference: {one_line(error)}") from error
    return own


def settle(sae: "SAE", device: str | torch.device, dtype: torch.dtype | None) -> "SAE":
    """Move an SAE of our own to where and how it is used. `dtype` None: float32, or float64 where it has it.

    Raises UserError if a weight is NaN or infinite.
    """
    threshold = None if getattr(sae, "threshold", None) is None else sae.threshold.detach().clone()
    sae = sae.to(device=torch.device(device), dtype=dtype or at_least_float32(sae.W_enc.dtype))
    if threshold is not None:
        kept = threshold.to(device=device, dtype=at_least_float32(threshold.dtype))
        sae.threshold = nn.Parameter(kept, requires_grad=False)
    if getattr(sae, "hook_z_reshaping_mode", False):
        sae.turn_off_forward_pass_hook_z_reshaping()
    for name, values in sae.state_dict().items():
        if not torch.isfinite(values).all():
            raise UserError(
                f"{name} holds NaN or infinite values (in {values.dtype}); save the SAE again or get another copy"
            )
    return sae.requires_grad_(False).eval()


def written_down(sae: "SAE", hook: Place, **origin: str | None) -> "SAE":
    """Note in the metadata of an SAE of our own where it reads and where it comes from, as far as they do not say."""
    metadata = sae.cfg.metadata
    if named_hook(metadata.to_dict(), sae.cfg.architecture()) is None:
        metadata.hf_hook_name, metadata.hook_name = None, transformer_lens_name(hook)
    for key, value in origin.items():
        metadata[key] = value
    return sae


def describe(sae: "SAE") -> dict[str, Any]:
    """What is known of an SAE, for JSON documents.

    Keys: release, id, neuronpedia_id, architecture, d_in, d_sae, hook; None where it is not known.
    """
    metadata = sae.cfg.metadata
    try:
        hook = str(hook_of(sae))
    except UserError:
        hook = None
    return {
        "release": metadata.release,
        "id": metadata.sae_id,
        "neuronpedia_id": metadata.neuronpedia_id,
        "architecture": sae.cfg.architecture(),
        "d_in": sae.cfg.d_in,
        "d_sae": sae.cfg.d_sae,
        "hook": hook,
    }


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def one_line(error: BaseException, length: int = 200) -> str:
    """An exception's message on one line, cut where it runs on."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 1] + "…"


_QUIET = threading.RLock()
"""What is made quiet is the whole process: two threads that load at once would put back each other's silence."""


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing from the libraries on the terminal: no warnings, logging or progress bars. Restored on the way out."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    with _QUIET, warnings.catch_warnings():
        level, bars_were_off = logging.root.manager.disable, are_progress_bars_disabled()
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        disable_progress_bars()
        try:
            yield
        finally:
            logging.disable(level)
            if not bars_were_off:
                enable_progress_bars()


def detached(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.detach().to(dtype)
