"""What mixes positions or neurons in a sublayer, a file for each kind: all that is particular to one is in its file."""

from collections.abc import Callable
from typing import Any

from ...models import parts
from ...models.sublayer import Mixed
from .attention import Attention
from .delta import DeltaRule
from .experts import Experts
from .mixer import Mixer
from .mlp import MLP

KINDS: dict[type, Callable[[Any], Mixer]] = {
    parts.Attention: Attention,
    parts.DeltaRule: DeltaRule,
    parts.MLP: MLP,
    parts.Experts: Experts,
}


def mixer_of(part: Mixed) -> Mixer:
    """What a described part does."""
    return KINDS[type(part)](part)
