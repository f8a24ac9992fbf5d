"""``evaluate``: which attribution method to believe, by what the live model does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from ..files import check_place, expanded
from . import options, talk
from .questions import show_answer


def evaluate(
    *,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PROMPTS]",
            help="One prompt a line, or .jsonl, each with a prompt, and an answer (and a foil) or a target.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Prompts that come along instead: facts, ioi.", show_default="facts")
    ] = None,
    of: Annotated[str, typer.Option("--of", help="tokens, heads, neurons or features.")] = "tokens",
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="May be repeated; all for all. Default: the usual ones.", show_default=False),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            help="Of tokens replace, shapley, delete, keep; of heads and neurons mask-top, mask-bottom, both by size "
            "(-abs), cpr, cmd; of features sets, cpr, cmd. May be repeated. Default: all of them.",
            show_default=False,
        ),
    ] = None,
    target: options.Target = None,
    removal: Annotated[
        str | None,
        typer.Option(
            "--removal",
            help="How sources are taken out: tokens text (random ones), delete or mask:TOKEN; heads and neurons zero, "
            "mean or contrast; features zero or contrast.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="The method that all others are compared with.", show_default="half")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="So many prompts, the first ones.", min=1)] = None,
    every: Annotated[
        bool, typer.Option("--every", help="Also prompts to which the model gives another answer.")
    ] = False,
    samples: Annotated[int, typer.Option("--samples", help="Of what chance has a part in.")] = 8,
    statistic: Annotated[str, typer.Option("--statistic", help="Over prompts: mean or median.")] = "mean",
    seed: options.Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A folder for records, document and page; what was stopped goes on there.",
            show_default=False,
        ),
    ] = None,
    temperature: options.Temperature = 0.1,
    memory: options.Memory = None,
    as_json: options.AsJson = False,
    loading: options.Loading,
) -> None:
    """Which attribution method to believe: scores held to what the live model does without tokens, heads, features."""
    if path is not None and data is not None:
        raise UserError("PROMPTS is a file of prompts, and --data names others; give one of them")
    options.check_memory(memory)
    options.allocation_of(None, temperature, "skip")
    from ..evaluation.evaluate import DOCUMENT, PAGE, RECORDS, Asked
    from ..evaluation.prompts import items_of

    Asked.of(
        of, method, protocol, None, removal, against, target=target, every=every, samples=samples,
        statistic=statistic, seed=seed,
    )  # fmt: skip
    if target is not None:
        from ..attribution.targets import WrittenTarget

        WrittenTarget.of(target)
    given: Any = path if path is not None else data or "facts"
    items = items_of(given)  # before the model is loaded
    needs_saes = of == "features" or target is not None or any(item.target for item in items)
    folder = None if out is None else expanded(out)
    if folder is not None:
        check_place(folder, folder=True)
    with talk.working() as status:
        lm = loading.load(status, None if needs_saes else [])
        found = lm.evaluate(
            given,
            of,  # type: ignore[arg-type]
            methods=method,
            protocols=protocol,
            target=target,
            removal=removal,
            against=against,
            limit=limit,
            every=every,
            samples=samples,
            statistic=statistic,  # type: ignore[arg-type]
            seed=seed,
            out=folder,
            temperature=temperature,
            memory=memory,
            progress=status.progress,
        )
    paths = [] if folder is None else [folder / name for name in (RECORDS, DOCUMENT, PAGE)]
    show_answer(found, found.blocks(), options.OutOptions(paths, as_json))
