"""All circuits, by name: the rows of the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from . import compiled
from .circuit import Circuit
from .copying import CopyHead, Induction
from .dictionaries import DICTIONARIES
from .gates import GATES, Product

CIRCUITS: dict[str, Callable[[], Circuit]] = {
    "copy head": CopyHead().circuit,
    "copy head, certain": CopyHead("copy head, certain", score=60.0).circuit,
    "induction": Induction().circuit,
    **{gate.name: gate.circuit for gate in GATES},
    "product": Product().circuit,
    **{made.name: made.circuit for made in DICTIONARIES},
    **{f"tracr: {name}": partial(compiled.circuit, name) for name in compiled.NAMES},
    "tracr: bigram, not folded": partial(compiled.circuit, "bigram", fold=False),
}
"""What makes each; the models are built when they are asked for."""
