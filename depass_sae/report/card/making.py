"""Making a feature's card: one recorded pass and one encoding of each prompt serve all that is asked of it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...attribution.answer import Asked
from ...attribution.targets import FeatureTarget, parse_feature
from ...attribution.tokens import attribute_tokens_each
from ...attribution.votes import decoder_votes, writes_at
from ...errors import SAEFitWarning, UserError, warn
from ...graph.downstream import Driven, features_driven
from ...graph.neighbours import (
    Arrived,
    ByFeature,
    inflow_from,
    nearest,
    next_hook,
    outflow_to,
    previous_hook,
)
from ...labels.contexts import PublicFeature, fetch_feature, text_of
from ...models.place import Place
from ...models.prompt import Prompt, PromptLike, encode, several, special_ids
from ...passes.choices import CONTRIBUTION
from ...passes.many import alike_in_length
from ...passes.record import Trace
from ...passes.settings import Settings
from ...passes.sinks import sinks
from ...saes import describe
from ...subject import Subject
from .card import CardPrompt, Compared, Drive, FeatureCard, Firing, Flow, FlowFeature, Followed, Public

STRONGEST = 8
"""At so many firings the feature is taken apart."""
TOP = 10
"""So many entries a list of tokens or features has."""


def make_card(
    subject: Subject,
    prompts: PromptLike | Sequence[PromptLike] | None,
    feature: str,
    *,
    top: int = TOP,
    strongest: int = STRONGEST,
    contexts: str | None = None,
    cache_dir: Path | None = None,
    downstream: bool = False,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> FeatureCard:
    """The card of one feature ("LAYER/INDEX").

    prompts: one, or several. top: how many tokens and features each list has. strongest: at how many firings the
    feature is taken apart. Flows are computed under the allocation's rule where that is ``half`` or ``linear``, else
    under ``half``, as in a graph. contexts: "neuronpedia" also shows what Neuronpedia has of the feature; without any
    prompts (None) its strongest contexts are these. cache_dir: where that is kept; None is the user's cache folder.
    downstream: also follow it from these firings on to the features of every later dictionary.

    Raises UserError for a feature that does not exist or names a position, for prompts that cannot be encoded, and
    where there are no prompts and Neuronpedia has none.
    """
    if top < 1 or strongest < 1:
        raise UserError("a card lists 1 entry or more (top) and takes 1 firing or more apart (strongest)")
    target, _ = parse_feature(subject, feature, pos=False)
    target.check(subject)
    subject = subject.asked()
    public = None if contexts is None else _public(subject, target, contexts, cache_dir, needed=prompts is None)
    if prompts is None:
        chosen_contexts, encoded = _of_contexts(subject, public)
    else:
        chosen_contexts, encoded = [], _encoded(subject, prompts)
    read = _read(subject, target, encoded, settings)
    firings = _firings(read)
    chosen = firings[:strongest]
    sae, hook = subject.saes[target.hook], target.hook
    swept = settings if settings.rule in CONTRIBUTION else settings.by("half")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAEFitWarning)  # said once for all prompts, below
        asked = [Asked(encoded[firing.prompt], target, firing.pos) for firing in chosen]
        found = attribute_tokens_each(subject, asked, settings=settings) if asked else []
    previous, following = _flows(subject, encoded, target, chosen, top, swept)
    layers = [other.layer for other in subject.saes]
    card = FeatureCard(
        model=subject.loaded.name,
        dtype=subject.dtype_name,
        sae=describe(sae),
        hook=hook,
        index=target.index,
        shared=tuple(sorted({layer for layer in layers if layers.count(layer) > 1})),
        allocation=settings.allocation,
        flow_rule=swept.rule,
        prompts=tuple(read),
        firings=firings,
        drives=tuple(Drive.of(firing, answer.target) for firing, answer in zip(chosen, found, strict=True)),
        votes=decoder_votes(subject, hook, target.index, top),
        nearest=nearest(sae, target.index, top),
        previous=previous,
        following=following,
        downstream=_downstream(subject, encoded, target, chosen, top, swept) if downstream else None,
        public=None if public is None else Public(public, _compared(subject, public, chosen_contexts, read)),
    )
    if card.warning:
        warn(card.warning, SAEFitWarning)
    return card


def _encoded(subject: Subject, prompts: PromptLike | Sequence[PromptLike]) -> list[Prompt]:
    """A prompt, or a collection of them."""
    given = several(prompts)
    if not given:
        raise UserError("a card needs a prompt, or several")
    found = []
    for number, prompt in enumerate(given, start=1):
        try:
            found.append(encode(subject.loaded, subject.adapter, prompt))
        except UserError as error:
            raise UserError(f"prompt {number}: {error}" if len(given) > 1 else str(error)) from None
    return found


def _public(
    subject: Subject, target: FeatureTarget, contexts: str, cache_dir: Path | None, needed: bool
) -> PublicFeature | None:
    """What is known elsewhere. Raises UserError where it is needed and cannot be had; else that is a warning."""
    if contexts != "neuronpedia":
        raise UserError(f"contexts come from neuronpedia, not from {contexts!r}")
    try:
        sae = describe(subject.saes[target.hook])["neuronpedia_id"]
        return fetch_feature(sae, target.index, cache_dir=cache_dir)
    except UserError as error:
        if needed:
            raise
        warn(str(error))
        return None


def _special(subject: Subject) -> tuple[str, ...]:
    """The special tokens' texts."""
    tokenizer = subject.loaded.tokenizer
    return (
        ()
        if tokenizer is None
        else tuple(map(str, tokenizer.convert_ids_to_tokens(sorted(special_ids(subject.loaded)))))
    )


def _of_contexts(subject: Subject, public: PublicFeature | None) -> tuple[list[int], list[Prompt]]:
    """Neuronpedia's contexts as prompts, and which they are: those that this model's tokenizer makes a prompt of."""
    which, prompts, why = [], [], "Neuronpedia has no contexts of it"
    for number, context in enumerate(() if public is None else public.contexts):
        try:
            prompts.append(encode(subject.loaded, subject.adapter, text_of(context, _special(subject))[0]))
            which.append(number)
        except UserError as error:
            why = str(error)
    if not prompts:
        raise UserError(f"a card needs a prompt, or several: {why}")
    return which, prompts


def _compared(
    subject: Subject, public: PublicFeature, which: Sequence[int], read: Sequence[CardPrompt]
) -> tuple[Compared, ...]:
    """Position by position, where the tokens are the same ones."""
    found = []
    for prompt, number in enumerate(which):
        context, here = public.contexts[number], read[prompt]
        _, left = text_of(context, _special(subject))
        given, own = context.values[left:], here.activations
        before = len(own) - len(given)
        if before < 0 or not all(here.prompt.special[:before]):
            found.append(Compared(number, prompt, None, None))
            continue
        gaps = [0.0 if value is None else abs(value - said) for value, said in zip(own[before:], given, strict=True)]
        worst = max(range(len(gaps)), key=gaps.__getitem__)
        found.append(Compared(number, prompt, gaps[worst] / context.largest, before + worst))
    return tuple(found)


def _read(subject: Subject, target: FeatureTarget, prompts: Sequence[Prompt], settings: Settings) -> list[CardPrompt]:
    """Every prompt, those of about a length in one pass, which goes as far as any part of the card needs."""
    needed = _needed(subject, target)
    found: dict[int, CardPrompt] = {}
    for group in alike_in_length([len(prompt) for prompt in prompts]):
        some = [prompts[number] for number in group]
        read = subject.traces(some, *needed)
        cards = [_card_prompt(subject, target, prompt, seen) for prompt, seen in zip(some, read, strict=True)]
        found.update(zip(group, cards, strict=True))
        settings.tell("reading the prompts", len(found), len(prompts))
    return [found[number] for number in range(len(prompts))]


def _needed(subject: Subject, target: FeatureTarget) -> tuple[int, list[Place]]:
    """How deep a pass goes, and the places that it keeps."""
    around = [previous_hook(subject, target.hook), next_hook(subject, target.hook)]
    places = [target.place, *(hook for hook in around if hook is not None)]
    return max(place.layer for place in [*places, writes_at(subject, target.hook) or target.place]), places


def _card_prompt(subject: Subject, target: FeatureTarget, prompt: Prompt, seen: Trace) -> CardPrompt:
    encoded = subject.encoding(seen, target.hook)
    active: list[float | None] = list(encoded.activations[:, target.index].tolist())
    pre: list[float | None] = list(encoded.pre_activation(target.index, target.path).tolist())
    sunk = [pos for pos in sinks(seen, target.place) if not prompt.special[pos]]
    for pos in [0, *sunk] if prompt.special[0] else sunk:
        active[pos] = pre[pos] = None
    return CardPrompt(prompt, tuple(active), tuple(pre), encoded.fit, tuple(sunk))


def _firings(prompts: Sequence[CardPrompt]) -> tuple[Firing, ...]:
    """Strongest first, by size: abstopk fires with either sign."""
    found = [
        Firing(number, pos, prompt.prompt.tokens[pos], activation, pre)
        for number, prompt in enumerate(prompts)
        for pos, (activation, pre) in enumerate(zip(prompt.activations, prompt.pre_activations, strict=True))
        if activation and pre is not None
    ]
    return tuple(sorted(found, key=lambda firing: (-abs(firing.activation), firing.prompt, firing.pos)))


def _flows(
    subject: Subject,
    prompts: Sequence[Prompt],
    target: FeatureTarget,
    firings: Sequence[Firing],
    top: int,
    settings: Settings,
) -> tuple[Flow | None, Flow | None]:
    """What comes from the previous SAE layer and goes to the next at these firings, summed by feature."""
    hook, index = target.hook, target.index
    before, behind = previous_hook(subject, hook), next_hook(subject, hook)
    if not firings or (before is None and behind is None):
        return None, None
    numbers = sorted({firing.prompt for firing in firings})
    arrived: list[Arrived] = []
    left: list[ByFeature] = []
    for done, number in enumerate(numbers, start=1):
        prompt = prompts[number]
        positions = sorted(firing.pos for firing in firings if firing.prompt == number)
        seen = subject.trace(prompt, *_needed(subject, target))
        if before is not None:
            arrived.append(inflow_from(subject, seen, prompt, before, hook, index, positions, settings))
        if behind is not None:
            left += outflow_to(subject, seen, prompt, hook, index, positions, behind, settings).values()
        settings.tell("following the flow", done, len(numbers))
    previous = following = None
    if before is not None:
        features, total = _largest([found.features for found in arrived], subject.saes[before].cfg.d_sae, top)
        effects = torch.stack([found.effects for found in arrived]).sum(0)
        features = tuple(replace(feature, effect=effects[feature.index].item()) for feature in features)
        errors, other = (sum(getattr(found, part).sum().item() for found in arrived) for part in ("errors", "other"))
        previous = Flow(before, describe(subject.saes[before]), features, total, errors, other)
    if behind is not None:
        features, total = _largest(left, subject.saes[behind].cfg.d_sae, top)
        following = Flow(behind, describe(subject.saes[behind]), features, total)
    return previous, following


def _downstream(
    subject: Subject,
    prompts: Sequence[Prompt],
    target: FeatureTarget,
    firings: Sequence[Firing],
    top: int,
    settings: Settings,
) -> tuple[Followed, ...]:
    """The features that it drives most in total, over all these firings; each prompt's go through in one pass."""
    numbers = sorted({firing.prompt for firing in firings})
    driven: dict[tuple[Place, int], list[Driven]] = defaultdict(list)
    for done, number in enumerate(numbers, start=1):
        positions = sorted(firing.pos for firing in firings if firing.prompt == number)
        for one in features_driven(subject, prompts[number], target, positions, settings.quiet()):
            driven[Place(one.layer, str(one.hook)), one.index].append(one)
        settings.tell("following it to later features", done, len(numbers))
    saes = {hook: describe(subject.saes[hook]) for hook, _ in driven}
    found = [
        Followed(
            hook, saes[hook], index, sum(one.direct for one in some), sum(one.total for one in some),
            sum(one.effect for one in some), len(some),
        )
        for (hook, index), some in driven.items()
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda one: (-abs(one.total), one.hook, one.index))[:top])


def _largest(parts: Sequence[ByFeature], d_sae: int, top: int) -> tuple[tuple[FlowFeature, ...], float]:
    """The features whose sums are largest by size, and the sum over all. count: in how many entries each is."""
    found = ByFeature.joined(parts)
    sums, counts = found.sums(d_sae), found.counts(d_sae)
    order = sums.abs().argsort(descending=True, stable=True)[:top].tolist()
    return tuple(FlowFeature(i, sums[i].item(), int(counts[i])) for i in order if counts[i]), sums.sum().item()
