"""Statuses and lines: whatever goes wrong, and whatever stdout and stderr are."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import depass_sae as ds
from depass_sae.__main__ import main as entry
from depass_sae.cli.main import COMMANDS

from ..attribution.tiny import TEXT
from .calling import Files, Run, assert_refused, process


@pytest.mark.parametrize("arguments", [["token"], ["nonsense", "--prompt", "x"], ["--nonsense"], []])
def test_a_mistyped_command_is_one_line_and_status_2(run: Run, arguments: list[str]) -> None:
    assert_refused(run(*arguments))


def test_a_hub_that_cannot_be_reached_is_one_line(files: Files, tmp_path: Path) -> None:
    done = process(
        "tokens", "--model", "owner/model", "--logit", "x", "--ids", "5",
        HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path),
    )  # fmt: skip
    assert_refused(done, "the hub cannot be reached")


def test_the_line_is_not_wrapped_in_a_narrow_terminal() -> None:
    done = process("tokens", "--prompt", "x", "--nonsense", COLUMNS="20")
    assert_refused(done, "No such option: --nonsense")


def test_a_process_prints_one_document_and_nothing_else(files: Files) -> None:
    done = process("tokens", "-f", "1/3", "-p", TEXT, *files.options(), "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["feature"] == {"layer": 1, "index": 3, "hook": "resid_post"}


def test_neither_the_version_nor_help_imports_anything_heavy() -> None:
    code = (
        "import sys, typer\n"
        "from depass_sae.cli import app, main\n"
        "names = typer.main.get_command(app).commands\n"
        "for asked in (['--version'], ['--help'], *([name, '--help'] for name in names)):\n"
        "    sys.argv = ['depass-sae', *asked]\n"
        "    try: main()\n"
        "    except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'transformers', 'sae_lens', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"depass-sae {ds.__version__}\n")
    assert done.stdout.count("Usage: depass-sae") == 1 + len(COMMANDS)


def test_an_unexpected_error_ends_with_status_1_and_an_empty_stdout() -> None:
    code = (
        "import sys, depass_sae.cli as cli\n"
        "from depass_sae.cli.options import PromptOptions\n"
        "def broken(*_): raise ZeroDivisionError('a bug')\n"
        "PromptOptions.read = broken\n"
        "sys.argv = ['depass-sae', 'features']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ZeroDivisionError: a bug" in done.stderr


def test_a_reader_that_has_seen_enough_is_told_of_nothing() -> None:
    code = (
        "import sys, depass_sae.cli as cli\n"
        "from depass_sae.cli import options, talk\n"
        "options.PromptOptions.read = lambda *_: talk.print_json({'a': ['x' * 100] * 10000}) or sys.exit(5)\n"
        "sys.argv = ['depass-sae', 'features']; cli.main()"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=buffered, **pipes) as running:
        running.stdout.read(10)
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode in (0, 1)


def test_a_stdout_that_takes_nothing_is_one_line_and_one_that_is_closed_is_none() -> None:
    help_ = f"{sys.executable} -m depass_sae --help"
    full = subprocess.run(f"{help_} > /dev/full", shell=True, stderr=subprocess.PIPE)
    assert (full.returncode, full.stderr) == (2, b"depass-sae: cannot write the output: No space left on device\n")
    shut = subprocess.run(f"{help_} >&-", shell=True, stderr=subprocess.PIPE)
    assert (shut.returncode, shut.stderr) == (0, b"")


def test_ctrl_c_before_the_command_line_is_imported_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "depass_sae.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "depass_sae.cli")
    monkeypatch.setattr(sys, "meta_path", [Impatient(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        entry()
    assert ended.value.code == 130
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"depass-sae": "depass_sae.__main__:main"}
