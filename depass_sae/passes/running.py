"""The model while a pass is recorded or edited: how it runs, what its modules show, and how it is put back.

It runs as transformers wrote it, with eager attention so that it hands out its patterns. When a pass ends, also by an
exception, the model object is as it was before: hooks, attention implementation, training mode of every module, and the
dtype of every tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from ..errors import UserError
from ..models.adapter import Adapter
from ..models.place import Place
from ..models.sublayer import Layer, Tap, tap
from ..models.weights import offloading, unpacked
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
    try:
        model.eval()
        if patterns:
            text.set_attn_implementation("eager")
        if experts not in (None, "eager") and torch.float64 in (dtype, *adapter.dtypes):
            text.set_experts_implementation("eager")  # the others do not compute in it
        with _unpacked(model), _all_away_again(model), _raised(adapter, dtype), torch.no_grad():
            yield
    finally:
        if patterns:
            text.set_attn_implementation(implementation)
        if experts != getattr(text.config, "_experts_implementation", None):
            text.set_experts_implementation(experts)
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _raised(adapter: Adapter, dtype: torch.dtype | None) -> Iterator[None]:
    """The model in a higher dtype, a layer at a time: each has its weights so while it runs.

    Raises UserError where the dtype is lower. Rounding up loses nothing; a lower dtype would compute something else.
    """
    if dtype is None:
        yield
        return
    tensors = [t for t in (*adapter.model.parameters(), *adapter.model.buffers()) if t.is_floating_point()]
    own = sorted({t.dtype for t in adapter.model.parameters() if t.is_floating_point()}, key=str)
    if higher := [_name(one) for one in own if torch.promote_types(one, dtype) != dtype]:
        raise UserError(f"trace_dtype {_name(dtype)} is lower than the model's {' and '.join(higher)}")
    if any(t.is_inference() and t.dtype != dtype for t in tensors):
        raise UserError(
            "a model that was made in torch.inference_mode keeps its dtype; load it outside of that, or leave "
            "trace_dtype out"
        )
    before: dict[tuple[nn.Module, str], Tensor] = {}

    def up(owners: Sequence[nn.Module]) -> None:
        for owner, name, tensor in _own_tensors(owners):
            if tensor.is_floating_point() and (higher := torch.promote_types(tensor.dtype, dtype)) != tensor.dtype:
                before[owner, name] = tensor.data
                tensor.data = tensor.data.to(higher)

    def down(owners: Sequence[nn.Module]) -> None:
        for owner, name, tensor in _own_tensors(owners):  # accelerate has put others in their places
            if (data := before.pop((owner, name), None)) is not None:
                tensor.data = data

    try:
        with hooks() as handles:
            for unit, owners in _units(adapter):
                # Before hooks of the model's own, which may cast what a layer is given to its weights' dtype.
                handles.append(unit.register_forward_pre_hook(lambda *_, owners=owners: up(owners), prepend=True))
                handles.append(unit.register_forward_hook(lambda *_, owners=owners: down(owners)))
            yield
    finally:
        down([owner for owner, _ in before])


def _units(adapter: Adapter) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """What runs one after the other, and all modules that have weights of its own: layers, and what is in none."""
    layers = adapter.text.get_submodule(adapter.family.layers)
    inside = set(layers.modules())
    yield from ((layer, list(layer.modules())) for layer in layers)
    yield from ((module, [module]) for module in adapter.model.modules() if module not in inside)


def _own_tensors(owners: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for owner in owners:
        own = (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False))
        yield from ((owner, name, tensor) for name, tensor in own)


@contextmanager
def _all_away_again(model: nn.Module) -> Iterator[None]:
    """A pass that is left early leaves no weights where accelerate brings them for a module's forward alone."""
    try:
        yield
    finally:
        for module in model.modules():
            hook = offloading(module)
            if hook is not None and any(not p.is_meta for p in module.parameters(recurse=False)):
                hook.post_forward(module, ())


@contextmanager
def _unpacked(model: nn.Module) -> Iterator[None]:
    """Packed maps compute with the weights that they stand for, as what is carried through them does."""
    found = {module: compute for module in model.modules() if (compute := unpacked(module)) is not None}
    names = {module: "_old_forward" if hasattr(module, "_hf_hook") else "forward" for module in found}
    own = {module: vars(module).get(name) for module, name in names.items()}
    try:
        for module, compute in found.items():
            setattr(module, names[module], compute)
        yield
    finally:
        for module, name in names.items():
            if own[module] is None:
                delattr(module, name)
            else:
                setattr(module, name, own[module])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run(adapter: Adapter, token_ids: Int[Tensor, "batch pos"], **options: Any) -> Any:
    """The model's own forward, and nothing beside it, whatever its config says that it returns."""
    with uncompiled(adapter.model):
        return adapter.model(
            token_ids.to(adapter.device),
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
        return (edit(args[0]).to(args[0]), *args[1:])

    def after(_module: Any, _args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]).to(output[0]), *output[1:])
        return edit(output).to(output)

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
