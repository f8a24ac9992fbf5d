"""The graph commands: ``graph``, ``verify`` and ``diff``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from . import graph_files, options, talk
from .questions import checked

if TYPE_CHECKING:
    import networkx as nx


def graph(
    *,
    given: options.PromptOptions,
    target: options.Targets = None,
    out: options.GraphOuts = None,
    format: options.Format = None,
    feature: options.Feature = None,
    logit: options.Logit = None,
    logit_diff: options.LogitDiff = None,
    against: options.HeldAgainst = None,
    pos: options.Pos = None,
    layer: options.GraphLayers = None,
    max_nodes: options.MaxNodes = 200,
    grow: options.GrowBy = "both",
    node_threshold: options.Threshold = None,
    edge_threshold: options.EdgeThreshold = 0.98,
    errors: options.ErrorsOption = "roots",
    heads: options.WithHeads = False,
    pairs: options.Pairs = None,
    labels: options.Labels = None,
    index: options.ContextsOption = None,
    cards: options.Cards = None,
    group: options.Grouped = False,
    max_drawn: options.MaxDrawn = None,
    how: options.HowOptions,
    top: options.Top = 12,
    as_json: options.AsJson = False,
    loading: options.Loading,
) -> None:
    """The feature-flow graph: from the tokens through the features of every dictionary to the target.

    With --prompts: the mean of the graphs of all of them, with its spread, and on how many prompts each part is.
    """
    asked = given.read()
    targets = [*(target or []), *([] if feature is None else [feature])]
    logits, at = options.logits_of(logit, logit_diff, given.ids), options.position_of(pos)
    graph_files.check_asked(out, format, as_json)
    from ..attribution.targets import WrittenTarget
    from ..graph.build import SHOWN_PAIRS, GraphSettings
    from ..graph.group import group_automatically, with_groups
    from ..graph.looks import graph_blocks
    from ..graph.standing import layer_named

    written = [WrittenTarget.of(text) for text in targets]  # before the work, not after it
    held = options.against_of(against, logit is not None or any(one.is_plain_logit for one in written))
    placed = isinstance(at, int) or any(one.is_placed for one in written)
    if isinstance(asked, options.Texts) and placed:
        raise UserError("with --prompts a target is read where each prompt has it: name no position")
    if isinstance(asked, options.Texts) and pairs:
        raise UserError("pairs are of one prompt's graph: take --prompts or --pairs")
    layers = None if layer is None else [layer_named(text) for text in layer]
    size = GraphSettings(max_nodes, node_threshold, edge_threshold, errors, heads, grow, pairs or 0)  # type: ignore[arg-type]
    size.check(how.allocation.rule)
    if pairs is None and format is not None and format.lower() == "neuronpedia":
        able = size.knows_pairs(how.allocation.rule) and not isinstance(asked, options.Texts)
        pairs = SHOWN_PAIRS if able else None
    keywords = how.keywords()
    graph_files.check_files(out, format)
    meanings = options.meanings_of(labels)
    graph_files.check_cards(cards, index)
    contexts = options.opened_index(index)
    with talk.working() as status:
        lm = loading.load(status, None)
        several = isinstance(asked, options.Texts)
        ask: Callable[..., nx.DiGraph] = lm.average_graph if several else lm.graph
        g = ask(
            checked(lm, asked) if isinstance(asked, options.Texts) else asked,
            targets or None,
            **logits,
            against=held,
            pos=at,
            layers=layers,
            max_nodes=max_nodes,
            grow=grow,
            node_threshold=node_threshold,
            edge_threshold=edge_threshold,
            errors=errors,
            heads=heads,
            **({"pairs": pairs} if pairs else {}),
            progress=status.progress,
            **keywords,
        )
        g, trouble = graph_files.labelled(g, meanings, loading, status)
        g = graph_files.with_index(g, contexts, status, cards)
        g = with_groups(g, group_automatically(g)) if group else g
        graph_files.write(g, out, format, max_drawn, status)
    graph_files.show(g, graph_blocks(g, top), out, format, as_json, trouble)


def verify(
    *,
    path: Annotated[Path, typer.Argument(metavar="GRAPH", help="A graph's .json or .graphml; the result joins it.")],
    max_nodes: Annotated[int, typer.Option("--max-nodes", help="How many nodes are taken out one at a time.")] = 100,
    seed: options.Seed = 0,
    replace_from: options.ReplaceFrom = None,
    memory: options.Memory = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="FILE.png, .svg or .pdf: predicted beside observed; FILE.json: the numbers."),
    ] = None,
    top: options.Top = 12,
    as_json: options.AsJson = False,
    loading: options.Loading,
) -> None:
    """A graph against the model: take its nodes out for real, and see what the target loses."""
    from ..files import write_files
    from ..graph.export import check_destination, check_verification, graph_bytes, read_graph, verification_bytes
    from ..graph.looks import verification_blocks
    from ..graph.names import note_of
    from ..graph.verify import check_verifying

    check_verifying(max_nodes, seed)
    options.check_memory(memory)
    beside = None if out is None else check_verification(out, path)  # before the work, not after it
    g = read_graph(path)
    format = check_destination(path)
    loading = replace(loading, model=loading.model or g.graph["model"])
    layers = sorted({about["layer"] for about in g.graph["saes"]})
    with talk.working() as status:
        lm = loading.load(status, layers)
        verified = lm.verify(
            g, max_nodes=max_nodes, seed=seed, replace_from=replace_from, memory=memory, progress=status.progress
        )
        contents = {path: graph_bytes(verified, format)}
        if out is not None and beside is not None:
            contents[out] = verification_bytes(verified, beside)
        write_files(contents)
    if as_json:
        talk.print_json(verified.graph["verification"])
    else:
        talk.show(verification_blocks(verified, top))
    talk.wrote(contents, as_json)
    talk.say(note_of(verified))


def diff(
    *,
    first: Annotated[Path, typer.Argument(metavar="A", help="A graph's .json or .graphml.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another: other rule, or other prompt.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="FILE.html: the page with three colours.")] = None,
    top: options.Top = 12,
) -> None:
    """Two graphs side by side: what is in one alone, and what changed."""
    from ..graph.diff import diff_graphs
    from ..graph.export import check_destination, check_difference, read_graph, write_graph
    from ..graph.looks import diff_blocks
    from ..graph.names import note_of

    if out is not None:
        check_difference(check_destination(out))
    graphs = [read_graph(path) for path in (first, second)]
    found = diff_graphs(*graphs)
    if out is not None:
        write_graph(found, out)
    talk.show(diff_blocks(found, top))
    talk.wrote([] if out is None else [out])
    talk.say(*map(note_of, graphs))
