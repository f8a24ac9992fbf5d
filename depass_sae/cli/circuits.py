"""``circuit`` and ``circuit-of``: which features suffice, for a prompt and for a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from . import graph_files, options, talk
from .questions import show_answer

Errors = Annotated[str, typer.Option("--errors", help="What SAEs miss: keep what there is, hold what was, or zero.")]
Hold = Annotated[bool, typer.Option("--hold", help="Hold kept features at what they were, not computed anew.")]
Newcomers = Annotated[
    str, typer.Option("--newcomers", help="Features that become active when others go: remove or keep.")
]
Seconds = Annotated[float, typer.Option("--seconds", help="The most that the search takes.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the search and of the random sets.")]


def circuit(
    *,
    prompt: options.Prompt = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="17/1208@6, logit:' Paris', logit:' Paris' against rivals, logit-diff:' Mary',' John' or "
            "logprob:' Paris'. Default: the predicted token.",
            show_default=False,
        ),
    ] = None,
    out: options.GraphOuts = None,
    format: options.Format = None,
    feature: options.Feature = None,
    logit: options.Logit = None,
    logit_diff: options.LogitDiff = None,
    against: options.HeldAgainst = None,
    pos: options.Pos = None,
    ids: options.Ids = None,
    contrast: Annotated[
        str | None,
        typer.Option(
            "--contrast",
            help="A prompt of the same length: removed features take its values instead of 0. With --ids, ids.",
        ),
    ] = None,
    layer: options.Layers = None,
    errors: Errors = "keep",
    hold: Hold = False,
    newcomers: Newcomers = "remove",
    seconds: Seconds = 60.0,
    draws: Annotated[int, typer.Option("--draws", help="Random sets that it is held against.")] = 20,
    seed: Seed = 0,
    stability: Annotated[
        bool, typer.Option("--stability", help="Search from another seed, too: how much is the same.")
    ] = False,
    labels: options.Labels = None,
    index: options.ContextsOption = None,
    cards: options.Cards = None,
    max_drawn: options.MaxDrawn = None,
    how: options.HowOptions,
    top: options.Top = 12,
    as_json: options.AsJson = False,
    loading: options.Loading,
) -> None:
    """The smallest set of features that suffices for the target, as a graph, with its checks."""
    asked = options.prompt_of(prompt, ids)
    if contrast == "":
        raise UserError("the prompt of --contrast is empty")
    other = contrast if ids is None or contrast is None else options.prompt_of(None, contrast)
    if sum(given is not None for given in (target, feature, logit, logit_diff)) > 1:
        raise UserError("a circuit is of one target: name it by --target, --feature, --logit or --logit-diff")
    logits, at = options.logits_of(logit, logit_diff, ids), options.position_of(pos)
    graph_files.check_asked(out, format, as_json)
    from ..attribution.targets import WrittenTarget
    from ..graph.build import GraphSettings
    from ..graph.circuit import Search
    from ..graph.circuit_looks import circuit_blocks
    from ..graph.feature_game import Removal

    named = target if feature is None else feature
    plain = named is not None and WrittenTarget.of(named).is_plain_logit
    held = options.against_of(against, plain or logit is not None)
    Removal(errors, not hold, newcomers).check()  # type: ignore[arg-type]
    Search(seconds, draws, seed, stability).check()
    keywords = how.keywords()
    GraphSettings().check(how.allocation.rule)
    graph_files.check_files(out, format)
    meanings = options.meanings_of(labels)
    graph_files.check_cards(cards, index)
    contexts = options.opened_index(index)
    with talk.working() as status:
        lm = loading.load(status, None)
        g = lm.circuit(
            asked,
            named,
            **logits,
            pos=at,
            against=held,
            contrast=other,
            layers=layer,
            errors=errors,  # type: ignore[arg-type]
            recompute=not hold,
            newcomers=newcomers,  # type: ignore[arg-type]
            seconds=seconds,
            draws=draws,
            seed=seed,
            stability=stability,
            progress=status.progress,
            **keywords,
        )
        g, trouble = graph_files.labelled(g, meanings, loading, status)
        g = graph_files.with_index(g, contexts, status, cards)
        graph_files.write(g, out, format, max_drawn, status)
    graph_files.show(g, circuit_blocks(g, top), out, format, as_json, trouble)


def circuit_of(
    *,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="The task's prompts, 4 at least, token by token of equal structure: one a line, or .jsonl, each with "
            "a text, and all or none with a target (\"logit:' Paris'\") and a contrast.",
        ),
    ],
    layer: options.Layers = None,
    errors: Errors = "keep",
    hold: Hold = False,
    newcomers: Newcomers = "remove",
    seconds: Seconds = 60.0,
    seed: Seed = 0,
    top: options.Top = 12,
    to: options.OutOptions,
    loading: options.Loading,
) -> None:
    """The features that suffice for all prompts of a task: found on half of them, tested on the others."""
    from ..attribution.targets import WrittenTarget
    from ..graph.circuit import Search
    from ..graph.feature_game import Removal
    from ..graph.task import TaskCircuit, check_prompts
    from ..report.prompts import read_task

    Removal(errors, not hold, newcomers).check()  # type: ignore[arg-type]
    Search(seconds, seed=seed).check()
    prompts = read_task(path)
    check_prompts(len(prompts))
    targets, contrasts = (
        [value for one in prompts if (value := getattr(one, key)) is not None] or None for key in ("target", "contrast")
    )
    for text in targets or []:  # before the work, not after it
        WrittenTarget.of(text)
    to.check(TaskCircuit)
    with talk.working() as status:
        lm = loading.load(status, None)
        found = lm.circuit_of(
            [one.text for one in prompts],
            targets,
            contrasts=contrasts,
            layers=layer,
            errors=errors,  # type: ignore[arg-type]
            recompute=not hold,
            newcomers=newcomers,  # type: ignore[arg-type]
            seconds=seconds,
            seed=seed,
            progress=status.progress,
        )
        talk.write(found, to.paths, status)
    show_answer(found, found.blocks(top), to)
