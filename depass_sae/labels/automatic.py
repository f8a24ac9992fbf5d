"""Names of features that no language model gave: from the tokens that they fire on over a corpus.

A token speaks for a feature by p log(p / q), the keyness of corpus linguistics: p is its share of the feature's
activation, q its share of the firings of all features of the SAE. Tokens that differ only by case and spaces are one.
Where no few tokens have much of the activation, the tokens before them may have it; where these have not either, what
the decoder raises most is named. Such names say what a feature fires on over that corpus, not what it is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ..texts import visible

MARK = " (auto)"
"""Ends every such name, wherever it stands."""
ALWAYS = 0.5
"""Share of the tokens from which on a feature is always on."""
WORDS = 3
"""Texts of a name at most."""
COVERED = 0.2
"""Of the activation, what the texts of a name have together at least."""
LIFT = 2.0
"""How many times as large as among all firings the share of a text in a name is."""
BESIDE = 0.25
"""What speaks less for a feature than this share of its first text is not named beside it."""
LONGEST = 30
"""Characters of a text in a name."""


@dataclass(frozen=True)
class Spelled:
    """The vocabulary's tokens by what they read. of: of every token, which of the texts."""

    of: Int[np.ndarray, "vocabulary"]
    texts: tuple[str, ...]

    @classmethod
    def tokens(cls, vocabulary: Sequence[str]) -> Spelled:
        numbers: dict[str, int] = {}
        of = [numbers.setdefault(spelled(token), len(numbers)) for token in vocabulary]
        return cls(np.array(of, dtype=np.int64), tuple(numbers))


def spelled(token: str) -> str:
    """What a token reads, but for case and spaces at its ends; of spaces alone, how many."""
    text = visible(token.strip(" ").lower()) or "␣" * len(token)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def keyed(
    texts: Int[np.ndarray, "n"], weight: Float[np.ndarray, "n"], total: float, base: Float[np.ndarray, "text"],
    most: int = WORDS,
) -> tuple[Int[np.ndarray, "named"], float]:  # fmt: skip
    """The texts that speak most for a feature, the best first; and what share of its activation they have.

    texts may come several times. weight: the feature's activation on them, of ``total``. base: of every text, its share
    of all firings.
    """
    if not len(texts) or total <= 0:
        return np.zeros(0, dtype=np.int64), 0.0
    which, at = np.unique(texts, return_inverse=True)
    share = np.bincount(at, weights=weight) / total
    lift = share / np.maximum(base[which], np.finfo(np.float64).tiny)
    score = np.where(lift >= LIFT, share * np.log(lift), 0.0)
    order = np.argsort(-score, kind="stable")[:most]
    chosen = order[score[order] > BESIDE * score[order[0]]]
    return which[chosen], float(share[chosen].sum())


@dataclass(frozen=True)
class Firings:
    """A feature's activation on tokens, or on those beside them. base: see :func:`keyed`."""

    texts: Int[np.ndarray, "n"]
    weight: Float[np.ndarray, "n"]
    base: Float[np.ndarray, "text"]

    def named(self, total: float, most: int = WORDS) -> tuple[Int[np.ndarray, "named"], float]:
        return keyed(self.texts, self.weight, total, self.base, most)


def automatic_label(
    density: float, total: float, on: Firings, before: Firings, raised: Sequence[int], texts: Sequence[str]
) -> str | None:
    """A feature's name; None for one that fires nowhere, or of which there is nothing to say.

    total: its activation, summed. raised: the texts of the tokens that its decoder raises most. texts: see
    :class:`Spelled`.
    """

    def written(which: Sequence[int]) -> str:
        return " · ".join(texts[i] for i in which)

    if density <= 0:
        return None
    if density >= ALWAYS:
        return f"always on{MARK}"
    tokens, share = on.named(total)
    if len(tokens) and share >= COVERED:
        return written(tokens.tolist()) + MARK
    ahead, covered = before.named(total, WORDS - 1)
    if len(ahead) and covered >= max(COVERED, share):
        return f"after {written(ahead.tolist())}{MARK}"
    votes = list(dict.fromkeys(raised))[:WORDS]
    return f"writes {written(votes)}{MARK}" if votes else None
