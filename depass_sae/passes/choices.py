"""What of a pass stays as recorded: everything for contributions, nothing for first-order effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .rules import QK, RULES


@dataclass(frozen=True)
class Choices:
    """``CONTRIBUTION[rule]`` freezes everything, ``EFFECT`` nothing.

    pattern: where heads look, and what gates and norms their outputs. norm: the scale of the norms before and after
    a sublayer. mlp: a rule of products (rules.py), or live; then experts' weights are live, too. qk: how queries and
    keys have a share in what a frozen pattern moves (None: they have none).
    """

    pattern: Literal["frozen", "live"]
    norm: Literal["frozen", "live"]
    mlp: str
    qk: QK | None = None


CONTRIBUTION = {
    name: Choices("frozen", "frozen", name)
    for name, rule in RULES.items()
    if not rule.couples and not rule.shares_scores
}
EFFECT = Choices("live", "live", "live")
