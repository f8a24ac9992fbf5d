"""A language's part of the stream and all the rest, carried on apart (paper §4.3).

A probe that tells the language of every token of the same beginnings of sentences in four languages spans a subspace;
what is off it should carry the meaning. Both are carried from layer 15 to the last one. Of what arrives it is asked
whether the nearest other text is of the same language, or means the same, and how far the tokens that two texts vote
for are the same. Beside it stand a random subspace of the same rank and the principal one. All is measured on
countries that the probe was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from ...attribution.votes import unembedded
from ...passes.forward import Progress
from ...passes.sources import Subspace
from ..resumed import Record
from .probes import logistic
from .translated import COUNTRIES, LANGUAGES, Translated, translated

if TYPE_CHECKING:
    from ...api import LM

LAYER = 15
"""The paper's; it is the middle of SmolLM2, too."""
VOTES = 10
"""So many tokens that a part votes for are compared."""


@dataclass(frozen=True)
class Part:
    """One part of every text's stream behind the last layer, at its last token, and what it adds to the logits."""

    name: str
    states: Float[np.ndarray, "text d_model"]
    votes: Float[np.ndarray, "text vocab"]

    def contrasted(self) -> Part:
        """Less the mean of all texts: what sets each apart."""
        return Part(f"{self.name}, contrast", self.states - self.states.mean(0), self.votes - self.votes.mean(0))


@dataclass(frozen=True)
class Found:
    """texts: those that were measured. accuracy: of the probe, of every text's tokens; majority: of a guess."""

    texts: tuple[Translated, ...]
    accuracy: tuple[float, ...]
    majority: float
    parts: tuple[Part, ...]


def run(lm: LM, progress: Progress | None = None, countries: int = len(COUNTRIES)) -> Found:
    """countries: so many of them; every other one is trained on."""
    every = [one for one in translated() if one.meaning[0] < countries]
    train, test = ([one for one in every if one.meaning[0] % 2 == side] for side in (0, 1))
    states = [_states(lm, one.text) for one in train]
    classes = [LANGUAGES.index(one.language) for one, rows in zip(train, states, strict=True) for _ in rows]
    x = np.concatenate(states)
    probe = logistic(x, classes)
    held_out = [_states(lm, one.text) for one in test]
    counts = np.bincount(
        [LANGUAGES.index(one.language) for one, rows in zip(test, held_out, strict=True) for _ in rows]
    )
    accuracy = tuple(
        float(np.mean(probe.logits(rows).argmax(1) == LANGUAGES.index(one.language)))
        for one, rows in zip(test, held_out, strict=True)
    )
    bases = {
        "language": probe.weight - probe.weight.mean(0),
        "random": np.random.default_rng(0).normal(size=(len(LANGUAGES) - 1, x.shape[1])),
        "principal": np.linalg.svd(x - x.mean(0), full_matrices=False)[2][: len(LANGUAGES) - 1],
    }
    parts = []
    for number, (name, basis) in enumerate(bases.items()):
        tell = (
            None
            if progress is None
            else lambda done, number=number: progress(
                "carrying subspaces on", number * len(test) + done, len(bases) * len(test)
            )
        )
        inside, off = _carried(lm, [one.text for one in test], basis, tell)
        parts += [Part(name, *inside), Part(f"off the {name}", *off)]
    return Found(tuple(test), accuracy, counts.max() / counts.sum(), tuple(parts))


def measured(found: Found) -> list[Record]:
    """Of every part and text: whether its nearest text is of its language (other sentences alone are compared), and
    whether it means the same (other languages alone); how far votes are the same as theirs, on average.
    """
    records = []
    for part in (variant for own in found.parts for variant in (own, own.contrasted())):
        cosine = _cosines(part.states)
        top = [set(np.argsort(-row)[:VOTES].tolist()) for row in part.votes]
        for i, one in enumerate(found.texts):
            of_language = [j for j, other in enumerate(found.texts) if other.meaning[1] != one.meaning[1]]
            of_meaning = [j for j, other in enumerate(found.texts) if other.language != one.language]
            nearest = max(of_language, key=lambda j: cosine[i, j]), max(of_meaning, key=lambda j: cosine[i, j])
            same = [j for j in of_language if found.texts[j].language == one.language]
            alike = [j for j in of_meaning if found.texts[j].meaning == one.meaning]
            records.append({
                "part": part.name, "text": one.text,
                "language": float(found.texts[nearest[0]].language == one.language),
                "meaning": float(found.texts[nearest[1]].meaning == one.meaning),
                "votes of the language": _overlap(top, i, same), "votes of the meaning": _overlap(top, i, alike),
            })  # fmt: skip
    return records


def examples(lm: LM, found: Found, country: int, template: int, count: int = 5) -> list[Record]:
    """The tokens that the language's part of one meaning votes for in every language, and what is off it."""
    records = []
    for part in (variant for own in found.parts[:2] for variant in (own, own.contrasted())):
        for i, one in enumerate(found.texts):
            if one.meaning == (country, template):
                tokens = [lm.tokenizer.decode([token]) for token in np.argsort(-part.votes[i])[:count].tolist()]  # type: ignore[union-attr]
                records.append({"part": part.name, "language": one.language, "text": one.text, "tokens": tokens})
    return records


def _carried(
    lm: LM, texts: Sequence[str], basis: Float[np.ndarray, "rank d_model"], tell: Callable[[int], None] | None
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Of every text, the subspace's part behind the last layer and its votes; and the same of all the rest."""
    matrix = torch.tensor(basis, dtype=torch.float32)
    last, subject = lm.model.config.num_hidden_layers - 1, lm._subject
    inside, off = list[torch.Tensor](), list[torch.Tensor]()
    scales = []
    for done, text in enumerate(texts):
        found = lm.decompose(text, Subspace(matrix, LAYER), layer=last)
        part, whole = found.parts[-1, 0], found.whole[-1]
        inside.append(part)
        off.append(whole - part)
        scales.append(subject.adapter.final_norm.to(whole).scale(whole[None]))
        if tell is not None:
            tell(done + 1)
    scale = torch.cat(scales)
    first, second = (
        (torch.stack(rows).double().numpy(), unembedded(subject, torch.stack(rows), scale).double().numpy())
        for rows in (inside, off)
    )
    return first, second


def _states(lm: LM, text: str) -> Float[np.ndarray, "pos d_model"]:
    """Of every token but the first, which is an attention sink whatever it is."""
    with torch.no_grad():
        ids = torch.tensor([lm.encode(text).token_ids])
        found = lm.model(ids, output_hidden_states=True, use_cache=False).hidden_states[LAYER + 1]
    return found[0, 1:].double().numpy()


def _cosines(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T


def _overlap(top: Sequence[set[int]], i: int, others: Sequence[int]) -> float:
    """Mean Jaccard index."""
    return float(np.mean([len(top[i] & top[j]) / len(top[i] | top[j]) for j in others]))


def picture(found: Found, part: Part, seed: int = 0) -> bytes:
    """Every text's part in two dimensions by t-SNE, coloured by language, as a PNG."""
    import io

    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    flat = TSNE(2, perplexity=min(15, len(found.texts) // 4), random_state=seed, init="pca").fit_transform(part.states)
    figure = Figure(figsize=(4.5, 3.5), layout="constrained")
    axes = figure.subplots()
    for language in LANGUAGES:
        which = [one.language == language for one in found.texts]
        axes.scatter(flat[which, 0], flat[which, 1], s=16, label=language)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
