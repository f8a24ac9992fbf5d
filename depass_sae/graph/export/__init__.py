"""Feature-flow graphs as files. A format is one module with one function, and one row in `FORMATS`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...arguments import typed
from ...errors import UserError
from ...files import check_place, read_text, write_bytes, write_files

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Format:
    """Where a format's functions are, by module (from this package) and name; imported when they are needed.

    ``suffix`` chooses the format by a file's name. ``text`` makes a graph a text; a picture has ``picture`` instead,
    which makes graph and format bytes; several files have ``folder``, which makes graph and folder their contents.
    ``parse`` makes a text a graph.
    """

    suffix: str | None
    text: tuple[str, str] | None = None
    picture: tuple[str, str] | None = None
    folder: tuple[str, str] | None = None
    parse: tuple[str, str] | None = None


FORMATS = {
    "json": Format(".json", text=(".node_link", "to_json"), parse=(".node_link", "from_json")),
    "graphml": Format(".graphml", text=(".graphml", "to_graphml"), parse=(".graphml", "from_graphml")),
    "html": Format(".html", text=(".html", "to_html")),
    "neuronpedia": Format(None, text=(".neuronpedia", "neuronpedia_text")),
    "circuit-tracer": Format(None, folder=(".circuit_tracer", "circuit_tracer_files")),
    "png": Format(".png", picture=("..plot", "picture_of")),
    "svg": Format(".svg", picture=("..plot", "picture_of")),
    "pdf": Format(".pdf", picture=("..plot", "picture_of")),
}


@typed
def write_graph(
    g: nx.DiGraph, path: str | os.PathLike[str], format: str | None = None, *, max_drawn: int | None = None
) -> None:
    """Write a feature-flow graph in one step: whoever looks sees the old file or the new one.

    ``format``: json, graphml, html, neuronpedia, circuit-tracer (``path`` is then the folder that its viewer serves),
    png, svg or pdf; by default what the path ends with says it. max_drawn: how many nodes a picture has, as in
    :func:`.plot_graph`. ``networkx.node_link_graph`` reads the JSON.
    networkx's own ``write_graphml`` takes no lists, and a graph's attributes have some: write the GraphML here, which
    networkx reads, or call it on a copy without them (``h = g.copy(); h.graph.clear()``).
    Raises UserError for a format that is not known, for what is no such graph, and where nothing can be written.
    """
    name = check_destination(path, format)
    folder = FORMATS[name].folder
    if folder is None:
        write_bytes(path, graph_bytes(g, name, max_drawn=max_drawn))
    else:
        _check(g, name)
        write_files(_function(folder)(g, Path(path)))


def graph_bytes(g: nx.DiGraph, format: str, *, max_drawn: int | None = None) -> bytes:
    """What a graph's file holds. max_drawn: how many nodes a picture has.

    Raises UserError for a difference of two graphs in a format that cannot hold it.
    """
    _check(g, format)
    picture = FORMATS[format].picture
    if picture is None:
        return graph_text(g, format).encode("utf-8")
    drawn: bytes = _function(picture)(g, format, max_drawn)
    return drawn


def _check(g: Any, format: str) -> None:
    """Raises UserError for what is no graph, and for a difference of two where the format cannot hold it."""
    _function(("..document", "check_graph"))(g)
    if "diff" in g.graph:
        check_difference(format)


def check_destination(path: str | os.PathLike[str], format: str | None = None) -> str:
    """The format that a file would be written in. Raises UserError where it could not be, before any work is done."""
    name = _by_suffix(Path(path)) if format is None else _known(format)
    if FORMATS[name].picture is not None:
        _function(("...view.figures", "check_matplotlib"))()
    check_place(path, folder=FORMATS[name].folder is not None)
    if FORMATS[name].folder is not None:
        _function((".circuit_tracer", "listed"))(Path(path))
    return name


def check_difference(format: str) -> None:
    """Raises UserError for a format in which a difference of two graphs is not written."""
    if format != "html":
        raise UserError(
            f"a difference of two graphs is written as html, not as {format}; keep the two graphs themselves"
        )


def check_text_format(format: str) -> tuple[str, str]:
    """The home of a format that is a text. Raises UserError for a picture, which needs a file."""
    home = FORMATS[_known(format)].text
    if home is None:
        what = "a folder of files: name it" if FORMATS[_known(format)].folder else "a picture: name a file"
        raise UserError(f"{format} is {what} with --out")
    return home


def check_verification(path: str | os.PathLike[str], graph: str | os.PathLike[str]) -> str:
    """The format that a graph's verification would be written in, beside the graph's own file: json or a picture's.

    Raises UserError where it could not be.
    """
    chosen = _by_suffix(Path(path))
    if chosen != "json" and FORMATS[chosen].picture is None:
        known = [str(of.suffix) for name, of in FORMATS.items() if name == "json" or of.picture is not None]
        raise UserError(f"{path} is no place for a verification: let it end with {', '.join(known)}")
    if Path(path).resolve() == Path(graph).resolve():
        raise UserError(f"{path} is the graph's own file, which takes the verification by itself; name another")
    return check_destination(path)


def verification_bytes(g: nx.DiGraph, format: str) -> bytes:
    """What a file beside a verified graph holds: the numbers, or predicted and observed as a picture."""
    if format == "json":
        return (json.dumps(g.graph["verification"], allow_nan=False, indent=2) + "\n").encode("utf-8")
    from ...view.figures import rendered
    from ..plot import plot_verification

    return rendered(plot_verification(g), format)


def graph_text(g: nx.DiGraph, format: str) -> str:
    """A graph in one of the formats that are texts."""
    text: str = _function(check_text_format(format))(g)
    return text


def _known(format: str) -> str:
    if format.lower() not in FORMATS:
        raise UserError(f"the format {format!r} is not known; there are {', '.join(FORMATS)}")
    return format.lower()


@typed
def read_graph(path: str | os.PathLike[str]) -> nx.DiGraph:
    """The feature-flow graph in a .json or .graphml file that `write_graph` wrote.

    A .json of Neuronpedia's or circuit-tracer's is read, too, to look at, compare and label: what it leaves out of a
    feature's inflow comes from one ``remainder`` node, and ``g.graph["read_from"]`` says whose it is.
    Raises UserError with one line, which names the file and the place in it, for whatever is wrong with it.
    """
    path = Path(path)
    parsers = {chosen.suffix: chosen.parse for chosen in FORMATS.values() if chosen.parse is not None}
    parser = parsers.get(path.suffix.lower())
    if parser is None:
        raise UserError(
            f"cannot read {path}: graphs are read from {' and '.join(str(suffix) for suffix in parsers)} files"
        )
    try:
        return _function(parser)(read_text(path))
    except UserError as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _by_suffix(path: Path) -> str:
    suffixes = {chosen.suffix: name for name, chosen in FORMATS.items() if chosen.suffix is not None}
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{path} does not say which format to write: let it end with {', '.join(suffixes)}, "
            f"or name the format ({', '.join(FORMATS)})"
        )
    return suffixes[path.suffix.lower()]


def _function(home: tuple[str, str]) -> Callable[..., Any]:
    module, name = home
    function: Callable[..., Any] = getattr(import_module(module, __name__), name)
    return function
