"""The places of a model where something can be read: a residual stream, or what a sublayer has inside or adds.

resid_pre                                     what a layer is handed
  hook_z, attn_out                            its heads before W_O; what its attention adds, after a post-norm
resid_mid                                     the stream between the two sublayers
  ln2_normalized, mlp_in, mlp_out             the MLP's normed input without and with the norm's gain; what it adds
resid_post                                    what the layer hands on: ``resid_pre`` of the next
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..arguments import NUMBER
from ..errors import UserError

HOOKS = ("resid_pre", "hook_z", "attn_out", "resid_mid", "ln2_normalized", "mlp_in", "mlp_out", "resid_post")
"""Where a layer can be read, in the order in which it computes them."""
STREAM = ("resid_pre", "resid_mid", "resid_post")
OUTPUTS = ("attn_out", "mlp_out")
_BEFORE = dict(zip(HOOKS, (0, 0, 0, 1, 1, 1, 1, 2), strict=True))
"""How many of a layer's sublayers lie before a place: what is inside one does not lie behind it."""


class Place(NamedTuple("Place", [("layer", int), ("hook", str)])):
    """A layer and one of :data:`HOOKS`: ``Place(17, "resid_post")``, written ``17.resid_post``.

    Ordered as a model computes them, and equal to the plain pair. Raises UserError for what is no place.
    """

    __slots__ = ()

    def __new__(cls, layer: int, hook: str) -> Place:
        if layer < 0:
            raise UserError(f"there is no layer {layer}: layers count from 0")
        if hook not in HOOKS:
            raise UserError(f"{hook!r} is not a hook; the hooks are {', '.join(HOOKS)}")
        return super().__new__(cls, layer, hook)

    @classmethod
    def parse(cls, text: str) -> Place:
        """``"17.resid_post"``. Raises UserError for anything that is not ``layer.hook``."""
        match = re.fullmatch(rf"({NUMBER})\.(\w+)", text.strip())
        if match is None:
            raise UserError(f"{text!r} is not a hook: write layer.name, such as 17.resid_post")
        return cls(int(match[1]), match[2])

    @property
    def name(self) -> str:
        """The hook, as it was called before."""
        return self.hook

    @property
    def is_stream(self) -> bool:
        return self.hook in STREAM

    @property
    def is_output(self) -> bool:
        """Whether it is what a sublayer adds to the stream."""
        return self.hook in OUTPUTS

    @property
    def depth(self) -> int:
        """How many sublayers, attention and MLP of each layer in turn, lie before it.

        Of the stream it is the place itself: ``resid_post`` of a layer and ``resid_pre`` of the next have one depth.
        Off the stream it is the number of the sublayer that the place belongs to.
        """
        return 2 * self.layer + _BEFORE[self.hook]

    @property
    def behind(self) -> int:
        """How many sublayers lie before the stream that has in it what stands here."""
        return self.depth + (not self.is_stream)

    @property
    def as_post(self) -> Place:
        """The same place as what the layer before hands on."""
        return Place(self.layer - 1, "resid_post") if self.hook == "resid_pre" and self.layer else self

    def __str__(self) -> str:
        return f"{self.layer}.{self.hook}"

    def __repr__(self) -> str:
        return f"Place({self.layer}, {self.hook!r})"

    def __lt__(self, other: tuple) -> bool:
        return self._order < Place(*other)._order

    def __le__(self, other: tuple) -> bool:
        return self._order <= Place(*other)._order

    def __gt__(self, other: tuple) -> bool:
        return self._order > Place(*other)._order

    def __ge__(self, other: tuple) -> bool:
        return self._order >= Place(*other)._order

    @property
    def _order(self) -> tuple[int, int]:
        return self.layer, HOOKS.index(self.hook)


def stream_at(depth: int, n_layers: int) -> Place:
    """The stream behind so many sublayers; behind the last layer what it hands on."""
    layer, within = divmod(depth, 2)
    return Place(layer - 1, "resid_post") if layer == n_layers else Place(layer, STREAM[within])
