"""Features over a corpus: ``scan`` makes an index; ``index``, ``search``, ``compare`` and ``feature --index`` ask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from . import options, talk

if TYPE_CHECKING:
    from ..index.index import Index
    from ..view.shown import Shown


def scan(
    *,
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files (.txt, .jsonl, .csv, .tsv, .parquet; packed ones too), folders, or data sets as "
            "hf:OWNER/NAME/CONFIG:SPLIT.",
        ),
    ],
    out: Annotated[str | None, typer.Option("--out", "-o", help="The folder of the index.", show_default=False)] = None,
    top: Annotated[int, typer.Option("--top", help="How many contexts of each feature are kept.")] = 20,
    samples: Annotated[int, typer.Option("--samples", help="And how many drawn from each octave of activation.")] = 4,
    repeats: Annotated[bool, typer.Option("--repeats", help="Contexts may be of one document.")] = False,
    full: Annotated[
        str | None,
        typer.Option(
            "--full", help="Keep every activation of these features, 17/2601,11/223, or of all.", show_default=False
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", help="Tokens the model sees at once.", show_default="as the SAEs were trained"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Stop after so many tokens.", show_default="all of the corpus")
    ] = None,
    documents: Annotated[
        str, typer.Option("--documents", help="What is one in a plain text: a line, a paragraph or a file.")
    ] = "line",
    column: Annotated[str, typer.Option("--column", help="Where the text is, in files with columns.")] = "text",
    unit: Annotated[int, typer.Option("--unit", help="Tokens of a unit of work: what an interruption costs.")] = 2**15,
    layer: options.Layers = None,
    as_json: options.AsJson = False,
    loading: options.Loading,
) -> None:
    """What every feature does over a corpus, into a folder: contexts, tokens, densities. It can be stopped."""
    from ..index.corpus import corpus
    from ..index.items import Reading
    from ..index.scan import check_index_folder
    from ..index.settings import ScanSettings

    if out is None:
        raise UserError("name the folder of the index with --out")
    how = ScanSettings(
        window=window, top=top, samples=samples, repeats=repeats, full=named(full), unit=unit, limit=limit,
        reading=Reading(documents, column),
    )  # fmt: skip
    texts = corpus([one if one.startswith("hf:") else Path(one) for one in source], how.reading)
    check_index_folder(out)
    with talk.working() as status:
        lm = loading.load(status, layer)
        found = lm.scan(
            texts, out, window=window, top=top, samples=samples, repeats=repeats, full=how.full, limit=limit,
            documents=documents, column=column, unit=unit, progress=status.progress,
        ).overview()  # fmt: skip
    if as_json:
        talk.print_json(found.to_dict())
    else:
        talk.show(found.blocks(10))
        talk.wrote([Path(out)])


def named(features: str | None) -> tuple[str, ...]:
    """``17/2601,11/223`` as features."""
    return tuple(one.strip() for one in features.split(",")) if features is not None else ()


IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of an index.")]


def index(
    *,
    folder: IndexFolder,
    list_: Annotated[
        str | None,
        typer.Option("--list", help="dense, rare, dead or all: features by how often they fire.", show_default=False),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option("--layer", "-l", help="Only the SAE of this layer, or at this hook.", show_default=False),
    ] = None,
    top: options.Top = 20,
    labels: options.LabelFile = None,
    out: options.OutOptions,
) -> None:
    """What an index is of; or a list of its features: the dense, the rare, the dead, or all."""
    from ..index.lists import FeatureList, check_list, listed
    from ..index.results import Overview

    if list_ is not None:
        check_list(list_)
    elif layer is not None:
        raise UserError("--layer says of which SAE a list is: name that with --list")
    out.check(Overview if list_ is None else FeatureList)
    opened = open_labelled(folder, labels)
    answer(opened.overview() if list_ is None else listed(opened, list_, top, layer), top, out)


def search(
    *,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A word, or several.")],
    folder: options.IndexOption = None,
    top: options.Top = 20,
    labels: options.LabelFile = None,
    out: options.OutOptions,
) -> None:
    """Features by the tokens that they fire on, by their contexts and by their labels."""
    from ..index.search import Found, check_query

    check_query(text)
    if folder is None:
        raise UserError("name the folder of an index with --index")
    out.check(Found)
    answer(open_labelled(folder, labels).search(text, top=top), top, out)


def compare(
    *,
    first: IndexFolder,
    second: Annotated[Path, typer.Argument(metavar="OTHER", help="Another, of the same SAEs.")],
    top: options.Top = 20,
    labels: options.LabelFile = None,
    out: options.OutOptions,
) -> None:
    """Which features fire more, or less, over another corpus."""
    from ..index.compare import Comparison

    out.check(Comparison)
    answer(open_labelled(first, labels).compare(open_labelled(second, None), top=top), top, out)


def browse(
    *,
    folder: IndexFolder,
    port: Annotated[int, typer.Option("--port", help="Where it listens; 0: where it is free.")] = 0,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
    labels: options.LabelFile = None,
) -> None:
    """An index in the browser: its lists, a search, and a page for every feature. Only this machine can see it."""
    opened = open_labelled(folder, labels)
    browsing = opened.browse(port)
    talk.serving(browsing.address)
    if open_:
        browsing.open()
    browsing.wait()


def open_labelled(folder: Path, labels: str | None) -> Index:
    from ..index.index import open_index
    from ..labels.files import read_labels

    return open_index(folder, None if labels is None else read_labels(labels))


def answer(found: Shown, top: int, out: options.OutOptions) -> None:
    with talk.working() as status:
        talk.write(found, out.paths, status)
    if out.as_json:
        talk.print_json(found.to_dict())
    else:
        talk.show(found.blocks(top))
    talk.wrote(out.paths, out.as_json)
