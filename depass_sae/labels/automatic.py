"""Names of features that no language model gave: from the tokens that they fire on over a corpus.

A token speaks for a feature by p log(p / q), the keyness of corpus linguistics: p is its share of the feature's
activation, q its share of the firings of all features of the SAE. Tokens that differ only by case and spaces are one.
Where no few tokens have much of the activation, the tokens before them may have it. Where these have not either, a
feature is of many tokens, and those that speak most for it say what it is about; where none do, what the decoder raises
most is named, until it is known from which earlier tokens the feature comes (:func:`caused_label`).
Such names say what a feature fires on over that corpus, not what it is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
ABOUT = 0.03
"""And where they say what a feature is about."""
LIFT = 2.0
"""How many times as large as among all firings the share of a text in a name is."""
BESIDE = 0.25
"""What speaks less for a feature than this share of its first text is not named beside it."""
LONGEST = 30
"""Characters of a text in a name."""
BETWEEN = " · "
"""Stands between the texts of a name."""
MOSTLY = 0.5
"""Of a feature's pre-activation, what earlier tokens have at least where it is named by them."""
OFTEN = 2
"""In so many contexts at least a text is among the causes, if it is to be in a name."""

Kind = Literal["on", "after", "about", "writes", "always on"]


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

    def named(kind: Kind, which: Sequence[int]) -> str:
        return Named(kind, tuple(texts[i] for i in which)).label

    if density <= 0:
        return None
    if density >= ALWAYS:
        return named("always on", ())
    tokens, share = on.named(total)
    if len(tokens) and share >= COVERED:
        return named("on", tokens.tolist())
    ahead, covered = before.named(total, WORDS - 1)
    if len(ahead) and covered >= max(COVERED, share):
        return named("after", ahead.tolist())
    if len(tokens) and share >= ABOUT:
        return named("about", tokens.tolist())
    votes = list(dict.fromkeys(raised))[:WORDS]
    return named("writes", votes) if votes else None


@dataclass(frozen=True)
class Named:
    """An automatic name: tokens that a feature fires on, fires after, is about, or writes."""

    kind: Kind
    texts: tuple[str, ...]

    @property
    def label(self) -> str:
        return " ".join(filter(None, ["" if self.kind == "on" else self.kind, BETWEEN.join(self.texts)])) + MARK

    @classmethod
    def of(cls, label: str) -> Named | None:
        """What an automatic name says; None of a name that somebody gave."""
        if not label.endswith(MARK):
            return None
        said = label.removesuffix(MARK)
        if said == "always on":
            return cls("always on", ())
        first, *others = said.split(BETWEEN)
        kinds: tuple[Kind, ...] = ("after", "about", "writes")
        for kind in kinds:  # a text has no space within, so that the word alone is a token of that name
            if first.startswith(f"{kind} "):
                return cls(kind, (first.removeprefix(f"{kind} "), *others))
        return cls("on", (first, *others))


@dataclass(frozen=True)
class Cause:
    """A text from which a feature comes. share: of its pre-activation. contexts: in so many it is among the causes."""

    text: str
    share: float
    contexts: int


def caused_label(label: str | None, earlier: float, causes: Sequence[Cause]) -> str | None:
    """The name of a feature that comes from earlier tokens, where it has none of tokens; None: it keeps its own.

    label: the automatic one. earlier: the share of its pre-activation that earlier tokens have; causes: these.
    """
    known = None if label is None else Named.of(label)
    if (label is not None and (known is None or known.kind != "writes")) or earlier < MOSTLY:
        return None
    found = sorted(
        (cause for cause in causes if cause.contexts >= OFTEN and cause.share > 0),
        key=lambda cause: (-cause.share, cause.text),
    )[: WORDS - 1]
    chosen = [cause for cause in found if cause.share > BESIDE * found[0].share]
    if sum(cause.share for cause in chosen) < COVERED:
        return None
    return Named("after", tuple(cause.text for cause in chosen)).label
