"""Ground-truth dictionaries: tokens that are sums of features of a dictionary of sae_lens.synthetic, copied by a head.

A head copies what stands at position 1 to the last one, where a direction w is read. A feature of that token has f_i
⟨w, d_i⟩, with f_i from sae-lens's generator of activations and d_i from its dictionary. The SAE has the dictionary's
directions to encode and to decode, as sae-lens's ``init_sae_to_match_feature_dict`` sets them: with orthonormal ones it
finds the f_i, with more of them than dimensions it cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor

from ...loading import load_subject
from .circuit import Case, Circuit, Values, worth_of_tokens
from .neutral import Head, Layer, Mechanism, gpt2_of, tokenizer_of
from .stream import CERTAIN, Stream, one_hot, planted, swap

TOKENS = 6
HIDDEN, MANY = 8, 12


@dataclass(frozen=True)
class Dictionary:
    """features: how many directions in HIDDEN dimensions; orthonormal where there are not more of them."""

    name: str
    about: str
    features: int
    seed: int = 0
    words = ("<s>", "_", "?", *(f"t{i}" for i in range(TOKENS)))

    @cached_property
    def directions(self) -> Float[Tensor, "feature hidden"]:
        from sae_lens.synthetic import FeatureDictionary

        made = FeatureDictionary(self.features, HIDDEN, initializer=None, seed=self.seed)
        found = made.feature_vectors.detach().double()
        return torch.linalg.qr(found.T)[0].T if self.features <= HIDDEN else found

    @cached_property
    def activations(self) -> Float[Tensor, "word feature"]:
        """Of every word; those that are no "t…" have none."""
        from sae_lens.synthetic import ActivationGenerator

        generator = ActivationGenerator(self.features, 0.3, std_firing_magnitudes=0.3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            found = generator.sample(TOKENS).double()
        return torch.cat([found.new_zeros(len(self.words) - TOKENS, self.features), found])

    @cached_property
    def read(self) -> Float[Tensor, "hidden"]:
        return self.directions[: self.features // 2].sum(0)

    def mechanism(self, n: int = 4) -> tuple[Stream, Mechanism]:
        s = Stream(here=HIDDEN, pos=n, copied=HIDDEN, junk=HIDDEN)
        last, here = s.reads("pos", CERTAIN * one_hot(range(n), (3,))), s.reads("here")
        heads = {
            head: Head(last, s.reads("pos", one_hot(range(n), (pos,))), here, s.writes(to))
            for head, pos, to in ((0, 1, "copied"), (1, 2, "junk"))
        }
        return s, Mechanism(
            s.embeds(here=self.activations @ self.directions), s.embeds(pos=torch.eye(n)), [Layer(heads)],
            s.reads("copied", self.read[:, None] * one_hot(("?",), self.words)),
        )  # fmt: skip

    def of(self, words: Sequence[str], feature: int | None = None) -> float:
        """What is read, or a feature's part of it."""
        each = self.activations[self.words.index(words[1])] * (self.directions @ self.read)
        return float(each.sum() if feature is None else each[feature])

    def case(self, words: Sequence[str]) -> Case:
        own = self.activations[self.words.index(words[1])]
        active = own.nonzero()[:, 0].tolist()
        features: Values = {f"feature:0/{i}@1": self.of(words, i) for i in active}
        whole = self.of(words)
        tokens = worth_of_tokens(words, "_", partial(self.of, feature=None))
        return Case(
            " ".join(words), "?",
            {
                "tokens": {1: whole},
                "tokens, worth": tokens,
                "measured Shapley": tokens,
                "heads": {(0, 0): whole},
                "heads × tokens": {(0, 0, 1): whole},
                "QK": {(3, 1): CERTAIN},
                "features": features,
                "graph": {
                    **{(name, "logit:2@3", "weight"): value for name, value in features.items()},
                    **{("token:1", f"feature:0/{i}@1", "weight"): float(own[i]) for i in active if self.of(words, i)},
                },
            },
            look=(0, 0, 3, 1),
        )  # fmt: skip

    def circuit(self, swapped: bool = False) -> Circuit:
        s, mechanism = self.mechanism()
        model = gpt2_of(swap(mechanism) if swapped else mechanism)
        directions = torch.zeros(self.features, s.width, dtype=torch.float64)
        directions[:, s["here"]] = self.directions
        subject = load_subject(
            model, tokenizer_of(self.words), saes=[planted("0.resid_pre", directions, model.config.n_embd)]
        )
        cases = [self.case(["<s>", "t2", "t3", "?"])]
        return Circuit(self.name, self.about, subject, cases)


DICTIONARIES = (
    Dictionary("dictionary, orthonormal", f"{HIDDEN} orthonormal features of sae_lens.synthetic", HIDDEN),
    Dictionary("dictionary, superposed", f"{MANY} features in {HIDDEN} dimensions, of sae_lens.synthetic", MANY),
)  # fmt: skip
