"""Sentences with an indirect object, after Wang et al. 2022 (*Interpretability in the Wild*).

Two people are named, one of them once more as the giver, and the sentence stops where the other's name has to follow:
"Then, Mary and John went to the store. John gave a drink to" → " Mary". The giver is the second of the two names
(ABBA) or the first (BABA).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

TEMPLATES = (
    "Then, {first} and {second} went to the {place}. {giver} gave a {thing} to",
    "When {first} and {second} got a {thing} at the {place}, {giver} decided to give it to",
    "After {first} and {second} went to the {place}, {giver} gave a {thing} to",
    "While {first} and {second} were waiting at the {place}, {giver} gave a {thing} to",
    "Then, {first} and {second} had a long argument at the {place}. Afterwards {giver} said to",
    "{first} and {second} met at the {place}. After a while, {giver} handed a {thing} to",
)
NAMES = [
    "Mary", "John", "Tom", "James", "Dan", "Sarah", "Martin", "Amy", "Anna", "Paul", "Mark", "Laura", "David",
    "Alice", "Peter", "Lisa", "Robert", "Jane", "Susan", "George", "Emma", "Jack", "Kate", "Simon", "Alex", "Ben",
    "Rachel", "Michael", "Daniel", "Adam", "Henry", "Julia", "Lucy", "Rose", "Sam", "Max", "Charles", "William",
]  # fmt: skip
"""Each is one token of SmolLM2's, with the space before it."""
PLACES = ["store", "school", "office", "restaurant", "hospital", "station", "house", "garden"]
THINGS = ["drink", "ring", "book", "basketball", "computer", "necklace", "letter", "ticket"]
DRAWS = 2
"""How often each template is filled in, in each order of the names."""


@dataclass(frozen=True)
class Sentence:
    """indirect_object, subject: the names, as the tokens that might follow: " Mary", " John"."""

    text: str
    indirect_object: str
    subject: str

    @property
    def exchanged(self) -> str:
        """The same with the giver's name, where it is said again, exchanged for the other: its answer is the giver."""
        before, name, after = self.text.rpartition(self.subject)
        assert name
        return f"{before}{self.indirect_object}{after}"


def sentences() -> list[Sentence]:
    """Every template in both orders, ``DRAWS`` times each, always the same."""
    draw = random.Random(0)
    found = []
    for template in TEMPLATES * DRAWS:
        for giver_is_first in (False, True):
            found.append(filled_in(template, giver_is_first, draw))
    return found


def of_one_structure(count: int) -> list[Sentence]:
    """Fillings of the first template, the giver being the second of the two names: the same word at every position."""
    draw = random.Random(1)
    return [filled_in(TEMPLATES[0], False, draw) for _ in range(count)]


def filled_in(template: str, giver_is_first: bool, draw: random.Random) -> Sentence:
    first, second = draw.sample(NAMES, 2)
    giver, other = (first, second) if giver_is_first else (second, first)
    place, thing = draw.choice(PLACES), draw.choice(THINGS)
    text = template.format(first=first, second=second, giver=giver, place=place, thing=thing)
    return Sentence(text, f" {other}", f" {giver}")
