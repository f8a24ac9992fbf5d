"""One part of the stream carried forward: what it makes of every later place.

The frozen pass is an affine map under ``linear``, ``half`` and ``half-qk``, so a part goes through it by forward
differentiation, in the time of one pass, and every later reading of it is an inner product with what arrives:

    ⟨w, J part⟩ = ⟨Jᵀ w, part⟩        the number that a sweep back from the reading (backward.py) gives the part

With everything live the same pass gives first-order effects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from ..models.place import Place, stream_at
from .choices import Choices
from .record import Trace

Part = Float[Tensor, "pos d"]
Skips = Callable[[Mapping[str, Part]], Part | None]
"""Of what has arrived at the places that an MLP reads, by their hooks, what goes through what stands for it."""


@dataclass(frozen=True)
class Given:
    """Where a part is put in. above: at streams, or inside or behind sublayers, on top of what ends there: what an SAE
    wrote. below: at hook_z, attn_out or mlp_out, as part of what the model makes there: heads, neurons, and what a
    transcoder writes. raw: the same of what an MLP adds, before the norm on that.
    """

    above: Mapping[Place, Part] = field(default_factory=dict, repr=False)
    below: Mapping[Place, Part] = field(default_factory=dict, repr=False)
    raw: Mapping[Place, Part] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Ends:
    """Where the way is cut off: what arrives is handed out, and nothing of it goes on.

    values: streams, hook_z, attn_out, mlp_out. equations: of what an MLP adds, by that place: something else stands for
    the whole MLP. raw: the same before the norm on what it adds.
    """

    values: frozenset[Place] = frozenset()
    equations: Mapping[Place, Skips] = field(default_factory=dict)
    raw: Mapping[Place, Skips] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrived:
    """below: what has come to a place. above: what stands on it: with what is put in there, without what ends there."""

    place: Place
    below: Part = field(repr=False)
    above: Part = field(repr=False)


def onwards(
    trace: Trace,
    given: Given,
    choices: Choices,
    ends: Ends = Ends(),
) -> Iterator[Arrived]:
    """What arrives at every place behind the lowest that is given something, in order; last the stream behind the last
    layer. The trace is of one prompt.
    """
    streams_in = {place.depth: part for place, part in given.above.items() if place.is_stream}
    stream_ends = {place.depth for place in ends.values if place.is_stream}
    first = min(place.depth for place in (*given.above, *given.below, *given.raw))
    nothing = torch.zeros_like(trace.streams[first])
    streams: dict[int, Part] = {}

    def above(arrived: Part, ended: bool, put_in: Part | None) -> Part:
        return _plus(torch.zeros_like(arrived) if ended else arrived, put_in)

    for number in range(first, 2 * trace.n_layers + 1):
        arrived = streams.get(number, nothing)
        streams[number] = above(arrived, number in stream_ends, streams_in.get(number))
        yield Arrived(stream_at(number, trace.n_layers), arrived, streams[number])
        if number == 2 * trace.n_layers:
            return
        frozen = trace.sublayer(number)
        place, heads = frozen.sublayer.place, Place(frozen.sublayer.place.layer, "hook_z")
        read = streams.get(frozen.sublayer.reads.depth, nothing)
        with forward_ad.dual_level():
            inside = frozen.inside(forward_ad.make_dual(frozen.resid, read), choices)
            z, normed, bare = (_tangent(x) for x in (inside.z, inside.normed, inside.bare))
            bias = frozen.live_bias(inside, choices)
            shift = None if bias is None else _tangent(bias)
        if frozen.mixer.looks_back:
            arrived = _plus(z, given.below.get(heads))
            z = above(arrived, heads in ends.values, given.above.get(heads))
            yield Arrived(heads, arrived, z)
            behind = {}
        else:
            behind = {"ln2_normalized": bare, "mlp_in": normed}
            yield from (Arrived(Place(place.layer, hook), part, part) for hook, part in behind.items())
            behind[frozen.sublayer.reads.hook] = read
        written = frozen.mixer.write(z, frozen.record)  # linear in z; bias vectors apart
        written = written if shift is None else written + shift
        if place in ends.raw:
            written = _or_zero(ends.raw[place](behind), written)
        written = _plus(written, given.raw.get(place))
        recorded = written if frozen.post is None else frozen.record.at["raw"].to(written)
        with forward_ad.dual_level():
            out = _tangent(frozen.added(forward_ad.make_dual(recorded, written), choices))
        if place in ends.equations:
            out = _or_zero(ends.equations[place](behind), out)
        out = _plus(out, given.below.get(place))
        added = above(out, place in ends.values, given.above.get(place))
        yield Arrived(place, out, added)
        streams[number + 1] = streams[number] + added


def _plus(part: Part, more: Part | None) -> Part:
    return part if more is None else part + more


def _or_zero(part: Part | None, like: Part) -> Part:
    return torch.zeros_like(like) if part is None else part


def _tangent(x: Tensor) -> Part:
    found = forward_ad.unpack_dual(x).tangent
    return torch.zeros_like(x) if found is None else found.detach()
