"""Protocols: each holds scores of sources to the live model, and gives numbers.

A protocol plays a :class:`..games.Game`. It knows neither of what the sources are nor of who scored them; a new one is
a class with the members of :class:`Protocol` and a line in the table of its sources (sources.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from typing import Protocol as Interface

from jaxtyping import Float
from torch import Tensor

from ..figures import Figure
from ..games import Game

Numbers = Mapping[str, float | list[float | None] | None]
"""What a method gave on one prompt; None where it gave nothing."""
Measured = Mapping[str, Any]
"""What was measured of a prompt whoever scores it, as JSON. Under :data:`CEILING`, the numbers of the measurement."""
CEILING = "ceiling"


class Protocol(Interface):
    """name; figures: what is told over prompts; removal: how sources are taken out where the protocol decides that."""

    @property
    def name(self) -> str: ...

    @property
    def figures(self) -> tuple[Figure, ...]: ...

    @property
    def removal(self) -> str | None: ...

    def measure(self, game: Game, samples: int, seed: int) -> Measured:
        """What takes no scores; empty where there is nothing."""

    def score(self, game: Game, measured: Measured, scores: Float[Tensor, "player"]) -> Numbers: ...
