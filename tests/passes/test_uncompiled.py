"""What is compiled runs as it was written while a model is recorded, and compiled again afterwards."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from depass_sae.passes.uncompiled import uncompiled


def counted() -> tuple[Callable[[Any], Any], list[int]]:
    """A compiled function, and how often compiled code of it was run."""
    runs: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            runs.append(1)
            return graph(*args)

        return run

    return torch.compile(lambda x: x.sin() + 1, backend=backend), runs


def compiled_module() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].compile(backend="eager")
    return module


def test_compiled_code_does_not_run_inside_and_does_afterwards() -> None:
    function, runs = counted()
    x = torch.ones(3)
    with uncompiled(compiled_module()):
        function(x)
    assert len(runs) == 0
    function(x)
    assert len(runs) == 1


def test_a_model_without_compiled_parts_changes_nothing() -> None:
    function, runs = counted()
    with uncompiled(nn.Linear(2, 2)):
        function(torch.ones(3))
    assert len(runs) == 1


def test_threads_that_overlap_leave_the_compiler_as_it_was() -> None:
    function, runs = counted()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with uncompiled(compiled_module()):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with uncompiled(compiled_module()):
        thread.start()
        assert entered.wait(10)
    function(torch.ones(3))
    assert len(runs) == 0  # the other is still inside
    leave.set()
    thread.join()
    function(torch.ones(3))
    assert len(runs) == 1
