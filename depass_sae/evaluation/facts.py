"""Facts that SmolLM2-135M knows: prompts that it completes with the right token.

Of each the model's first choice is the answer (``tests/evaluation/test_circuits.py``).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """answer: one token, with the space before it."""

    prompt: str
    answer: str


FACTS = (
    Fact("The capital of France is", " Paris"),
    Fact("The capital of Italy is", " Rome"),
    Fact("The capital of Germany is", " Berlin"),
    Fact("The capital of Japan is", " Tokyo"),
    Fact("The capital of Spain is", " Madrid"),
    Fact("The capital of Russia is", " Moscow"),
    Fact("The capital of England is", " London"),
    Fact("The capital of Greece is", " Athens"),
    Fact("The capital of China is", " Beijing"),
    Fact("The capital of Austria is", " Vienna"),
    Fact("The capital of Ireland is", " Dublin"),
    Fact("The Eiffel Tower is in the city of", " Paris"),
    Fact("The Colosseum is in the city of", " Rome"),
    Fact("Big Ben is in the city of", " London"),
    Fact("The pyramids of Giza are in", " Egypt"),
    Fact("The largest planet in the solar system is", " Jupiter"),
    Fact("The planet closest to the Sun is", " Mercury"),
    Fact("The Earth revolves around the", " Sun"),
    Fact("The red planet is called", " Mars"),
    Fact("The chemical symbol for gold is", " Au"),
    Fact("The opposite of hot is", " cold"),
    Fact("The opposite of up is", " down"),
    Fact("Romeo and Juliet was written by William", " Shakespeare"),
    Fact("The theory of relativity was developed by Albert", " Einstein"),
    Fact("The first president of the United States was George", " Washington"),
    Fact("The first man on the Moon was Neil", " Armstrong"),
    Fact("The Mona Lisa was painted by Leonardo da", " Vinci"),
    Fact("Monday, Tuesday, Wednesday,", " Thursday"),
    Fact("January, February, March,", " April"),
    Fact("One, two, three,", " four"),
    Fact("People in Spain speak", " Spanish"),
    Fact("The largest ocean on Earth is the", " Pacific"),
    Fact("The longest river in Africa is the", " Nile"),
    Fact("The heart pumps", " blood"),
    Fact("The sun rises in the", " east"),
    Fact("The Amazon rainforest is in South", " America"),
    Fact("Charles Darwin wrote about the theory of", " evolution"),
)
