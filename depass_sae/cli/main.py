"""The entry point: runs a command and turns what goes wrong into a status and a line.

Results go to stdout, as tables or with ``--json`` as one document; progress and messages go to stderr. A mistake that
the user can put right ends with status 2 and one line on stderr, anything else with 1. Nothing heavy is imported before
a command runs. stdout and stderr may have any encoding, be full, or be closed.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from .._version import __version__
from ..errors import UserError
from ..texts import make_printable, one_line
from . import circuits, evaluating, graphs, index, models, questions, reports
from .options import spelled_out

COMMANDS = (
    questions.features,
    questions.tokens,
    questions.heads,
    questions.modules,
    questions.neurons,
    questions.subspace,
    questions.attention,
    questions.downstream,
    questions.steer,
    reports.feature,
    reports.case_study,
    graphs.graph,
    circuits.circuit,
    circuits.circuit_of,
    graphs.verify,
    graphs.diff,
    index.scan,
    index.merge,
    index.index,
    index.search,
    index.similar,
    index.compare,
    index.export,
    index.browse,
    evaluating.evaluate,
    models.models,
    models.estimate,
)

app = typer.Typer(
    name="depass-sae",
    help="Which tokens activate an SAE feature: exact, additive answers by decomposed forward passes.",
    add_completion=False,
    rich_markup_mode="rich",
)
for command in COMMANDS:
    app.command(command.__name__.replace("_", "-"))(spelled_out(command))


def _say_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"depass-sae {__version__}\n")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command that the arguments name, and ends with its status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    make_printable()
    # Libraries read these when they are imported.
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
    # Threads that wait should sleep: where other programs run, those that spin take many times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    status = _run()
    sys.exit(_flushed(status))


def _run() -> int:
    command = typer.main.get_command(app)
    try:
        status = command.main(prog_name="depass-sae", standalone_mode=False)
    except SystemExit as ended:  # a reader that has seen enough
        status = ended.code
    except UserError as error:
        return _one_line(error, 2)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):  # a mistyped command or option
            help_ = "; see depass-sae --help" if len(sys.argv) == 1 else ""
            return _one_line(error.format_message().rstrip(".") + help_, 2)
        if _is_interrupt(error):
            return 130
        if _is_memory(error):
            hint = "try a shorter prompt, --memory with less, or --dtype bfloat16"
            return _one_line(f"there is not enough memory; {hint}", 2)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            return _one_line(f"cannot write {error.filename or 'the output'}: {error.strerror}", 2)
        raise
    return status if isinstance(status, int) else 0


def _flushed(status: int) -> int:
    """The status with which all ends, once stdout has what was printed. One that takes nothing is let go of."""
    try:
        for stream in (sys.stdout, sys.__stdout__):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try again at its end, and complain
        if isinstance(error, BrokenPipeError):  # a reader that has seen enough
            return status or 1
        return status or _one_line(f"cannot write the output: {error.strerror}", 2)
    return status


def _one_line(message: object, status: int) -> int:
    sys.stderr.write(f"depass-sae: {one_line(str(message))}\n")
    return status


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what an error comes from: libraries that import others turn it into errors of theirs."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
