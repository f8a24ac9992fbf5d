"""Programs that tracr has compiled to weights (programs/), in a stock GPT-2 with neutral norms.

What is true of them is what the program says, run as the few lines of Python that it is; the model is not asked. tracr
keeps a constant 1 in every token's embedding, out of which biases are made. There it would be part of the current
token, and what it does would be that token's, so it is *folded* into biases, which changes nothing that the model
computes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...loading import load_subject
from . import decided
from .circuit import Case, Circuit, Values, worth, worth_of_tokens
from .neutral import Head, Layer, Mechanism, Neurons, gpt2_of, tokenizer_of
from .stream import planted, swap, turn

FOLDER = Path(__file__).parent / "programs"
NAMES = ("induction", "histogram", "sorting", "balance", "matching", "bigram")
BLANK = "9"
COLDNESS = 100.0
"""What a key that is selected has over others in tracr's heads, before scores are divided by √key_size."""
ONE = "one"
OUTPUT = re.compile(r"output_\d+(:|$)")
NO_WORDS = ("compiler_bos", "compiler_pad")
OF_TOKENS = ("tokens, worth", "measured Shapley")
FEATURES = {
    "induction": ("0.resid_post", ("tokens", "before")),
    "histogram": ("0.resid_mid", (r"output_\d+_selector_width_attn_output", "tokens")),
    "matching": ("4.resid_post", ("last_zero", "not_has_neg")),
    "bigram": ("0.resid_mid", ("aggregate", "tokens")),
}
"""Where a program's SAE is, and of what its features are the values."""


@dataclass(frozen=True)
class Compiled:
    """A program as it is stored. told: the .json file's; recorded: the stream that tracr's own model ends with on each
    of the inputs."""

    told: dict[str, Any]
    mechanism: Mechanism
    words: Sequence[str]
    recorded: Sequence[Float[Tensor, "pos stream"]]

    @property
    def score(self) -> float:
        return COLDNESS / math.sqrt(self.told["key_size"])

    def places(self, name: str) -> dict[str, int]:
        """Where the stream has each value of what the program calls so."""
        labels = [label.partition(":") for label in self.told["stream"]]
        return {value: i for i, (label, _, value) in enumerate(labels) if re.fullmatch(rf"{name}(_\d+)?", label)}

    def heads_writing(self, name: str) -> list[tuple[int, int]]:
        """The heads that write there."""
        places = list(self.places(name).values())
        return [
            (number, head)
            for number, layer in enumerate(self.mechanism.layers)
            for head, maps in layer.heads.items()
            if maps.o[:, places].any()
        ]

    def neuron(self, writes: Mapping[int, float], reads: Collection[int] = ()) -> tuple[int, int]:
        """The one neuron that writes this and nothing else, and is the more there is in those dimensions."""
        [found] = [
            (number, neuron)
            for number, layer in enumerate(self.mechanism.layers)
            if layer.neurons is not None
            for neuron, out in enumerate(layer.neurons.out)
            if {place: float(out[place]) for place in out.nonzero()[:, 0].tolist()} == writes
            and (layer.neurons.into[list(reads), neuron] > 0).all()
        ]
        return found

    @property
    def counted(self) -> str:
        """What is called so in which a head notes how much of BOS it saw, of a program that counts."""
        [name] = [label for label in self.told["stream"] if label.endswith("selector_width_attn_output")]
        return name

    @property
    def features(self) -> list[int]:
        """The dimensions that are features of the program's SAE, in their order."""
        parts = [self.places(part) for part in FEATURES[self.told["name"]][1]]
        return [place for part in parts for value, place in part.items() if value not in NO_WORDS]

    def feature(self, name: str, value: str, pos: int) -> str:
        hook = FEATURES[self.told["name"]][0]
        return f"feature:{hook.partition('.')[0]}/{self.features.index(self.places(name)[value])}@{pos}"

    def logit(self, word: str, pos: int) -> str:
        return f"logit:{self.words.index(word)}@{pos}"


def compiled(name: str) -> Compiled:
    """One of NAMES. Words that only come out stand behind those that go in; a number that comes out is "output"."""
    from safetensors.torch import load_file

    told = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    weights = {key: weight.double() for key, weight in load_file(FOLDER / f"{name}.safetensors").items()}
    labels = [label for label in told["stream"] if OUTPUT.match(label)]
    results = [label.partition(":")[2] or "output" for label in labels]
    words = [*told["words"], *(word for word in results if word not in told["words"])]
    embed = torch.cat(
        [weights["embed"], weights["embed"].new_zeros(len(words) - len(told["words"]), len(told["stream"]))]
    )
    read = torch.zeros(len(told["stream"]), len(words), dtype=torch.float64)
    for label, word in zip(labels, results, strict=True):
        read[told["stream"].index(label), words.index(word)] = 1
    layers = [_layer(weights, number, told["heads"]) for number in range(told["layers"])]
    recorded = [weights[f"recorded.{i}"] for i in range(len(told["inputs"]))]
    return Compiled(told, Mechanism(embed, weights["position"], layers, read), words, recorded)


def _layer(weights: dict[str, Tensor], number: int, heads: int) -> Layer:
    own = f"layer.{number}"
    found = {
        head: Head(**{part: weights[f"{own}.head.{head}.{part}"] for part in "qkvo"})
        for head in range(heads)
        if f"{own}.head.{head}.q" in weights
    }
    if (into := weights.get(f"{own}.into")) is None:
        return Layer(found)
    out = weights[f"{own}.out"]
    return Layer(found, Neurons(into, into.new_zeros(into.shape[1]), out, out.new_zeros(out.shape[1])))


def folded(mechanism: Mechanism, one: int) -> Mechanism:
    """The same, with biases instead of what every map makes of the 1 in that dimension of every token's embedding."""

    def without(weight: Tensor) -> Tensor:
        rest = weight.clone()
        rest[one] = 0
        return rest

    def head(h: Head) -> Head:
        return replace(
            h, q=without(h.q), k=without(h.k), v=without(h.v), q_bias=h.q[one], k_bias=h.k[one], v_bias=h.v[one]
        )

    def neurons(n: Neurons | None) -> Neurons | None:
        return None if n is None else replace(n, into=without(n.into), bias=n.bias + n.into[one])

    embed = mechanism.embed.clone()
    embed[:, one] = 0
    layers = [Layer({i: head(h) for i, h in layer.heads.items()}, neurons(layer.neurons)) for layer in mechanism.layers]
    return replace(mechanism, embed=embed, layers=layers)


# ------------------------------------------------------------------------------------- the programs, as Python has them


def induction(words: Sequence[str], target: str) -> float:
    """Of the tokens that came after one like the last, the share that is the target."""
    after = [word for previous, word in pairwise(words) if previous == words[-1]]
    return sum(word == target for word in after) / max(1, len(after))


def histogram(words: Sequence[str], target: str) -> float:
    return float(words[1:].count(words[-1]) == int(target))


def sorting(words: Sequence[str], target: str) -> float:
    """What stands at the place in order that the last position asks for; where several have one rank, their mean.

    A number's rank is worked out three tokens behind it, by what has been read until there.
    """
    numbers, place = words[1:4], len(words) - 8
    rank = [sum(other < number != BLANK for other in words[1 : 5 + i]) for i, number in enumerate(numbers)]
    mine = [number for number, its in zip(numbers, rank, strict=True) if its == place]
    return sum(number == target for number in mine) / max(1, len(mine))


def balance(words: Sequence[str], target: str) -> float:
    return (words.count("(") - words.count(")")) / (len(words) - 1)


def matching(words: Sequence[str], target: str) -> float:
    depth, ok = 0, True
    for word in words:
        depth += (word == "(") - (word == ")")
        ok = ok and depth >= 0
    return float((ok and depth == 0) == (target == "True"))


def bigram(words: Sequence[str], target: str) -> float:
    return float((list(words[-2:]) == ["a", "b"]) == (target == "True"))


def _case(f: Callable[..., float], words: Sequence[str], target: str, mask: str, **truths: Any) -> Case:
    tokens = worth_of_tokens(words, mask, partial(f, target=target))
    look = truths.pop("look", None)
    return Case(
        " ".join(words), target, {"tokens, worth": tokens, "measured Shapley": tokens, **truths}, look=look, mask=mask
    )


def _cases(name: str, made: Compiled) -> list[Case]:
    """What there is to be true of each program. A masked token is one that the prompt does not have."""
    prompts = made.told["inputs"]
    if name == "induction":
        found = []
        [before], [moves] = made.heads_writing("before"), made.heads_writing("output")
        for words in prompts[2:]:
            key, last = words.index(words[-1]) + 1, len(words) - 1
            both = worth([before, moves], lambda kept: float(len(kept) == 2))
            found.append(
                _case(
                    induction, words, words[key], "d" if "e" in words else "e",
                    tokens={key: 1.0}, heads={before: 0.0, moves: 1.0},
                    QK={(last, key - 1): made.score},
                    **{"heads, worth": both, "heads × tokens": {(*moves, key): 1.0}},
                    **_noted(made, words, key),
                    look=(*moves, last, key),
                )
            )  # fmt: skip
        return found
    if name == "histogram":
        found = [
            _case(
                histogram, words, str(words.count(words[-1])), "e",
                look=(0, 0, len(words) - 1, words.index(words[-1])),
                **decided.histogram(made, words),
            )
            for words in prompts
        ]  # fmt: skip
        return _half_of_them_briefly(found)
    if name == "sorting":
        found = []
        [copies], [moves] = made.heads_writing("copied"), made.heads_writing("output")
        for words in (prompts[0][:9],):
            target = sorted(words[1:4])[len(words) - 8]
            key = words.index(target)
            found.append(
                _case(
                    sorting, words, target, "4", tokens={key: 1.0}, heads={copies: 1.0, moves: 1.0},
                    **{"heads × tokens": {(*copies, key): 1.0, (*moves, key): 1.0}},
                )
            )  # fmt: skip
        return found
    if name == "balance":
        [opens], [closes] = made.heads_writing("opens"), made.heads_writing("closes")
        return [
            _case(balance, words, "output", "x", tokens=_signs(words), **_heads(words, opens, closes))
            for words in prompts
        ]
    if name == "matching":
        [anywhere] = made.heads_writing("has_neg")
        return [
            _case(
                matching, words, str(bool(matching(words, "True"))), "x",
                look=(*anywhere, len(words) - 1, 1), **decided.matching(made, words),
            )
            for words in prompts[1:3]
        ]  # fmt: skip
    found = [
        _case(
            bigram, words, "True", "e", look=(0, 0, len(words) - 1, len(words) - 2), **decided.bigram(made, words)
        )
        for words in prompts
    ]  # fmt: skip
    return _half_of_them_briefly(found)


def _of_tokens(case: Case) -> Case:
    return replace(case, truths={question: case.truths[question] for question in OF_TOKENS})


def _half_of_them_briefly(cases: Sequence[Case]) -> list[Case]:
    """Every second one of tokens alone: of the rest it has nothing new to say."""
    return [_of_tokens(case) if number % 2 else case for number, case in enumerate(cases)]


def _noted(made: Compiled, words: Sequence[str], key: int) -> dict[str, Values]:
    """What is true of induction's features: one is moved, and by two others the head knew from where."""
    last = len(words) - 1
    value, match = (made.feature("tokens", words[pos], pos) for pos in (key, last))
    note = made.feature("before", words[last], key)
    to = made.logit(words[key], last)
    tokens = {f"token:{key}": value, f"token:{key - 1}": note, f"token:{last}": match}
    return {
        "features": {value: 1.0},
        "features, worth": dict.fromkeys((value, note, match), 1 / 3),
        "graph": {(value, to, "weight"): 1.0} | {(a, b, "weight"): 1.0 for a, b in tokens.items()},
        "circuit": dict.fromkeys((value, note, match), 1.0),
    }


def _signs(words: Sequence[str]) -> Values:
    """What each bracket adds to the balance."""
    return {pos: ((word == "(") - (word == ")")) / (len(words) - 1) for pos, word in enumerate(words)}


def _heads(words: Sequence[str], opens: tuple[int, int], closes: tuple[int, int]) -> dict[str, Values]:
    """One head has all that open, another all that close."""
    adds = _signs(words)
    each = {
        (*head, pos): value
        for head, word in ((opens, "("), (closes, ")"))
        for pos, value in adds.items()
        if words[pos] == word
    }
    sums = {head: sum(value for (*own, _), value in each.items() if tuple(own) == head) for head in (opens, closes)}
    return {"heads": sums, "heads, worth": sums, "heads × tokens": each}


ABOUT = {
    "induction": "what came after this token before",
    "histogram": "how often this token has been there",
    "sorting": "three numbers in order",
    "balance": "opened brackets less closed ones, over all tokens",
    "matching": "whether all brackets are matched",
    "bigram": 'whether this is "b" and the token before it "a"',
}


def circuit(name: str, *, fold: bool = True, swapped: bool = False, sign: tuple[int, int] | None = None) -> Circuit:
    """One of NAMES. fold: the constant into biases. swapped: heads 0 and 1 of every layer. sign: of what this neuron of
    this layer counts for.
    """
    made = compiled(name)
    mechanism = folded(made.mechanism, made.told["stream"].index(ONE)) if fold else made.mechanism
    mechanism = mechanism if sign is None else turn(mechanism, *sign)
    model = gpt2_of(swap(mechanism) if swapped else mechanism)
    saes = None
    if fold and name in FEATURES:
        directions = torch.eye(mechanism.width, dtype=torch.float64)[made.features]
        saes = [planted(FEATURES[name][0], directions, model.config.n_embd)]
    subject = load_subject(model, tokenizer_of(made.words), saes=saes)
    cases = _cases(name, made)
    called = f"tracr: {name}" + ("" if fold else ", not folded")
    return Circuit(called, ABOUT[name], subject, cases if fold else [_of_tokens(case) for case in cases])
