"""Circuits written by hand: a copy head, gates of neurons, a product, and induction in two steps.

What is true of each is a formula of its own few constants, which no model is asked for. ``swapped`` and ``sign`` plant
mutants: the same circuit with two heads of a layer exchanged, or a neuron's output with another sign, while what is held
to be true stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...loading import load_subject
from ...subject import Subject
from .circuit import Case, Circuit, Values, worth, worth_of_tokens
from .neutral import C, Head, Layer, Mechanism, Neurons, balanced, gpt2_of, tokenizer_of

if TYPE_CHECKING:
    from sae_lens import SAE

CERTAIN = 40.0
"""A score so far above others that a head looks nowhere else: e⁻⁴⁰."""


class Stream:
    """Named dimensions of a stream, in a row: ``stream["cur"]`` is their slice."""

    def __init__(self, **widths: int) -> None:
        self.slices, self.width = {}, 0
        for name, width in widths.items():
            self.slices[name] = slice(self.width, self.width + width)
            self.width += width

    def __getitem__(self, name: str) -> slice:
        return self.slices[name]

    def reads(self, name: str, matrix: Tensor | None = None) -> Float[Tensor, "stream some"]:
        """A map from these dimensions to what ``matrix`` makes of them (default: themselves)."""
        matrix = torch.eye(self[name].stop - self[name].start) if matrix is None else matrix
        whole = torch.zeros(self.width, matrix.shape[1], dtype=torch.float64)
        whole[self[name]] = matrix.double()
        return whole

    def writes(self, name: str, matrix: Tensor | None = None) -> Float[Tensor, "some stream"]:
        return self.reads(name, None if matrix is None else matrix.T).T

    def embeds(self, **parts: Tensor) -> Float[Tensor, "row stream"]:
        """Rows that have these parts."""
        rows = max(len(part) for part in parts.values())
        whole = torch.zeros(rows, self.width, dtype=torch.float64)
        for name, part in parts.items():
            whole[:, self[name]] = part.double()
        return whole


def one_hot(words: Sequence[object], named: Sequence[object]) -> Float[Tensor, "word name"]:
    """1 where a word is the name."""
    return torch.tensor([[float(word == name) for name in named] for word in words])


def shift(n: int, by: int) -> Float[Tensor, "n n"]:
    """To one-hot positions those so many before them."""
    return torch.diag(torch.ones(n - by), -by)


def planted(hook: str, directions: Float[Tensor, "feature stream"], d: int) -> SAE:
    """An SAE whose features are these orthonormal directions of the stream; its constant is what keeps norms neutral."""
    from sae_lens import StandardSAE, StandardSAEConfig

    n, stream = directions.shape
    config = StandardSAEConfig(d_in=d, d_sae=n, dtype="float64", apply_b_dec_to_input=True)
    layer, name = hook.split(".")
    config.metadata.hook_name = f"blocks.{layer}.hook_{name}"
    sae = StandardSAE(config)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.zero_()
        sae.W_enc[:stream] = directions.T
        sae.W_dec[:, : stream + 1] = balanced(directions)
        sae.b_dec[stream + 1], sae.b_dec[stream + 2] = C, -C
    return sae


def axes(stream: Stream, *names: str) -> Float[Tensor, "feature stream"]:
    """The dimensions of these parts as directions."""
    return torch.cat([stream.writes(name) for name in names])


def softmax(scores: Sequence[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def swap(layer: Layer) -> Layer:
    """Its first two heads exchanged."""
    one, two = sorted(layer.heads)[:2]
    return Layer({**layer.heads, one: layer.heads[two], two: layer.heads[one]}, layer.neurons)


# ------------------------------------------------------------------------------------------------------------ copy head

LETTERS = ("A", "B", "D", "E")


@dataclass(frozen=True)
class CopyHead:
    """At "?" head 1 looks at capital letters and copies what it sees there into the logits; head 0 looks back by one
    and writes where nobody reads.

    score: what a capital letter has over others, for the copy head.
    """

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
        looked, last, m = softmax(self.scores(words)), len(words) - 1, len(self.words)
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
        if swapped:
            mechanism = Mechanism(
                mechanism.embed, mechanism.position, [swap(layer) for layer in mechanism.layers], mechanism.read
            )
        model = gpt2_of(mechanism)
        sae = planted("0.resid_pre", axes(s, "token"), model.config.n_embd)
        subject = load_subject(model, tokenizer_of(self.words), saes=[sae])
        prompts = ("<s> a B b ?", "<s> D a b a ?", "<s> E ?")
        targets = ("B", "D", "E")
        about = f"{type(self).__doc__}".split("\n\n")[0]
        cases = [self.case(prompt.split(), target) for prompt, target in zip(prompts, targets, strict=True)]
        return Circuit("copy head", " ".join(about.split()), subject, cases)


# ---------------------------------------------------------------------------------------------------------------- gates

A, B = 0, 1
"""The two inputs of a gate."""


@dataclass(frozen=True)
class Gate:
    """"a" at position 1 and "b" at position 2 are two bits. Heads 0 and 1 fetch them to "=", neurons 0 and 1 of layer 0
    hand them on, and the neurons of layer 1 make the gate of them.

    neurons: weight of each bit, bias, and what it counts for. constant: what the gate has without them. gain: scores
    before the neurons are multiplied by it, and what they write is divided by it.
    """

    name: str
    function: Callable[[bool, bool], float]
    neurons: Sequence[tuple[float, float, float, float]]
    constant: float = 0.0
    gain: float = 4.0
    about: str = ""
    words = ("<s>", "_", "a", "b", "=")

    def mechanism(self, n: int = 4) -> tuple[Stream, Mechanism]:
        m = len(self.words)
        s = Stream(bits=2, pos=n, fetched=2, handed=2, out=1)
        heads = {
            bit: Head(
                s.reads("pos", CERTAIN * one_hot(range(n), (3,))), s.reads("pos", one_hot(range(n), (bit + 1,))),
                s.reads("bits", torch.eye(2)[:, [bit]]), s.writes("fetched", torch.eye(2)[[bit]]),
            )
            for bit in (A, B)
        }  # fmt: skip
        hands = Neurons(
            self.gain * s.reads("fetched"), torch.zeros(2), s.writes("handed") / self.gain, torch.zeros(s.width)
        )
        weights = torch.tensor(self.neurons, dtype=torch.float64)
        gate = Neurons(
            self.gain * s.reads("handed", weights[:, :2].T), self.gain * weights[:, 2],
            s.writes("out", weights[:, 3:]) / self.gain, self.constant * s.writes("out")[0],
        )  # fmt: skip
        equals = one_hot(("=",), self.words)
        return s, Mechanism(
            s.embeds(bits=one_hot(self.words, ("a", "b"))), s.embeds(pos=torch.eye(n)),
            [Layer(heads, hands), Layer({}, gate)], s.reads("out", equals),
        )  # fmt: skip

    def of(self, words: Sequence[str]) -> float:
        return self.function(words[1] == "a", words[2] == "b")

    def case(self, words: Sequence[str]) -> Case:
        bits = [words[1] == "a", words[2] == "b"]
        shares = worth([A, B], lambda kept: self.function(A in kept and bits[A], B in kept and bits[B]))
        features = {f"feature:0/{bit}@3": value for bit, value in shares.items()}
        truths: dict[str, Values] = {
            "tokens, worth": {bit + 1: value for bit, value in shares.items()},
            "measured Shapley": worth_of_tokens(words, "_", self.of),
            "heads, worth": {(0, bit): value for bit, value in shares.items()},
            "heads × tokens": {(0, bit, bit + 1): value for bit, value in shares.items()},
            "QK": {(3, 1): CERTAIN},
            "neurons, worth": {(0, bit): value for bit, value in shares.items()},
            "neurons": {
                (1, i): max(0.0, a * bits[A] + b * bits[B] + bias) * out
                for i, (a, b, bias, out) in enumerate(self.neurons)
            },
            "features, worth": features,
            "graph": {
                **{(name, "logit:4@3", "weight"): value for name, value in features.items()},
                **{(f"token:{bit + 1}", f"feature:0/{bit}@3", "weight"): 1.0 for bit in (A, B) if shares[bit]},
            },
        }
        # Of one that is enough either is a smallest circuit, so that there is no single one to be right about.
        if self.of(words) and not all(self.function(bit == A, bit == B) for bit in (A, B) if all(bits)):
            truths["circuit"] = {name: 1.0 for name, value in features.items() if value}
        return Case(" ".join(words), "=", truths, look=(0, A, 3, 1))

    def circuit(self, swapped: bool = False, sign: bool = False) -> Circuit:
        """swapped: the heads of layer 0; sign: of what the first neuron of layer 1 counts for."""
        s, mechanism = self.mechanism()
        below, above = mechanism.layers
        if sign:
            assert above.neurons is not None
            out = above.neurons.out.clone()
            out[0] *= -1
            above = replace(above, neurons=replace(above.neurons, out=out))
        layers = [swap(below) if swapped else below, above]
        model = gpt2_of(replace(mechanism, layers=layers))
        sae = planted("0.resid_post", axes(s, "handed"), model.config.n_embd)
        subject = load_subject(model, tokenizer_of(self.words), saes=[sae])
        cases = [self.case(["<s>", a, b, "="]) for a, b in (("a", "b"), ("a", "_"))]
        return Circuit(self.name, self.about, subject, cases)


AND_NEURON, SUM_NEURON = (1.0, 1.0, -1.0, 1.0), (1.0, 1.0, 0.0, 1.0)
GATES = (
    Gate("AND", lambda a, b: float(a and b), [AND_NEURON], about="relu(a + b − 1)"),
    Gate(
        "OR", lambda a, b: float(a or b), [SUM_NEURON, (1.0, 1.0, -1.0, -1.0)], about="relu(a + b) − relu(a + b − 1)"
    ),
    Gate(
        "XOR", lambda a, b: float(a != b), [SUM_NEURON, (1.0, 1.0, -1.0, -2.0)], about="relu(a + b) − 2 relu(a + b − 1)"
    ),
    Gate("OR by silence", lambda a, b: float(a or b), [(-1.0, -1.0, 1.0, -1.0)], 1.0, about="1 − relu(1 − a − b)"),
    Gate(
        "AND of small scores", lambda a, b: float(a and b), [AND_NEURON], gain=0.05,
        about="relu(a + b − 1), of 0.05 a and 0.05 b: scores less than the softmax's temperature apart",
    ),
)  # fmt: skip
