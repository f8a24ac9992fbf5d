"""Positions that the model makes an attention sink: a place to look at where there is nothing to look for.

Their activation is massive and says nothing of their token, so that features which "fire" there drown all others. The
first position of a prompt is one in most models, be it a start token or not, and now and then a later one is, too.

The rule: a position is a sink from where on the residual stream there, after the embeddings, has more than ``LATER``
times the usual norm, the first position more than ``FIRST`` times. Usual is the median of the positions after the first
(the lower of the middle two, so that of two positions the smaller counts). A sink stays one at all later layers, though
its norm falls towards the last.

Measured on SmolLM2 and the 60 prompts of ``make rules`` (1,050 tokens after the start token): none is taken for a sink,
at any layer; the largest norm is 11.4 times the usual below layer 11, and 1.5 times from there on. On 23,395 tokens of
longer text (contexts of up to 128) it is 13.9 times below layer 11; above, one token goes beyond 6 times: with 23.6, it
is a sink. Position 0 without a start token is found in all 60 prompts from layer 2 on (6.9 times the usual, and over
100 times after layer 11). ``tests/passes/test_sinks.py`` measures it again.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.place import Place
from .record import Trace

FIRST, LATER = 5.0, 20.0
"""Times the usual norm. Nearly every first position is a sink, so that less has to be seen of it."""


def sinks(seen: Trace, place: tuple[int, str]) -> list[int]:
    """The positions of one prompt that are attention sinks, by the residual stream up to where a place is computed."""
    return sinks_of([x.norm(dim=-1) for x in _stream(seen, place)])


def sinks_of(norms: list[Float[Tensor, "pos"]]) -> list[int]:
    """The rule itself. norms: of the residual stream, at every place of it up to the one that is asked about."""
    if not norms or len(norms[0]) < 2:
        return []
    stacked = torch.stack(norms)
    usual = stacked[:, 1:].median(dim=1, keepdim=True).values
    times = torch.full_like(stacked[0], LATER)
    times[0] = FIRST
    return (stacked > times * usual).any(dim=0).nonzero()[:, 0].tolist()


def _stream(seen: Trace, place: tuple[int, str]) -> list[Float[Tensor, "pos d_model"]]:
    """After each sublayer, up to a place: what a sublayer reads inside, or adds, is judged by the stream behind it."""
    place = Place(*place)
    return seen.streams[1 : place.behind + 1]
