"""The raw parts of a decomposition, for whoever wants to go on from there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.forward import Allocation
from ..passes.rows import REST
from ..passes.rules import rule_named
from ..passes.settings import Settings
from ..passes.sources import Source, Spans, Vectors
from ..subject import Subject
from .tokens import By, spans_of


@dataclass(frozen=True)
class Decomposition:
    """Σ over components of ``parts`` = ``whole``, what the model computed, at every position.

    labels: the source's own components, then "bias" and "rest" (under half-qk "pattern" before them). present: where
    each takes part; it is 0 elsewhere.
    """

    place: Place
    parts: Float[Tensor, "pos component d"]
    labels: tuple[str, ...]
    whole: Float[Tensor, "pos d"]
    present: Bool[Tensor, "pos component"]
    allocation: Allocation

    @property
    def point(self) -> Place:
        """``place``, as it was called before."""
        return self.place

    @property
    def note(self) -> str | None:
        return self.allocation.note

    @property
    def completeness_error(self) -> float:
        """The largest |Σ parts − whole| over the largest entry of either, at the worst position."""
        missing = (self.parts.double().sum(dim=1) - self.whole.double()).abs().amax(-1)
        size = self.parts.abs().amax((1, 2)).maximum(self.whole.abs().amax(-1)).double()
        return (missing / size.clamp_min(1e-300)).max().item()

    def __repr__(self) -> str:
        n, m, d = self.parts.shape
        layer, hook = self.place
        error = f"completeness error {self.completeness_error:.0e}"
        return f"Decomposition({hook} of layer {layer}: {n} positions x {m} components x {d}, {error})"


def decompose(
    subject: Subject,
    prompt: Prompt,
    source: str | Source,
    *,
    place: Place,
    start: int = 0,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> Decomposition:
    """Carry a source's components to a read point. Raises UserError for a point before the source's start."""
    if isinstance(source, str):
        by: dict[str, By] = {"tokens": "token", "words": "word", "sentences": "sentence"}
        if source not in by:
            raise UserError(f"unknown source {source!r}; choose {', '.join(by)}, or give a source object")
        spans = spans_of(prompt, by[source])
        source = Spans([span.positions for span in spans], [span.text for span in spans], start)
    first = source.at[0] if isinstance(source, Vectors) else getattr(source, "layer", 0)
    n_layers = subject.adapter.n_layers
    for layer in (place[0], first):
        if not 0 <= layer < n_layers:
            raise UserError(f"there is no layer {layer}; {subject.loaded.name} has layers 0 to {n_layers - 1}")
    seen = subject.trace(prompt, max(place[0], first), (place,))
    components = source.start(seen).under(rule_named(settings.rule))
    positions = torch.arange(len(prompt))
    found = settings.carry(seen, components, {place: positions})[place]
    parts, present = found.dense(), found.present.clone()
    if rule_named(settings.rule).may_spill:  # it was carried in case something would fall to it
        present[:, REST] &= parts[:, REST].any(dim=-1).cpu()
    answer = Decomposition(place, parts, components.labels, seen.at(place), present, settings.allocation)
    subject.warn_incomplete(f"{place[1]} of layer {place[0]}", answer.completeness_error)
    return answer
