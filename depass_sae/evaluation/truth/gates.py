"""Gates of neurons: AND, OR and XOR of two bits that heads fetch, and a product in a gated MLP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...loading import load_subject
from .circuit import Case, Circuit, Values, worth, worth_of_tokens
from .neutral import Head, Layer, Mechanism, Neurons, gpt2_of, llama_of, tokenizer_of
from .stream import CERTAIN, Stream, axes, one_hot, planted, swap, turn

A, B = 0, 1
"""The two inputs of a gate."""


@dataclass(frozen=True)
class Gate:
    """Two bits: whether "a" is at position 1, "b" at position 2. Heads 0 and 1 fetch them to "=", neurons 0 and 1 of
    layer 0 hand them on, and the neurons of layer 1 make the gate of them.

    neurons: weight of each bit, bias, and what it counts for. constant: what the gate has without them. gain: scores
    before the neurons are multiplied by it, and what they write is divided by it. inputs: what it is asked about.
    brief: whether that is the worth of tokens, heads and neurons alone.
    """

    name: str
    function: Callable[[bool, bool], float]
    neurons: Sequence[tuple[float, float, float, float]]
    constant: float = 0.0
    gain: float = 4.0
    about: str = ""
    inputs: Sequence[tuple[str, str]] = (("a", "b"),)
    brief: bool = False
    words = ("<s>", "_", "a", "b", "=")

    def mechanism(self, n: int = 4) -> tuple[Stream, Mechanism]:
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
        # Where either bit is enough there are two smallest circuits, and no single one to be right about.
        if bits[A] and self.of(words) and not (all(bits) and self.function(True, False) and self.function(False, True)):
            truths["circuit"] = {name: 1.0 for name, value in features.items() if value}
        if self.brief:
            truths = {question: truths[question] for question in BRIEFLY}
        return Case(" ".join(words), "=", truths, look=(0, A, 3, 1))

    def circuit(self, swapped: bool = False, sign: bool = False) -> Circuit:
        """swapped: the heads of layer 0; sign: of what the first neuron of layer 1 counts for."""
        s, mechanism = self.mechanism()
        mechanism = turn(mechanism, 1, 0) if sign else mechanism
        model = gpt2_of(swap(mechanism) if swapped else mechanism)
        sae = planted("0.resid_post", axes(s, "handed"), model.config.n_embd)
        subject = load_subject(model, tokenizer_of(self.words), saes=[sae])
        cases = [self.case(["<s>", a, b, "="]) for a, b in self.inputs]
        return Circuit(self.name, f"two bits that heads fetch: {self.about}", subject, cases)


BOTH = (("a", "b"), ("a", "_"))
BRIEFLY = ("tokens, worth", "heads, worth", "neurons, worth", "measured Shapley")
AND_NEURON, SUM_NEURON = (1.0, 1.0, -1.0, 1.0), (1.0, 1.0, 0.0, 1.0)
GATES = (
    Gate("AND", lambda a, b: float(a and b), [AND_NEURON], about="relu(a + b − 1)", inputs=BOTH),
    Gate(
        "OR", lambda a, b: float(a or b), [SUM_NEURON, (1.0, 1.0, -1.0, -1.0)], about="relu(a + b) − relu(a + b − 1)"
    ),
    Gate(
        "XOR", lambda a, b: float(a != b), [SUM_NEURON, (1.0, 1.0, -1.0, -2.0)], inputs=BOTH,
        about="relu(a + b) − 2 relu(a + b − 1)",
    ),
    Gate("OR by silence", lambda a, b: float(a or b), [(-1.0, -1.0, 1.0, -1.0)], 1.0, about="1 − relu(1 − a − b)"),
    Gate(
        "AND of unequal weights", lambda a, b: float(a and b), [(2.0, 1.0, -2.0, 1.0)], brief=True,
        about="relu(2 a + b − 2)",
    ),
    Gate(
        "AND of small scores", lambda a, b: float(a and b), [AND_NEURON], gain=0.05, brief=True,
        about="relu(a + b − 1), of 0.05 a and 0.05 b: scores less than the softmax's temperature apart",
    ),
)  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- product


@dataclass(frozen=True)
class Product:
    """One neuron of a gated MLP that multiplies two numbers, relu(a) b, which two heads fetch by an even look.

    "a" and "aa" are 1 and 2, and so are "b" and "bb". With either at 0 nothing is left, so that both have half.
    """

    words = ("<s>", "_", "a", "aa", "b", "bb", "=")
    numbers = ((0, 0), (0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (0, 0))
    length = 4

    def of(self, words: Sequence[str]) -> float:
        a, b = (sum(self.numbers[self.words.index(word)][bit] for word in words) for bit in (A, B))
        return float(a * b)

    def mechanism(self) -> tuple[Stream, Mechanism]:
        s = Stream(number=2, fetched=2, out=1)
        even = torch.zeros(s.width, 1, dtype=torch.float64)
        heads = {
            bit: Head(
                even, even, s.reads("number", torch.eye(2)[:, [bit]]),
                self.length * s.writes("fetched", torch.eye(2)[[bit]]),
            )
            for bit in (A, B)
        }  # fmt: skip
        reads = [s.reads("fetched", torch.eye(2)[:, [bit]]) for bit in (A, B)]
        neuron = Neurons(reads[A], torch.zeros(1), s.writes("out"), torch.zeros(s.width), up=reads[B])
        numbers = torch.tensor(self.numbers)
        return s, Mechanism(
            s.embeds(number=numbers), torch.zeros(self.length, s.width), [Layer(heads, neuron)],
            s.reads("out", one_hot(("=",), self.words)),
        )  # fmt: skip

    def case(self, words: Sequence[str]) -> Case:
        whole = self.of(words)
        half = whole / 2
        to = f"logit:{self.words.index('=')}@3"
        features = {f"feature:0/{bit}@3": half for bit in (A, B)}
        tokens = worth_of_tokens(words, "_", self.of)
        return Case(
            " ".join(words), "=",
            {
                "tokens, worth": tokens,
                "measured Shapley": tokens,
                "heads, worth": {(0, A): half, (0, B): half},
                "heads × tokens": {(0, A, 1): half, (0, B, 2): half},
                "neurons": {(0, 0): whole},
                "features, worth": features,
                "graph": {(name, to, "weight"): value for name, value in features.items()},
                "circuit": dict.fromkeys(features, 1.0),
            },
        )  # fmt: skip

    def circuit(self, swapped: bool = False) -> Circuit:
        s, mechanism = self.mechanism()
        model = llama_of(swap(mechanism) if swapped else mechanism)
        directions = axes(s, "fetched")
        sae = planted("0.resid_mid", directions, model.config.hidden_size, centred=False)
        subject = load_subject(model, tokenizer_of(self.words), saes=[sae])
        cases = [self.case(["<s>", a, b, "="]) for a, b in (("aa", "b"),)]
        return Circuit("product", "two numbers that heads fetch: relu(a) b, in a gated MLP", subject, cases)
