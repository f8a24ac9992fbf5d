"""Files that are whole or not there, and what is in those that a user hands over."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from .errors import UserError
from .texts import quoted

DEEPEST = 100
"""How deep lists and objects may be nested in a file that is read: far deeper than in any that means something."""
TOO_DEEP = f"lists and objects are nested too deeply (more than {DEEPEST} levels)"


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with the home that its ``~`` stands for. Raises UserError for that of nobody, and for what is no path."""
    if not os.fspath(path):
        raise UserError("an empty name is no path")
    try:
        found = Path(path).expanduser()
        _status(found)
    except RuntimeError:
        raise UserError(f"there is no user whose home is {Path(path).parts[0]}") from None
    except ValueError as error:  # a null byte
        raise UserError(f"{path} is no path: {error}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{path} is no path: {error.strerror}") from None
    return found


def read_text(path: Path) -> str:
    """A file of UTF-8 text, a byte order mark left out. Raises UserError with one line that does not name the file."""
    try:
        return path.expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"it is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(str(error.strerror)) from None
    except (ValueError, RuntimeError) as error:  # a name with a null byte, or the home of nobody
        raise UserError(str(error)) from None


def check_unicode(text: str, what: str) -> None:
    """Raises UserError for half of a character, as which bytes that are no UTF-8 arrive: no file or page has it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} is not valid Unicode at character {error.start}; write it in UTF-8") from None


def parse_json(text: str, *, finite: bool = False, twice: bool = False) -> Any:
    """What a JSON text holds. Raises UserError with one line, which does not name the file, for whatever is wrong.

    Wrong is what is no JSON, what Python cannot hold, a name that an object has twice (which of the two is meant?), and
    what is nested so deep that other code would break on it. finite: NaN and infinities too, which are no JSON, but
    which many programs write. twice: names may stand twice, the last counts.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=None if twice else _object, parse_constant=_no_number if finite else None
        )
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise UserError(TOO_DEEP) from None
    except UserError:
        raise
    except ValueError:  # Python converts no whole number of thousands of digits
        raise UserError("it holds a number of too many digits") from None
    inside = [value]
    for _ in range(DEEPEST):
        inside = [inner for outer in inside for inner in _inside(outer) if isinstance(inner, dict | list)]
        if not inside:
            return value
    raise UserError(TOO_DEEP)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"it names {quoted(twice)} twice in one object")
    return found


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _no_number(name: str) -> None:
    raise UserError(f"not JSON: it holds {name}, and numbers must be finite")


def same_place(one: str, other: str) -> bool:
    """Whether two names are one: the same text, or two ways to write one folder. Names of other things are texts."""
    if one == other:
        return True
    try:
        return os.path.isdir(one) and os.path.isdir(other) and os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def check_place(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Raises UserError where a file (or folder) could not be written, so that it is known before the work.

    Nothing is left there by asking. Folders that are missing are no mistake: they are made when it is written.
    """
    if not os.fspath(path):
        raise UserError(f"cannot write: the {'folder' if folder else 'file'} has no name")
    try:
        path = Path(path).expanduser()
        there = _status(path)
        if there is not None and stat.S_ISDIR(there.st_mode) != folder:
            raise UserError(f"cannot write {path}: it is {'no folder' if folder else 'a folder'}")
        if there is not None and not os.access(path, os.W_OK):
            raise UserError(f"cannot write {path}: it is write-protected")
        if folder or there is None or _is_replaced(there):
            target = Path(os.path.realpath(path))
            _probe(target if folder else target.parent, None if folder else target.name)
    except (OSError, ValueError, RuntimeError) as error:
        raise _cannot_write(path, error) from None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file in one step: whoever looks sees the old one or the new one, never half of it.

    A link is followed, what was there keeps its permissions, folders that are missing are made.
    Raises UserError where it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """The same for what is no text."""
    write_files({Path(path): content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """The same for several: all of them are written before the first takes its place."""
    ready: dict[Path, Path] = {}
    path = Path()
    with contextlib.ExitStack() as undone:
        try:
            for path, content in contents.items():
                path = path.expanduser()
                there = _status(path)
                if there is not None and not _is_replaced(there):
                    path.write_bytes(content)  # a device or a pipe; or a folder, which is told of
                    continue
                target = Path(os.path.realpath(path))
                undone.enter_context(_made(target.parent))
                # Not tempfile: its files can be read by their owner alone. Not the file's own name, which may be
                # as long as a name can be.
                temporary = target.with_name(f".depass-sae-{secrets.token_hex(6)}")
                undone.callback(_remove, temporary)
                with temporary.open("xb") as file:
                    file.write(content)
                if there is not None:
                    temporary.chmod(stat.S_IMODE(there.st_mode))
                ready[temporary] = target
            for temporary, target in ready.items():
                path = target
                os.replace(temporary, target)
        except (OSError, ValueError, RuntimeError) as error:
            raise _cannot_write(path, error) from error


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write into, piece by piece; it takes its place when the block ends well, else nothing is left of it.

    Raises UserError where it cannot be written.
    """
    try:
        path = Path(path).expanduser()
        there = _status(path)
        if there is not None and not _is_replaced(there):
            with path.open("wb") as device:
                yield device
            return
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".depass-sae-{secrets.token_hex(6)}")
        with _made(target.parent):
            try:
                with temporary.open("xb") as file:
                    yield file
                if there is not None:
                    temporary.chmod(stat.S_IMODE(there.st_mode))
                os.replace(temporary, target)
            finally:
                _remove(temporary)
    except (OSError, ValueError, RuntimeError) as error:
        raise _cannot_write(path, error) from error


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The same for a folder that is empty, or not there: it is filled under another name beside it."""
    try:
        target = Path(os.path.realpath(Path(path).expanduser()))
        temporary = target.with_name(f".depass-sae-{secrets.token_hex(6)}")
        with _made(target.parent):
            try:
                temporary.mkdir()
                yield temporary
                os.replace(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise _cannot_write(path, error) from error


def _status(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Of what a path leads to; None where nothing is there. Raises OSError for a path that can lead nowhere."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_replaced(there: os.stat_result) -> bool:
    """Whether a new file takes its place: not that of a device or a pipe, into which one writes."""
    return stat.S_ISREG(there.st_mode)


def _probe(folder: Path, name: str | None) -> None:
    """Raises OSError where no file of this name could be made in the folder, or in the folders that are missing."""
    import tempfile

    missing = [] if name is None else [name]
    while _status(folder) is None and folder != folder.parent:
        missing.append(folder.name)
        folder = folder.parent
    for part in missing:
        _status(folder / part)  # a name that is too long
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder that is made where it is missing, and taken away again where what is to be in it fails."""
    missing = [place for place in (folder, *folder.parents) if _status(place) is None]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


def _remove(temporary: Path) -> None:
    """What is left of a file that was not finished. A disk that refuses has refused before, and that is told."""
    with contextlib.suppress(OSError):
        temporary.unlink()


def _cannot_write(path: str | os.PathLike[str], error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(f"cannot write {path}: {error.strerror if isinstance(error, OSError) else error}")
