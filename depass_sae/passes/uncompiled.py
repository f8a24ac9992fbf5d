"""Runs a model whose parts ``torch.compile`` has compiled as it was written.

Compiled code passes by hooks that came after it, and then a pass records nothing there, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import nn

_lock = Lock()
_running = 0
_stance: Any = None


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, nothing that is compiled runs compiled, if the model has such parts."""
    if not any(_is_compiled(part) for part in model.modules()):
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _is_compiled(part: nn.Module) -> bool:
    return (
        part._compiled_call_impl is not None
        or hasattr(part, "_orig_mod")
        or hasattr(part.forward, "_torchdynamo_orig_callable")
    )


# torch has one stance for all threads: the first to enter sets it, and the last to leave puts it back.


def _enter() -> None:
    global _running, _stance
    with _lock:
        if _running == 0:
            _stance = torch.compiler.set_stance("force_eager")
        _running += 1


def _leave() -> None:
    global _running
    with _lock:
        _running -= 1
        if _running == 0:
            _stance.__exit__(None, None, None)
