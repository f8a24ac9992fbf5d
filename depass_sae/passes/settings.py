"""How a question is worked on: by which rule, in how much memory, and who is told how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Int
from torch import Tensor

from ..models.place import Place
from . import DEFAULT_RULE
from .backward import Level
from .choices import CONTRIBUTION, Choices
from .forward import Allocation, FirstToken, Progress, propagate
from .many import Aim, Batch, sweep_each
from .memory import Budget
from .record import Trace
from .rows import Rows
from .rules import TEMPERATURE
from .sources import Split


@dataclass(frozen=True)
class Settings:
    """The rule with its settings, the memory that a pass may take, and who is told of its progress.

    Neither memory nor progress changes a result.
    """

    allocation: Allocation = Allocation()  # noqa: RUF009 (frozen)
    budget: Budget = Budget()  # noqa: RUF009 (frozen)
    progress: Progress | None = None

    @classmethod
    def of(
        cls,
        rule: str | None = None,
        temperature: float = TEMPERATURE,
        first_token: FirstToken = "skip",
        memory: float | str | None = None,
        progress: Progress | None = None,
    ) -> Settings:
        """As people give them. rule None: ``half``. Raises UserError for what cannot be."""
        allocation = Allocation(DEFAULT_RULE if rule is None else rule, temperature, first_token)
        return cls(allocation, Budget.of(memory), progress)

    @property
    def rule(self) -> str:
        return self.allocation.rule

    @property
    def swept(self) -> bool:
        """Whether the rule's frozen pass is a linear map, so that one sweep back answers for all sources."""
        return self.rule in CONTRIBUTION

    def by(self, rule: str) -> Settings:
        """The same with another rule."""
        return replace(self, allocation=replace(self.allocation, rule=rule))

    def quiet(self) -> Settings:
        """The same for a part of the work of which nobody is told."""
        return replace(self, progress=None)

    def part(self, number: int, parts: int) -> Settings:
        """Of one of so many equal parts of the work, whose progress is told as that of the whole."""
        progress = self.progress
        if progress is None or parts == 1:
            return self
        return replace(self, progress=lambda what, done, steps: progress(what, number * steps + done, parts * steps))

    def tell(self, what: str, done: int, steps: int) -> None:
        """So many steps are done of all that there are."""
        if self.progress is not None:
            self.progress(what, done, steps)

    def carry(self, trace: Trace, start: Split, reads: Mapping[Place, Int[Tensor, "kept"]]) -> dict[Place, Rows]:
        """A start's components carried forward to where they are read (:func:`.propagate`)."""
        return propagate(trace, start, reads, self.allocation, budget=self.budget, progress=self.progress)

    def sweep(
        self,
        traces: Sequence[Trace],
        aims: Sequence[Aim],
        visit: Callable[[Batch, Iterator[Level]], None],
        choices: Choices | None = None,
    ) -> None:
        """Every aim swept back to the embeddings under the rule, or with other choices (:func:`.sweep_each`)."""
        sweep_each(traces, aims, choices or CONTRIBUTION[self.rule], visit, self.budget, self.progress)
