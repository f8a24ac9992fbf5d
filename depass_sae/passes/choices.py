"""What of a pass stays as recorded: everything for contributions, nothing for first-order effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MLPChoice = Literal["linear", "half", "live"]


@dataclass(frozen=True)
class Choices:
    """``CONTRIBUTION[rule]`` freezes everything, ``EFFECT`` nothing.

    pattern: where heads look, and what gates and norms their outputs. norm: the scale of the norms before and after
    a sublayer. mlp: the rule by which a neuron's two factors share it; live, experts' weights are, too.
    """

    pattern: Literal["frozen", "live"]
    norm: Literal["frozen", "live"]
    mlp: MLPChoice


CONTRIBUTION = {rule: Choices("frozen", "frozen", rule) for rule in ("linear", "half")}
EFFECT = Choices("live", "live", "live")
