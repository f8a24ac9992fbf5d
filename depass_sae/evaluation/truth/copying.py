"""Heads that copy: one that looks for a kind of token, and two that do induction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from ...loading import load_subject
from .circuit import Case, Circuit, Values, worth, worth_of_tokens
from .neutral import Head, Layer, Mechanism, gpt2_of, tokenizer_of
from .stream import CERTAIN, Stream, axes, one_hot, planted, shift, softmax, swap

LOOKING = ("tokens", "tokens, worth", "graph, by looking")
LETTERS = ("A", "B", "D", "E")


@dataclass(frozen=True)
class CopyHead:
    """At "?" head 1 looks at capital letters and copies what it sees there into the logits; head 0 looks back by one
    and writes where nobody reads.

    score: what a capital letter has over others, for the copy head.
    """

    name: str = "copy head"
    score: float = 4.0
    words = ("<s>", "_", "?", "a", "b", *LETTERS)

    def scores(self, words: Sequence[str]) -> list[float]:
        return [self.score * (words[-1] == "?") * (word in LETTERS) for word in words]

    def logit(self, words: Sequence[str], target: str) -> float:
        """Σ_k A[k] [x_k = target]."""
        looked = softmax(self.scores(words))
        return sum(a for a, word in zip(looked, words, strict=True) if word == target)

    def mechanism(self, n: int = 8) -> tuple[Stream, Mechanism]:
        m = len(self.words)
        s = Stream(token=m, pos=n, out=m, junk=m)
        asks, capital = one_hot(self.words, ("?",)), torch.tensor([[float(w in LETTERS)] for w in self.words])
        copies = Head(s.reads("token", asks * self.score), s.reads("token", capital), s.reads("token"), s.writes("out"))
        back = Head(
            s.reads("pos", CERTAIN * shift(n, 1)), s.reads("pos"), s.reads("token"), s.writes("junk")
        )  # fmt: skip
        return s, Mechanism(
            s.embeds(token=torch.eye(m)), s.embeds(pos=torch.eye(n)), [Layer({0: back, 1: copies})], s.reads("out")
        )

    def case(self, words: Sequence[str], target: str) -> Case:
        looked, last = softmax(self.scores(words)), len(words) - 1
        moved: Values = {k: a for k, a in enumerate(looked) if words[k] == target}
        key = words.index(target)

        def without(heads: frozenset[int]) -> float:
            return self.logit(words, target) if 1 in heads else 0.0

        feature = self.words.index(target)
        at_last = f"logit:{feature}@{last}"
        return Case(
            " ".join(words), target,
            {
                "tokens": moved,
                "tokens, worth": worth_of_tokens(words, "_", partial(self.logit, target=target)),
                "measured Shapley": worth_of_tokens(words, "_", partial(self.logit, target=target)),
                "heads": {(0, 1): sum(moved.values())},
                "heads, worth": {(0, head): value for head, value in worth([0, 1], without).items()},
                "heads × tokens": {(0, 1, k): a for k, a in moved.items()},
                "QK": {(last, key): self.scores(words)[key]},
                "features": {f"feature:0/{feature}@{k}": a for k, a in moved.items()},
                "graph": {
                    **{(f"feature:0/{feature}@{k}", at_last, "weight"): a for k, a in moved.items()},
                    **{(f"token:{k}", f"feature:0/{feature}@{k}", "weight"): 1.0 for k in moved},
                },
                "graph, by looking": self._looked(words, target, at_last),
            },
            look=(0, 1, last, key),
        )  # fmt: skip

    def _looked(self, words: Sequence[str], target: str, to: str) -> Values:
        """All that the head carries beyond an even look, A − 1/n: by the query's "?", and by the one capital's key."""
        capitals = [k for k, word in enumerate(words) if word in LETTERS]
        assert len(capitals) == 1
        more = self.logit(words, target) - words.count(target) / len(words)
        key, query = (self.words.index(words[k]) for k in (capitals[0], -1))
        return {
            (f"feature:0/{query}@{len(words) - 1}", to, "query"): more,
            (f"feature:0/{key}@{capitals[0]}", to, "key"): more,
        }

    def circuit(self, swapped: bool = False) -> Circuit:
        s, mechanism = self.mechanism()
        model = gpt2_of(swap(mechanism) if swapped else mechanism)
        sae = planted("0.resid_pre", axes(s, "token"), model.config.n_embd)
        subject = load_subject(model, tokenizer_of(self.words), saes=[sae])
        cases = [self.case(prompt.split(), target) for prompt, target in (("<s> a B b ?", "B"), ("<s> E ?", "E"))]
        how = "softly" if self.score < CERTAIN else "nowhere else"
        if self.score >= CERTAIN:  # the others say nothing new
            cases = [replace(case, truths={question: case.truths[question] for question in LOOKING}) for case in cases]
        about = f'at "?" a head looks at capital letters, {how}, and copies what it sees'
        return Circuit(self.name, about, subject, cases)


# ------------------------------------------------------------------------------------------------------------ induction


@dataclass(frozen=True)
class Induction:
    """Head 1 of layer 0 notes at every token which letter was before it; head 0 of layer 1 looks from a letter at where
    the letter before was the same, and copies what it sees there. The two other heads write where nobody reads.

    The letter at a position, and the one before it, are features of an SAE between the layers.

    score: what a match has over other keys.
    """

    score: float = 6.0
    words = ("<s>", "_", *LETTERS)

    def logit(self, words: Sequence[str], target: str, *, notes: bool = True, matches: bool = True) -> float:
        """Σ_k A[k] [x_k = target], scores being where x_{k−1} is x_q. notes, matches: without one of the heads."""
        before = ["", *words[:-1]]
        scores = [self.score * (notes and words[-1] in LETTERS and word == words[-1]) for word in before]
        return matches * sum(a for a, word in zip(softmax(scores), words, strict=True) if word == target)

    def mechanism(self, n: int = 8) -> tuple[Stream, Mechanism]:
        m = len(LETTERS)
        s = Stream(token=m, before=m, pos=n, out=m, junk=m)
        pos, token = s.reads("pos"), s.reads("token")
        notes = Head(s.reads("pos", CERTAIN * shift(n, 1)), pos, token, s.writes("before"))
        here = Head(s.reads("pos", CERTAIN * torch.eye(n)), pos, token, s.writes("junk"))
        matches = Head(self.score * token, s.reads("before"), token, s.writes("out"))
        return s, Mechanism(
            s.embeds(token=one_hot(self.words, LETTERS)), s.embeds(pos=torch.eye(n)),
            [Layer({0: here, 1: notes}), Layer({0: matches, 1: here})],
            s.reads("out", one_hot(LETTERS, self.words)),
        )  # fmt: skip

    def case(self, words: Sequence[str]) -> Case:
        """A prompt in which its last letter was once before, and what came after it then was nowhere else."""
        last, n = len(words) - 1, len(words)
        key = words.index(words[-1]) + 1
        target, letters = words[key], len(LETTERS)
        moved = self.logit(words, target)
        more = moved - 1 / n  # than by an even look
        value, note, match = (
            f"feature:0/{i}@{pos}"
            for i, pos in (
                (LETTERS.index(target), key),
                (letters + LETTERS.index(words[-1]), key),
                (LETTERS.index(words[-1]), last),
            )
        )
        to = f"logit:{self.words.index(target)}@{last}"

        def of_heads(kept: frozenset[tuple[int, int]]) -> float:
            return self.logit(words, target, notes=(0, 1) in kept, matches=(1, 0) in kept)

        def of_features(kept: frozenset[str]) -> float:
            return (value in kept) * (moved if {note, match} <= kept else 1 / n)

        tokens = worth_of_tokens(words, "_", partial(self.logit, target=target))
        even = 1 / (key + 1)  # the look of who notes, at the key
        return Case(
            " ".join(words), target,
            {
                "tokens": {key: moved},
                "tokens, worth": tokens,
                "measured Shapley": tokens,
                "heads": {(0, 0): 0.0, (1, 0): moved},
                "heads, worth": worth([(0, 0), (0, 1), (1, 0), (1, 1)], of_heads),
                "heads × tokens": {(1, 0, key): moved},
                "QK": {(last, key - 1): self.score},
                "features": {value: moved},
                "features, worth": worth([value, note, match], of_features),
                "graph": {
                    (value, to, "weight"): moved,
                    (f"token:{key}", value, "weight"): 1.0,
                    (f"token:{key - 1}", note, "weight"): 1.0,
                    (f"token:{last}", match, "weight"): 1.0,
                },
                "graph, by looking": {
                    (match, to, "query"): more,
                    (note, to, "key"): more,
                    (f"token:{key}", note, "query"): 1 - even,
                    (f"token:{key - 1}", note, "key"): 1 - even,
                },
                "circuit": {value: 1.0, note: 1.0, match: 1.0},
            },
            look=(1, 0, last, key),
        )  # fmt: skip

    def circuit(self, swapped: bool = False) -> Circuit:
        s, mechanism = self.mechanism()
        model = gpt2_of(swap(mechanism) if swapped else mechanism)
        sae = planted("0.resid_post", axes(s, "token", "before"), model.config.n_embd)
        subject = load_subject(model, tokenizer_of(self.words), saes=[sae])
        cases = [self.case(prompt.split()) for prompt in ("<s> D E A B E",)]
        return Circuit("induction", "one head notes the letter before, another looks for its own", subject, cases)
