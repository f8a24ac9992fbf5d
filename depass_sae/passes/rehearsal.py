"""Passes without numbers: the work itself runs on tensors of the meta device, and what it would take is counted.

Nothing is computed, so that a model of any size is rehearsed in a moment, and there is no second account of what a pass
does: whatever it does is what is counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Result = TypeVar("Result")


@dataclass(frozen=True)
class Effort:
    """flops: of matrix products, a multiplication and an addition counted as two. peak: the most bytes held at once,
    of tensors that were made on the way."""

    flops: int
    peak: int


def rehearse(work: Callable[[], Result]) -> tuple[Effort, Result]:
    """What some work on tensors of the meta device would take; and what comes out, which has no numbers either."""
    counter = _Counter()
    with torch.no_grad(), counter:
        result = work()
    return Effort(counter.flops, counter.peak), result


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = self.held = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        kwargs = kwargs or {}
        for given in (*args, *kwargs.values()):
            self._meet(given, made=False)
        out = function(*args, **kwargs)
        self._meet(out, made=True)
        if (flops := flop_registry.get(function._overloadpacket)) is not None:
            self.flops += flops(*args, **kwargs, out_val=out)
        elif str(function._overloadpacket) == "aten.addmm_":  # the registry leaves it out
            self.flops += 2 * args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
        return out

    def _meet(self, thing: Any, made: bool) -> None:
        """A tensor's memory: of what was there before only that it is known, so that views of it are not counted."""
        if isinstance(thing, tuple | list):
            for one in thing:
                self._meet(one, made)
        if not (isinstance(thing, Tensor) and thing.is_meta):
            return
        storage = thing.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes() if made else 0
            self.held += self.sizes[key]
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.held -= self.sizes.pop(key, 0)
