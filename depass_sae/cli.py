"""The command line: one command per question.

Results go to stdout, as tables or with ``--json`` as one document; progress and messages go to stderr. A mistake that
the user can put right ends with status 2 and one line on stderr, anything else with 1. Nothing heavy is imported before
a command runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import SAEFitWarning, UserError

if TYPE_CHECKING:
    from .api import LM
    from .attribution.components import ComponentAttribution
    from .models.prompt import PromptLike
    from .passes.sources import Subspace

app = typer.Typer(
    name="depass-sae",
    help="Which tokens activate an SAE feature: exact, additive answers by decomposed forward passes.",
    add_completion=False,
    rich_markup_mode="rich",
)

# ------------------------------------------------------------------------------------------------------------- options

Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help="The text to look at.", show_default=False)]
Ids = Annotated[
    str | None, typer.Option("--ids", help="Token ids instead of a text, e.g. '0 12 7', taken exactly as they are.")
]
Model = Annotated[str, typer.Option("--model", "-m", help="smollm2, a hub id, or a local directory.")]
Sae = Annotated[
    str | None,
    typer.Option("--sae", help="A sae-lens release, or a directory in its format. Default: those shipped for smollm2."),
]
SaeId = Annotated[list[str] | None, typer.Option("--sae-id", help="Which SAE of the release; may be repeated.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="The model's dtype. Default: the checkpoint's own.")]
TraceDtype = Annotated[
    str | None,
    typer.Option("--trace-dtype", help="Run the trace in a higher dtype, to take a bfloat16 model's rounding away."),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ... Default: cuda where there is one.")
]
CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", help="Where SmolLM2's converted copy is kept.", envvar="DEPASS_SAE_CACHE")
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the model's repository brings along.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Feature = Annotated[
    str | None,
    typer.Option("--feature", "-f", help="LAYER/INDEX, e.g. 17/1208, or 17/1208@6 for position 6.", show_default=False),
]
Logit = Annotated[str | None, typer.Option("--logit", help="A token's logit instead of a feature, e.g. ' Paris'.")]
LogitDiff = Annotated[
    tuple[str, str] | None,
    typer.Option("--logit-diff", help="The difference of two tokens' logits.", metavar="TOKEN TOKEN"),
]
Pos = Annotated[
    str | None,
    typer.Option(
        "--pos",
        help="max: where the feature is strongest (default); all: wherever it fires; N: position N. "
        "A logit is read at the last position unless this says otherwise.",
        show_default=False,
    ),
]
RULES = "half, softmax (the paper's), linear, linear-norm, relu or max."
RuleName = Annotated[str | None, typer.Option("--rule", help=RULES, show_default="half")]
PaperRule = Annotated[str | None, typer.Option("--rule", help=RULES, show_default="softmax")]
ByToken = Annotated[
    bool,
    typer.Option("--by-token", help="Also split each head by the token that it came from (rules half and linear)."),
]
Directions = Annotated[
    list[str] | None,
    typer.Option("--direction", help="A feature whose decoder direction is a subspace; may be repeated."),
]
Matrix = Annotated[
    Path | None, typer.Option("--matrix", help="A safetensors file: each tensor's rows [n, d_model] span a subspace.")
]
At = Annotated[
    str | None, typer.Option("--at", help="Where the subspaces lie, e.g. 17.resid_post. Default: the directions' SAE.")
]
Rank = Annotated[int | None, typer.Option("--rank", help="Keep so many dimensions of each subspace.", min=1)]
Temperature = Annotated[float, typer.Option("--temperature", help="Of the softmax rule.")]
FirstToken = Annotated[
    str, typer.Option("--first-token", help="skip or compete: whether position 0 takes part at later positions.")
]
GatePath = Annotated[str, typer.Option("--path", help="Of a gated SAE: magnitude or gate.")]
Memory = Annotated[
    str | None, typer.Option("--memory", help="How much the pass may take, e.g. 4GiB. Default: half of what is free.")
]
By = Annotated[str, typer.Option("--by", help="token, word or sentence.")]
Ablate = Annotated[
    int, typer.Option("--ablate", help="Also replace every source by this many random tokens and measure what happens.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of the random replacements.")]
Against = Annotated[str | None, typer.Option("--against", help="A second prompt, side by side: what differs.")]
Top = Annotated[int, typer.Option("--top", help="How many rows to name.", min=1)]
Layer = Annotated[int | None, typer.Option("--layer", "-l", help="Only the SAE of this layer.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        help="17/1208@6, logit:' Paris' or logit-diff:' Mary',' John'; may be repeated. Default: the top predictions.",
        show_default=False,
    ),
]
Outs = Annotated[
    list[Path] | None,
    typer.Option("--out", "-o", help="FILE.json, .graphml, .html, .png, .svg or .pdf; may be repeated."),
]
Format = Annotated[
    str | None, typer.Option("--format", help="json, graphml, html or neuronpedia, whatever the file is called.")
]
Layers = Annotated[
    list[int] | None, typer.Option("--layer", "-l", help="Only the SAEs of these layers; may be repeated.")
]
MaxNodes = Annotated[int, typer.Option("--max-nodes", help="How large the graph is grown.")]
Threshold = Annotated[float | None, typer.Option("--node-threshold", help="Keep this share of the nodes' influence.")]
EdgeThreshold = Annotated[float, typer.Option("--edge-threshold", help="Keep this share of the edges' influence.")]
ErrorsOption = Annotated[str, typer.Option("--errors", help="roots, or through: follow SAE errors further upstream.")]
WithHeads = Annotated[bool, typer.Option("--heads", help="Also through which heads each node got what it has.")]
Labels = Annotated[
    str | None, typer.Option("--labels", help="What features mean: a .csv or .json file, or neuronpedia (its API).")
]
Grouped = Annotated[bool, typer.Option("--group", help="Group features that say the same thing into supernodes.")]

# ------------------------------------------------------------------------------------------------------------ commands


@app.command()
def features(
    prompt: Prompt = None,
    layer: Layer = None,
    ids: Ids = None,
    model: Model = "smollm2",
    sae: Sae = None,
    sae_id: SaeId = None,
    top: Top = 5,
    as_json: AsJson = False,
    dtype: Dtype = None,
    trace_dtype: TraceDtype = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    trust_remote_code: Trust = False,
) -> None:
    """Which features fire on a prompt, strongest first, per layer and position: where every question starts."""
    asked = _prompt(prompt, ids)
    with _working() as status:
        layers = None if layer is None else [layer]
        lm = _load(status, model, sae, layers, sae_id, dtype, trace_dtype, device, cache_dir, trust_remote_code)
        status("reading the features")
        report = lm.features(asked, layer)
    if as_json:
        _print_json(report.to_dict())
    else:
        from .attribution.render import features_table

        _print(*features_table(report, top))


@app.command()
def tokens(
    feature: Feature = None,
    prompt: Prompt = None,
    ids: Ids = None,
    model: Model = "smollm2",
    sae: Sae = None,
    sae_id: SaeId = None,
    pos: Pos = None,
    rule: RuleName = None,
    by: By = "token",
    logit: Logit = None,
    logit_diff: LogitDiff = None,
    against: Against = None,
    ablate: Ablate = 0,
    seed: Seed = 0,
    temperature: Temperature = 0.1,
    first_token: FirstToken = "skip",
    path: GatePath = "magnitude",
    memory: Memory = None,
    top: Top = 12,
    as_json: AsJson = False,
    dtype: Dtype = None,
    trace_dtype: TraceDtype = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    trust_remote_code: Trust = False,
) -> None:
    """Which tokens activate a feature: each token's contribution to the pre-activation, summing to it exactly."""
    asked = _prompt(prompt, ids)
    question = _question(feature, logit, logit_diff, pos, rule, temperature, first_token, path, memory, ids)
    if ablate < 0:
        raise UserError("--ablate takes the number of replacements per source, 1 or more")
    settings = question | {"by": by, "ablate": ablate, "seed": seed}
    with _working() as status:
        lm = _load(
            status, model, sae, _layers(feature), sae_id, dtype, trace_dtype, device, cache_dir, trust_remote_code
        )
        settings["progress"] = status.progress
        found: Any
        if against is None:
            found = attribution = lm.attribute_tokens(asked, feature, **settings)
        else:
            found = lm.contrast(asked, against, feature, **settings)
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
def heads(
    feature: Feature = None,
    prompt: Prompt = None,
    ids: Ids = None,
    model: Model = "smollm2",
    sae: Sae = None,
    sae_id: SaeId = None,
    pos: Pos = None,
    rule: RuleName = None,
    by_token: ByToken = False,
    logit: Logit = None,
    logit_diff: LogitDiff = None,
    temperature: Temperature = 0.1,
    first_token: FirstToken = "skip",
    path: GatePath = "magnitude",
    memory: Memory = None,
    top: Top = 12,
    as_json: AsJson = False,
    dtype: Dtype = None,
    trace_dtype: TraceDtype = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    trust_remote_code: Trust = False,
) -> None:
    """Through which attention heads: layer x head, each layer's row summing to the pre-activation."""
    asked = _prompt(prompt, ids)
    question = _question(feature, logit, logit_diff, pos, rule, temperature, first_token, path, memory, ids)
    with _working() as status:
        lm = _load(
            status, model, sae, _layers(feature), sae_id, dtype, trace_dtype, device, cache_dir, trust_remote_code
        )
        found = lm.attribute_heads(asked, feature, by_token=by_token, progress=status.progress, **question)
    _show_components(found, top, as_json)


def _component_command(name: str, help_: str) -> None:
    """Modules and neurons answer one question at two granularities."""

    def command(
        feature: Feature = None,
        prompt: Prompt = None,
        ids: Ids = None,
        model: Model = "smollm2",
        sae: Sae = None,
        sae_id: SaeId = None,
        pos: Pos = None,
        rule: RuleName = None,
        logit: Logit = None,
        logit_diff: LogitDiff = None,
        temperature: Temperature = 0.1,
        first_token: FirstToken = "skip",
        path: GatePath = "magnitude",
        memory: Memory = None,
        top: Top = 12,
        as_json: AsJson = False,
        dtype: Dtype = None,
        trace_dtype: TraceDtype = None,
        device: Device = None,
        cache_dir: CacheDir = None,
        trust_remote_code: Trust = False,
    ) -> None:
        asked = _prompt(prompt, ids)
        question = _question(feature, logit, logit_diff, pos, rule, temperature, first_token, path, memory, ids)
        with _working() as status:
            lm = _load(
                status, model, sae, _layers(feature), sae_id, dtype, trace_dtype, device, cache_dir, trust_remote_code
            )
            attribute = {"modules": lm.attribute_modules, "neurons": lm.attribute_neurons}[name]
            found = attribute(asked, feature, progress=status.progress, **question)
        _show_components(found, top, as_json)

    app.command(name, help=help_)(command)


_component_command("modules", "Through which attention layers and MLPs: each row sums to the pre-activation.")
_component_command("neurons", "Through which MLP neurons: the largest, each layer's row summing to the pre-activation.")


@app.command()
def subspace(
    feature: Feature = None,
    prompt: Prompt = None,
    directions: Directions = None,
    matrix: Matrix = None,
    at: At = None,
    rank: Rank = None,
    ids: Ids = None,
    model: Model = "smollm2",
    sae: Sae = None,
    sae_id: SaeId = None,
    pos: Pos = None,
    rule: RuleName = None,
    logit: Logit = None,
    logit_diff: LogitDiff = None,
    temperature: Temperature = 0.1,
    first_token: FirstToken = "skip",
    path: GatePath = "magnitude",
    memory: Memory = None,
    as_json: AsJson = False,
    dtype: Dtype = None,
    trace_dtype: TraceDtype = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    trust_remote_code: Trust = False,
) -> None:
    """From which subspaces of the stream: decoder directions of features, or the rows of any matrix."""
    asked = _prompt(prompt, ids)
    question = _question(feature, logit, logit_diff, pos, rule, temperature, first_token, path, memory, ids)
    if bool(directions) == bool(matrix):
        raise UserError("name the subspaces: --direction LAYER/INDEX for each feature, or --matrix FILE.safetensors")
    with _working() as status:
        layers: list[int] | None = None if directions or feature is not None else []
        lm = _load(status, model, sae, layers, sae_id, dtype, trace_dtype, device, cache_dir, trust_remote_code)
        space, names = _subspace(lm, directions, matrix, at, rank)
        found = lm.attribute_subspace(asked, feature, subspace=space, names=names, progress=status.progress, **question)
    if as_json:
        _print_json(found.to_dict())
    else:
        from .attribution.heatmap import subspace_table

        _print(*subspace_table(found))
    _say(found.note)


@app.command()
def attention(
    layer: Annotated[int, typer.Option("--layer", "-l", help="The head's layer.")],
    head: Annotated[int, typer.Option("--head", "-H", help="The head.")],
    query: Annotated[int, typer.Option("--query", "-q", help="The position that looks.")],
    key: Annotated[int, typer.Option("--key", "-k", help="The position that is looked at.")],
    prompt: Prompt = None,
    ids: Ids = None,
    by: Annotated[str, typer.Option("--by", help="tokens, or features of an SAE on what the layer reads.")] = "tokens",
    against: Annotated[
        str | None, typer.Option("--against", help="mean: the head's average key; N: the key at position N.")
    ] = None,
    model: Model = "smollm2",
    sae: Sae = None,
    sae_id: SaeId = None,
    rule: PaperRule = None,
    temperature: Temperature = 0.1,
    first_token: FirstToken = "skip",
    top: Top = 12,
    as_json: AsJson = False,
    dtype: Dtype = None,
    trace_dtype: TraceDtype = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    trust_remote_code: Trust = False,
) -> None:
    """Why a head looked there: its score for a query and a key, split over what stands at both."""
    asked = _prompt(prompt, ids)
    held: Any = None if against is None else _number(against)
    with _working() as status:
        layers: list[int] | None = [] if by == "tokens" else None
        lm = _load(status, model, sae, layers, sae_id, dtype, trace_dtype, device, cache_dir, trust_remote_code)
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


@app.command()
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
    model: Model = "smollm2",
    sae: Sae = None,
    sae_id: SaeId = None,
    as_json: AsJson = False,
    dtype: Dtype = None,
    trace_dtype: TraceDtype = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    trust_remote_code: Trust = False,
) -> None:
    """A feature's card: where it fires, which tokens drive it, what it writes, and which features are near it."""
    from .graph.neuronpedia_labels import labels_from
    from .report.card import check_card_place
    from .report.prompts import read_prompts

    texts = [*(prompt or []), *(read_prompts(prompts) if prompts is not None else [])]
    if not texts:
        raise UserError("give texts to look at with --prompt, or a file of them with --prompts")
    if out is not None:  # before the work, not after it
        check_card_place(out)
    meanings = _meanings(labels)
    with _working() as status:
        lm = _load(status, model, sae, None, sae_id, dtype, trace_dtype, device, cache_dir, trust_remote_code)
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
            found = labels_from(meanings, card.pages, cache_dir)
            card, trouble = card.with_labels(found.labels), found.warning
        if out is not None:
            status(f"writing {out}")
            card.write(out)
    if as_json:
        _print_json(card.to_dict())
    else:
        from .report.tables import card_table

        _print(*card_table(card.to_dict(), top))
    _say(card.note if as_json else None, trouble and f"warning: {trouble}")


@app.command("case-study")
def case_study(
    study: Annotated[
        Path | None,
        typer.Argument(help="A YAML file with prompt, features and any of these options.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to write.", show_default=False)] = None,
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
    rule: RuleName = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Of the softmax rule.", show_default="0.1")
    ] = None,
    first_token: Annotated[
        str | None,
        typer.Option("--first-token", help="skip or compete: position 0 at later positions.", show_default="skip"),
    ] = None,
    ids: Ids = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="smollm2, a hub id, or a local directory.", show_default="smollm2"),
    ] = None,
    sae: Sae = None,
    sae_id: SaeId = None,
    layer: Layers = None,
    as_json: AsJson = False,
    dtype: Dtype = None,
    trace_dtype: TraceDtype = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    trust_remote_code: Trust = False,
) -> None:
    """The page for a paper's appendix: everything about features of one prompt, as HTML, Markdown and JSON."""
    from .report.markdown import check_folder
    from .report.study import read_study, study_of

    if out is None:
        raise UserError("name the folder to write with --out")
    given = {
        "prompt": None if prompt is None and ids is None else _prompt(prompt, ids), "features": feature or None,
        "title": title, "labels": labels, "model": model, "sae": sae, "sae_id": sae_id or None, "layer": layer or None,
        "dtype": dtype, "trace_dtype": trace_dtype, "rule": rule, "temperature": temperature,
        "first_token": first_token, "ablate": ablate, "seed": seed, "max_nodes": max_nodes, "verify": verify,
        "top": top,
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    if study is None and not {"prompt", "features"} <= given.keys():
        raise UserError("give --prompt and --feature, or a YAML file with both")
    asked = study_of(**(given if study is None else read_study(study).model_dump() | given))
    check_folder(out)  # before the work, not after it
    meanings = _meanings(asked.labels)
    with _working() as status:
        lm = _load(
            status, asked.model, asked.sae, asked.layer, asked.sae_id, asked.dtype, asked.trace_dtype, device,
            cache_dir, trust_remote_code,
        )  # fmt: skip
        found = lm.case_study(
            asked.prompt,
            asked.features,
            title=asked.title,
            ablate=asked.ablate,
            seed=asked.seed,
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
            from .graph.neuronpedia_labels import labels_from

            status("putting labels on the features")
            fetched = labels_from(meanings, found.pages, cache_dir)
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
        _print(*(Text(f"wrote {path}") for path in paths))
    _say(*(feature.note for feature in found.features), trouble and f"warning: {trouble}")


@app.command()
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
    model: Model = "smollm2",
    sae: Sae = None,
    sae_id: SaeId = None,
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
    dtype: Dtype = None,
    trace_dtype: TraceDtype = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    trust_remote_code: Trust = False,
) -> None:
    """The feature-flow graph: from the tokens through the features of every SAE to the target."""
    asked = _prompt(prompt, ids)
    targets = [*(target or []), *([feature] if feature else [])]
    from .graph.export import check_destination, check_text_format, graph_text, write_graph
    from .graph.group import group_automatically, with_groups
    from .graph.labels import with_labels
    from .graph.neuronpedia_labels import graph_pages, labels_from

    for path in out or []:  # before the work, not after it
        check_destination(path, format)
    if format is not None and not out:
        check_text_format(format)
    meanings, trouble = _meanings(labels), None
    with _working() as status:
        lm = _load(status, model, sae, None, sae_id, dtype, trace_dtype, device, cache_dir, trust_remote_code)
        g = lm.graph(
            asked,
            targets or None,
            logit=None if logit is None else _token(logit, ids),
            logit_diff=None if logit_diff is None else (_token(logit_diff[0], ids), _token(logit_diff[1], ids)),
            pos=_position(pos),
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
            fetched = labels_from(meanings, graph_pages(g), cache_dir)
            g, trouble = with_labels(g, fetched.labels), fetched.warning
        g = with_groups(g, group_automatically(g)) if group else g
        for path in out or []:
            status(f"writing {path}")
            write_graph(g, path, format)
    _say(trouble and f"warning: {trouble}")
    if as_json or (format is not None and not out):
        sys.stdout.write(graph_text(g, format or "json") + "\n")
        return
    from .graph.summary import graph_table

    _print(*graph_table(g, top))


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="GRAPH", help="A graph's .json or .graphml; the result joins it.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Default: the graph's own.")] = None,
    sae: Sae = None,
    sae_id: SaeId = None,
    max_nodes: Annotated[int, typer.Option("--max-nodes", help="How many nodes are taken out one at a time.")] = 100,
    seed: Seed = 0,
    top: Top = 12,
    as_json: AsJson = False,
    dtype: Dtype = None,
    trace_dtype: TraceDtype = None,
    device: Device = None,
    cache_dir: CacheDir = None,
    trust_remote_code: Trust = False,
) -> None:
    """A graph against the model: take its nodes out for real, and see what the target loses."""
    from .graph.export import read_graph, write_graph

    g = read_graph(path)
    model = g.graph["model"] if model is None else model
    layers = [about["layer"] for about in g.graph["saes"]]
    with _working() as status:
        lm = _load(status, model, sae, layers, sae_id, dtype, trace_dtype, device, cache_dir, trust_remote_code)
        verified = lm.verify(g, max_nodes=max_nodes, seed=seed, progress=status.progress)
        write_graph(verified, path)
    if as_json:
        _print_json(verified.graph["verification"])
    else:
        from .graph.summary import verification_table

        _print(*verification_table(verified, top))


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A graph's .json or .graphml.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another: other rule, or other prompt.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="FILE.html: the page with three colours.")] = None,
    top: Top = 12,
) -> None:
    """Two graphs side by side: what is in one alone, and what changed."""
    from .graph.diff import diff_graphs, diff_table
    from .graph.export import check_destination, read_graph, write_graph

    if out is not None:
        check_destination(out)
    found = diff_graphs(read_graph(first), read_graph(second))
    if out is not None:
        write_graph(found, out)
    _print(*diff_table(found, top))


def _show_components(found: ComponentAttribution, top: int, as_json: bool) -> None:
    if as_json:
        _print_json(found.to_dict())
    else:
        from .attribution.heatmap import components_table

        _print(*components_table(found, top))
    _say(found.note)


# ------------------------------------------------------------------------------------------------------ reading options


def _prompt(prompt: str | None, ids: str | None) -> PromptLike:
    if (prompt is None) == (ids is None):
        raise UserError("give the text to look at with --prompt, or its token ids with --ids")
    if prompt is not None:
        return prompt
    words = re.split(r"[\s,]+", (ids or "").strip("[], \t\n"))
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--ids takes numbers, e.g. '0 12 7', not {ids!r}")
    return [int(word) for word in words]


def _question(
    feature: str | None,
    logit: str | None,
    logit_diff: tuple[str, str] | None,
    pos: str | None,
    rule: str | None,
    temperature: float,
    first_token: str,
    path: str,
    memory: str | None,
    ids: str | None,
) -> dict[str, Any]:
    """The options that every attribution shares, as keywords of ``lm.attribute_...``."""
    if sum(target is not None for target in (feature, logit, logit_diff)) != 1:
        raise UserError("name one target: --feature LAYER/INDEX, --logit TOKEN, or --logit-diff TOKEN TOKEN")
    return {
        "logit": None if logit is None else _token(logit, ids),
        "logit_diff": None if logit_diff is None else (_token(logit_diff[0], ids), _token(logit_diff[1], ids)),
        "pos": _position(pos),
        "rule": rule,
        "temperature": temperature,
        "first_token": first_token,
        "path": path,
        "memory": memory,
    }


def _meanings(labels: Any) -> Any:
    """Labels from a file are read before the work, not after it; Neuronpedia is asked when it is known what for."""
    from .graph.labels import read_labels

    return labels if labels in (None, "neuronpedia") or not isinstance(labels, str) else read_labels(labels)


def _token(text: str, ids: str | None) -> int | str:
    """A prompt of ids takes its logits as ids, too."""
    return text if ids is None else _number(text)


def _position(text: str | None) -> Any:
    if text is None or text in ("max", "all"):
        return text
    number = _number(text)
    if not isinstance(number, int):
        raise UserError(f"--pos takes max, all or a position, not {text!r}")
    return number


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _layers(feature: str | None) -> list[int] | None:
    """Only the SAE that is asked for is loaded; a logit needs none. None: whichever there are."""
    match = re.match(r"\d+", feature or "")
    return [] if feature is None else [int(match[0])] if match else None


def _subspace(
    lm: LM, directions: list[str] | None, matrix: Path | None, at: str | None, rank: int | None
) -> tuple[Subspace, list[str]]:
    """The subspaces that are meant, and what to call them. Decoder directions lie where their SAE reads."""
    from .passes.sources import Subspace
    from .saes import parse_hook

    if directions:
        return lm.decoder_directions(directions, at=at, rank=rank), directions
    if at is None:
        raise UserError("--at says where the matrix's subspace lies, for example --at 17.resid_post")
    tensors = _tensors(matrix or Path())
    place = parse_hook(at)
    return Subspace(list(tensors.values()), place.layer, place.name, rank), list(tensors)


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(sorted(load_file(path).items()))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error


def _load(
    status: _Status,
    model: str,
    sae: str | None,
    layers: list[int] | None,
    sae_ids: list[str] | None,
    dtype: str | None,
    trace_dtype: str | None,
    device: str | None,
    cache_dir: Path | None,
    trust_remote_code: bool,
) -> LM:
    if sae_ids and sae is None:
        raise UserError("--sae-id chooses from a release: name that with --sae")
    status(f"loading {model}")
    from .api import load

    return load(
        model,
        saes={} if layers == [] else sae,
        layers=None if sae_ids else layers or None,
        sae_ids=sae_ids or None,
        dtype=dtype,
        trace_dtype=trace_dtype,
        device=device,
        cache_dir=cache_dir,
        trust_remote_code=trust_remote_code,
    )


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

    return escape(text)


@contextlib.contextmanager
def _working() -> Iterator[_Status]:
    """Keeps libraries quiet: what they print is not ours to show. Our own warnings follow at the end."""
    os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
    # Threads that wait should sleep: where other programs run, those that spin take many times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with (
        _Status(sys.stderr) as status,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        yield status
    for message in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, SAEFitWarning)):
        sys.stderr.write(f"warning: {message}\n")


def _say(*notes: str | None) -> None:
    for note in dict.fromkeys(notes):
        if note:
            sys.stderr.write(f"{note}\n")


def _print(*parts: Any) -> None:
    from rich.console import Console

    console = Console()
    for part in parts:
        console.print(part)


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def main() -> None:
    """The entry point: runs a command and turns what goes wrong into a status and a line."""
    command = typer.main.get_command(app)
    try:
        status = command.main(prog_name="depass-sae", standalone_mode=False)
    except UserError as error:
        sys.exit(_one_line(error, 2))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a mistyped command or option
            help_ = "; see depass-sae --help" if len(sys.argv) == 1 else ""
            sys.exit(_one_line(error.format_message().rstrip(".") + help_, 2))
        if _is_memory(error):
            sys.exit(_one_line("there is not enough memory; try a shorter prompt, or --dtype bfloat16", 2))
        raise
    sys.exit(status if isinstance(status, int) else 0)


def _one_line(message: object, status: int) -> int:
    sys.stderr.write("depass-sae: " + " ".join(str(message).split()) + "\n")
    return status


def _is_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


if __name__ == "__main__":
    main()
