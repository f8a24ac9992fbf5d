"""What the command line says: progress while it works, then tables or a document on stdout, and the rest on stderr."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DepassWarning
from ..texts import is_utf_8, json_text, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..view.blocks import Block
    from ..view.shown import Shown


class Status:
    """What is going on, as one line on a terminal's stderr that goes away by itself."""

    def __init__(self, stream: Any) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._live = self._console.status("") if self._console.is_terminal else None

    def __call__(self, doing: str) -> None:
        if self._live is not None:
            self._live.update(f"{_plain(doing)} ...")

    def progress(self, doing: str, done: int, total: int) -> None:
        if self._live is not None and not total:  # nobody knows how much there is
            self._live.update(f"{_plain(doing)} ...")
        elif self._live is not None:
            bar = "━" * round(24 * done / total)
            self._live.update(f"{_plain(doing)} [blue]{bar:<24}[/blue] {done}/{total}")

    def __enter__(self) -> Status:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def _plain(text: str) -> str:
    """Without markup: a model's name may have brackets."""
    from rich.markup import escape

    return escape(visible(text))


@contextlib.contextmanager
def working() -> Iterator[Status]:
    """Keeps libraries quiet: what they print is not ours to show. Our own warnings follow at the end."""
    with (
        Status(sys.stderr) as status,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        yield status
    for message in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, DepassWarning)):
        say(f"warning: {message}")


def say(*notes: str | None) -> None:
    """What has to be said beside an answer, each once, on stderr."""
    for note in dict.fromkeys(notes):
        if note:
            sys.stderr.write(f"{visible(note)}\n")


def show(parts: Iterable[Block | RenderableType]) -> None:
    """Tables and the like, on stdout; where no window shows them, as wide as they are."""
    from rich.console import Console

    from ..view.terminal import UNBOUNDED, print_on

    console = Console()
    print_on(console if console.is_terminal else Console(width=UNBOUNDED), parts)


def print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json_text(document, sys.stdout) + "\n")


def print_file(text: str) -> None:
    """A file's content that goes to stdout is UTF-8, which it says of itself, whatever a terminal would be shown."""
    if is_utf_8(sys.stdout):
        sys.stdout.write(text + "\n")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8") + b"\n")


def write(found: Shown, paths: Sequence[Path], status: Status) -> None:
    """A result into files: all of them, or none."""
    from ..files import write_files
    from ..view.shown import check_out

    contents = {}
    for path in paths:
        status(f"writing {path}")
        contents[path] = check_out(path, type(found)).content(found)
    write_files(contents)


def serving(address: str) -> None:
    """Where something can be looked at, and for how long."""
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()
    say("Ctrl-C ends it")


def wrote(paths: Iterable[Path], as_json: bool = False) -> None:
    """What was written: with the tables, or beside a document that has all of stdout."""
    (sys.stderr if as_json else sys.stdout).writelines(f"wrote {visible(str(path))}\n" for path in paths)
