"""A model and the SAEs on it, loaded, checked and put together into what can be studied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .errors import UserError, warn
from .files import expanded
from .models.adapter import Adapter
from .models.kinds import several_dtypes, unwrapped
from .models.load import Checkpoint, Loaded, adapter_for, check_tokenizer, dtype_named, load_model
from .models.place import Place
from .passes.selfcheck import Checked, check
from .saes import CrossLayerFeatures, check_folder, load_saes
from .saes.trained_on import warn_of_others
from .subject import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_subject(
    model: str | Path | PreTrainedModel = "smollm2", tokenizer: PreTrainedTokenizerBase | None = None, **how: Any
) -> Subject:
    """See :func:`depass_sae.load`. What is loaded says how it was."""
    return replace(_loaded(model, tokenizer, **how), again=partial(load_subject, model, tokenizer, **how))


def _loaded(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    saes: Any = None,
    layers: Sequence[int] | int | None = None,
    sae_ids: Sequence[str] | str | None = None,
    sae_format: str | None = None,
    dtype: str | torch.dtype | None = None,
    trace_dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    chat: bool = False,
    **checkpoint: Any,
) -> Subject:
    tracing = dtype_named(trace_dtype)
    check_folder(saes, sae_format)
    if isinstance(model, str | Path):
        loaded = load_model(
            model, dtype=dtype, device=device, trust_remote_code=trust_remote_code,
            cache_dir=None if cache_dir is None else expanded(cache_dir), checkpoint=Checkpoint(**checkpoint),
        )  # fmt: skip
        if tokenizer is not None:
            loaded = replace(loaded, tokenizer=tokenizer)
    else:
        given = [name for name, value in {"dtype": dtype, "device": device, **checkpoint}.items() if value is not None]
        if given:
            raise UserError(
                f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} for models loaded by name; a model object "
                "is taken as it is"
            )
        model = unwrapped(model)
        name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
        loaded = Loaded(model, tokenizer, name)
    adapter = adapter_for(loaded.model)
    check_tokenizer(loaded.tokenizer, adapter, loaded.name)
    if chat and getattr(loaded.tokenizer, "chat_template", None) is None:
        raise UserError(f"the tokenizer of {loaded.name} has no chat template, so chat is not for it")
    loaded = replace(loaded, chat=chat)
    checked = _check(adapter, tracing)
    none = "no SAEs are loaded; name some with --sae (saes=)"
    if saes is None and loaded.name == "smollm2":
        from .saes.shipped import shipped_saes

        saes = shipped_saes() or None
        if saes is None:
            none = "this copy of depass-sae comes without its SAEs on SmolLM2; name others with --sae (saes=)"
            warn(none)
    if saes is None and (layers or sae_ids or sae_format):
        raise UserError(none)
    found = {}
    if saes is not None:
        there = str(adapter.device)
        found = load_saes(saes, layers=layers, sae_ids=sae_ids, sae_format=sae_format, device=there)
    for hook, sae in found.items():
        last = adapter.n_layers - 1
        width = adapter.width(Place(min(hook.layer, last), hook.hook))
        if sae.cfg.d_in != width:
            raise UserError(
                f"the SAE at {hook} reads {sae.cfg.d_in} dimensions, but {hook.name} of {loaded.name} has {width}"
            )
        if isinstance(sae, CrossLayerFeatures) and sae.whole.n_layers != adapter.n_layers:
            raise UserError(
                f"the cross-layer transcoder at {hook} is for a model of {sae.whole.n_layers} layers, and "
                f"{loaded.name} has {adapter.n_layers}"
            )
        if hook.layer > last:
            raise UserError(f"the SAE at {hook} cannot be on {loaded.name}, whose layers are 0 to {last}")
        if hook.hook == "resid_mid" and adapter.layer(hook.layer).parallel:
            raise UserError(
                f"the SAE at {hook} cannot be on {loaded.name}: its attention and MLP both read resid_pre, and nothing "
                "passes between them"
            )
        written = str(sae.cfg.metadata.hf_hook_name_out or "")
        if written.endswith(".mlp.output") and adapter.layer(hook.layer).sublayers[1].post is not None:
            raise UserError(
                f"the transcoder at {hook} cannot be on {loaded.name}: it stands for what the MLP gives before a "
                "norm on it, and what stands here comes after it"
            )
    warn_of_others(found, loaded.name)
    return Subject(_with_bos(loaded, found.values()), adapter, found, checked, tracing)


def _check(adapter: Adapter, dtype: torch.dtype | None) -> Checked:
    try:
        with adapter.lock:
            return check(adapter, dtype)
    except RuntimeError as error:
        if mixed := several_dtypes(adapter.model):
            raise UserError(mixed) from error
        raise


def _with_bos(loaded: Loaded, saes: Any) -> Loaded:
    """Put BOS before texts where the SAEs were trained with one and the tokenizer does not do it by itself."""
    bos = getattr(loaded.tokenizer, "bos_token_id", None)
    wanted = any(getattr(sae.cfg.metadata, "prepend_bos", None) for sae in saes)
    if loaded.bos_id is not None or bos is None or not wanted:
        return loaded
    return replace(loaded, bos_id=bos)
