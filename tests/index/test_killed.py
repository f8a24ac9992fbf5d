"""A scan that is killed at whatever moment, or has no room on its disk, goes on and ends with the same files."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..cli.calling import Files, files
from .scanned import contents, texts

__all__ = ["files"]
KILLS = 10


def command(files: Files, corpus: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "depass_sae", "scan", str(corpus), "--out", str(out), "--unit", "30", "--full", "1/3",
        *files.options(), *more,
    ]  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts(80)))
    return path


@pytest.mark.long
def test_a_scan_that_is_killed_over_and_over_ends_with_the_same_files(
    tmp_path: Path, files: Files, corpus: Path
) -> None:
    # several times as long as all that is done until the kills while finishing
    corpus.write_text("\n".join(texts(300)))
    subprocess.run(command(files, corpus, tmp_path / "plain"), check=True, capture_output=True)
    folder, draw, killed = tmp_path / "killed", random.Random(0), 0
    for number in range(KILLS):
        if (folder / "manifest.json").exists():
            break
        while_finishing = number >= KILLS - 3
        killed += kill(command(files, corpus, folder), folder, draw.uniform(0, 0.4), while_finishing)
        assert not (folder / "manifest.json").exists() or while_finishing
    assert killed > KILLS // 2
    if not (folder / "manifest.json").exists():
        subprocess.run(command(files, corpus, folder), check=True, capture_output=True)
    assert contents(folder) == contents(tmp_path / "plain")


def kill(arguments: list[str], folder: Path, wait: float, while_finishing: bool) -> bool:
    """Kills a scan so many seconds after it has done a unit, or after it has begun with its last files."""

    def seen() -> set[Path]:
        return set(folder.glob("vocabulary.parquet" if while_finishing else "parts/*"))

    (folder / "vocabulary.parquet").unlink(missing_ok=True)
    before = seen()
    running = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while seen() == before and running.poll() is None:
        time.sleep(0.005)
    time.sleep(wait)
    alive = running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.wait()
    return alive


@pytest.mark.long
def test_a_disk_that_takes_no_more_is_told_of_and_nothing_is_lost(tmp_path: Path, files: Files, corpus: Path) -> None:
    limited = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))\n"
        "sys.argv = ['depass-sae', *sys.argv[2:]]\n"
        "runpy.run_module('depass_sae', run_name='__main__')\n"
    )
    subprocess.run(command(files, corpus, tmp_path / "plain"), check=True, capture_output=True)
    told = 0
    for size in (3000, 8000, 20_000, 60_000):
        arguments = command(files, corpus, tmp_path / "full")[3:]
        done = subprocess.run([sys.executable, "-c", limited, str(size), *arguments], capture_output=True, text=True)
        if done.returncode == 0:
            break
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        assert "cannot write" in done.stderr
        assert not (tmp_path / "full" / "manifest.json").exists()
        told += 1
    assert told > 1
    if not (tmp_path / "full" / "manifest.json").exists():
        subprocess.run(command(files, corpus, tmp_path / "full"), check=True, capture_output=True)
    assert contents(tmp_path / "full") == contents(tmp_path / "plain")


@pytest.mark.long
def test_two_scans_do_not_work_in_one_folder(tmp_path: Path, files: Files, corpus: Path) -> None:
    first = subprocess.Popen(
        command(files, corpus, tmp_path / "ix"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "ix" / "parts").exists():
        assert first.poll() is None
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    second = subprocess.run(command(files, corpus, tmp_path / "ix"), capture_output=True, text=True)
    os.kill(first.pid, signal.SIGCONT)
    first.wait()
    assert second.returncode == 2
    assert second.stderr.endswith(f"another scan is working in {tmp_path / 'ix'}\n")
