"""What stands at one level of a graph: the residual stream there, split into sources that sum to it exactly.

At the embeddings the sources are the tokens. At an SAE they are its active features, one error per position, and the
decoder's constant. Position 0, where it is a special token or an attention sink, has no features: its whole stream is
one source there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..models.place import Place
from ..models.prompt import Prompt
from ..passes.record import Trace
from ..passes.rows import Rows
from ..passes.sinks import sinks
from ..passes.sources import Split
from ..saes import Encoded, FeatureParts
from ..subject import Subject

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class Cut:
    """The sources at one point of the residual stream, in this order: features (by position, then index), one root
    per position, the constant, and the bias vectors from here to what reads the cut.

    layer: of the SAE; -1 stands for the embeddings. features: None there.
    roots: a token's embedding, an SAE's error, or position 0's whole stream. is_token: which of them are tokens.
    constant: the decoder's, zero where there is none.
    """

    layer: int
    place: Place
    encoded: Encoded | None = field(repr=False)
    features: FeatureParts | None = field(repr=False)
    roots: Float[Tensor, "pos d_model"] = field(repr=False)
    is_token: tuple[bool, ...]
    constant: Float[Tensor, "pos d_model"] = field(repr=False)

    @property
    def sae(self) -> SAE | None:
        return None if self.encoded is None else self.encoded.sae

    @property
    def n_features(self) -> int:
        return 0 if self.features is None else len(self.features.pos)

    @property
    def n_sources(self) -> int:
        return self.n_features + len(self.roots) + 2

    @cached_property
    def positions(self) -> list[int]:
        """Of every feature and root."""
        features = [] if self.features is None else self.features.pos.tolist()
        return [*features, *range(len(self.roots))]

    @cached_property
    def offsets(self) -> list[int]:
        """offsets[p]:offsets[p+1] are the features of position p."""
        counts = torch.zeros(len(self.roots), dtype=torch.long)
        if self.features is not None:
            counts = torch.bincount(self.features.pos.cpu(), minlength=len(self.roots))
        return [0, *counts.cumsum(0).tolist()]

    def inflow(
        self, gradient: Float[Tensor, "target pos d_model"], bias: Float[Tensor, "target"]
    ) -> Float[Tensor, "target source"]:
        """⟨gradient, part⟩ for every source; the gradient may end before the cut's last position."""
        n = gradient.shape[1]
        found = gradient.new_zeros(len(gradient), self.n_sources)
        if self.features is not None:
            for pos in range(n):
                some = slice(self.offsets[pos], self.offsets[pos + 1])
                found[:, some] = gradient[:, pos] @ self.features.part(some).to(gradient).T
        found[:, self.n_features : self.n_features + n] = torch.einsum("tpd,pd->tp", gradient, self.roots[:n])
        found[:, -2] = torch.einsum("tpd,pd->t", gradient, self.constant[:n])
        found[:, -1] = bias
        return found

    def start(self) -> Split:
        """The same sources for the forward engine. ``bias`` is its own, and ``rest`` stays empty."""
        n, m = len(self.roots), self.n_sources
        pos = torch.tensor(self.positions)
        present = torch.zeros(n, m + 1, dtype=torch.bool)
        present[pos, torch.arange(m - 2)] = True
        has_constant = self.constant.any(dim=-1).cpu()
        present[:, m - 2] = has_constant
        parts = [] if self.features is None else [self.features.part(slice(None)).to(self.roots)]
        own = torch.cat([*parts, self.roots])
        order = [
            source for p in range(n) for source in (*range(self.offsets[p], self.offsets[p + 1]), self.n_features + p)
        ]
        values = self.roots.new_zeros(int(present.sum()), self.roots.shape[1])
        is_constant = present.nonzero(as_tuple=True)[1] == m - 2
        values[~is_constant] = own[order]
        values[is_constant] = self.constant[has_constant.to(self.constant.device)]
        first_only = torch.zeros(m + 1, dtype=torch.bool)
        first_only[: m - 2] = pos == 0
        labels = [str(source) for source in range(m - 2)]
        rows = Rows(torch.arange(n), present, values)
        return Split(self.place, rows, (*labels, "constant", "bias", "rest"), first_only)


def embedding_cut(seen: Trace) -> Cut:
    """The tokens, position embeddings included."""
    x = seen.resid_pre[0]
    return Cut(-1, Place(0, "resid_pre"), None, None, x, (True,) * len(x), torch.zeros_like(x))


def sae_cut(subject: Subject, seen: Trace, prompt: Prompt, hook: Place) -> Cut:
    """The stream at an SAE on the residual stream."""
    encoded, x = subject.encoding(seen, hook), seen.at(hook)
    found = encoded.parts
    assert found.error is not None  # graph_hooks takes SAEs of the residual stream only, which are no transcoders
    roots, constant = found.error.to(x).clone(), found.constant.to(x).clone()
    means_nothing = prompt.special[0] or 0 in sinks(seen, hook)
    if means_nothing:
        roots[0], constant[0] = x[0], 0
        found = found.without_position_0()
    is_token = tuple(pos == 0 and means_nothing for pos in range(len(x)))
    return Cut(hook.layer, hook, encoded, found, roots, is_token, constant)


def graph_hooks(subject: Subject, layers: Sequence[int] | None) -> list[Place]:
    """The SAEs that a graph stands on, one per layer, ascending.

    layers: only these; None takes every SAE on the residual stream. Raises UserError where a layer has none.
    """
    if not subject.saes:
        raise UserError("a feature-flow graph needs SAEs on the residual stream; name some with --sae (saes=)")
    usable = sorted(hook for hook in subject.saes if is_stream(subject, hook))
    wanted = sorted({hook.layer for hook in usable}) if layers is None else sorted(set(layers))
    found = []
    for layer in wanted:
        here = [hook for hook in usable if hook.layer == layer]
        if not here:
            others = [str(hook) for hook in sorted(subject.saes) if hook.layer == layer]
            why = f"; {others[0]} is by-passed by the stream" if others else ""
            raise UserError(
                f"there is no SAE on the residual stream at layer {layer}{why}; "
                f"there are {', '.join(map(str, usable)) or 'none'}"
            )
        if len(here) > 1:
            raise UserError(f"layer {layer} has {' and '.join(map(str, here))}; a graph takes one SAE per layer")
        found += here
    if not found:
        raise UserError(
            f"a feature-flow graph needs SAEs on the residual stream; {', '.join(map(str, sorted(subject.saes)))} "
            "are by-passed by it"
        )
    found.sort(key=lambda hook: hook.depth)
    for below, above in pairwise(found):
        if below.depth == above.depth:
            raise UserError(f"{below} and {above} are the same point of the stream; name the layers to use")
    return found


def is_stream(subject: Subject, hook: Place) -> bool:
    """Whether the features, error and constant of the SAE there are the whole stream: a graph can stand on it."""
    from ..saes import reconstructs

    inside = 0 <= hook.layer < subject.adapter.n_layers
    return inside and hook.is_stream and hook.depth > 0 and reconstructs(subject.saes[hook])
