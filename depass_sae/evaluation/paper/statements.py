"""Facts with a right and a wrong answer, as prompts that both complete."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Statement:
    """right, wrong: what may follow the prompt, with the space before it; the wrong one is another prompt's right."""

    prompt: str
    right: str
    wrong: str

    def with_answer(self, answer: str) -> str:
        """As a sentence."""
        return f"{self.prompt}{answer}."


RELATIONS = {
    "The capital of {} is": {
        "France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Japan": "Tokyo", "Spain": "Madrid",
        "Russia": "Moscow", "England": "London", "Greece": "Athens", "China": "Beijing", "Austria": "Vienna",
        "Ireland": "Dublin", "Egypt": "Cairo", "Cuba": "Havana", "Poland": "Warsaw", "Portugal": "Lisbon",
        "Canada": "Ottawa", "Norway": "Oslo", "Sweden": "Stockholm", "Hungary": "Budapest", "Turkey": "Ankara",
    },
    "{} is a country on the continent of": {
        "Egypt": "Africa", "France": "Europe", "India": "Asia", "Kenya": "Africa", "Germany": "Europe",
        "Japan": "Asia", "Nigeria": "Africa", "Spain": "Europe", "Thailand": "Asia", "Ghana": "Africa",
        "Sweden": "Europe", "Vietnam": "Asia",
    },
    "The opposite of {} is": {
        "hot": "cold", "up": "down", "big": "small", "day": "night", "left": "right", "good": "bad",
        "rich": "poor", "open": "closed", "light": "dark", "young": "old", "fast": "slow", "early": "late",
    },
    "In {}, most people speak": {
        "Spain": "Spanish", "France": "French", "Germany": "German", "Italy": "Italian", "Japan": "Japanese",
        "Russia": "Russian", "China": "Chinese", "Greece": "Greek", "Poland": "Polish", "Portugal": "Portuguese",
        "Brazil": "Portuguese", "Mexico": "Spanish",
    },
    "A young {} is called a": {
        "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "lion": "cub",
    },
}  # fmt: skip


def statements() -> list[Statement]:
    """Of every relation in turn, so that halves of them have some of each."""
    found = []
    for relation, pairs in RELATIONS.items():
        subjects, answers = list(pairs), list(pairs.values())
        for at, subject in enumerate(subjects):
            others = (answers[(at + step) % len(answers)] for step in range(1, len(answers)))
            wrong = next(other for other in others if other != answers[at])
            found.append(Statement(relation.format(subject), f" {answers[at]}", f" {wrong}"))
    return found
