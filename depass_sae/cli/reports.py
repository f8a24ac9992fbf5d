"""The pages about a feature: ``feature``, its card, and ``case-study``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from . import options, talk

if TYPE_CHECKING:
    from ..index.causes import Causes
    from ..index.index import Index


def feature(
    *,
    which: Annotated[str, typer.Argument(metavar="FEATURE", help="LAYER/INDEX, e.g. 17/1208.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A text; may be repeated.", show_default=False)
    ] = None,
    prompts: options.PromptsFile = None,
    strongest: Annotated[
        int | None,
        typer.Option(
            "--strongest",
            help="How many firings are taken apart; with --why how many contexts.",
            min=1,
            show_default="8; 10 with --why",
        ),
    ] = None,
    top: options.Top = 10,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="FILE.html or FILE.json.")] = None,
    contexts: Annotated[
        str | None,
        typer.Option(
            "--contexts",
            help="neuronpedia: what its API has of the feature; without a text its strongest contexts are the texts. "
            "index: those of the --index are the texts.",
        ),
    ] = None,
    labels: options.Labels = None,
    index: options.IndexOption = None,
    why: Annotated[
        bool,
        typer.Option(
            "--why", help="Of an --index: also what makes it fire in its strongest contexts; takes the model."
        ),
    ] = False,
    downstream: Annotated[
        bool, typer.Option("--downstream", help="Also which features of every later dictionary it drives.")
    ] = False,
    how: options.HowOptions,
    as_json: options.AsJson = False,
    loading: options.Loading,
) -> None:
    """A feature's card: where it fires, which tokens drive it, what it writes, and which features are near it.

    With --index: what it does over the corpus of an index, which needs no model; with --contexts index, too, the card
    of its strongest contexts there. With --why the model says what makes it fire in these; the index keeps the answer.
    """
    if why and (index is None or contexts is not None):
        raise UserError("--why asks about the contexts of an index: name that with --index, and leave --contexts out")
    if index is not None:
        if prompt or prompts is not None or contexts not in (None, "index"):
            raise UserError("--index says where the texts are; leave --prompt and --prompts out")
        if downstream and contexts is None:
            raise UserError("--downstream follows a feature through the model: add --contexts index to the --index")
        if contexts is None:
            asked = Why(loading, strongest, how.keywords()) if why else None
            _feature_in_index(which, index, top, out, labels, as_json, asked)
            return
    from ..labels.neuronpedia import labels_from
    from ..report.card.card import FeatureCard
    from ..report.prompts import read_prompts
    from ..view.shown import check_out

    texts: list[Any] = [*(prompt or []), *(read_prompts(prompts) if prompts is not None else [])]
    if contexts not in (None, "neuronpedia", "index"):
        raise UserError(f"--contexts takes neuronpedia or index, not {contexts!r}")
    if contexts == "index":
        texts, contexts = _contexts_of(which, index), None
    if not texts and contexts is None:
        raise UserError("give texts to look at with --prompt, or a file of them with --prompts, or an --index")
    if "" in texts:
        raise UserError("the prompt is empty")
    options.check_features([which], pos=False)  # before the work, not after it
    keywords = how.keywords()
    if out is not None:
        check_out(out, FeatureCard)
    meanings = options.meanings_of(labels)
    with talk.working() as status:
        lm = loading.load(status, None)
        card = lm.card(
            which, texts or None, top=top, strongest=8 if strongest is None else strongest, contexts=contexts,
            cache_dir=loading.kept, downstream=downstream, progress=status.progress, **keywords,
        )  # fmt: skip
        trouble = None
        if meanings is not None:
            status("putting labels on the features")
            found = labels_from(meanings, card.pages, loading.kept)
            card, trouble = card.with_labels(found.labels), found.warning
        if out is not None:
            status(f"writing {out}")
            card.write(out)
    if as_json:
        talk.print_json(card.to_dict())
    else:
        talk.show(card.blocks(top))
    talk.wrote([] if out is None else [out], as_json)
    talk.say(card.note if as_json else None, trouble and f"warning: {trouble}")


def _contexts_of(which: str, folder: Path | None) -> list[tuple[int, ...]]:
    """The token ids of a feature's strongest contexts in an index."""
    from ..index.index import open_index

    if folder is None:
        raise UserError("--contexts index takes the texts of an index: name its folder with --index")
    found = [context.token_ids for context in open_index(folder).feature(which).contexts]
    if not found:
        raise UserError(f"feature {which} fires nowhere in {folder}, so it has no contexts there")
    return found


@dataclass(frozen=True)
class Why:
    """That --why was asked, of which model and how. contexts: how many; None: as many as there are by default."""

    loading: options.Loading
    contexts: int | None
    how: dict[str, Any]

    def ask(self, index: Index, feature: str) -> Causes:
        """The index keeps the answer. Only the SAEs up to the feature's are loaded."""
        from ..index.settings import named_feature
        from ..index.why import CONTEXTS

        hook, _ = named_feature(feature, index.saes)
        with talk.working() as status:
            lm = self.loading.load(status, sorted({place.layer for place in index.saes if place.layer <= hook.layer}))
            many = CONTEXTS if self.contexts is None else self.contexts
            return lm.why(index, feature, contexts=many, progress=status.progress, **self.how)


def _feature_in_index(
    which: str, folder: Path, top: int, out: Path | None, labels: str | None, as_json: bool, why: Why | None
) -> None:
    from ..index.results import FeatureInIndex
    from .index import answer, open_labelled

    group = options.OutOptions([] if out is None else [out], as_json)
    group.check(FeatureInIndex)
    if labels == "neuronpedia":
        raise UserError("with --index labels come from a .csv or .json file")
    opened = open_labelled(folder, labels)
    causes = None if why is None else why.ask(opened, which)
    found = opened.feature(which)
    answer(found if causes is None else replace(found, causes=causes), top, group)


def case_study(
    *,
    study: Annotated[
        Path | None,
        typer.Argument(help="A YAML file with prompt, features and any of these options.", show_default=False),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="The folder to write.", show_default=False)] = None,
    prompt: options.Prompt = None,
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", "-f", help="LAYER/INDEX, or LAYER/INDEX@POS; may be repeated.", show_default=False),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="What the page is called.")] = None,
    labels: options.Labels = None,
    index: options.ContextsOption = None,
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
    replace_from: options.ReplaceFrom = None,
    rule: options.RuleName = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Of the softmax rule.", show_default="0.1")
    ] = None,
    first_token: Annotated[
        str | None,
        typer.Option("--first-token", help="skip or compete: position 0 at later positions.", show_default="skip"),
    ] = None,
    qk_share: Annotated[
        float | None, typer.Option("--qk-share", help="Of half-qk: of a score, each side's.", show_default="0.5")
    ] = None,
    qk_slope: Annotated[
        str | None, typer.Option("--qk-slope", help="Of half-qk: local or mean.", show_default="local")
    ] = None,
    memory: options.Memory = None,
    ids: options.Ids = None,
    layer: options.Layers = None,
    as_json: options.AsJson = False,
    loading: options.Loading,
) -> None:
    """The page for a paper's appendix: everything about features of one prompt, as HTML, Markdown and JSON."""
    from ..report.case.case import CaseSettings
    from ..report.case.folder import check_folder
    from ..report.case.making import check_title
    from ..report.case.study import LOADING, read_study, study_of

    if out is None:
        raise UserError("name the folder to write with --out")
    text = None if prompt is None and ids is None else options.prompt_of(prompt, ids)
    given = {
        "prompt": text, "features": feature or None,
        "title": title, "labels": labels, "index": None if index is None else str(index), "layer": layer or None,
        "rule": rule, "temperature": temperature, "first_token": first_token, "qk_share": qk_share,
        "qk_slope": qk_slope, "ablate": ablate, "seed": seed,
        "max_nodes": max_nodes, "verify": verify, "top": top,
        "replace_from": None if replace_from is None else str(replace_from),
    }  # fmt: skip
    given |= {key: getattr(loading, key) for key in LOADING}
    given = {key: value for key, value in given.items() if value is not None and value is not False and value != []}
    if study is None and not {"prompt", "features"} <= given.keys():
        raise UserError("give --prompt and --feature, or a YAML file with both")
    asked = study_of(**(given if study is None else read_study(study).model_dump() | given))
    options.check_features(asked.features)  # before the work, not after it
    options.allocation_of(asked.rule, asked.temperature, asked.first_token, asked.qk_share, asked.qk_slope)
    options.check_memory(memory)
    check_title(asked.title)
    CaseSettings(asked.ablate, asked.seed, asked.max_nodes, asked.verify, asked.top, asked.replace_from).check()
    check_folder(out)
    meanings = options.meanings_of(asked.labels)
    contexts = options.opened_index(None if asked.index is None else Path(asked.index))
    with talk.working() as status:
        chosen = replace(loading, **{key: getattr(asked, key) for key in LOADING})
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
            qk_share=asked.qk_share,
            qk_slope=asked.qk_slope,  # type: ignore[arg-type]
            memory=memory,
            asked=asked,
            progress=status.progress,
        )
        trouble = None
        if meanings is not None:
            from ..labels.neuronpedia import labels_from

            status("putting labels on the features")
            fetched = labels_from(meanings, found.pages, loading.kept)
            found, trouble = found.with_labels(fetched.labels), fetched.warning
        if contexts is not None:
            status("reading the features' contexts")
            found = found.with_contexts(contexts)
        status(f"writing {out}")
        paths = found.write(out)
    if as_json:
        talk.print_json(found.to_dict())
    else:
        talk.show(found.blocks(asked.top))
    talk.wrote(paths, as_json)
    talk.say(*(feature.note for feature in found.features), trouble and f"warning: {trouble}")
