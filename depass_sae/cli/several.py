"""The answers to one question on several prompts, as one result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..attribution.document import SCHEMA_VERSION
from ..view.blocks import Block, HeatMap, Note, Page, Section, Strip
from ..view.figures import figures
from ..view.shown import Shown
from ..view.words import count

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from ..attribution.features import FeatureReport
    from ..attribution.steering import Steered
    from ..attribution.tokens import TokenAttribution


@dataclass(frozen=True)
class Several(Shown):
    """What each of several prompts says, in their order."""

    answers: tuple[TokenAttribution | FeatureReport | Steered, ...]

    @property
    def title(self) -> str:
        return f"{self.answers[0].title.rstrip('?')}, in {count(len(self.answers))} prompts"

    def to_dict(self) -> dict[str, Any]:
        """The documents of all of them."""
        return {"schema_version": SCHEMA_VERSION, "prompts": [answer.to_dict() for answer in self.answers]}

    def to_frame(self) -> pandas.DataFrame:
        """The rows of all of them, the prompt's number before each."""
        import pandas

        frames = [answer.to_frame() for answer in self.answers]
        for number, frame in enumerate(frames, start=1):
            frame.insert(0, "prompt", number)
        return pandas.concat(frames, ignore_index=True)

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        return self._sections(answer.blocks(top) for answer in self.answers)

    def brief(self) -> tuple[Block, ...]:
        """Of each prompt the answer in a line, and what is drawn of it, without tables."""
        return self._sections(
            tuple(block for block in answer.blocks() if isinstance(block, Strip | HeatMap) or _is_answer(block))
            for answer in self.answers
        )

    def page(self) -> Page:
        first = self.answers[0].page()
        sections = self._sections(answer.page().blocks for answer in self.answers)
        return replace(first, title=self.title, blocks=sections, kicker="", contents=True, colophon=first.colophon[:2])

    def figure(self) -> Figure:
        return figures(self.page().blocks)

    def _sections(self, found: Iterable[tuple[Block, ...]]) -> tuple[Block, ...]:
        return tuple(
            Section(f"prompt {number}", blocks, id=f"prompt-{number}") for number, blocks in enumerate(found, start=1)
        )


def _is_answer(block: Block) -> bool:
    return isinstance(block, Note) and block.role == "answer"
