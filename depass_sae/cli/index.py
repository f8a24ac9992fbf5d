"""Features over a corpus: ``scan`` and ``merge`` make an index; the other commands ask it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from . import options, talk

if TYPE_CHECKING:
    from ..index.index import Index
    from ..index.results import Overview
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
    kept_tokens: Annotated[
        int, typer.Option("--kept-tokens", help="Of how many tokens that a feature fires on it is kept how often.")
    ] = 1024,
    kept_beside: Annotated[int, typer.Option("--kept-beside", help="And of how many before and after these.")] = 64,
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
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", help="Processes, each with a model of its own.", show_default="1; with Ray, one a GPU"
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="local, or ray: this machine, or a cluster that shares the folder.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", help="Of a Ray cluster, or auto.", show_default="this machine alone"),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", help="Do one of so many shards, such as 1/8, for merge to put together.", show_default=False
        ),
    ] = None,
    layer: options.Layers = None,
    as_json: options.AsJson = False,
    loading: options.Loading,
) -> None:
    """What every feature does over a corpus, into a folder: contexts, tokens, densities. It can be stopped."""
    from ..index.asking import asked
    from ..index.corpus import corpus
    from ..index.folder import check_index_folder
    from ..index.shards import parse_shard

    if out is None:
        raise UserError("name the folder of the index with --out")
    which = None if shard is None else parse_shard(shard)
    how: dict[str, Any] = {
        "window": window, "top": top, "samples": samples, "repeats": repeats, "kept_tokens": kept_tokens,
        "kept_beside": kept_beside, "full": named(full), "limit": limit,
        "documents": documents, "column": column, "unit": unit, "workers": workers, "engine": engine,
        "ray_address": ray_address,
    }  # fmt: skip
    settings, _, _ = asked(**how)
    texts = corpus([one if one.startswith("hf:") else Path(one) for one in source], settings.reading)
    check_index_folder(out)
    with talk.working() as status:
        lm = loading.load(status, layer)
        how["progress"] = status.progress
        if which is None:
            found = lm.scan(texts, out, **how).overview()
        else:
            lm.scan_shard(texts, out, which, **how)
    if which is None:
        told(found, out, as_json)
    else:
        talk.wrote([Path(out)], as_json)


def merge(
    *,
    shards: Annotated[list[Path], typer.Argument(metavar="SHARD...", help="The folders of all shards of a scan.")],
    out: Annotated[str | None, typer.Option("--out", "-o", help="The folder of the index.", show_default=False)] = None,
    as_json: options.AsJson = False,
) -> None:
    """One index of the shards of a scan. It loads no model."""
    from ..index.shards import merge_shards

    if out is None:
        raise UserError("name the folder of the index with --out")
    with talk.working() as status:
        found = merge_shards(shards, out, progress=status.progress).overview()
    told(found, out, as_json)


def told(found: Overview, out: str, as_json: bool) -> None:
    """What a new index is of."""
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


def similar(
    *,
    which: Annotated[str, typer.Argument(metavar="FEATURE", help="LAYER/INDEX, e.g. 17/1208.")],
    folder: options.IndexOption = None,
    top: options.Top = 20,
    labels: options.LabelFile = None,
    out: options.OutOptions,
) -> None:
    """The features of all SAEs that fire on the same tokens as one."""
    from ..index.similar import Similar

    if folder is None:
        raise UserError("name the folder of an index with --index")
    out.check(Similar)
    answer(open_labelled(folder, labels).similar(which, top=top), top, out)


def export(
    *,
    folder: IndexFolder,
    format_: Annotated[
        str,
        typer.Option("--format", help="autointerp: for whoever names features; neuronpedia: feature details."),
    ] = "autointerp",
    target: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .jsonl file; of neuronpedia a folder, with a file for each feature."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option("--features", help="17/2601,11/223: these alone.", show_default="those that fire"),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option("--layer", "-l", help="Only the SAE of this layer, or at this hook.", show_default=False),
    ] = None,
    list_: Annotated[
        str | None,
        typer.Option("--list", help="Those of a list: dense or rare.", show_default=False),
    ] = None,
    top: Annotated[int | None, typer.Option("--top", help="How many of the --list.", min=1, show_default="20")] = None,
    contexts: Annotated[int, typer.Option("--contexts", help="How many of a feature, at most.", min=1)] = 20,
    labels: options.LabelFile = None,
) -> None:
    """Features with their contexts as files for other programs: those that name features, and Neuronpedia."""
    from ..index.export import Chosen, check_export, export

    if target is None:
        raise UserError("name what to write with --out")
    if top is not None and list_ is None:
        raise UserError("--top says how many of a list: name that with --list")
    check_export(target, format_)
    chosen = Chosen(named(features) or None, layer, list_, top or 20)
    opened = open_labelled(folder, labels)
    with talk.working() as status:
        many = export(opened, target, format_, chosen, contexts, status.progress)
    talk.wrote([target])
    talk.say(f"{many:,} features")


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
