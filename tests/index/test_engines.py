"""Whoever does the units of a scan, its files are the same, byte by byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.index.asking import engine_of
from depass_sae.index.cluster import Ray
from depass_sae.index.contexts import Choosing
from depass_sae.index.corpus import corpus
from depass_sae.index.engines import HERE, Engine, Processes
from depass_sae.index.parts import Part, Parts
from depass_sae.index.units import Cutter, Unit
from depass_sae.index.work import Work
from depass_sae.subject import Subject

from ..cli.calling import Files, files
from .scanned import WINDOW, contents, lm, scanned, texts
from .test_killed import command

__all__ = ["files"]


@dataclass(frozen=True)
class Dying(Work):
    """Work whose process is killed at one unit, so many times."""

    at: int = 5
    times: int = 1

    def do(self, subject: Subject, unit: Unit, tell: Callable[[int], None] = lambda done: None) -> Part:
        deaths = self.parts.folder.parent
        for number in range(self.times if unit.entry.number == self.at else 0):
            if not (deaths / f"death-{number}").exists():
                (deaths / f"death-{number}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().do(subject, unit, tell)


class Refusing(Work):
    def do(self, subject: Subject, unit: Unit, tell: Callable[[int], None] = lambda done: None) -> Part:
        raise UserError(f"unit {unit.entry.number} is refused")


def done(folder: Path, engine: Engine, make: Callable[..., Work] = Work, count: int = 60) -> dict[str, bytes]:
    """The parts that an engine makes of a corpus."""
    folder.mkdir()
    subject = lm()._subject
    parts = Parts(folder / "parts", {hook: sae.cfg.d_sae for hook, sae in subject.saes.items()}, Choosing())
    units = Cutter(subject.loaded, subject.adapter, WINDOW, 60).units(corpus(texts(count)), {})
    told: dict[int, int] = {}
    seen = [
        unit.entry.number
        for unit in engine.run(subject, make(parts), units, lambda unit, n: told.update({unit.entry.number: n}))
    ]
    assert sorted(seen) == list(range(len(seen)))
    assert len(seen) > 10
    assert set(told) == set(seen)
    return contents(parts.folder)


def test_several_processes_make_the_same_index(tmp_path: Path) -> None:
    """Of a model, too, whose hidden states somebody has looked at."""
    lm().model(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    plain = contents(scanned(tmp_path / "plain", full="1/3").folder)
    assert contents(scanned(tmp_path / "two", full="1/3", workers=2).folder) == plain


@pytest.mark.long
def test_what_a_process_was_doing_that_died_is_done_again(tmp_path: Path) -> None:
    plain = done(tmp_path / "plain", HERE)
    assert done(tmp_path / "killed", Processes(2), Dying) == plain
    assert (tmp_path / "killed" / "death-0").exists()


@pytest.mark.long
def test_processes_that_die_over_and_over_end_a_scan(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"die over and over: .* fewer with --workers"):
        done(tmp_path / "killed", Processes(1), lambda parts: Dying(parts, times=100), count=12)
    assert not [one for one in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(one.cmdline())]


def test_what_goes_wrong_in_another_process_is_told_here(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unit [0-9] is refused"):
        done(tmp_path / "refused", Processes(1), Refusing, count=12)


def test_what_cannot_be_copied_is_told_before_any_process_starts(tmp_path: Path) -> None:
    made = ds.load(lm().model, lm().tokenizer, saes=list(lm().saes.values()))
    made.model.a_hook = threading.Lock()  # type: ignore[assignment]
    try:
        with pytest.raises(UserError, match=r"cannot be copied to other processes .* scan with one worker"):
            made.scan(texts(), tmp_path / "ix", workers=2)
    finally:
        del made.model.a_hook


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ({"engine": "spark"}, "an engine is local or ray, not 'spark'"),
        ({"workers": 0}, "workers are 1 to 1,024, not 0"),
        ({"workers": 2000}, "workers are 1 to 1,024, not 2,000"),
        ({"ray_address": "auto"}, "ask for engine ray"),
    ],
)
def test_an_engine_that_there_is_not_is_refused(asked: dict[str, Any], wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        engine_of(**asked)


def test_one_worker_is_this_process() -> None:
    assert engine_of() is engine_of(workers=1) is HERE
    assert engine_of(workers=3) == Processes(3)
    assert engine_of("ray", 2, "auto") == Ray(2, "auto")


# ------------------------------------------------------------------------------------------------------ what takes long


@pytest.mark.long
def test_processes_end_with_a_scan_that_is_killed_and_it_goes_on(tmp_path: Path, files: Files) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts(300)))
    subprocess.run(command(files, path, tmp_path / "plain"), check=True, capture_output=True)
    arguments = command(files, path, tmp_path / "killed", "--workers", "2")
    running = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed").glob("parts/*/manifest.json")):
        assert running.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(running.pid).children(recursive=True)
    assert len(workers) >= 2
    running.send_signal(signal.SIGKILL)
    running.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert not (tmp_path / "killed" / "manifest.json").exists()
    subprocess.run(arguments, check=True, capture_output=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "plain")


@pytest.mark.long
def test_ray_makes_the_same_index(tmp_path: Path, files: Files) -> None:
    pytest.importorskip("ray")
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts(120)))
    subprocess.run(command(files, path, tmp_path / "plain"), check=True, capture_output=True)
    arguments = command(files, path, tmp_path / "ray", "--engine", "ray", "--workers", "2")
    subprocess.run(arguments, check=True, capture_output=True)
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")


@pytest.mark.long
def test_a_worker_of_ray_that_is_killed_half_way_is_replaced(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    plain = done(tmp_path / "plain", HERE)
    found = subprocess.run(
        [sys.executable, "-c", "from tests.index.test_engines import with_ray; with_ray()", str(tmp_path / "killed")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "killed" / "death-0").exists()
    assert contents(tmp_path / "killed" / "parts") == plain


def with_ray() -> None:
    done(Path(sys.argv[1]), Ray(2), Dying)
