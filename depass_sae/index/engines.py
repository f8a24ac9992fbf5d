"""Who does the units of a scan: this process, or several others. What they make is the same, byte by byte.

The corpus is read and cut in one place, and parts are merged there; the others run the model. A process that dies is
replaced, and what it was doing is done again. Others than this one load the model and the SAEs as they were loaded here
(:attr:`.Subject.again`): what has a name is loaded by it, objects are copied.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any, Protocol

import torch

from ..errors import UserError
from ..subject import Subject
from .units import Unit
from .work import Work

AHEAD = 2
"""Units that wait or are being done, for each worker."""
TRIES = 3
"""So often a unit is begun; the processes that were at it died."""
Tell = Callable[[Unit, int], None]


class Engine(Protocol):
    """Does units in whatever order."""

    def run(self, subject: Subject, work: Work, units: Iterable[Unit], tell: Tell) -> Iterator[Unit]:
        """Each unit as soon as its part is on the disk. tell: is called with a unit and with how many tokens are done.

        Raises UserError for what the units do, and where nobody can do them.
        """


class Here:
    """This process."""

    def run(self, subject: Subject, work: Work, units: Iterable[Unit], tell: Tell) -> Iterator[Unit]:
        for unit in units:
            work.do(subject, unit, lambda done, unit=unit: tell(unit, done))  # type: ignore[misc]
            yield unit


HERE = Here()


@dataclass(frozen=True)
class Processes:
    """So many processes of this machine; where it has several GPUs, one after the other."""

    workers: int

    def run(self, subject: Subject, work: Work, units: Iterable[Unit], tell: Tell) -> Iterator[Unit]:
        made, waiting, tries = copied(subject), dict[Future[None], Unit](), dict[int, int]()
        left, pool = iter(units), self._pool(subject, made, work)
        again: list[Unit] = []
        try:
            while True:
                while len(waiting) < AHEAD * self.workers and (unit := again.pop() if again else next(left, None)):
                    waiting[self._submit(pool, unit)] = unit
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    unit = waiting.pop(future)
                    try:
                        future.result()
                    except BrokenProcessPool:
                        again = sorted([unit, *waiting.values()], key=lambda unit: -unit.entry.number)
                        waiting.clear()
                        for lost in again:
                            tries[lost.entry.number] = tries.get(lost.entry.number, 0) + 1
                        if max(tries.values()) >= TRIES:
                            raise UserError(
                                "processes that scan die over and over: there may be too little memory for "
                                f"{self.workers} of them; ask for fewer with --workers"
                            ) from None
                        pool.shutdown(wait=False)
                        pool = self._pool(subject, made, work)
                        break
                    tell(unit, unit.entry.tokens)
                    yield unit
        finally:
            for process in list((pool._processes or {}).values()):  # what they are doing has come to nothing
                if waiting or again:
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ProcessPoolExecutor, unit: Unit) -> Future[None]:
        try:
            return pool.submit(_do, unit)
        except BrokenProcessPool as error:
            broken: Future[None] = Future()
            broken.set_exception(error)
            return broken

    def _pool(self, subject: Subject, made: bytes, work: Work) -> ProcessPoolExecutor:
        context = get_context("spawn")
        devices = context.SimpleQueue()
        for number in range(self.workers):
            devices.put(device_of(subject, number))
        threads = max(torch.get_num_threads() // self.workers, 1)
        return ProcessPoolExecutor(self.workers, context, initializer=_begin, initargs=(made, work, devices, threads))


def copied(subject: Subject) -> bytes:
    """How another process loads what is being studied. Raises UserError where it holds what cannot be copied."""
    try:
        import cloudpickle  # which takes functions, too: SAE objects hold some
    except ImportError:
        raise UserError("several processes need cloudpickle: pip install 'depass-sae[index]'") from None

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            return _without_captures(obj) if isinstance(obj, torch.nn.Module) else super().reducer_override(obj)

    made = io.BytesIO()
    try:
        Pickler(made).dump(subject.again)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"{subject.loaded.name} and its SAEs cannot be copied to other processes ({error}); load them by their "
            "names, or scan with one worker"
        ) from None
    return made.getvalue()


HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _without_captures(module: torch.nn.Module) -> Any:
    """How a module is copied: without the hooks by which transformers collects hidden states, which cannot be."""
    reduced: Any = module.__reduce_ex__(2)
    made, arguments, state, *rest = reduced
    if isinstance(state, dict):
        kept = {
            name: OrderedDict((key, hook) for key, hook in state[name].items() if not _captures(hook))
            for name in HOOKS
            if name in state
        }
        state = state | kept
    return made, arguments, state, *rest


def _captures(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def loaded(made: bytes, device: str | None) -> Subject:
    """In another process. made: of :func:`copied`. device: None for the one that it was loaded on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were told where it was loaded first
        from transformers.utils import logging

        logging.disable_progress_bar()
        again = pickle.loads(made)  # of this program's own making, a moment ago
        subject: Subject = again() if device is None else again(device=device)
    return subject


def device_of(subject: Subject, number: int) -> str | None:
    """Where the worker of this number has its model; None where there is no choice."""
    gpus = torch.cuda.device_count()
    named = subject.adapter.device.type == "cuda" and subject.loaded.checkpoint.device_map is None
    return f"cuda:{number % gpus}" if named and gpus > 1 else None


# -------------------------------------------------------------------------------------------------- in another process

_HERE: dict[str, Any] = {}


def _begin(made: bytes, work: Work, devices: Any, threads: int) -> None:
    """A worker's beginning. What goes wrong is told by its first unit: nobody hears an error that is raised here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever is in front decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _HERE["work"] = work
    try:
        _HERE["subject"] = loaded(made, devices.get())
    except Exception as error:
        _HERE["error"] = error


def _end_with_parent() -> None:
    """What is done for a scan that was killed would only be in the next one's way."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(unit: Unit) -> None:
    if "error" in _HERE:
        raise _HERE["error"]
    _HERE["work"].do(_HERE["subject"], unit)
