"""Making a case study: one recorded pass of the prompt, and one encoding by each SAE, serve all of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version

from jaxtyping import Float
from torch import Tensor

from ..._version import __version__
from ...attribution.answer import Asked, read
from ...attribution.components import HEADS, attribute_components
from ...attribution.document import Heading
from ...attribution.targets import FeatureTarget, parse_feature
from ...attribution.tokens import attribute_tokens_each
from ...errors import UserError
from ...graph.build import GraphSettings, build_graph, no_graph_by
from ...graph.downstream import find_downstream
from ...graph.verify import verify_graph
from ...models.prompt import Prompt, encode
from ...passes.forward import Allocation
from ...passes.settings import Settings
from ...passes.sinks import sinks
from ...saes import describe
from ...subject import Subject
from ...texts import visible
from ...view.words import capital
from ..card.making import make_card
from .case import CaseSettings, CaseStudy, FeatureStudy, Finding
from .study import Study, origin

DRIVEN = 50
"""Of the features that one drives, so many are in the document."""
PACKAGES = ("torch", "transformers", "sae-lens")


def make_case_study(
    subject: Subject,
    prompt: Prompt,
    features: Sequence[str],
    *,
    title: str | None = None,
    case: CaseSettings = CaseSettings(),  # noqa: B008 (frozen)
    asked: Study | None = None,
    settings: Settings,
) -> CaseStudy:
    """Look at features of one prompt from all sides.

    features: ``"17/2601@7"``, or ``"17/2601"`` for where it is strongest; several positions of one feature share its
    strip, table and card. asked: how the command line was asked for it (None: worked out, where that can be).
    Raises UserError for a feature that is none, and a position outside the prompt.
    """
    case.check()
    check_title(title)
    if not features:
        raise UserError("name a feature: LAYER/INDEX, for example 17/1208, or 17/1208@6 for position 6")
    wanted: dict[FeatureTarget, list[int | None]] = {}
    for text in features:
        target, pos = parse_feature(subject, text)
        target.check(subject)
        wanted.setdefault(target, []).append(pos)
    subject = subject.asked()
    subject.trace(prompt, None, list(subject.saes))  # once, with all that any part of the study asks for
    made = tuple(
        _feature_study(subject, prompt, target, positions, case, settings) for target, positions in wanted.items()
    )
    return CaseStudy(
        title=title or f"What drives {_and([feature.name for feature in made])}?",
        heading=Heading.of(subject, prompt),
        allocation=settings.allocation,
        settings=case,
        versions=_versions(),
        labels={},
        asked=asked or _asked(subject, prompt, features, title, settings.allocation, case),
        features=made,
    )


def check_title(title: str | None) -> None:
    """Raises UserError for one that cannot be shown."""
    if title is not None and not title.strip():
        raise UserError("the title is empty; leave it out, or give it some words")
    if title is not None and visible(title) != title:
        raise UserError("the title has control characters or is no Unicode text; give it on one line")


def _feature_study(
    subject: Subject,
    prompt: Prompt,
    target: FeatureTarget,
    positions: Sequence[int | None],
    case: CaseSettings,
    settings: Settings,
) -> FeatureStudy:
    name = target.name.removeprefix("feature ")
    readings = [read(subject, prompt, target, pos, settings) for pos in positions]
    chosen = sorted({reading.positions[0] for reading in readings})
    readoff = readings[0].readoff
    assert readoff.activation is not None
    sunk = {pos for pos in sinks(readings[0].seen, target.place) if not prompt.special[pos]} - set(chosen)
    nowhere = sunk | ({0} if prompt.special[0] else set())

    def but_nowhere(values: Float[Tensor, "pos"]) -> tuple[float | None, ...]:
        return tuple(None if pos in nowhere else value for pos, value in enumerate(values.tolist()))

    findings = tuple(_finding(subject, prompt, target, name, pos, case, settings) for pos in chosen)
    return FeatureStudy(
        name=name,
        label="",
        sae=describe(subject.saes[target.hook]),
        described=target.describe(subject),
        fit=readoff.fit,
        note=next((note for reading in readings if (note := reading.common["note"])), None),
        activations=but_nowhere(readoff.activation),
        pre_activations=but_nowhere(readoff.pre),
        card=make_card(subject, [_as_given(subject, prompt)], name, settings=settings),
        findings=findings,
    )


def _asked(
    subject: Subject,
    prompt: Prompt,
    features: Sequence[str],
    title: str | None,
    allocation: Allocation,
    case: CaseSettings,
) -> Study | None:
    loaded = origin(subject)
    if loaded is None:
        return None
    return Study(
        prompt=_as_given(subject, prompt),
        features=list(features),
        title=title,
        rule=allocation.rule,
        temperature=allocation.temperature,
        first_token=allocation.first_token,
        qk_share=allocation.qk_share,
        qk_slope=allocation.qk_slope,
        **asdict(case),
        **loaded,
    )


def _as_given(subject: Subject, prompt: Prompt) -> str | list[int]:
    """The text where that gives these tokens, else the tokens."""
    if subject.loaded.tokenizer is not None and prompt.text:
        with suppress(UserError):
            if encode(subject.loaded, subject.adapter, prompt.text).token_ids == prompt.token_ids:
                return prompt.text
    return list(prompt.token_ids)


def _finding(
    subject: Subject,
    prompt: Prompt,
    target: FeatureTarget,
    name: str,
    pos: int,
    case: CaseSettings,
    settings: Settings,
) -> Finding:
    (tokens,) = attribute_tokens_each(subject, [Asked(prompt, target, pos)], measure=case.measure, settings=settings)
    heads = attribute_components(
        subject, prompt, target, HEADS, pos=pos, by_token=settings.swept, effects=True, settings=settings
    )  # fmt: skip
    g, why = None, _no_graph(target, settings.rule)
    if why is None:
        size = GraphSettings(max_nodes=case.max_nodes)
        g = build_graph(subject, prompt, [(target, pos)], size=size, settings=settings)
        if case.verify:
            g = verify_graph(
                subject, g, max_nodes=case.verify, seed=case.seed, replace_from=case.replace_from, settings=settings
            )
    onwards, nothing = None, why
    if why is None:
        try:
            onwards = replace(find_downstream(subject, prompt, f"{name}@{pos}", settings=settings), most=DRIVEN)
        except UserError as error:  # it does not fire there
            nothing = f"{capital(str(error))}."
    return Finding(
        feature=name,
        label="",
        tokens=tokens,
        heads=heads,
        graph=g,
        no_graph=why,
        downstream=onwards,
        no_downstream=nothing,
        top=case.top,
    )


def _no_graph(target: FeatureTarget, rule: str) -> str | None:
    """Why there is no graph for this feature; None where there is one."""
    if not target.hook.is_stream:
        return f"A graph stands on SAEs of the residual stream, and this one reads {target.hook.name}."
    why = no_graph_by(rule)
    return None if why is None else f"A{why[1:]}."


def _versions() -> dict[str, str]:
    found = {"depass-sae": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # put there without its metadata
            found[package] = "unknown"
    return found


def _and(names: Sequence[str]) -> str:
    named = [f"feature {names[0]}", *names[1:]]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}".replace("feature", "features", 1)
