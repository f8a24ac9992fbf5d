"""Features of an index as files for other programs.

``autointerp``: JSON lines for whoever names features, people or language models: a feature a line, with its contexts,
the tokens at which it fires marked, and those that make it fire where that was asked (:mod:`.causes`). ``neuronpedia``:
a feature's details as Neuronpedia's graph viewer reads them, a file each, by the numbers that features have in a
graph's nodes, so that a folder on a web server is a graph's ``feature_details.feature_json_base_url``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..files import check_place, expanded, whole_file, whole_folder
from ..graph.export.neuronpedia import cantor
from ..models.place import Place
from ..view import words
from .causes import CausedContext
from .contexts import octave
from .lists import check_list, listed
from .marked import marked
from .results import Context, FeatureInIndex
from .settings import named_feature

if TYPE_CHECKING:
    from ..passes.forward import Progress
    from .index import Index

FORMATS = ("autointerp", "neuronpedia")
LINES = ".jsonl"
BEFORE, AFTER = 96, 32
"""So many tokens of a context before the one where it is strongest are written, and so many behind it."""
FIRES = 0.3
"""A token is marked where the activation is so much of the context's strongest."""
CAUSES = 0.05
"""And as a cause where it gives so much of the pre-activation."""
TOKENS = 20
"""So many of the tokens that a feature fires on are written."""


@dataclass(frozen=True)
class Chosen:
    """Which features: these; the ``top`` of a list (:mod:`.lists`); or all that fire, of one layer's SAE or of all."""

    features: Sequence[str] | None = None
    layer: str | None = None
    which: str | None = None
    top: int = 20

    def of(self, index: Index) -> list[tuple[Place, int]]:
        """Raises UserError for features that are not there, and where there are none."""
        if self.features is not None:
            if self.layer is not None or self.which is not None:
                raise UserError("features are named, or are those of a layer or a list; leave one of them out")
            found = [named_feature(feature, index.saes) for feature in self.features]
        elif self.which is not None:
            check_list(self.which)
            if self.which == "dead":
                raise UserError("features that fire nowhere have no contexts; the lists are dense and rare")
            names = [one.feature for one in listed(index, self.which, self.top, self.layer).features]
            found = [named_feature(name, index.saes) for name in names]
        else:
            hooks = [hook for hook in sorted(index.saes) if self.layer in (None, str(hook.layer), str(hook))]
            if not hooks:
                there = ", ".join(map(str, sorted(index.saes)))
                raise UserError(f"there is no SAE at {self.layer}; there are SAEs at {there}")
            found = [(hook, i) for hook in hooks for i in index.features(hook)["count"].nonzero()[0].tolist()]
        if not found:
            raise UserError("there are no features to export")
        return found


def check_export(out: str | os.PathLike[str], format: str) -> Path:
    """Raises UserError, before the work, for another format, and for what could not be written."""
    if format not in FORMATS:
        raise UserError(f"features are exported as {' or '.join(FORMATS)}, not as {format!r}")
    path = expanded(out)
    if path.suffix.lower() == LINES:
        check_place(path)
    elif format == "autointerp":
        raise UserError(f"{path} should end with {LINES}: a feature a line")
    else:
        check_place(path, folder=True)
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{path} holds something already; name a folder that is empty, or not there")
    return path


def export(
    index: Index,
    out: str | os.PathLike[str],
    format: str,
    chosen: Chosen,
    contexts: int = 20,
    progress: Progress | None = None,
) -> int:
    """How many features were written; the file or folder is whole or not there. contexts: of a feature, at most.

    Raises UserError for what cannot be.
    """
    path = check_export(out, format)
    if contexts < 1:
        raise UserError(f"a feature is written with 1 context or more, not {contexts}")
    features = chosen.of(index)
    of = autointerp if format == "autointerp" else feature_details
    if path.suffix.lower() == LINES:
        with whole_file(path) as file:
            _each(index, features, contexts, of, progress, lambda line: file.write(line))
        return len(features)
    _check_layers(features)
    with whole_folder(path) as folder:

        def write(line: bytes) -> None:
            (folder / f"{json.loads(line)['index']}.json").write_bytes(line)

        _each(index, features, contexts, of, progress, write)
    return len(features)


def _each(
    index: Index,
    features: Sequence[tuple[Place, int]],
    contexts: int,
    of: Callable[[FeatureInIndex, int], dict[str, Any]],
    progress: Progress | None,
    write: Callable[[bytes], Any],
) -> None:
    for done, (hook, i) in enumerate(features, start=1):
        document = of(index.feature(f"{hook}/{i}"), contexts)
        write((json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n").encode())
        if progress is not None:
            progress("exporting features", done, len(features))


def _check_layers(features: Sequence[tuple[Place, int]]) -> None:
    """A file's number has the layer and the index: two SAEs of a layer would have the same ones."""
    hooks = sorted({hook for hook, _ in features})
    for one, other in pairwise(hooks):
        if one.layer == other.layer:
            raise UserError(f"{one} and {other} are of one layer, which a file's name cannot tell; choose with --layer")


# --------------------------------------------------------------------------------------------------------- autointerp


def autointerp(feature: FeatureInIndex, contexts: int) -> dict[str, Any]:
    """A feature's line: strongest contexts first, then samples of every strength."""
    causes = {} if feature.causes is None else {(c.number, c.start): c for c in feature.causes.contexts}
    kinds = [*(("top", c) for c in feature.contexts), *(("sample", c) for c in feature.samples)]
    return {
        "feature": feature.name,
        "model": feature.model,
        "sae": {key: feature.sae.get(key) for key in ("release", "id", "hook", "sha256")},
        "label": feature.label,
        "count": feature.count,
        "tokens": feature.scanned,
        "density": feature.density,
        "mean": feature.mean,
        "max": feature.largest,
        "top_tokens": [{"token": t.token, "count": t.count, "mean": t.mean} for t in feature.fires_on[:TOKENS]],
        "logits": {key: [text for text, _, _ in getattr(feature, key)] for key in ("top", "bottom")},
        "contexts": [
            _context(kind, context, causes.get((context.number, context.start)))
            for kind, context in kinds[:contexts]
        ],
    }  # fmt: skip


def _context(kind: str, context: Context, caused: CausedContext | None) -> dict[str, Any]:
    low, high = _around(context)
    tokens, activations = context.tokens[low:high], context.activations[low:high]
    least = FIRES * abs(context.activation)
    fires = {pos for pos, value in enumerate(activations) if abs(value) >= least and value} | {context.pos - low}
    causes = {} if caused is None or caused.pos != context.pos else _causes(caused, low)
    text, escaped = marked(tokens, fires, causes)
    return {
        "kind": kind,
        "document": context.document,
        "activation": context.activation,
        "pos": context.pos - low,
        "tokens": list(tokens),
        "activations": list(activations),
        "causes": None if caused is None else [{"pos": pos, "share": share} for pos, share in causes.items()],
        "text": text,
        "escaped": escaped,
    }


def _around(context: Context) -> tuple[int, int]:
    return max(context.pos - BEFORE, 0), context.pos + AFTER + 1


def _causes(caused: CausedContext, low: int) -> dict[int, float]:
    """Earlier tokens, by their positions in what is written."""
    shares = {pos - low: caused.contributions[pos] / caused.whole for pos in caused.earlier if pos >= low}
    return {pos: share for pos, share in shares.items() if share >= CAUSES}


# -------------------------------------------------------------------------------------------------------- neuronpedia


def feature_details(feature: FeatureInIndex, contexts: int) -> dict[str, Any]:
    """A feature's details. index: the number that it has in a graph. Samples are a quantile for each octave."""
    groups: dict[str, list[Context]] = {"Top activations": list(feature.contexts[:contexts])}
    for context in feature.samples[: max(contexts - len(feature.contexts), 0)]:
        groups.setdefault(_octave(abs(context.activation)), []).append(context)
    return {
        "index": cantor(feature.hook.layer, feature.index),
        "layer": feature.hook.layer,
        "feature_index": feature.index,
        "hook": feature.hook.name,
        **({} if feature.label is None else {"label": feature.label}),
        "activation_frequency": feature.density,
        "examples_quantiles": [
            {"quantile_name": name, "examples": list(map(_example, some))} for name, some in groups.items()
        ],
        "top_logits": [text for text, _, _ in feature.top],
        "bottom_logits": [text for text, _, _ in feature.bottom],
    }


def _octave(size: float) -> str:
    low = 2.0 ** int(octave(np.array([size]))[0])
    return f"Drawn: {words.number(low, 2)} to {words.number(2 * low, 2)}"


def _example(context: Context) -> dict[str, Any]:
    low, high = _around(context)
    return {
        "tokens": list(context.tokens[low:high]),
        "tokens_acts_list": list(context.activations[low:high]),
        "train_token_ind": context.pos - low,
    }
