"""The model while a pass is recorded or edited: how it runs, what its modules show, and how it is put back.

It runs as transformers wrote it, with eager attention so that it hands out its patterns. When a pass ends, also by an
exception, the model object is as it was before: hooks, attention implementation, training mode of every module, and the
dtype of every tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import UserError
from ..models.adapter import Adapter
from ..models.place import Place
from ..models.sublayer import Layer, Tap, tap
from .uncompiled import uncompiled


@contextmanager
def recording(adapter: Adapter, dtype: torch.dtype | None = None, patterns: bool = True) -> Iterator[None]:
    """The model in evaluation mode, without gradients, in ``dtype`` and handing out its patterns; then as it was.

    Only one thread at a time has the model so: whatever changes lies on the model object, which all threads share.
    """
    with adapter.lock:
        yield from _changed(adapter, dtype, patterns)


def _changed(adapter: Adapter, dtype: torch.dtype | None, patterns: bool) -> Iterator[None]:
    model, text = adapter.model, adapter.text
    training = {module: module.training for module in model.modules()}
    implementation, experts = text.config._attn_implementation, getattr(text.config, "_experts_implementation", None)
    tensors = [*model.parameters(), *model.buffers()]
    dtypes = [tensor.dtype for tensor in tensors]
    try:
        model.eval()
        if patterns:
            text.set_attn_implementation("eager")
        if dtype is not None:
            # Rounding up loses nothing, so that going back restores every bit; a lower dtype would not.
            if any(t.is_floating_point() and torch.promote_types(t.dtype, dtype) != dtype for t in model.parameters()):
                raise UserError(f"trace_dtype {_name(dtype)} is lower than the model's {_name(model.dtype)}")
            if any(t.is_inference() and t.is_floating_point() and t.dtype != dtype for t in tensors):
                raise UserError(
                    "a model that was made in torch.inference_mode keeps its dtype; load it outside of that, or leave "
                    "trace_dtype out"
                )
            _cast(tensors, [torch.promote_types(t.dtype, dtype) if t.is_floating_point() else t.dtype for t in tensors])
        if experts not in (None, "eager") and model.dtype == torch.float64:
            text.set_experts_implementation("eager")  # the others do not compute in it
        with torch.no_grad():
            yield
    finally:
        _cast(tensors, dtypes)
        if patterns:
            text.set_attn_implementation(implementation)
        if experts != getattr(text.config, "_experts_implementation", None):
            text.set_experts_implementation(experts)
        for module, mode in training.items():
            module.training = mode


def _cast(tensors: list[Tensor], dtypes: list[torch.dtype]) -> None:
    for tensor, dtype in zip(tensors, dtypes, strict=True):
        if tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run(adapter: Adapter, token_ids: Int[Tensor, "batch pos"], **options: Any) -> Any:
    """The model's own forward, and nothing beside it, whatever its config says that it returns."""
    with uncompiled(adapter.model):
        return adapter.model(
            token_ids.to(adapter.model.device),
            use_cache=False,
            output_attentions=False,  # would install transformers' own hooks, for good
            output_hidden_states=False,
            **options,
        )


@contextmanager
def hooks() -> Iterator[list[Any]]:
    """A list of handles; what is on it is taken away at the end."""
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def look(tap: Tap, handles: list[Any], note: Callable[[Tensor], None]) -> None:
    """Call ``note`` with what a tap shows whenever the model passes it."""

    def before(_module: Any, args: tuple, kwargs: dict) -> None:
        note(tap.pick(args[0] if args else kwargs["hidden_states"]))

    def after(_module: Any, _args: tuple, output: Any) -> None:
        note(tap.pick(output))

    if tap.side == "in":
        handles.append(tap.module.register_forward_pre_hook(before, with_kwargs=True))
    else:
        handles.append(tap.module.register_forward_hook(after))


def change(tap: Tap, handles: list[Any], edit: Callable[[Tensor], Tensor]) -> None:
    """Put in its place what ``edit`` makes of what a tap shows, where that is a module's first argument or output."""

    def before(_module: Any, args: tuple) -> Any:
        return (edit(args[0]).to(args[0].dtype), *args[1:])

    def after(_module: Any, _args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]).to(output[0].dtype), *output[1:])
        return edit(output).to(output.dtype)

    if tap.side == "in":
        handles.append(tap.module.register_forward_pre_hook(before))
    else:
        handles.append(tap.module.register_forward_hook(after))


def watch(adapter: Adapter, place: tuple[int, str], handles: list[Any], note: Callable[[Tensor], None]) -> None:
    """Call ``note`` with the activation [batch, pos, d] at a place whenever the model passes it."""
    place = Place(*place)
    watch_in(adapter.layer(place.layer), place.hook, handles, note)


def watch_in(layer: Layer, hook: str, handles: list[Any], note: Callable[[Tensor], None]) -> None:
    """The same in one layer."""
    if hook != "resid_mid" or not layer.parallel:
        look(tap(layer, hook), handles, note)
        return
    before: list[Tensor] = []  # between the sublayers of a parallel block no module shows the stream
    watch_in(layer, "resid_pre", handles, lambda x: before.__setitem__(slice(None), [x]))
    watch_in(layer, "attn_out", handles, lambda x: note(before[0] + x))
