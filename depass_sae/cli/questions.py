"""The questions about prompts: one command each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from . import graph_files, options, talk

if TYPE_CHECKING:
    from ..api import LM
    from ..attribution.importance import Of
    from ..view.blocks import Block
    from ..view.shown import Shown

TOP = 12
"""So many rows are named where nobody says how many."""


def features(
    *,
    given: options.PromptOptions,
    layer: options.Layer = None,
    sort: options.Sort = "activation",
    index: options.IndexOption = None,
    top: options.Top = 5,
    to: options.OutOptions,
    loading: options.Loading,
) -> None:
    """Which features fire on a prompt, strongest first, per layer and position: where every question starts."""
    asked = given.read()
    from ..attribution.features import FeatureReport, check_sort
    from .several import Several

    check_sort(sort)
    to.check(Several if isinstance(asked, options.Texts) else FeatureReport)
    opened = options.opened_index(index)
    with talk.working() as status:
        lm = loading.load(status, None if layer is None else [layer])
        status("reading the features")
        found: FeatureReport | Several
        if isinstance(asked, options.Texts):
            reports = []
            for number, text in enumerate(checked(lm, asked), start=1):
                reports.append(lm.features(text, layer, sort, opened))  # type: ignore[arg-type]
                status.progress("reading the features", number, len(asked))
            found = Several(tuple(reports))
        else:
            found = lm.features(asked, layer, sort, opened)  # type: ignore[arg-type]
        talk.write(found, to.paths, status)
    show_answer(found, found.blocks(top), to)


def tokens(
    *,
    given: options.PromptOptions,
    question: options.QuestionOptions,
    how: options.HowOptions,
    by: options.By = "token",
    against: options.Against = None,
    measuring: options.MeasureOptions,
    by_depth: options.ByDepth = False,
    top: options.TopOfEach = None,
    to: options.OutOptions,
    loading: options.Loading,
) -> None:
    """Which tokens activate a feature: each token's contribution to the pre-activation, summing to it exactly."""
    asked = given.read()
    if against == "":
        raise UserError("the prompt of --against is empty")
    if against is not None and (isinstance(asked, options.Texts) or by_depth):
        raise UserError("--against is for one prompt, and neither for --prompts nor for --by-depth; leave it out")
    keywords = question.keywords(given.ids) | how.keywords()
    if isinstance(asked, options.Texts):
        options.check_pos_of_several(question, ("max", "all"))
    from ..attribution.contrast import Contrast
    from ..attribution.tokens import TokenAttribution, check_by
    from .several import Several

    check_by(by)
    measures = measuring.keywords()
    to.check(Several if isinstance(asked, options.Texts) else TokenAttribution if against is None else Contrast)
    settings: dict[str, Any] = keywords | measures | {"by": by}
    with talk.working() as status:
        lm = loading.load(status, question.layers)
        settings["progress"] = status.progress
        found: TokenAttribution | Contrast | Several
        if isinstance(asked, options.Texts):
            answers = lm.attribute_tokens_batch(checked(lm, asked), question.feature, by_depth=by_depth, **settings)
            found = Several(tuple(answers))
        elif against is not None:
            found = lm.contrast(asked, against, question.feature, **settings)
        else:
            found = lm.attribute_tokens(asked, question.feature, by_depth=by_depth, **settings)
        talk.write(found, to.paths, status)
    show_answer(found, found.brief() if isinstance(found, Several) and top is None else found.blocks(top or TOP), to)


def heads(
    *,
    given: options.PromptOptions,
    question: options.QuestionOptions,
    how: options.HowOptions,
    ranked: options.RankOptions,
    by_token: options.ByToken = False,
    measuring: options.HeadMeasureOptions,
    top: options.Top = TOP,
    to: options.OutOptions,
    loading: options.Loading,
) -> None:
    """Through which attention heads: layer x head, each layer's row summing to the pre-activation.

    With --prompts: mean and spread of what each contributes over all of them.
    """
    measures = measuring.keywords()
    if measuring.measure is not None and given.prompts is not None:
        raise UserError("--measure takes heads out on one prompt; give it with --prompt, not with --prompts")
    if by_token and given.prompts is not None:
        raise UserError("--by-token splits the heads of one prompt; give it with --prompt, not with --prompts")
    if by_token:
        from ..attribution.components import check_by_token
        from ..passes import DEFAULT_RULE

        check_by_token(how.rule or DEFAULT_RULE)
    asked = ({"by_token": True} if by_token else {}) | (measures if measuring.measure is not None else {})
    _components("heads", given, question, how, ranked, top, to, loading, **asked)


def modules(
    *,
    given: options.PromptOptions,
    question: options.QuestionOptions,
    how: options.HowOptions,
    ranked: options.RankOptions,
    top: options.Top = TOP,
    to: options.OutOptions,
    loading: options.Loading,
) -> None:
    """Through which attention layers and MLPs: each row sums to the pre-activation.

    With --prompts: mean and spread of what each contributes over all of them.
    """
    _components("modules", given, question, how, ranked, top, to, loading)


def neurons(
    *,
    given: options.PromptOptions,
    question: options.QuestionOptions,
    how: options.HowOptions,
    ranked: options.RankOptions,
    every: Annotated[
        bool, typer.Option("--every", help="List all neurons of each layer in --json and --out FILE.json, not 50.")
    ] = False,
    top: options.Top = TOP,
    to: options.OutOptions,
    loading: options.Loading,
) -> None:
    """Through which MLP neurons: the largest, each layer's row summing to the pre-activation.

    With --prompts: mean and spread of what each contributes over all of them.
    """
    _components("neurons", given, question, how, ranked, top, to, loading, every=every)


def _components(
    of: Of,
    given: options.PromptOptions,
    question: options.QuestionOptions,
    how: options.HowOptions,
    ranked: options.RankOptions,
    top: int,
    to: options.OutOptions,
    loading: options.Loading,
    **more: Any,
) -> None:
    """One question at three granularities, on a prompt or over several."""
    asked = given.read()
    keywords = question.keywords(given.ids) | how.keywords() | ranked.keywords()
    if isinstance(asked, options.Texts):
        options.check_pos_of_several(question, ("max",))
    from ..attribution.components import ComponentAttribution
    from ..attribution.importance import Importance

    to.check(Importance if isinstance(asked, options.Texts) else ComponentAttribution)
    with talk.working() as status:
        lm = loading.load(status, question.layers)
        settings: dict[str, Any] = {**keywords, **more, "progress": status.progress}
        found: ComponentAttribution | Importance
        if isinstance(asked, options.Texts):
            found = lm.importance(checked(lm, asked), question.feature, of=of, **settings)
        elif of == "heads":
            found = lm.attribute_heads(asked, question.feature, **settings)
        elif of == "modules":
            found = lm.attribute_modules(asked, question.feature, **settings)
        else:
            found = lm.attribute_neurons(asked, question.feature, **settings)
        talk.write(found, to.paths, status)
    show_answer(found, found.blocks(top), to)


def subspace(
    *,
    prompt: options.Prompt = None,
    directions: options.Directions = None,
    matrix: options.Matrix = None,
    at: options.At = None,
    rank: options.Rank = None,
    ids: options.Ids = None,
    question: options.QuestionOptions,
    how: options.HowOptions,
    to: options.OutOptions,
    loading: options.Loading,
) -> None:
    """From which subspaces of the stream: decoder directions of features, or the rows of any matrix."""
    asked = options.prompt_of(prompt, ids)
    keywords = question.keywords(ids) | how.keywords()
    if bool(directions) == bool(matrix):
        raise UserError("name the subspaces: --direction LAYER/INDEX for each feature, or --matrix FILE.safetensors")
    if matrix is not None and at is None:
        raise UserError("--at says where the matrix's subspace lies, for example --at 17.resid_post")
    options.check_features(directions or [], pos=False)
    from ..attribution.subspace import SubspaceAttribution
    from ..passes.sources import Subspace
    from ..saes import parse_hook

    place = None if at is None else parse_hook(at)
    to.check(SubspaceAttribution)
    tensors = {} if matrix is None else _tensors(matrix)
    with talk.working() as status:
        lm = loading.load(status, None if directions else question.layers)
        if place is not None and matrix is not None:
            space, names = Subspace(list(tensors.values()), place.layer, place.name, rank), list(tensors)
        else:
            space, names = lm.decoder_directions(directions or [], at=at, rank=rank), directions or []
        found = lm.attribute_subspace(
            asked, question.feature, subspace=space, names=names, progress=status.progress, **keywords
        )
        talk.write(found, to.paths, status)
    show_answer(found, found.blocks(), to)


def attention(
    *,
    layer: Annotated[int, typer.Option("--layer", "-l", help="The head's layer.")],
    head: Annotated[int, typer.Option("--head", "-H", help="The head.")],
    query: Annotated[int, typer.Option("--query", "-q", help="The position that looks.")],
    key: Annotated[int, typer.Option("--key", "-k", help="The position that is looked at.")],
    prompt: options.Prompt = None,
    ids: options.Ids = None,
    by: Annotated[str, typer.Option("--by", help="tokens, or features of an SAE on what the layer reads.")] = "tokens",
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="mean: the head's average key, weighed by its attention; uniform: the plain mean of the keys that it "
            "sees; N: the key at position N.",
        ),
    ] = None,
    how: options.HowOptions,
    top: options.Top = TOP,
    to: options.OutOptions,
    loading: options.Loading,
) -> None:
    """Why a head looked there: its score for a query and a key, split over what stands at both."""
    asked = options.prompt_of(prompt, ids)
    held: Any = None if against is None else options.number_or_text(against)
    from ..attribution.attention import AttentionAttribution, check_split

    check_split(by, held)
    keywords = how.keywords()
    to.check(AttentionAttribution)
    with talk.working() as status:
        lm = loading.load(status, [] if by == "tokens" else None)
        found = lm.attribute_attention(
            asked, layer, head, query, key, by=by, against=held, progress=status.progress, **keywords  # type: ignore
        )  # fmt: skip
        talk.write(found, to.paths, status)
    show_answer(found, found.blocks(top), to)


def downstream(
    *,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A feature 11/223@6, token:6, head:5.1@7 or neuron:5/301@7.")
    ],
    prompt: options.Prompt = None,
    ids: options.Ids = None,
    how: options.HowOptions,
    sort: Annotated[str, typer.Option("--sort", help="What comes first: total, direct or effect.")] = "total",
    graph: Annotated[
        list[Path] | None,
        typer.Option("--graph", help="Write it as a graph, too: .html .json .graphml .png .pdf.", show_default=False),
    ] = None,
    features: Annotated[int, typer.Option("--features", help="So many later features are in the graph.")] = 25,
    index: options.ContextsOption = None,
    cards: options.Cards = None,
    top: options.Top = TOP,
    to: options.OutOptions,
    loading: options.Loading,
) -> None:
    """What a feature, a token, a head or a neuron goes on to do: later features and logits, and how much is its."""
    asked = options.prompt_of(prompt, ids)
    from ..graph.downstream import Downstream, check_by, check_rule

    check_by(sort)
    keywords = how.keywords()
    check_rule(how.allocation.rule)
    to.check(Downstream)
    graph_files.check_files(graph, None)
    graph_files.check_cards(cards, index)
    contexts = options.opened_index(index)
    with talk.working() as status:
        lm = loading.load(status, None)
        found = lm.downstream(asked, source, sort=sort, progress=status.progress, **keywords)  # type: ignore[arg-type]
        if contexts is not None:
            found = replace(found, labels=contexts.all_labels())
        if graph:
            g = lm.downstream_graph(asked, source, features=features, sort=sort, **keywords)  # type: ignore[arg-type]
            graph_files.write(graph_files.with_index(g, contexts, status, cards), graph, None, None, status)
        talk.write(found, to.paths, status)
    show_answer(found, found.blocks(top), to)
    talk.wrote(graph or [], to.as_json)


def steer(
    *,
    given: options.PromptOptions,
    set_to: Annotated[
        list[str] | None, typer.Option("--set", help="PART=VALUE: a feature, neuron, head (0) or token (another one).")
    ] = None,
    scale: Annotated[list[str] | None, typer.Option("--scale", help="PART=FACTOR.")] = None,
    add: Annotated[list[str] | None, typer.Option("--add", help="PART=AMOUNT.")] = None,
    writing: options.WritingOptions,
    top: options.Top = TOP,
    to: options.OutOptions,
    loading: options.Loading,
) -> None:
    """The live model with features, heads, neurons or tokens changed: the next token, features, and what it writes."""
    asked = given.read()
    from ..attribution.changes import changes_of
    from ..attribution.steering import Steered
    from .several import Several

    wanted = {how: _amounts(how, parts) for how, parts in (("set", set_to), ("scale", scale), ("add", add))}
    changes_of(**wanted)
    keywords = writing.keywords()
    to.check(Several if isinstance(asked, options.Texts) else Steered)
    with talk.working() as status:
        lm = loading.load(status, None)
        settings: dict[str, Any] = keywords | {"scale": wanted["scale"], "add": wanted["add"]}
        settings["progress"] = status.progress
        found: Steered | Several
        if isinstance(asked, options.Texts):
            found = Several(tuple(lm.intervene_batch(checked(lm, asked), wanted["set"], **settings)))
        else:
            found = lm.intervene(asked, wanted["set"], **settings)
        talk.write(found, to.paths, status)
    show_answer(found, found.blocks(top), to)


def _amounts(how: str, given: Sequence[str] | None) -> dict[str, float | str]:
    """``PART=VALUE`` as parts and values; a token's value is a text in quotes, bare, or an id."""
    found: dict[str, float | str] = {}
    for text in given or ():
        part, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--{how} takes PART=VALUE, for example 17/2601@7=0, not {text!r}")
        if part.strip() in found:
            raise UserError(f"{part.strip()} is changed twice; say once what becomes of it")
        found[part.strip()] = _amount(part, value)
    return found


def _amount(part: str, value: str) -> float | str:
    from ..attribution.targets import written_token

    if part.strip().startswith("token:"):
        return written_token(value)
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{part.strip()} is changed by a number, not {value!r}") from None


def checked(lm: LM, texts: Sequence[str]) -> Sequence[str]:
    """The texts of a file. Raises UserError for one that the model does not take, and says which."""
    for number, text in enumerate(texts, start=1):
        try:
            lm.encode(text)
        except UserError as error:
            raise UserError(f"prompt {number} of --prompts: {error}") from None
    return texts


def show_answer(found: Shown, blocks: Iterable[Block], to: options.OutOptions) -> None:
    """An answer as it is wanted. Its warnings are on stderr, whatever is on stdout."""
    from ..view.blocks import Note

    if to.as_json:
        talk.print_json(found.to_dict())
    else:
        talk.show(block for block in blocks if not (isinstance(block, Note) and block.role == "warning"))
    talk.wrote(to.paths, to.as_json)
    talk.say(*_notes(found))


def _notes(found: Shown) -> Sequence[str | None]:
    """What has to be said of an answer, or of those that it is made of."""
    from ..attribution.contrast import Contrast
    from .several import Several

    if isinstance(found, Several):
        said = [_notes(answer) for answer in found.answers]
        return [note and f"prompt {number}: {note}" for number, notes in enumerate(said, start=1) for note in notes]
    if isinstance(found, Contrast):
        return [found.attribution.note, found.against.note]
    return [getattr(found, "note", None)]


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(sorted(load_file(path.expanduser()).items()))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error
