"""Where a weight lies, and how it is got: in its module, wherever accelerate keeps it, or inside a packed one.

A :class:`Weight` is what the families' tables are made of. It knows its shape at once; its numbers are fetched when
they are asked for and stay for as long as whoever describes the layer does, so that of a model that is bigger than its
memory one layer's weights are there at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError

AT_ONCE = 512
"""Rows of the identity that a packed map is given at once, to have its weight of what it makes of them."""


@dataclass(frozen=True)
class Weight:
    """A weight, or a view of one. like: as large as it, and without memory of its own."""

    like: Tensor = field(repr=False)
    fetch: Callable[[], Tensor] = field(repr=False)

    @classmethod
    def of(cls, weight: Tensor | Weight) -> Weight:
        return weight if isinstance(weight, Weight) else cls(weight, lambda: weight)

    @property
    def shape(self) -> torch.Size:
        return self.like.shape

    def view(self, look: Callable[[Tensor], Tensor]) -> Weight:
        """What of it ``look`` takes."""
        return Weight(look(self.like), lambda: look(self.fetch()))

    def split(self, widths: tuple[int, ...] | list[int], dim: int = 0) -> list[Weight]:
        return [self.view(lambda x, i=i: x.split(widths, dim)[i]) for i in range(len(widths))]  # type: ignore[misc]

    @property
    def T(self) -> Weight:
        return self.view(lambda x: x.T)


class Held:
    """A part's field that is read as a tensor, and may be given as a :class:`Weight`: fetched when it is read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, part: None, owner: type) -> None: ...
    @overload
    def __get__(self, part: object, owner: type) -> Tensor: ...
    def __get__(self, part: object | None, owner: type) -> Tensor | None:
        if part is None:
            raise AttributeError(self.name)  # there is no default
        return vars(part)[self.name].fetch()

    def __set__(self, part: object, value: Tensor | Weight) -> None:
        vars(part)[self.name] = Weight.of(value)


class MaybeHeld:
    """The same where there may be none. default: None, or nothing where it has to be said."""

    def __init__(self, *default: None) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, part: object | None, owner: type) -> Tensor | None:
        if part is None and not self.default:
            raise AttributeError(self.name)
        found = None if part is None else vars(part)[self.name]
        return None if found is None else found.fetch()

    def __set__(self, part: object, value: Tensor | Weight | None) -> None:
        vars(part)[self.name] = None if value is None else Weight.of(value)


def held(part: object, name: str) -> Any:
    """What a field was given, not fetched."""
    return vars(part)[name]


def weight(module: Any, name: str = "weight") -> Weight:
    """A parameter of a module that is a plain tensor of floating-point numbers, wherever it lies.

    Raises UserError where it is something else: packed, of another dtype, behind a method, or not there.
    """
    found = getattr(module, name, None)
    if not isinstance(found, Tensor):
        raise UserError(_quantized(module, "no plain weight"))
    if not found.is_floating_point() or found.element_size() < 2:
        raise UserError(_quantized(module, f"its weight is {str(found.dtype).removeprefix('torch.')}"))
    if found.layout != torch.strided:
        raise UserError(f"the weight of a {type(module).__name__} is a sparse tensor; make it dense: weight.to_dense()")
    return Weight(_like(*found.shape), _fetcher(module, name))


def optional(module: Any, name: str) -> Weight | None:
    return None if getattr(module, name) is None else weight(module, name)


def of_linear(module: Any) -> Weight:
    """The weight [d_out, d_in] of a linear map, also of one that keeps it packed."""
    if (unpack := _unpacks(module)) is None:
        return weight(module)
    return Weight(_like(module.out_features, module.in_features), cache(lambda: unpack(module)))


def of_conv1d(module: Any) -> Weight:
    """The weight [d_in, d_out] of transformers' ``Conv1D``, or of the linear map in its place once it is packed."""
    packed = isinstance(module, nn.Linear) or _unpacks(module) is not None
    return of_linear(module).T if packed else weight(module)


def unpacked(module: Any) -> Callable[[Tensor], Tensor] | None:
    """What a packed map computes with the weight that it stands for, where it rounds what it is given, too."""
    if not (unpack := _UNPACKED.get(type(module).__name__)):
        return None
    return lambda x: functional.linear(x, unpack(module).to(x), None if module.bias is None else module.bias.to(x))


def rounds_inputs(model: nn.Module) -> bool:
    """Whether some of its maps round what they are given: bitsandbytes's of 8 bits do, to 8 bits."""
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


def without_gradient(tensor: Tensor) -> Tensor:
    """A view without gradient; a copy of what was made in ``torch.inference_mode``, which autograd takes nowhere."""
    return tensor.clone().detach() if tensor.is_inference() else tensor.detach()


def _like(*shape: int) -> Tensor:
    return torch.zeros(()).expand(shape)


def _quantized(module: Any, why: str) -> str:
    return (
        f"the model's weights are quantized or packed (a {module._get_name()}: {why}); load a checkpoint that is "
        "not, in bfloat16 or float32"
    )


# --------------------------------------------------------------------------------------------- what accelerate moved


def _hooks(module: nn.Module) -> tuple[Any, ...]:
    hook = getattr(module, "_hf_hook", None)
    return tuple(getattr(hook, "hooks", (hook,)))  # a SequentialHook has several


def offloading(module: nn.Module) -> Any:
    """accelerate's hook that brings a module's weights when it runs, and takes them away; None where there is none."""
    return next((one for one in _hooks(module) if getattr(one, "offload", False)), None)


def runs_on(whole: nn.Module, part: nn.Module) -> torch.device:
    """Where accelerate has a model run, or a part of it; if it says nothing, where that part's weights are."""
    named = [getattr(hook, "execution_device", None) for module in (whole, part) for hook in _hooks(module)]
    place = next((device for device in named if device is not None), None)
    if place is None:
        return next(part.parameters()).device
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def _fetcher(module: nn.Module, name: str) -> Callable[[], Tensor]:
    hook = offloading(module)
    if hook is None:
        return lambda: without_gradient(getattr(module, name))  # a view: nothing goes stale
    # The file may have it in another dtype than the model.
    return cache(lambda: without_gradient(hook.weights_map[name]).to(getattr(module, name).dtype))


# -------------------------------------------------------------------------------------------------------------- packed


def _unpacks(module: Any) -> Callable[[Any], Tensor] | None:
    """How a packed map's weight is got."""
    if (known := _UNPACKED.get(type(module).__name__)) is not None:
        return known
    lies_open = isinstance(getattr(module, "weight", None), Tensor)
    return None if lies_open or not hasattr(module, "out_features") else _applied


def _int8(module: Any) -> Float[Tensor, "d_out d_in"]:
    """bitsandbytes's: each row times its largest number, over 127."""
    largest = module.weight.SCB if module.state.SCB is None else module.state.SCB
    return module.weight.detach().float() * (largest.float() / 127)[:, None]


def _4bit(module: Any) -> Float[Tensor, "d_out d_in"]:
    from bitsandbytes.functional import dequantize_4bit

    if getattr(module.weight.quant_state, "packing_format_for_cpu", False):  # since it ran on a processor
        return _applied(module)
    return dequantize_4bit(module.weight.detach(), module.weight.quant_state)


_UNPACKED: dict[str, Callable[[Any], Tensor]] = {"Linear8bitLt": _int8, "Linear4bit": _4bit}
"""Told by their names, so that no library is imported. These round what they are given, or what comes out."""


def _applied(module: Any) -> Float[Tensor, "d_out d_in"]:
    """What the map makes of the identity, its bias taken off: the weight of any linear map."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point() and t.element_size() > 1]
    like = tensors[0] if tensors else torch.empty(0)
    with torch.no_grad():
        eye = torch.eye(module.in_features, dtype=like.dtype, device=like.device)
        own = type(module).forward  # whatever is hooked to this one
        bias = own(module, torch.zeros_like(eye[:1]))
        return torch.cat([own(module, rows) - bias for rows in eye.split(AT_ONCE)]).T
