"""A device other than the host, made up: tensors there compute, but refuse what a real device refuses.

``Far`` wraps a tensor of the host and says that it lies on the ``meta`` device. An operation on tensors of both places
is an error, as it is on a GPU; and whatever makes the host wait for the device is noted. So the code for GPUs is tested
where there is none: all of it but the device's own arithmetic.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("meta")
ops = torch.ops.aten
INDEXING = {ops.index.Tensor, ops.index_put.default, ops.index_put_.default, ops._index_put_impl_.default}
WAITING = {
    ops._local_scalar_dense.default,
    ops._unique2.default,
    ops.bincount.default,
    ops.equal.default,
    ops.is_nonzero.default,
    ops.masked_select.default,
    ops.nonzero.default,
    ops.repeat_interleave.Tensor,
}


class Far(Tensor):
    """A tensor that is not on the host."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=FAR
        )

    def __init__(self, near: Tensor) -> None:
        self.near = near

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.near})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, [])


def far_module(module: nn.Module) -> Any:
    """A copy of a module on the far device."""
    return _sent(copy.deepcopy(module))


def _sent(module: nn.Module) -> nn.Module:
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = nn.Parameter(Far(parameter.data), requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = Far(buffer)
    return module


def spread_module(module: nn.Module, far: Collection[str]) -> Any:
    """A copy of a module, parts of it on the far device; each part takes what it is given to where it lies."""
    module = copy.deepcopy(module)
    for name in far:
        _sent(module.get_submodule(name))
    for part in module.modules():
        places = {tensor.device for tensor in (*part.parameters(), *part.buffers())}
        if len(places) == 1:
            part.register_forward_pre_hook(partial(_taken, *places), with_kwargs=True)
    return module


def _taken(where: torch.device, _module: Any, args: Any, kwargs: Any) -> Any:
    return tree_map(lambda x: x.to(where) if isinstance(x, Tensor) else x, (args, kwargs))


@contextmanager
def device() -> Iterator[list[Any]]:
    """Where the far device is there. Yields what made the host wait for it, as it comes."""
    waits: list[Any] = []
    with _Calls(waits), _Operations(waits):
        yield waits


class _Operations(TorchDispatchMode):
    def __init__(self, waits: list[Any]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.waits)


class _Calls(TorchFunctionMode):
    """What does not pass through operations: tensors made of numbers, numbers made of tensors."""

    def __init__(self, waits: list[Any]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _is_far(kwargs.get("device")):
            self.waits.append(func)
            made = func(*args, **{name: value for name, value in kwargs.items() if name != "device"})
            return made if isinstance(made, Far) else Far(made)
        if func is Tensor.tolist and isinstance(args[0], Far):
            self.waits.append(func)
            return args[0].near.tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Far):
            args = (args[0], _with_tensors(args[1]), *args[2:])
        return func(*args, **kwargs)


def _with_tensors(index: Any) -> Any:
    """An index whose lists are tensors of the host."""
    if isinstance(index, tuple):
        return tuple(_with_tensors(part) for part in index)
    return torch.tensor(index) if isinstance(index, list) else index


def _is_far(device: Any) -> bool:
    return device is not None and torch.device(device).type == FAR.type


def _near(x: Any) -> Any:
    return x.near if isinstance(x, Far) else x


def _run(func: Any, args: Any, kwargs: Any, waits: list[Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    assert not any(_is_far(x.device) and not isinstance(x, Far) for x in tensors), f"{func} of a tensor from nowhere"
    far = any(isinstance(x, Far) for x in tensors)
    here = [x for x in tensors if not isinstance(x, Far) and x.dim()]
    wanted = kwargs.get("device")
    to_far = far if wanted is None else _is_far(wanted)
    if func is ops._to_copy.default:
        if far != to_far and not (to_far and kwargs.get("non_blocking")):
            waits.append(func)
    elif func is ops.copy_.default:
        if isinstance(args[0], Far) != isinstance(args[1], Far) and args[1].dim():
            waits.append(func)
        func(*tree_map(_near, args), **tree_map(_near, kwargs))
        return args[0]
    elif far and func in INDEXING:
        if here or any(x.dtype == torch.bool for x in tree_leaves(args[1]) if isinstance(x, Tensor)):
            waits.append(func)
    elif far and here:
        raise RuntimeError(f"{func} of tensors on two devices: {[tuple(x.shape) for x in here]} are on the host")
    elif far and func in WAITING:
        waits.append(func)
    given = {**kwargs, "device": torch.device("cpu")} if wanted is not None else kwargs
    out = func(*tree_map(_near, args), **tree_map(_near, given))
    if not to_far:
        return out
    out = tree_map(lambda x: Far(x) if isinstance(x, Tensor) else x, out)
    aliases = func._schema.is_mutable or any(found.alias_info for found in func._schema.returns)
    return return_and_correct_aliasing(func, args, kwargs, out) if far and aliases else out
