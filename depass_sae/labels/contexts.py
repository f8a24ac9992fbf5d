"""Where Neuronpedia says that a feature fires: its strongest contexts, how often it fires, and its logits.

All of it stands in the answer that labels are read from (:mod:`.neuronpedia`), which is asked for once and kept on
disk. Its texts are not trusted, and of what is not as its API has it nothing is taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from . import neuronpedia
from .neuronpedia import _Cache, _Client, _folder, _is_id, _NoAnswer

MOST_CONTEXTS = 20
"""So many are kept, the strongest; each text once."""
LONGEST = 1024
"""Tokens. What has more is no context of a dashboard's."""
LONGEST_TOKEN = 200
"""Characters."""
LARGEST = 1e30
"""No number of a dashboard's is as large."""


@dataclass(frozen=True)
class Context:
    """A text as Neuronpedia's tokens, and the feature's activation at each."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def largest(self) -> float:
        return max(map(abs, self.values))


@dataclass(frozen=True)
class PublicFeature:
    """What Neuronpedia has of a feature; None and empty where it says nothing.

    contexts: the strongest first. density: the share of tokens at which it fires, largest: the largest activation, over
    the dashboard's texts. histogram: (activation, how often). top, bottom: tokens and their logits.
    """

    contexts: tuple[Context, ...]
    density: float | None = None
    largest: float | None = None
    histogram: tuple[tuple[float, float], ...] = ()
    top: tuple[tuple[str, float], ...] = ()
    bottom: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        pairs = {"top": self.top, "bottom": self.bottom}
        return {
            "contexts": [{"tokens": list(c.tokens), "values": list(c.values)} for c in self.contexts],
            "density": self.density,
            "largest": self.largest,
            "histogram": [{"activation": value, "count": count} for value, count in self.histogram],
            **{key: [{"token": token, "logit": logit} for token, logit in found] for key, found in pairs.items()},
        }


def fetch_feature(
    sae: str | None,
    index: int,
    *,
    base_url: str | None = None,
    cache_dir: Path | None = None,
    timeout: float = 20.0,
    longest_wait: float = 30.0,
) -> PublicFeature:
    """What Neuronpedia has of one feature: one request, or none where it was asked before.

    sae: the SAE's ``neuronpedia_id``. Options as of :func:`.fetch_labels`.

    Raises UserError where the SAE names no page, and where there is no answer.
    """
    if not _is_id(sae):
        raise UserError("the SAE does not say where it is on Neuronpedia, so that there are no contexts from there")
    assert sae is not None
    site = neuronpedia.SITE if base_url is None else base_url
    path = _Cache.of(_folder(cache_dir), site).path(sae, index).with_suffix(".contexts.json")
    try:
        return _taken(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, _NoAnswer):
        pass  # not asked yet, or damaged
    try:
        with _Client(site, timeout, 0.0, longest_wait) as client:
            body = client.answer(sae, index)
        if body is None:
            raise UserError(f"Neuronpedia has no feature {sae}/{index}")
        found = _read(body)
    except _NoAnswer as error:
        raise UserError(f"the contexts of {sae}/{index} could not be had: {error}") from None
    _Cache.keep(path, _as_given(found))
    return found


def _read(body: bytes) -> PublicFeature:
    try:
        return _taken(json.loads(body))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _NoAnswer("Neuronpedia's answer is not the JSON that its API has") from None


def _taken(content: Any) -> PublicFeature:
    """Raises ValueError, KeyError or TypeError for what is no answer of this API."""
    activations = content["activations"]
    if not isinstance(activations, list):
        raise TypeError
    contexts = {context.tokens: context for entry in activations if (context := _context(entry)) is not None}
    strongest = sorted(contexts.values(), key=lambda context: -context.largest)[:MOST_CONTEXTS]
    density, largest = (_optional(content.get(key)) for key in ("frac_nonzero", "maxActApprox"))
    heights = _numbers(content.get("freq_hist_data_bar_heights"))
    values = _numbers(content.get("freq_hist_data_bar_values"))
    return PublicFeature(
        contexts=tuple(strongest),
        density=density if density is not None and 0 <= density <= 1 else None,
        largest=largest,
        histogram=tuple(zip(values, heights, strict=True)) if len(values) == len(heights) else (),
        top=_pairs(content, "pos"),
        bottom=_pairs(content, "neg"),
    )


def _context(entry: Any) -> Context | None:
    """None for one that says nothing: no tokens, or zero everywhere."""
    tokens, values = entry["tokens"], _numbers(entry["values"])
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TypeError
    if len(tokens) != len(values):
        raise ValueError
    if not any(values) or len(tokens) > LONGEST or max(map(len, tokens)) > LONGEST_TOKEN:
        return None
    return Context(tuple(tokens), values)


def _pairs(content: Mapping[str, Any], which: str) -> tuple[tuple[str, float], ...]:
    tokens, values = content.get(f"{which}_str") or [], _numbers(content.get(f"{which}_values"))
    texts = [token[:LONGEST_TOKEN] for token in tokens if isinstance(token, str)]
    return tuple(zip(texts, values, strict=True)) if len(texts) == len(tokens) == len(values) else ()


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | None):
        raise TypeError
    return tuple(_number(value) for value in values or ())


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise TypeError
    return float(value)


def _as_given(found: PublicFeature) -> dict[str, Any]:
    """As the API has it, of what was taken."""
    kept: dict[str, Any] = {
        "activations": [asdict(context) for context in found.contexts],
        "frac_nonzero": found.density,
        "maxActApprox": found.largest,
        "freq_hist_data_bar_values": [value for value, _ in found.histogram],
        "freq_hist_data_bar_heights": [height for _, height in found.histogram],
    }
    for which, pairs in (("pos", found.top), ("neg", found.bottom)):
        kept |= {f"{which}_str": [token for token, _ in pairs], f"{which}_values": [value for _, value in pairs]}
    return kept


# ------------------------------------------------------------------------------------------------------- as prompts

MARKS = {"\u2581": " ", "\u0120": " ", "\u010a": "\n"}
"""How vocabularies write a space and a line break, where a dashboard shows their tokens as they are."""


def text_of(context: Context, special: Sequence[str] = ()) -> tuple[str, int]:
    """The tokens joined to a text; and how many special ones before it were left out, which a tokenizer puts there."""
    left = next((i for i, token in enumerate(context.tokens) if token not in special), len(context.tokens))
    text = "".join(context.tokens[left:])
    for mark, meant in () if " " in text else MARKS.items():
        text = text.replace(mark, meant)
    return text, left
