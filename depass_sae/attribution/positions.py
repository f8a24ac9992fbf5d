"""At which positions of a prompt a target is read: where it is largest, wherever it fires, or where one says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError
from ..models.prompt import Prompt
from ..passes.record import Trace
from ..passes.sinks import sinks
from ..texts import together
from .logits import LogitTarget
from .readoff import Readoff, Target

Pos = int | Literal["max", "all"]


@dataclass(frozen=True)
class Chosen:
    """The target positions of a question, and what has to be said about the choice."""

    positions: list[int]
    note: str | None = None


def choose_positions(prompt: Prompt, seen: Trace, target: Target, readoff: Readoff, pos: Pos | None) -> Chosen:
    """``max``: where the target is largest; ``all``: wherever a feature fires (every position, for other targets).

    Both leave special tokens and attention sinks (:mod:`..passes.sinks`) out; sinks may be asked for by number. Where a
    feature fires nowhere, the position of its largest pre-activation stands in. None: ``max``, or for a logit the last
    position, whose prediction it is.
    """
    chosen = _chosen(prompt, seen, target, readoff, pos)
    twins = target.twins if isinstance(target, LogitTarget) and seen.logits is not None else ()
    said = (twin.note(seen.logits[p]) for p in chosen.positions for twin in twins)  # type: ignore[index]
    return Chosen(chosen.positions, together(chosen.note, next((note for note in said if note), None)))


def _chosen(prompt: Prompt, seen: Trace, target: Target, readoff: Readoff, pos: Pos | None) -> Chosen:
    n = len(prompt)
    if pos not in (None, "max", "all"):
        if not isinstance(pos, int):
            raise UserError(f"position {pos!r} is neither max nor all nor a number")
        if not 0 <= pos < n:
            raise UserError(f"position {pos} is outside the prompt; its {n} tokens have positions 0 to {n - 1}")
        if pos == 0 and prompt.special[0] and readoff.activation is not None:
            raise UserError(f"position 0 is the special token {prompt.tokens[0]!r}, where features mean nothing")
        return Chosen([pos])
    if pos is None and target.place is None:
        return Chosen([n - 1])
    ordinary = [p for p in range(n) if not prompt.special[p]]
    if not ordinary:
        raise UserError("the prompt has special tokens only")
    sunk = set(sinks(seen, readoff.place))
    candidates = [p for p in ordinary if p not in sunk] or ordinary
    pre = readoff.pre.cpu()
    value = pre if readoff.activation is None else readoff.activation.cpu()
    firing, left_out = (
        [p for p in some if readoff.activation is None or value[p] != 0]
        for some in (candidates, [p for p in ordinary if p not in candidates])
    )
    note = _left_out(prompt, left_out)
    if not firing:
        best = max(candidates, key=lambda p: pre[p].item())
        where = "elsewhere" if left_out else "on this prompt"
        said = f"{target.name} fires nowhere {where}; shown is its largest pre-activation, at position {best}"
        return Chosen([best], said if note is None else f"{note}; {said}")
    strength = value if readoff.activation is None else value.abs()  # abstopk fires with either sign
    return Chosen(firing if pos == "all" else [max(firing, key=lambda p: strength[p].item())], note)


def _left_out(prompt: Prompt, sunk: Sequence[int]) -> str | None:
    """What has to be said of sinks at which the target would have been read."""
    if not sunk:
        return None
    places = [f"{p} ({prompt.tokens[p]!r})" for p in sunk]
    asked = " or ".join(f"--pos {p}" for p in sunk)
    if len(sunk) == 1:
        return f"position {places[0]} is left out as an attention sink; ask for it with {asked}"
    return f"positions {', '.join(places)} are left out as attention sinks; ask for them with {asked}"
