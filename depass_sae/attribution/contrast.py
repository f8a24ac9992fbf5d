"""Two prompts side by side for one target: what differs in the sources.

The two texts are aligned token by token (or word by word); where they differ, the contributions of what was taken out
and of what came in stand on one line, and their difference says which change moved the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from ..view.blocks import Block, Page
from ..view.shown import Shown
from . import looks
from .answer import frame
from .tokens import Span, TokenAttribution

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Pair:
    """One aligned place: a source of each prompt (None where a prompt has nothing there) and their contributions."""

    source: Span | None
    against: Span | None
    value: float
    against_value: float

    @property
    def difference(self) -> float:
        return self.value - self.against_value

    @property
    def same(self) -> bool:
        return self.source is not None and self.against is not None and self.source.text == self.against.text


@dataclass(frozen=True)
class Contrast(Shown):
    """``attribution`` and ``against``: the two answers. ``pairs``: their sources, aligned, in order.

    Σ pairs' differences + the differences of other and constant = the difference of the pre-activations.
    """

    attribution: TokenAttribution
    against: TokenAttribution
    pairs: tuple[Pair, ...]

    @property
    def difference(self) -> float:
        """By how much the pre-activations differ."""
        return self.attribution.pre_activation - self.against.pre_activation

    def to_dict(self) -> dict[str, Any]:
        """The document of the first prompt, with the second's and the aligned differences."""

        def end(source: Span | None, value: float) -> dict[str, Any] | None:
            return None if source is None else source.to_dict(value)

        return {
            **self.attribution.to_dict(),
            "against": self.against.to_dict(),
            "difference": {
                "pos": self.attribution.target.pos,
                "against_pos": self.against.target.pos,
                "pre_activation": self.difference,
                "constant": self.attribution.constant - self.against.constant,
                "other": [
                    {"name": name, "value": value - self.against.other[name]}
                    for name, value in self.attribution.other.items()
                ],
                "sources": [
                    {
                        "source": end(pair.source, pair.value),
                        "against": end(pair.against, pair.against_value),
                        "value": pair.difference,
                    }
                    for pair in self.pairs
                ],
            },
        }

    def to_frame(self) -> pandas.DataFrame:
        """One row per aligned pair, and one each for what is no source.

        kind: "token", "word" or "sentence"; "bias", "rest" and "constant". The columns ``contribution`` and
        ``against`` sum to the two pre-activations, ``difference`` to ``.difference``.
        """
        a, b = ({**end.other, "constant": end.constant} for end in (self.attribution, self.against))
        rows: list[tuple[str, Pair]] = [(self.attribution.by, pair) for pair in self.pairs]
        rows += [(name, Pair(None, None, value, b[name])) for name, value in a.items()]
        return frame(
            {
                "kind": kind,
                "token": pair.source and pair.source.text,
                "against_token": pair.against and pair.against.text,
                "contribution": pair.value,
                "against": pair.against_value,
                "difference": pair.difference,
            }
            for kind, pair in rows
        )

    @property
    def title(self) -> str:
        return f"What differs for {self.attribution.target_name}?"

    def page(self) -> Page:
        return self.attribution.heading.page(self.title, self.blocks(), self.attribution.allocation)

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        """The pairs, largest difference first."""
        return looks.contrast_blocks(self.to_dict(), top)


def contrast(attribution: TokenAttribution, against: TokenAttribution) -> Contrast:
    """Align the strongest targets of two answers to the same question."""
    a, b = attribution.target, against.target
    pairs = []
    matcher = SequenceMatcher(None, [s.text for s in a.sources], [s.text for s in b.sources], autojunk=False)
    for _, a_low, a_high, b_low, b_high in matcher.get_opcodes():
        for i in range(max(a_high - a_low, b_high - b_low)):
            in_a, in_b = a_low + i < a_high, b_low + i < b_high
            pairs.append(
                Pair(
                    a.sources[a_low + i] if in_a else None,
                    b.sources[b_low + i] if in_b else None,
                    a.contributions[a_low + i].item() if in_a else 0.0,
                    b.contributions[b_low + i].item() if in_b else 0.0,
                )
            )
    return Contrast(attribution, against, tuple(pairs))
