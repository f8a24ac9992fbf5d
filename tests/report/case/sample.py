"""A small case study: a tiny model, SAEs on three layers, two features, and texts that would do harm if they could."""

import copy
from collections.abc import Mapping
from functools import cache

import depass_sae as ds
from depass_sae.report.case.case import CaseStudy

from ...attribution.tiny import HOSTILE, fitting_sae, model, random_sae, tokenizer

HARM = "</script><img src=x onerror=alert(1)>"
PROMPT = f"In economics, {HARM} {HOSTILE[0]} and {HOSTILE[2]} | *b* set the price"
LABELS = {"1/0": f"plural | nouns {HARM}"}


@cache
def lm() -> ds.LM:
    saes = [fitting_sae("0.resid_post"), random_sae(hook="1.resid_post"), fitting_sae("2.resid_post")]
    knows_harm = copy.deepcopy(tokenizer())
    knows_harm.add_tokens([HARM])
    return ds.load(model(), knows_harm, saes=saes)


def firing(layer: int, count: int) -> list[str]:
    """Some places at which a feature of a layer fires: the one that fires at most places, up to a middle position."""
    places: dict[int, list[int]] = {}
    for at in lm().features(PROMPT, layer=layer).layers[0].positions[:24]:
        for index in at.indices:
            places.setdefault(index, []).append(at.pos)
    index = max(places, key=lambda i: (len(places[i]), -i))
    return [f"{layer}/{index}@{pos}" for pos in places[index][-count:]]


@cache
def study() -> CaseStudy:
    """One feature of layer 2 at two places, one of layer 1 at one; its first label is hostile."""
    features = [*firing(2, 2), *firing(1, 1)]
    labels = LABELS | {features[0].partition("@")[0]: HARM}
    return made(tuple(features), labels)


def made(features: tuple[str, ...], labels: Mapping[str, str] | None = None, **settings: object) -> CaseStudy:
    chosen = {"ablate": 3, "max_nodes": 24, "verify": 4, "title": f"A study of {HARM}"} | settings
    return lm().case_study(PROMPT, features, labels=labels, **chosen)  # type: ignore[arg-type]
