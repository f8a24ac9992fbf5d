"""A unit of a corpus becomes a part on the disk, whichever process does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..models.place import Place
from ..subject import Subject
from .firings import Tokens, fired
from .parts import Part, Parts
from .summary import Summary, drawn, summarized
from .units import Unit


@dataclass(frozen=True)
class Work:
    """All that doing a unit takes beside the model and its SAEs. full: see :meth:`.ScanSettings.full_of`."""

    parts: Parts
    full: Mapping[Place, tuple[int, ...] | None] = field(default_factory=dict)

    def do(self, subject: Subject, unit: Unit, tell: Callable[[int], None] = lambda done: None) -> Part:
        """The unit's part. tell: is called with how many of its tokens are done."""
        tokens = Tokens.of(unit.windows)
        found = fired(subject, unit.windows, tokens, tell)
        summaries: dict[Place, Summary] = {}
        for hook in self.parts.saes:
            summaries[hook] = summarized(tokens, found.pop(hook), self.parts.choosing, self.full.get(hook, ()))
        return self.parts.write_unit(unit.entry, unit.windows, summaries, int(drawn(tokens).sum()))
