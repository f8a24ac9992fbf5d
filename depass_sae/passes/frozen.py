"""One sublayer of a recorded pass: the model's part, and what it did on this prompt.

Everything that goes through the layers asks this for what it needs; of what kind the sublayer is, only its mixer knows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.parts import Norm, Size, times
from .choices import CONTRIBUTION, Choices
from .rows import BIAS, Rows, at, chosen, on

if TYPE_CHECKING:
    from ..models.sublayer import Sublayer
    from .memory import Blocks
    from .mixers import Mixer
    from .mixers.mixer import Allotment, Record
    from .mixers.sharing import Sharing
    from .rules import QK


@dataclass(frozen=True)
class Inside:
    """What a sublayer makes of the stream: ``bare`` is normed without gain and β, ``z`` the mixer's inner value."""

    z: Float[Tensor, "pos d_inner"]
    normed: Float[Tensor, "pos d_model"]
    bare: Float[Tensor, "pos d_model"]


INSIDE = {"hook_z": "z", "mlp_in": "normed", "ln2_normalized": "bare"}
"""The places that lie inside a sublayer, and which of :class:`Inside` stands there."""


@dataclass(frozen=True)
class Frozen:
    """resid: the stream that it reads, in the pass's dtype. starts: where each prompt begins."""

    sublayer: Sublayer
    mixer: Mixer
    resid: Float[Tensor, "pos d_model"]
    record: Record
    starts: Sequence[int]

    def some(self, positions: Int[Tensor, "some"]) -> Frozen:
        """At some positions, in any order and however often, of one that keeps positions apart."""
        return replace(self, resid=chosen(self.resid, positions), record=self.record.some(positions), starts=(0,))

    @cached_property
    def norm(self) -> Norm:
        return self.sublayer.norm.to(self.resid)

    @cached_property
    def post(self) -> Norm | None:
        return None if self.sublayer.post is None else self.sublayer.post.to(self.resid)

    @cached_property
    def scale(self) -> Float[Tensor, "pos 1"]:
        """Of the norm before it."""
        return self.norm.scale(self.resid)

    @cached_property
    def post_scale(self) -> Float[Tensor, "pos 1"]:
        """Of the norm after it."""
        assert self.post is not None
        return self.post.scale(self.record.at["raw"].to(self.resid.dtype))

    # ----------------------------------------------------------------------------------------- the maps, differentiable

    def inside(
        self,
        x: Float[Tensor, "pos d_model"],
        choices: Choices,
        size: Size | None = None,
        recorded: Float[Tensor, "pos d_model"] | None = None,
    ) -> Inside:
        """Of a stream; recorded: the one where it is frozen (None: x itself)."""
        frozen = x.detach() if recorded is None else recorded
        bare = self.norm.bare(x, self.norm.scale(x if choices.norm == "live" else frozen))
        normed = bare * self.norm.gain
        if self.norm.bias is not None:
            normed = normed + times(self.norm.bias, size)
        where = None if recorded is None else self.norm(recorded)
        return Inside(self.mixer.inner(normed, where, self.record, choices, size), normed, bare)

    def pattern(self, choices: Choices) -> Float[Tensor, "pos d_inner"] | None:
        """What the component ``pattern`` has of the inner value (None: nothing)."""
        if choices.qk is None:
            return None
        return self.mixer.pattern(self.norm(self.resid), self.record, choices)

    def sharing(self, qk: QK) -> Sharing | None:
        """What is frozen of the scores by which queries and keys have a share. None: nothing is looked at."""
        return self.mixer.sharing(self.norm(self.resid), self.record, qk)

    def looked_back(
        self, inner: Float[Tensor, "target pos d_inner"], sharing: Sharing
    ) -> list[tuple[Float[Tensor, "target pos d_model"], Float[Tensor, "target pos"]]]:
        """A gradient with respect to z, with respect to the stream that queries are made of, and keys, and the bias
        vectors on the way: through what scores do to the pattern alone.
        """
        found = self.mixer.looked_back(inner, self.norm(self.resid), self.record, sharing)
        return [self._before_norm(*side) for side in found]

    def keys_looked_back(
        self, inner: Float[Tensor, "1 pos d_inner"], parts: Float[Tensor, "comp pos d_model"], qk: QK
    ) -> tuple[Float[Tensor, "comp pos d_model"], Float[Tensor, "comp pos"]] | None:
        """The same with respect to what keys are made of, for the queries that parts of the stream make, each alone."""
        normed = self.norm.frozen(parts, self.scale)
        found = self.mixer.keys_looked_back(inner, normed, self.norm(self.resid), self.record, qk)
        return None if found is None else self._before_norm(*found)

    def _before_norm(
        self, gradient: Float[Tensor, "row pos d_model"], bias: Float[Tensor, "row pos"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]]:
        """A gradient with respect to the normed stream, and its bias vectors', with respect to the stream."""
        norm = self.norm
        back = norm.centre(gradient * (norm.gain * self.scale))
        return back, bias if norm.bias is None else bias + gradient @ norm.bias

    def out(self, inside: Inside, choices: Choices) -> Float[Tensor, "pos d_model"]:
        """What the sublayer adds to the stream."""
        raw, bias = self.mixer.write(inside.z, self.record), self.live_bias(inside, choices)
        bias = self.mixer.write_bias(self.record, raw) if bias is None else bias
        return self.added(raw if bias is None else raw + bias, choices)

    def added(self, raw: Float[Tensor, "pos d_model"], choices: Choices) -> Float[Tensor, "pos d_model"]:
        """What is added of what the mixer writes, behind the norm on that."""
        if self.post is None:
            return raw
        scale = self.post_scale if choices.norm == "frozen" else self.post.scale(raw)
        y = self.post.frozen(raw, scale)
        return y if self.post.bias is None else y + self.post.bias

    def live_bias(
        self, inside: Inside, choices: Choices, size: Size | None = None
    ) -> Float[Tensor, "pos d_model"] | None:
        """The bias vectors of what the mixer writes, where they depend on the stream and are not frozen."""
        return self.mixer.live_bias(inside.normed, self.record, size) if choices.mlp == "live" else None

    def raw_gradient(
        self, output: Float[Tensor, "target pos d_model"], choices: Choices
    ) -> Float[Tensor, "target pos d_model"]:
        """A gradient with respect to what is added, with respect to what the norm after it is given."""
        post = self.post
        if post is None:
            return output
        if choices.norm == "frozen":
            return post.centre(output * (post.gain * self.post_scale))
        with torch.enable_grad():
            raw = self.record.at["raw"].to(output.dtype).detach().requires_grad_()
            y = post.frozen(raw, post.scale(raw))
            (back,) = torch.autograd.grad(y, raw, output, is_grads_batched=True)
        return back

    def output_bias(
        self, output: Float[Tensor, "target pos d_model"], raw: Float[Tensor, "target pos d_model"] | None
    ) -> Float[Tensor, "target pos"] | None:
        """What the bias vectors of what is written, and of the norm after it, add to targets.

        output, raw: the gradients after and before that norm (None: of what is written nothing counts).
        """
        own = None if raw is None else self.mixer.write_bias(self.record, raw)
        found = None if own is None or raw is None else (raw * own).sum(2)
        if self.post is not None and self.post.bias is not None:
            after = (output * self.post.bias).sum(2)
            found = after if found is None else found + after
        return found

    # ------------------------------------------------------------------------------------------------------- components

    def add(
        self, before: Rows, rows: Rows, allot: Allotment, wanted: Collection[str], blocks: Blocks
    ) -> dict[str, Rows]:
        """rows += what it adds of each component of ``before``, in place; they may be the same rows.

        Returns what is wanted of the places inside it and of what it adds.
        """
        return self.mixer.add(self, before, rows, allot, wanted, blocks)

    def add_biases(self, rows: Rows, found: dict[str, Rows], out_hook: str) -> None:
        """The ``bias`` component gets the bias vectors of what is written, and of the norm after it."""
        added = self.written_bias()
        if added is None:
            return
        index = on(rows.values, rows.number[:, BIAS])
        added = added if added.dim() == 1 else at(added, rows.positions)
        for output in (rows, *(found[hook] for hook in found if hook == out_hook)):
            output.values[index] += added

    def written_bias(self) -> Float[Tensor, "*pos d_model"] | None:
        """The bias vectors of what is written and of the norm after it, as they are added to the stream."""
        own = self.mixer.write_bias(self.record, self.resid)
        if self.post is None:
            return own
        own = None if own is None else self.post.frozen(own, self.post_scale)
        if self.post.bias is None:
            return own
        return self.post.bias if own is None else own + self.post.bias

    def written_by(self, groups: Sequence[Sequence[int]] | None = None) -> Float[Tensor, "pos group d_model"]:
        """What groups of units add to the stream (None: each its own)."""
        found = self.mixer.written_by(self.recorded_z(), groups, self.record)
        return found if self.post is None else self.post.frozen(found, self.post_scale[:, None])

    def written(self) -> Float[Tensor, "pos d_model"]:
        """What all units together add to the stream: all of it but for bias vectors."""
        raw = self.mixer.write(self.recorded_z(), self.record)
        return raw if self.post is None else self.post.frozen(raw, self.post_scale)

    def recorded_z(self) -> Float[Tensor, "pos d_inner"]:
        """The inner value, as the model computed it."""
        if self.record.neurons is not None:
            return self.record.neurons.to(self.resid)
        return self.inside(self.resid, CONTRIBUTION["linear"]).z
