"""What is true of the compiled programs whose answer is made by neurons of what heads fetched: histogram, bracket
matching, bigram.

It follows from the program and from how tracr compiles it. A map of two values is one neuron for every pair of them,
relu(a + b − 1). A map of a number is *steps*, of two neurons each. Which head or neuron does what is told by the labels
of the dimensions that it reads and writes.

No truth is stated of

* what is moved by bigram's head and matching's: their content goes into gates, whose other input has a share, too;
* matching's heads by token: from layer 2 on a position holds a mixture of all tokens until there;
* the worth of neurons in histogram and bigram: they have one layer, whose neurons only add;
* edges by looking: where tracr's heads look, scores of BOS and of other keys compete, and what either of them did is a
  matter of the path on which they grow, no longer of the program.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from .circuit import Values, worth

if TYPE_CHECKING:
    from .compiled import Compiled

STEEPNESS = 100.0
"""A step of tracr's rises from 0 to 1 within 1/STEEPNESS of a number."""


def step(x: float, at: float) -> tuple[float, float]:
    """What the two neurons of a step are at x: the one that rises and the one that stops it, which is taken off.

    Their difference is 1 from ``at`` on, and 0 until 1/STEEPNESS before.
    """
    beyond = STEEPNESS * (x - at)
    return max(0.0, beyond + 1), max(0.0, beyond)


def histogram(made: Compiled, words: Sequence[str]) -> dict[str, Values]:
    """A head looks at BOS and at all tokens like the last, n of them, and moves how much of BOS it saw: 1/(n + 1).

    That is BOS's content and nobody else's; of tokens there are those after BOS. Without it every step is off, which
    reads as the largest count, not n. Of the steps, which lie halfway between what two counts leave of BOS, the one
    between n and n + 1 writes n and takes n + 1 off, and that between n − 1 and n is off.
    """
    last, n = len(words) - 1, words[1:].count(words[-1])
    counts = made.places("output")
    [head] = made.heads_writing(made.counted)
    here, more = counts[str(n)], counts[str(n + 1)]
    rises, stops = step(1 / (n + 1), (1 / (n + 1) + 1 / (n + 2)) / 2)
    share = made.feature(made.counted, "", last)
    return {
        "tokens": dict.fromkeys(range(1, len(words)), 0.0),
        "heads": {head: 1.0},
        "heads, worth": worth([head], lambda kept: float(head in kept)),
        "heads × tokens": {(*head, 0): 1.0},
        "QK": {(last, words.index(words[-1])): made.score},
        "neurons": {made.neuron({here: 1, more: -1}): rises, made.neuron({here: -1, more: 1}): -stops},
        "features": {share: 1.0},
        "features, worth": {share: 1.0},
        "graph": {
            (share, made.logit(str(n), last), "weight"): 1.0,
            ("token:0", share, "weight"): 1 / (n + 1),
        },
        "circuit": {share: 1.0},
    }


def bigram(made: Compiled, words: Sequence[str]) -> dict[str, Values]:
    """A head fetches the token before, and the neuron of that pair is an AND of it and the last: half is either's.

    The head is alone among heads. Where the last token stays, as it does where heads are silent, all hangs on it.
    """
    last, previous, word = len(words) - 1, *words[-2:]
    [head] = made.heads_writing("aggregate")
    pair = made.places("aggregate")[previous], made.places("tokens")[word]
    inputs = [made.feature("aggregate", previous, last), made.feature("tokens", word, last)]
    shares = worth(inputs, lambda kept: float(len(kept) == 2))
    return {
        "heads, worth": worth([head], lambda kept: float(head in kept)),
        "heads × tokens": {(*head, last - 1): shares[inputs[0]]},
        "QK": {(last, last - 1): made.score},
        "neurons": {made.neuron({made.places("output")["True"]: 1}, reads=pair): 1.0},
        "features, worth": shares,
        "graph": {
            **{(name, made.logit("True", last), "weight"): value for name, value in shares.items()},
            **{(f"token:{pos}", name, "weight"): 1.0 for name, pos in zip(inputs, (last - 1, last), strict=True)},
        },
        "circuit": dict.fromkeys(inputs, 1.0),
    }


Unit = tuple[int, int]
"""A head or neuron: its layer and its number there."""


def matching(made: Compiled, words: Sequence[str]) -> dict[str, Values]:
    """An AND of whether brackets are balanced at the end, which a head fetches, and whether never too many were closed,
    of which another head fetches how often they were, and a step makes a value: half is either's.
    """
    last, depths = len(words) - 1, _depths(words)
    matched, never = depths[-1] == 0, min(depths) >= 0
    target = str(matched and never)
    pair = made.places("last_zero")[str(matched)], made.places("not_has_neg")[str(never)]
    inputs = [made.feature("last_zero", str(matched), last), made.feature("not_has_neg", str(never), last)]
    shares = worth(inputs, lambda kept: float(len(kept) == 2))
    return {
        "heads, worth": _matching_heads(made, words, target),
        "QK": {(last, 1): made.score},
        "neurons": {made.neuron({made.places("output")[target]: 1}, reads=pair): 1.0},
        "neurons, worth": _matching_neurons(made, depths, target),
        "features, worth": shares,
        "graph": {(name, made.logit(target, last), "weight"): value for name, value in shares.items()},
        "circuit": dict.fromkeys(inputs, 1.0),
    }


def _matching_heads(made: Compiled, words: Sequence[str], target: str) -> Values:
    """One finds the length, two the shares of brackets that open and that close. At the position that the length tells,
    the last, another finds whether they are balanced, and one finds, everywhere, how often too many were closed.

    Without a length it finds no such position and looks at BOS, where brackets are balanced.
    """
    [length], [opens], [closes], [zero], [negative] = (
        made.heads_writing(name) for name in (made.counted, "opens", "closes", "last_zero", "has_neg")
    )

    def of(kept: frozenset[Unit]) -> float:
        depths = _depths(words, opening=opens in kept, closing=closes in kept)
        matched = length not in kept or depths[-1] == 0
        never = negative not in kept or min(depths) >= 0
        return float(zero in kept and str(matched and never) == target)

    return worth([length, opens, closes, zero, negative], of)


def _matching_neurons(made: Compiled, depths: Sequence[int], target: str) -> Values:
    """Of the layer before the AND: one writes, always, that never too many were closed; where they were, a step takes
    that off and writes the other. It rises between no position and the smallest share there can be, one of the longest.
    """
    true, false = (made.places("not_has_neg")[str(value)] for value in (True, False))
    always = made.neuron({true: 1})
    rises, stops = made.neuron({false: 1, true: -1}), made.neuron({false: -1, true: 1})
    share, fewest = sum(depth < 0 for depth in depths) / len(depths), 1 / len(made.places("indices"))
    up, down = step(share, fewest / 2)

    def of(kept: frozenset[Unit]) -> float:
        off = up * (rises in kept) - down * (stops in kept)
        written = {True: (always in kept) - off, False: off}
        ands = {
            (matched, never): max(0.0, (matched == (depths[-1] == 0)) + written[never] - 1)
            for matched in (True, False)
            for never in (True, False)
        }
        return sum(value for (matched, never), value in ands.items() if str(matched and never) == target)

    return worth([rises, stops, always], of)


def _depths(words: Sequence[str], *, opening: bool = True, closing: bool = True) -> list[int]:
    """At every token after BOS, how many brackets are open; of those alone that are counted."""
    return list(accumulate(opening * (word == "(") - closing * (word == ")") for word in words[1:]))
