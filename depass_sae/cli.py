"""The command line: one command per question.

Results go to stdout, as tables or with ``--json`` as one document; progress and messages go to stderr. A mistake that
the user can put right ends with status 2 and one line on stderr, anything else with 1. Nothing heavy is imported before
a command runs. stdout and stderr may have any encoding, be full, or be closed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._version import __version__
from .errors import DepassWarning, UserError
from .options import (
    Ablate,
    Against,
    AsJson,
    At,
    By,
    ByToken,
    Directions,
    EdgeThreshold,
    ErrorsOption,
    Feature,
    FirstToken,
    Format,
    Grouped,
    Ids,
    Labels,
    Layer,
    Layers,
    Loading,
    Logit,
    LogitDiff,
    Matrix,
    MaxNodes,
    Outs,
    Pos,
    Prompt,
    QuestionOptions,
    Rank,
    ReplaceFrom,
    RuleName,
    Seed,
    Sort,
    Targets,
    Temperature,
    Threshold,
    Top,
    WithHeads,
    check_features,
    check_rule,
    logits_of,
    number_or_text,
    position_of,
    prompt_of,
    spelled_out,
)
from .passes import DEFAULT_RULE
from .texts import is_utf_8, json_text, make_printable, one_line, visible

if TYPE_CHECKING:
    from .attribution.components import ComponentAttribution

app = typer.Typer(
    name="depass-sae",
    help="Which tokens activate an SAE feature: exact, additive answers by decomposed forward passes.",
    add_completion=False,
    rich_markup_mode="rich",
)


def _say_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"depass-sae {__version__}\n")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    pass


# ------------------------------------------------------------------------------------------------------------ commands


@app.command()
@spelled_out
def features(
    prompt: Prompt = None,
    layer: Layer = None,
    ids: Ids = None,
    sort: Sort = "activation",
    top: Top = 5,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Which features fire on a prompt, strongest first, per layer and position: where every question starts."""
    asked = prompt_of(prompt, ids)
    from .attribution.features import check_sort

    check_sort(sort)
    with _working() as status:
        layers = None if layer is None else [layer]
        lm = loading.load(status, layers)
        status("reading the features")
        report = lm.features(asked, layer, sort)  # type: ignore[arg-type]
    if as_json:
        _print_json(report.to_dict())
    else:
        from .attribution.render import features_table

        _print(*features_table(report, top))


@app.command()
@spelled_out
def tokens(
    prompt: Prompt = None,
    ids: Ids = None,
    *,
    question: QuestionOptions,
    by: By = "token",
    against: Against = None,
    ablate: Ablate = 0,
    seed: Seed = 0,
    replace_from: ReplaceFrom = None,
    top: Top = 12,
    as_json: AsJson = False,
    loading: Loading,
) -> None:
    """Which tokens activate a feature: each token's contribution to the pre-activation, summing to it exactly."""
    asked = prompt_of(prompt, ids)
    if against == "":
        raise UserError("the prompt of --against is empty")
    keywords = question.keywords(ids)
    from .attribution.replace import check_replacing
    from .attribution.tokens import check_by

    check_by(by)
    check_replacing(ablate, seed, replace_from)
    settings = keywords | {"by": by, "ablate": ablate, "seed": seed, "replace_from": replace_from}
    with _working() as status:
        lm = loading.load(status, _layers(question.feature))
        settings["progress"] = status.progress
        found: Any
        if against is None:
            found = attribution = lm.attribute_tokens(asked, question.feature, **settings)
        else:
            found = lm.contrast(asked, against, question.feature, **settings)
            attribution = found.attribution
    if as_json:
        _print_json(found.to_dict())
    elif against is None:
        from .attribution.render import strip_line, tokens_table

        strips = [line for target in attribution.targets for line in (strip_line(attribution, target), "")]
        _print(*strips, *tokens_table(attribution, top))
    else:
        from .attribution.render import contrast_table

        _print(*contrast_table(found, top))
    _say(attribution.note, found.against.note if against is not None else None)


@app.command()
@spelled_out
def heads(
    prompt: Prompt = None,
    ids: Ids = None,
    *,
    question: QuestionOptions,
    by_token: ByToken = False,
    top: Top = 12,
    as_json: AsJson = False,
    loading: Loading,
) -> None:
    """Through which attention heads: layer x head, each layer's row summing to the pre-activation."""
    asked = prompt_of(prompt, ids)
    keywords = question.keywords(ids)
    if by_token:
        from .attribution.components import check_by_token

        check_by_token(question.rule or DEFAULT_RULE)
    with _working() as status:
        lm = loading.load(status, _layers(question.feature))
        found = lm.attribute_heads(asked, question.feature, by_token=by_token, progress=status.progress, **keywords)
    _show_components(found, top, as_json)


def _component_command(name: str, help_: str) -> None:
    """Modules and neurons answer one question at two granularities."""

    def command(
        prompt: Prompt = None,
        ids: Ids = None,
        *,
        question: QuestionOptions,
        top: Top = 12,
        as_json: AsJson = False,
        loading: Loading,
    ) -> None:
        asked = prompt_of(prompt, ids)
        keywords = question.keywords(ids)
        with _working() as status:
            lm = loading.load(status, _layers(question.feature))
            attribute = {"modules": lm.attribute_modules, "neurons": lm.attribute_neurons}[name]
            found = attribute(asked, question.feature, progress=status.progress, **keywords)
        _show_components(found, top, as_json)

    app.command(name, help=help_)(spelled_out(command))


_component_command("modules", "Through which attention layers and MLPs: each row sums to the pre-activation.")
_component_command("neurons", "Through which MLP neurons: the largest, each layer's row summing to the pre-activation.")


@app.command()
@spelled_out
def subspace(
    prompt: Prompt = None,
    directions: Directions = None,
    matrix: Matrix = None,
    at: At = None,
    rank: Rank = None,
    ids: Ids = None,
    *,
    question: QuestionOptions,
    as_json: AsJson = False,
    loading: Loading,
) -> None:
    """From which subspaces of the stream: decoder directions of features, or the rows of any matrix."""
    asked = prompt_of(prompt, ids)
    keywords = question.keywords(ids)
    if bool(directions) == bool(matrix):
        raise UserError("name the subspaces: --direction LAYER/INDEX for each feature, or --matrix FILE.safetensors")
    if matrix is not None and at is None:
        raise UserError("--at says where the matrix's subspace lies, for example --at 17.resid_post")
    check_features(directions or [], pos=False)
    from .passes.sources import Subspace
    from .saes import parse_hook

    place = None if at is None else parse_hook(at)
    tensors = {} if matrix is None else _tensors(matrix)
    with _working() as status:
        layers: list[int] | None = None if directions or question.feature is not None else []
        lm = loading.load(status, layers)
        if place is not None and matrix is not None:
            space, names = Subspace(list(tensors.values()), place.layer, place.name, rank), list(tensors)
        else:
            space, names = lm.decoder_directions(directions or [], at=at, rank=rank), directions or []
        found = lm.attribute_subspace(
            asked, question.feature, subspace=space, names=names, progress=status.progress, **keywords
        )
    if as_json:
        _print_json(found.to_dict())
    else:
        from .attribution.heatmap import subspace_table

        _print(*subspace_table(found))
    _say(found.note)


@app.command()
@spelled_out
def attention(
    layer: Annotated[int, typer.Option("--layer", "-l", help="The head's layer.")],
    head: Annotated[int, typer.Option("--head", "-H", help="The head.")],
    query: Annotated[int, typer.Option("--query", "-q", help="The position that looks.")],
    key: Annotated[int, typer.Option("--key", "-k", help="The position that is looked at.")],
    prompt: Prompt = None,
    ids: Ids = None,
    by: Annotated[str, typer.Option("--by", help="tokens, or features of an SAE on what the layer reads.")] = "tokens",
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="mean: the head's average key, weighed by its attention; uniform: the plain mean of the keys that it "
            "sees; N: the key at position N.",
        ),
    ] = None,
    rule: RuleName = None,
    temperature: Temperature = 0.1,
    first_token: FirstToken = "skip",
    top: Top = 12,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """Why a head looked there: its score for a query and a key, split over what stands at both."""
    asked = prompt_of(prompt, ids)
    held: Any = None if against is None else number_or_text(against)
    from .attribution.attention import check_split

    check_split(by, held)
    check_rule(rule, temperature, first_token)
    with _working() as status:
        layers: list[int] | None = [] if by == "tokens" else None
        lm = loading.load(status, layers)
        found = lm.attribute_attention(
            asked,
            layer,
            head,
            query,
            key,
            by=by,  # type: ignore[arg-type]
            against=held,
            rule=rule,
            temperature=temperature,
            first_token=first_token,  # type: ignore[arg-type]
            progress=status.progress,
        )
    if as_json:
        _print_json(found.to_dict())
    else:
        from .attribution.heatmap import pairs_table

        _print(*pairs_table(found, top))
    _say(found.note)


@app.command()
@spelled_out
def feature(
    which: Annotated[str, typer.Argument(metavar="FEATURE", help="LAYER/INDEX, e.g. 17/1208.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A text; may be repeated.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A file of texts, one a line, or .jsonl with a text each.")
    ] = None,
    strongest: Annotated[int, typer.Option("--strongest", help="How many firings are taken apart.", min=1)] = 8,
    top: Top = 10,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="FILE.html or FILE.json.")] = None,
    labels: Labels = None,
    rule: RuleName = None,
    temperature: Temperature = 0.1,
    first_token: FirstToken = "skip",
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """A feature's card: where it fires, which tokens drive it, what it writes, and which features are near it."""
    from .labels.neuronpedia import labels_from
    from .report.card import check_card_place
    from .report.prompts import read_prompts

    texts = [*(prompt or []), *(read_prompts(prompts) if prompts is not None else [])]
    if not texts:
        raise UserError("give texts to look at with --prompt, or a file of them with --prompts")
    if "" in texts:
        raise UserError("the prompt is empty")
    check_features([which], pos=False)  # before the work, not after it
    check_rule(rule, temperature, first_token)
    if out is not None:
        check_card_place(out)
    meanings = _meanings(labels)
    with _working() as status:
        lm = loading.load(status, None)
        card = lm.card(
            which,
            texts,
            top=top,
            strongest=strongest,
            rule=rule,
            temperature=temperature,
            first_token=first_token,  # type: ignore[arg-type]
            progress=status.progress,
        )
        trouble = None
        if meanings is not None:
            status("putting labels on the features")
            found = labels_from(meanings, card.pages, loading.kept)
            card, trouble = card.with_labels(found.labels), found.warning
        if out is not None:
            status(f"writing {out}")
            card.write(out)
    if as_json:
        _print_json(card.to_dict())
    else:
        from .report.tables import card_table

        _print(*card_table(card.to_dict(), top))
    _wrote([] if out is None else [out], as_json)
    _say(card.note if as_json else None, trouble and f"warning: {trouble}")


@app.command("case-study")
@spelled_out
def case_study(
    study: Annotated[
        Path | None,
        typer.Argument(help="A YAML file with prompt, features and any of these options.", show_default=False),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="The folder to write.", show_default=False)] = None,
    prompt: Prompt = None,
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", "-f", help="LAYER/INDEX, or LAYER/INDEX@POS; may be repeated.", show_default=False),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="What the page is called.")] = None,
    labels: Labels = None,
    ablate: Annotated[
        int | None, typer.Option("--ablate", help="Random tokens that replace every source; 0: none.", show_default="8")
    ] = None,
    max_nodes: Annotated[
        int | None, typer.Option("--max-nodes", help="How large each graph is grown.", show_default="120")
    ] = None,
    verify: Annotated[
        int | None, typer.Option("--verify", help="How many of its nodes are taken out for real.", show_default="50")
    ] = None,
    top: Annotated[int | None, typer.Option("--top", help="How many rows a table names.", show_default="8")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the random replacements.", show_default="0")] = None,
    replace_from: ReplaceFrom = None,
    rule: RuleName = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Of the softmax rule.", show_default="0.1")
    ] = None,
    first_token: Annotated[
        str | None,
        typer.Option("--first-token", help="skip or compete: position 0 at later positions.", show_default="skip"),
    ] = None,
    ids: Ids = None,
    layer: Layers = None,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """The page for a paper's appendix: everything about features of one prompt, as HTML, Markdown and JSON."""
    from .report.case import CaseSettings, check_title
    from .report.markdown import check_folder
    from .report.study import read_study, study_of

    if out is None:
        raise UserError("name the folder to write with --out")
    given = {
        "prompt": None if prompt is None and ids is None else prompt_of(prompt, ids), "features": feature or None,
        "title": title, "labels": labels, "model": loading.model, "sae": loading.sae, "sae_id": loading.sae_id or None,
        "layer": layer or None, "dtype": loading.dtype, "trace_dtype": loading.trace_dtype, "rule": rule,
        "temperature": temperature, "first_token": first_token, "ablate": ablate, "seed": seed,
        "max_nodes": max_nodes, "verify": verify, "top": top,
        "replace_from": None if replace_from is None else str(replace_from),
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    if study is None and not {"prompt", "features"} <= given.keys():
        raise UserError("give --prompt and --feature, or a YAML file with both")
    asked = study_of(**(given if study is None else read_study(study).model_dump() | given))
    check_features(asked.features)  # before the work, not after it
    check_rule(asked.rule, asked.temperature, asked.first_token)
    check_title(asked.title)
    CaseSettings(asked.ablate, asked.seed, asked.max_nodes, asked.verify, asked.top, asked.replace_from).check()
    check_folder(out)
    meanings = _meanings(asked.labels)
    with _working() as status:
        chosen = replace(
            loading, model=asked.model, sae=asked.sae, sae_id=asked.sae_id, dtype=asked.dtype,
            trace_dtype=asked.trace_dtype,
        )  # fmt: skip
        lm = chosen.load(status, asked.layer)
        found = lm.case_study(
            asked.prompt,
            asked.features,
            title=asked.title,
            ablate=asked.ablate,
            seed=asked.seed,
            replace_from=asked.replace_from,
            max_nodes=asked.max_nodes,
            verify=asked.verify,
            top=asked.top,
            rule=asked.rule,
            temperature=asked.temperature,
            first_token=asked.first_token,  # type: ignore[arg-type]
            asked=asked,
            progress=status.progress,
        )
        trouble = None
        if meanings is not None:
            from .labels.neuronpedia import labels_from

            status("putting labels on the features")
            fetched = labels_from(meanings, found.pages, loading.kept)
            found, trouble = found.with_labels(fetched.labels), fetched.warning
        status(f"writing {out}")
        paths = found.write(out)
    if as_json:
        _print_json(found.to_dict())
    else:
        from rich.text import Text

        from .attribution.render import tokens_table

        for finding in found.findings:
            _print(Text(finding.sentence), "", *tokens_table(finding.tokens, asked.top))
    _wrote(paths, as_json)
    _say(*(feature.note for feature in found.features), trouble and f"warning: {trouble}")


@app.command()
@spelled_out
def graph(
    prompt: Prompt = None,
    target: Targets = None,
    out: Outs = None,
    format: Format = None,
    feature: Feature = None,
    logit: Logit = None,
    logit_diff: LogitDiff = None,
    pos: Pos = None,
    ids: Ids = None,
    layer: Layers = None,
    max_nodes: MaxNodes = 200,
    node_threshold: Threshold = None,
    edge_threshold: EdgeThreshold = 0.98,
    errors: ErrorsOption = "roots",
    heads: WithHeads = False,
    labels: Labels = None,
    group: Grouped = False,
    rule: RuleName = None,
    temperature: Temperature = 0.1,
    first_token: FirstToken = "skip",
    top: Top = 12,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """The feature-flow graph: from the tokens through the features of every SAE to the target."""
    asked = prompt_of(prompt, ids)
    targets = [*(target or []), *([] if feature is None else [feature])]
    logits, at = logits_of(logit, logit_diff, ids), position_of(pos)
    if as_json and format not in (None, "json") and not out:
        raise UserError(f"--json prints one document and --format {format} another; give one of them")
    from .attribution.targets import WrittenTarget
    from .graph.build import GraphSettings
    from .graph.export import check_destination, check_text_format, graph_text, write_graph
    from .graph.group import group_automatically, with_groups
    from .graph.labels import graph_pages, with_labels
    from .graph.looks import graph_blocks
    from .graph.names import note_of
    from .labels.neuronpedia import labels_from
    from .passes.forward import Allocation
    from .view.terminal import renderables

    for text in targets:  # before the work, not after it
        WrittenTarget.of(text)
    allocation = Allocation(DEFAULT_RULE if rule is None else rule, temperature, first_token)  # type: ignore[arg-type]
    GraphSettings(max_nodes, node_threshold, edge_threshold, errors, heads).check(allocation)  # type: ignore[arg-type]
    for path in out or []:
        check_destination(path, format)
    if format is not None and not out:
        check_text_format(format)
    meanings, trouble = _meanings(labels), None
    with _working() as status:
        lm = loading.load(status, None)
        g = lm.graph(
            asked,
            targets or None,
            **logits,
            pos=at,
            layers=layer,
            max_nodes=max_nodes,
            node_threshold=node_threshold,
            edge_threshold=edge_threshold,
            errors=errors,  # type: ignore[arg-type]
            heads=heads,
            rule=rule,
            temperature=temperature,
            first_token=first_token,  # type: ignore[arg-type]
            progress=status.progress,
        )
        if meanings is not None:
            status("putting labels on the features")
            fetched = labels_from(meanings, graph_pages(g), loading.kept)
            g, trouble = with_labels(g, fetched.labels), fetched.warning
        g = with_groups(g, group_automatically(g)) if group else g
        for path in out or []:
            status(f"writing {path}")
            write_graph(g, path, format)
    _say(note_of(g), trouble and f"warning: {trouble}")
    as_document = as_json or (format is not None and not out)
    if as_document:
        _print_document(graph_text(g, "json" if format is None or out else format))
    else:
        _print(*renderables(graph_blocks(g, top)))
    _wrote(out or [], as_document)


@app.command()
@spelled_out
def verify(
    path: Annotated[Path, typer.Argument(metavar="GRAPH", help="A graph's .json or .graphml; the result joins it.")],
    max_nodes: Annotated[int, typer.Option("--max-nodes", help="How many nodes are taken out one at a time.")] = 100,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="FILE.png, .svg or .pdf: predicted beside observed; FILE.json: the numbers."),
    ] = None,
    top: Top = 12,
    as_json: AsJson = False,
    *,
    loading: Loading,
) -> None:
    """A graph against the model: take its nodes out for real, and see what the target loses."""
    from .files import write_files
    from .graph.export import check_destination, check_verification, graph_bytes, read_graph, verification_bytes
    from .graph.looks import verification_blocks
    from .graph.names import note_of
    from .graph.verify import check_verifying
    from .view.terminal import renderables

    check_verifying(max_nodes, seed)
    beside = None if out is None else check_verification(out, path)  # before the work, not after it
    g = read_graph(path)
    format = check_destination(path)
    loading = replace(loading, model=loading.model or g.graph["model"])
    layers = [about["layer"] for about in g.graph["saes"]]
    with _working() as status:
        lm = loading.load(status, layers)
        verified = lm.verify(g, max_nodes=max_nodes, seed=seed, progress=status.progress)
        contents = {path: graph_bytes(verified, format)}
        if out is not None and beside is not None:
            contents[out] = verification_bytes(verified, beside)
        write_files(contents)
    if as_json:
        _print_json(verified.graph["verification"])
    else:
        _print(*renderables(verification_blocks(verified, top)))
    _wrote(contents, as_json)
    _say(note_of(verified))


@app.command()
@spelled_out
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A graph's .json or .graphml.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another: other rule, or other prompt.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="FILE.html: the page with three colours.")] = None,
    top: Top = 12,
) -> None:
    """Two graphs side by side: what is in one alone, and what changed."""
    from .graph.diff import diff_graphs
    from .graph.export import check_destination, check_difference, read_graph, write_graph
    from .graph.looks import diff_blocks
    from .graph.names import note_of
    from .view.terminal import renderables

    if out is not None:
        check_difference(check_destination(out))
    graphs = [read_graph(path) for path in (first, second)]
    found = diff_graphs(*graphs)
    if out is not None:
        write_graph(found, out)
    _print(*renderables(diff_blocks(found, top)))
    _wrote([] if out is None else [out])
    _say(*map(note_of, graphs))


@app.command()
def models(
    release: Annotated[
        str | None, typer.Argument(help="A sae-lens release: its SAEs by hook and architecture.", show_default=False)
    ] = None,
    count: Annotated[
        bool, typer.Option("--count", help="Only numbers: how many work, and how many do not why.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Which public SAEs can be used: every release of sae-lens's registry, without the network."""
    from .report.releases import document, tables
    from .saes.registry import release_named

    asked = None if release is None else release_named(release)
    if as_json:
        _print_json(document(asked, count))
    else:
        _print(*tables(asked, count))


def _show_components(found: ComponentAttribution, top: int, as_json: bool) -> None:
    if as_json:
        _print_json(found.to_dict())
    else:
        from .attribution.heatmap import components_table

        _print(*components_table(found, top))
    _say(found.note)


# ------------------------------------------------------------------------------------------------------ reading options


def _meanings(labels: Any) -> Any:
    """Labels from a file are read before the work, not after it; Neuronpedia is asked when it is known what for."""
    from .labels.files import read_labels

    return labels if labels in (None, "neuronpedia") or not isinstance(labels, str) else read_labels(labels)


def _layers(feature: str | None) -> list[int]:
    """Only the SAE that is asked for is loaded; a logit needs none."""
    from .attribution.targets import WrittenFeature

    return [] if feature is None else [WrittenFeature.of(feature).layer]


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(sorted(load_file(path.expanduser()).items()))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error


# ------------------------------------------------------------------------------------------------ talking to the user


class _Status:
    """What is going on, as one line on a terminal's stderr that goes away by itself."""

    def __init__(self, stream: Any) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._live = self._console.status("") if self._console.is_terminal else None

    def __call__(self, doing: str) -> None:
        if self._live is not None:
            self._live.update(f"{_plain(doing)} ...")

    def progress(self, doing: str, done: int, total: int) -> None:
        if self._live is not None:
            bar = "━" * round(24 * done / total)
            self._live.update(f"{_plain(doing)} [blue]{bar:<24}[/blue] {done}/{total}")

    def __enter__(self) -> _Status:
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
def _working() -> Iterator[_Status]:
    """Keeps libraries quiet: what they print is not ours to show. Our own warnings follow at the end."""
    with (
        _Status(sys.stderr) as status,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        yield status
    for message in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, DepassWarning)):
        _say(f"warning: {message}")


def _say(*notes: str | None) -> None:
    for note in dict.fromkeys(notes):
        if note:
            sys.stderr.write(f"{visible(note)}\n")


def _print(*parts: Any) -> None:
    from rich.console import Console

    from .attribution.render import UNBOUNDED, print_on

    console = Console()
    print_on(console if console.is_terminal else Console(width=UNBOUNDED), *parts)


def _wrote(paths: Iterable[Path], as_json: bool = False) -> None:
    """What was written: with the tables, or beside a document that has all of stdout."""
    (sys.stderr if as_json else sys.stdout).writelines(f"wrote {visible(str(path))}\n" for path in paths)


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json_text(document, sys.stdout) + "\n")


def _print_document(text: str) -> None:
    """A file's content that goes to stdout is UTF-8, which it says of itself, whatever a terminal would be shown."""
    if is_utf_8(sys.stdout):
        sys.stdout.write(text + "\n")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8") + b"\n")


def main() -> None:
    """The entry point: runs a command and turns what goes wrong into a status and a line."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    make_printable()
    # Libraries read these when they are imported.
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
    # Threads that wait should sleep: where other programs run, those that spin take many times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    status = _run()
    sys.exit(_flushed(status))


def _run() -> int:
    command = typer.main.get_command(app)
    try:
        status = command.main(prog_name="depass-sae", standalone_mode=False)
    except SystemExit as ended:  # a reader that has seen enough
        status = ended.code
    except UserError as error:
        return _one_line(error, 2)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):  # a mistyped command or option
            help_ = "; see depass-sae --help" if len(sys.argv) == 1 else ""
            return _one_line(error.format_message().rstrip(".") + help_, 2)
        if _is_interrupt(error):
            return 130
        if _is_memory(error):
            hint = "try a shorter prompt, --memory with less, or --dtype bfloat16"
            return _one_line(f"there is not enough memory; {hint}", 2)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            return _one_line(f"cannot write {error.filename or 'the output'}: {error.strerror}", 2)
        raise
    return status if isinstance(status, int) else 0


def _flushed(status: int) -> int:
    """The status with which all ends, once stdout has what was printed. One that takes nothing is let go of."""
    try:
        for stream in (sys.stdout, sys.__stdout__):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try again at its end, and complain
        if isinstance(error, BrokenPipeError):  # a reader that has seen enough
            return status or 1
        return status or _one_line(f"cannot write the output: {error.strerror}", 2)
    return status


def _one_line(message: object, status: int) -> int:
    sys.stderr.write(f"depass-sae: {one_line(str(message))}\n")
    return status


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what an error comes from: libraries that import others turn it into errors of theirs."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


if __name__ == "__main__":
    main()
