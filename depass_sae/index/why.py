"""A feature's strongest contexts taken apart by the model and the SAEs that the index is of (:mod:`.causes`)."""

from __future__ import annotations

import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ..attribution.answer import Asked
from ..attribution.components import HEADS, attribute_components, name_of_part
from ..attribution.document import allocation_dict
from ..attribution.targets import FeatureTarget
from ..attribution.tokens import TokenTarget, attribute_tokens_each
from ..errors import SAEFitWarning, UserError, warn
from ..graph.neighbours import Arrived, hooks_before, inflow_from
from ..labels.kept import SHIPPED
from ..models.place import Place
from ..models.prompt import Prompt, encode
from ..passes.choices import CONTRIBUTION
from ..passes.settings import Settings
from ..subject import Subject
from .causes import FIRST, Below, CausedContext, Causes, FeatureShare, HeadShare
from .causes_kept import answer_of, keep_causes, read_causes
from .described import described_model, weights_hash
from .results import Context
from .settings import named_feature

if TYPE_CHECKING:
    from .index import Index

CONTEXTS, MOST = 10, 100
"""So many contexts are taken apart where nobody says how many, and at most."""
TOP = 20
"""So many heads, and features of each SAE below, are kept."""
FAR = 0.1
"""An activation differs by less from the index's, as a share of it, where the model is the index's; dtypes do that."""
SAME = ("type", "layers", "d_model", "revision")
"""What is compared of the model; the activations are, too."""


def find_causes(
    subject: Subject,
    index: Index,
    feature: str,
    contexts: int = CONTEXTS,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> Causes:
    """Why a feature fires; what was found before, by the same settings, is read from the index, and kept there if not.

    Features below are found by the rule where it is ``half`` or ``linear``, else by ``half``, as in a graph.

    Raises UserError for a feature that is not there or fires nowhere, and for a model or SAEs that are not the index's.
    """
    if not 1 <= contexts <= MOST:
        raise UserError(f"contexts should be 1 to {MOST}, not {contexts:,}")
    hook, number = named_feature(feature, index.saes)
    found = index.contexts(hook, number, contexts)
    if not found:
        raise UserError(f"feature {feature} fires nowhere in {index.folder}, so there is nothing to say why")
    below = hooks_before(subject, hook)
    hashes = check_same(subject, index, [hook, *below])
    asked = {
        "of": answer_of(index.manifest, hook),
        **allocation_dict(settings.allocation),
        "dtype": subject.dtype_name,
        "contexts": contexts,
        "below": {str(other): hashes[other] for other in below},
    }
    kept = read_causes(index, hook, number)
    if kept is not None and kept.asked == asked:
        return kept
    name = index.name(hook, number)
    target = FeatureTarget(hook, number, name=f"feature {name}")
    taken = []
    for done, context in enumerate(found):
        taken.append(_taken(subject.asked(), target, context, below, settings.quiet()))
        settings.tell("asking why it fires", done + 1, len(found))
    check_activations(name, found, [one.context for one in taken])
    causes = Causes(
        model=subject.loaded.name,
        hook=hook,
        index=number,
        feature=name,
        label=index.label(hook, number),
        asked=asked,
        contexts=tuple(one.context for one in taken),
        heads=_heads(taken),
        below=tuple(_below(index, other, [(one.context, one.arrived[other]) for one in taken]) for other in below),
    )
    if index.folder != SHIPPED:  # whose files are the package's
        try:
            keep_causes(index, causes)
        except UserError as error:
            warn(f"the answer is not kept: {error}")
    return causes.with_labels(index.label)


def check_same(subject: Subject, index: Index, hooks: Sequence[Place]) -> dict[Place, str]:
    """The hashes of the SAEs. Raises UserError where the model, or one of these SAEs, is not the index's.

    An SAE that the index has not, at a place where it has none, may be there: it is no part of the index's answers.
    """
    known: Mapping[str, Any] = index.manifest.model
    own: Mapping[str, Any] = described_model(subject)
    for key in SAME:
        if None not in (known.get(key), own[key]) and known[key] != own[key]:
            raise UserError(
                f"the index is of {known['name']}, which has {key} {known[key]}; {own['name']} has {key} {own[key]}"
            )
    found = {}
    for hook in hooks:
        if hook not in subject.saes:
            there = ", ".join(str(other) for other in sorted(subject.saes)) or "none"
            raise UserError(f"the index's SAE at {hook} is not loaded; there are SAEs at {there}")
        found[hook] = weights_hash(subject.saes[hook])
        said = index.manifest.saes.get(str(hook))
        if said is not None and said["sha256"] != found[hook]:
            raise UserError(f"the SAE at {hook} is not the one that the index is of: its weights are others")
    return found


def check_activations(name: str, known: Sequence[Context], found: Sequence[CausedContext]) -> None:
    """Raises UserError where the model computes other activations than the index has."""
    pairs = [(one.activation, own.activations[own.pos]) for one, own in zip(known, found, strict=True)]
    if statistics.median(abs(own - said) / abs(said) for said, own in pairs) > FAR:
        said, own = pairs[0]
        raise UserError(
            f"in its first context {name} has {said:.3g} in the index, and {own:.3g} in this model: it is another one"
        )


@dataclass(frozen=True)
class _Taken:
    """One context taken apart. heads: by name, in units of the pre-activation. arrived: from each SAE below."""

    context: CausedContext
    heads: Mapping[str, float]
    arrived: Mapping[Place, Arrived]


def _taken(
    subject: Subject, target: FeatureTarget, context: Context, below: Sequence[Place], settings: Settings
) -> _Taken:
    """Nothing behind a position reaches it: the window is read up to there."""
    pos, hook = context.pos, target.hook
    prompt = encode(subject.loaded, subject.adapter, list(context.token_ids[: pos + 1]))
    seen = subject.trace(prompt, hook.layer, [hook, *below])
    swept = settings if settings.rule in CONTRIBUTION else settings.by("half")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAEFitWarning)  # the index was made with this SAE
        (tokens,) = attribute_tokens_each(subject, [Asked(prompt, target, pos)], settings=settings)
        heads = attribute_components(subject, prompt, target, HEADS, pos=pos, settings=settings)
    return _Taken(
        _context(prompt, context, tokens.target, subject.encoding(seen, hook).activations[:, target.index].tolist()),
        {
            name_of_part(HEADS, row, i): value
            for row in heads.target.rows
            for i, value in enumerate(row.values.tolist())
        },
        {
            other: inflow_from(subject, seen, prompt, other, hook, target.index, [pos], swept)
            for other in below
        },
    )  # fmt: skip


def _context(prompt: Prompt, context: Context, target: TokenTarget, activations: list[float]) -> CausedContext:
    activations = [0.0 if special else value for value, special in zip(activations, prompt.special, strict=True)]
    return CausedContext(
        document=context.document,
        number=context.number,
        start=context.start,
        pos=context.pos,
        token_ids=prompt.token_ids,
        tokens=prompt.tokens,
        activations=tuple(activations),
        contributions=tuple(target.contributions.tolist()),
        other=target.other,
        constant=target.constant,
        pre_activation=target.pre_activation,
        completeness_error=target.completeness_error,
    )


def _heads(taken: Sequence[_Taken]) -> tuple[HeadShare, ...]:
    found = _mean([(one.context, one.heads) for one in taken])
    return tuple(HeadShare(name, share, contexts) for name, share, contexts in found)


def _below(index: Index, hook: Place, arrived: Sequence[tuple[CausedContext, Arrived]]) -> Below:
    def mean(of: Callable[[Arrived], Tensor]) -> float:
        return fsum(of(one).sum().item() / context.whole for context, one in arrived) / len(arrived)

    known = str(hook) in index.manifest.saes
    features = (
        FeatureShare(index.name(hook, i) if known else f"{hook}/{i}", index.label(hook, i), i, share, contexts)
        for i, share, contexts in _mean([(context, _by_feature(one)) for context, one in arrived])
    )
    errors, other = mean(lambda one: one.errors), mean(lambda one: one.other)
    return Below(hook, tuple(features), mean(lambda one: one.features.value), errors, other)


def _by_feature(arrived: Arrived) -> dict[int, float]:
    found = defaultdict[int, float](float)
    for i, value in zip(arrived.features.index.tolist(), arrived.features.value.tolist(), strict=True):
        found[i] += value
    return found


Part = TypeVar("Part", str, int)


def _mean(parts: Sequence[tuple[CausedContext, Mapping[Part, float]]]) -> list[tuple[Part, float, int]]:
    """The parts whose mean shares are largest by size; and in how many contexts each is among the largest."""
    shares, contexts = defaultdict[Part, float](float), Counter[Part]()
    for context, values in parts:
        for name, value in values.items():
            shares[name] += value / context.whole / len(parts)
        contexts.update(sorted(values, key=lambda name: (-abs(values[name]), name))[: 2 * FIRST])
    order = sorted(shares, key=lambda name: (-abs(shares[name]), name))[:TOP]
    return [(name, shares[name], contexts[name]) for name in order]
