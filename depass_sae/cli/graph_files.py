"""What becomes of a graph that a command has made: labels are put on it, it is written, and it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from . import talk

if TYPE_CHECKING:
    import networkx as nx

    from ..index.index import Index
    from ..view.blocks import Block
    from . import options


def check_asked(out: list[Path] | None, format: str | None, as_json: bool) -> None:
    """Raises UserError where two documents are to be printed."""
    if as_json and format not in (None, "json") and not out:
        raise UserError(f"--json prints one document and --format {format} another; give one of them")


def check_files(out: list[Path] | None, format: str | None) -> None:
    """Raises UserError, before the work, for what cannot be written or printed."""
    from ..graph.export import check_destination, check_text_format

    for path in out or []:
        check_destination(path, format)
    if format is not None and not out:
        check_text_format(format)


def labelled(
    g: nx.DiGraph, meanings: Any, loading: options.Loading, status: talk.Status
) -> tuple[nx.DiGraph, str | None]:
    """With labels on its features, where some are asked for; and what went wrong with them."""
    from ..graph.labels import graph_pages, with_labels
    from ..labels.neuronpedia import labels_from

    if meanings is None:
        return g, None
    status("putting labels on the features")
    fetched = labels_from(meanings, graph_pages(g), loading.kept)
    return with_labels(g, fetched.labels), fetched.warning


def check_cards(cards: str | None, index: Path | None) -> None:
    """Raises UserError for links to cards of no index, and for what is no address."""
    from ..graph.contexts import check_address

    check_address(cards)
    if cards is not None and index is None:
        raise UserError("--cards links to the pages of an index: name it with --index")


def with_index(g: nx.DiGraph, index: Index | None, status: talk.Status, cards: str | None = None) -> nx.DiGraph:
    """With what an index knows of its features, where one is asked for. cards: the address of its browser."""
    from ..graph.contexts import with_contexts

    if index is None:
        return g
    status("reading the features' contexts")
    return with_contexts(g, index, cards=cards)


def write(
    g: nx.DiGraph, out: list[Path] | None, format: str | None, max_drawn: int | None, status: talk.Status
) -> None:
    from ..graph.export import write_graph

    for path in out or []:
        status(f"writing {path}")
        write_graph(g, path, format, max_drawn=max_drawn)


def show(
    g: nx.DiGraph,
    blocks: Sequence[Block],
    out: list[Path] | None,
    format: str | None,
    as_json: bool,
    trouble: str | None,
) -> None:
    """As a document where one is asked for, else as a page; and what has to be said."""
    from ..graph.export import graph_text
    from ..graph.names import note_of

    talk.say(note_of(g), trouble and f"warning: {trouble}")
    as_document = as_json or (format is not None and not out)
    if as_document:
        talk.print_file(graph_text(g, "json" if format is None or out else format))
    else:
        talk.show(blocks)
    talk.wrote(out or [], as_document)
