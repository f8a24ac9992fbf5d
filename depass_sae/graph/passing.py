"""What a graph's cuts are to a pass that carries one part onwards: where parts are put in, and where the way ends."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from jaxtyping import Float
from torch import Tensor

from ..models.place import Place
from ..passes.onwards import Ends, Given, Part
from .cuts import Cut, Standing


def given_features(cut: Cut, parts: Mapping[Place, Part]) -> Given:
    """Where what some of a cut's features write is put in."""
    if not cut.stands.instead:
        return Given(above=parts)
    return Given(raw=parts) if cut.stands.before_norm else Given(below=parts)


def given_source(cut: Cut, source: int) -> Given:
    """One feature or root of a cut: what it is at every place that it writes into."""
    pos, like = cut.positions[source], cut.roots

    def alone(part: Float[Tensor, "d"]) -> Part:
        found = like.new_zeros(len(like), len(part))
        found[pos] = part.to(found)
        return found

    if source >= cut.n_features:
        return given_features(cut, {cut.place: alone(like[pos])})
    some = slice(source, source + 1)
    return given_features(cut, {place: alone(cut.part(some, place)[0]) for place in cut.written})


def ends(standing: Standing) -> Ends:
    """Where a graph's dictionaries stand."""
    found = Ends(frozenset(cut.place for cut in standing.cuts if not cut.stands.instead), {}, {})
    for cut in standing.cuts:
        if cut.stands.instead:
            kind = found.raw if cut.stands.before_norm else found.equations
            kind[cut.place] = partial(_skipped, cut)  # type: ignore[index]
    return found


def _skipped(cut: Cut, read: Mapping[str, Float[Tensor, "pos d"]]) -> Float[Tensor, "pos d"] | None:
    """What of what a transcoder reads goes through its skip connection."""
    if cut.skip is None:
        return None
    through = read[cut.hook.hook] @ cut.skip.to(read[cut.hook.hook]).T
    if cut.is_token[0]:
        through[0] = 0  # all that is there is the token's
    return through
