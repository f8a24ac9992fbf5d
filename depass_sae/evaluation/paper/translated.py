"""The same beginnings of sentences in four languages."""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("English", "French", "German", "Spanish")
TEMPLATES = (
    ("The capital of {0} is", "La capitale {1} est", "Die Hauptstadt von {3} ist", "La capital de {4} es"),
    ("Most people in {0} speak", "{2}, la plupart des gens parlent", "In {3} sprechen die meisten Menschen",
     "La mayoría de la gente en {4} habla"),
    ("My friend lives in {0} and", "Mon ami vit {2} et", "Mein Freund lebt in {3} und", "Mi amigo vive en {4} y"),
)  # fmt: skip
COUNTRIES = (
    ("France", "de la France", "en France", "Frankreich", "Francia"),
    ("Italy", "de l'Italie", "en Italie", "Italien", "Italia"),
    ("Germany", "de l'Allemagne", "en Allemagne", "Deutschland", "Alemania"),
    ("Japan", "du Japon", "au Japon", "Japan", "Japón"),
    ("Spain", "de l'Espagne", "en Espagne", "Spanien", "España"),
    ("Russia", "de la Russie", "en Russie", "Russland", "Rusia"),
    ("England", "de l'Angleterre", "en Angleterre", "England", "Inglaterra"),
    ("Greece", "de la Grèce", "en Grèce", "Griechenland", "Grecia"),
    ("China", "de la Chine", "en Chine", "China", "China"),
    ("Austria", "de l'Autriche", "en Autriche", "Österreich", "Austria"),
    ("Ireland", "de l'Irlande", "en Irlande", "Irland", "Irlanda"),
    ("Egypt", "de l'Égypte", "en Égypte", "Ägypten", "Egipto"),
    ("Cuba", "de Cuba", "à Cuba", "Kuba", "Cuba"),
    ("Poland", "de la Pologne", "en Pologne", "Polen", "Polonia"),
    ("Portugal", "du Portugal", "au Portugal", "Portugal", "Portugal"),
    ("Canada", "du Canada", "au Canada", "Kanada", "Canadá"),
)
"""In English; in French with "of" and with "in"; in German and in Spanish."""


@dataclass(frozen=True)
class Translated:
    """meaning: (country, template), which a text of every language has."""

    text: str
    language: str
    meaning: tuple[int, int]


def translated() -> list[Translated]:
    """Country by country."""
    found = []
    for country, names in enumerate(COUNTRIES):
        for number, template in enumerate(TEMPLATES):
            for language, words in zip(LANGUAGES, template, strict=True):
                text = words.format(*names)
                found.append(Translated(text[0].upper() + text[1:], language, (country, number)))
    return found
