"""What every result can do because it is made of blocks: show itself in a notebook and a terminal, and be written.

The file's name says in which format: :data:`FORMATS` has all of them, what each needs, and how it is made.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import typed
from ..errors import UserError
from ..files import check_place, write_bytes
from . import words
from .blocks import Block, Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .html import Html
    from .terminal import Text

REPR_ROWS = 10


class Shown:
    """A result. It says what it is made of; the rest follows.

    Results are dataclasses; they need no ``repr=False`` for it to be shown as a table.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        for name in ("__repr__", "__eq__", "__hash__"):  # a dataclass makes its own unless its class has one
            setattr(cls, name, getattr(cls, name))

    @property
    def title(self) -> str:
        """What it is, in a line."""
        raise NotImplementedError

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """What it is made of. top: how many rows tables have at most (all of them by default)."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """All of it as a JSON document."""
        raise NotImplementedError

    def page(self) -> Page:
        """What its page is made of."""
        return Page(self.title, self.blocks())

    def table(self, top: int | None = None) -> Text:
        """It as text, tables largest first: all rows, or the ``top`` and what the others sum to."""
        from .terminal import text

        return text(self.blocks(top))

    def plot(self, top: int | None = None) -> Html:
        """It as a piece of HTML, for notebooks; ``.save(path)`` keeps it."""
        from .html import fragment

        return fragment(self.blocks(top), self.title)

    def to_html(self) -> str:
        """A page of its own, which opens offline."""
        from .page import page

        return page(self.page())

    def figure(self) -> Figure:
        """It as a picture for a paper. Raises UserError where matplotlib is missing, or nothing of it is a picture."""
        from .figures import figures

        return figures(self.blocks())

    @typed
    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a file, whole or not at all; its name says how: one of :data:`FORMATS`.

        Raises UserError for another name, where a library is missing, and where it cannot be written.
        """
        write_bytes(path, check_out(path, type(self)).content(self))

    def _repr_html_(self) -> str:
        return self.plot()

    def __repr__(self) -> str:
        return str(self.table(REPR_ROWS))

    def __eq__(self, other: object) -> bool:
        """Results are equal where their documents are: fields may be tensors, of which == is no yes or no."""
        if type(self) is not type(other):
            return NotImplemented
        return self is other or self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((type(self), self.title))


# --------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class OutFormat:
    """A format of files. needs: which modules, by what installs them. of_frame: whether it is of ``to_frame``."""

    content: Callable[[Any], bytes]
    needs: Mapping[str, str]
    of_frame: bool = False


def _json(result: Shown) -> bytes:
    text = json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    return text.encode("utf-8", "backslashreplace")  # half a character: as JSON escapes it


def _html(result: Shown) -> bytes:
    return result.to_html().encode("utf-8")


def _markdown(result: Shown) -> bytes:
    from .markdown import escaped, markdown

    return f"# {escaped(result.title)}\n\n{markdown(result.blocks())}\n".encode("utf-8", "replace")


def _separated(by: str) -> Callable[[Any], bytes]:
    def content(result: Any) -> bytes:
        text: str = result.to_frame().to_csv(index=False, sep=by)
        return text.encode("utf-8", "replace")

    return content


def _parquet(result: Any) -> bytes:
    content: bytes = result.to_frame().to_parquet(None, engine="pyarrow", index=False)
    return content


def _tex(result: Any) -> bytes:
    """A table for LaTeX's booktabs. Its numbers are written as everywhere."""
    frame = result.to_frame()
    texts = frame.select_dtypes(exclude="number").columns
    frame = frame.assign(
        **{name: frame[name].map(lambda value: words.shown(str(value)), na_action="ignore") for name in texts}
    )
    text: str = frame.to_latex(
        index=False, escape=True, na_rep="", float_format=lambda value: words.number(value).replace(words.MINUS, "$-$")
    )
    return ("% \\usepackage{booktabs}\n" + text).encode("utf-8")


def _picture(format: str) -> Callable[[Shown], bytes]:
    def content(result: Shown) -> bytes:
        from .figures import rendered

        return rendered(result.figure(), format)

    return content


_NOTEBOOK = "'depass-sae[notebook]'"
_PANDAS, _MATPLOTLIB = {"pandas": _NOTEBOOK}, {"matplotlib.figure": _NOTEBOOK}
FORMATS: dict[str, OutFormat] = {
    ".html": OutFormat(_html, {}),
    ".md": OutFormat(_markdown, {}),
    ".json": OutFormat(_json, {}),
    ".csv": OutFormat(_separated(","), _PANDAS, of_frame=True),
    ".tsv": OutFormat(_separated("\t"), _PANDAS, of_frame=True),
    ".parquet": OutFormat(_parquet, {**_PANDAS, "pyarrow": "pyarrow"}, of_frame=True),
    ".tex": OutFormat(_tex, _PANDAS, of_frame=True),
    ".png": OutFormat(_picture("png"), _MATPLOTLIB),
    ".svg": OutFormat(_picture("svg"), _MATPLOTLIB),
    ".pdf": OutFormat(_picture("pdf"), _MATPLOTLIB),
}


def check_out(path: str | os.PathLike[str], result: type | None = None) -> OutFormat:
    """The format that a file's name says. result: the class of what is to be written, where it is known.

    Raises UserError, before any work, for a name that says none, where a library is missing, or where the file could
    not be written.
    """
    framed = result is None or hasattr(result, "to_frame")
    there = {suffix: format for suffix, format in FORMATS.items() if framed or not format.of_frame}
    suffix = Path(path).suffix.lower()
    if suffix not in there:
        *names, last = there
        raise UserError(f"{path} does not say what to write: let it end with {', '.join(names)} or {last}")
    for module, install in there[suffix].needs.items():
        try:
            importlib.import_module(module)
        except ImportError:
            needed = module.partition(".")[0]
            raise UserError(f"{suffix} files need {needed}: pip install {install}") from None
    check_place(path)
    return there[suffix]
