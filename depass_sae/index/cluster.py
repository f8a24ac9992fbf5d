"""Ray does the units of a scan: on this machine, or on a cluster whose machines share the folder of the index.

An actor holds a model of its own, on a GPU of its own where there are any. Ray starts it again where it dies, and gives
it again what it was doing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..subject import Subject
from .engines import AHEAD, TRIES, Tell, copied, loaded
from .units import Unit
from .work import Work

SHARED = ".shared"
"""A file that every machine of a cluster has to see."""


@dataclass(frozen=True)
class Ray:
    """workers: None for as many as there are GPUs, or one. address: of a cluster; None for this machine alone."""

    workers: int | None = None
    address: str | None = None

    def run(self, subject: Subject, work: Work, units: Iterable[Unit], tell: Tell) -> Iterator[Unit]:
        ray, made = _imported(), copied(subject)
        on_gpu = subject.adapter.device.type == "cuda"
        with self._connected(ray):
            there = ray.cluster_resources()
            workers = self.workers or (int(there.get("GPU", 0)) if on_gpu else 1)
            cores = max(int(there.get("CPU", 1)), 1)
            if not workers or (on_gpu and there.get("GPU", 0) < workers):
                raise UserError(f"the cluster has {there.get('GPU', 0):g} GPUs, and {workers or 'some'} were asked for")
            if not on_gpu and cores < workers:
                raise UserError(f"the cluster has {cores} CPUs, and {workers} workers were asked for")
            actor = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0, max_restarts=TRIES, max_task_retries=TRIES)(
                _Worker
            )
            threads = max(torch.get_num_threads() // workers, 1)
            actors = [actor.remote("cuda" if on_gpu else None, threads) for _ in range(workers)]
            _check_shared(ray, actors, work.parts.folder.parent)
            yield from _done(ray, actors, ray.put(made), work, iter(units), tell)

    @contextmanager
    def _connected(self, ray: Any) -> Iterator[None]:
        here = not ray.is_initialized()
        if here:
            try:
                ray.init(
                    address=self.address or "local", include_dashboard=None if self.address else False,
                    log_to_driver=False, logging_level=logging.ERROR,
                    num_cpus=None if self.address else max(self.workers or 1, torch.get_num_threads()),
                )  # fmt: skip
            except (ConnectionError, ValueError, RuntimeError) as error:
                where = self.address or "this machine"
                raise UserError(f"cannot reach Ray at {where}: {' '.join(str(error).split())}") from None
        try:
            yield
        finally:
            if here:
                ray.shutdown()


def _done(ray: Any, actors: list[Any], made: Any, work: Work, units: Iterator[Unit], tell: Tell) -> Iterator[Unit]:
    """made: of :func:`.copied`, where every machine finds it."""
    waiting: dict[Any, tuple[Unit, int]] = {}
    free = [number for _ in range(AHEAD) for number in range(len(actors))]
    while True:
        while free and (unit := next(units, None)):
            number = free.pop(0)
            waiting[actors[number].do.remote(made, work, unit)] = unit, number
        if not waiting:
            return
        (done, *_), _ = ray.wait(list(waiting))
        unit, number = waiting.pop(done)
        _got(ray, done)
        free.append(number)
        tell(unit, unit.entry.tokens)
        yield unit


class _Worker:
    """On a machine of the cluster."""

    def __init__(self, device: str | None, threads: int) -> None:
        torch.set_num_threads(threads)
        self._device = device
        self._subject: Subject | None = None

    def sees(self, path: str) -> bool:
        return Path(path).exists()

    def do(self, made: bytes, work: Work, unit: Unit) -> None:
        """What it is made of comes with every unit: one that takes a dead one's place knows nothing."""
        if self._subject is None:
            self._subject = loaded(made, self._device)
        work.do(self._subject, unit)


def _check_shared(ray: Any, actors: list[Any], folder: Path) -> None:
    """Raises UserError where a machine does not see what is in the folder."""
    path = folder / SHARED
    path.touch()
    try:
        seen = [_got(ray, actor.sees.remote(str(path.resolve()))) for actor in actors]
    finally:
        path.unlink()
    if not all(seen):
        raise UserError(f"not every machine of the cluster sees {folder}: name a folder that they share with --out")


def _got(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"workers of the cluster die over and over: {' '.join(str(error).split())[:300]}; what is done is kept"
        ) from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
    except ImportError:
        raise UserError("the Ray engine needs ray: pip install 'depass-sae[ray]'") from None
    return ray
