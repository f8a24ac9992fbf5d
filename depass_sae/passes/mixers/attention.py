"""Softmax attention: a frozen pattern moves values between positions, each head on its own.

    z[n, h] = gate[n, h] ∘ Σ_k A_h[n, k] W_V x̂[k]          A as the model handed it out; its rows may sum to less than 1

Under a rule by which queries and keys have a share in this product it is that of sharing.py, still affine in the
stream. Attention mixes positions and keeps components apart, so it goes a few components at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import UserError
from ...models import parts
from ...models.parts import Linear, Norm, Size
from ...models.sublayer import Tap
from ..choices import Choices
from ..memory import Blocks
from ..rows import BIAS, PATTERN, Rows, at, on
from ..rules import QK, Rule
from .mixer import Allotment, Mixer, Record
from .mixing import Mixing
from .sharing import Sharing, Side, along, rotate

if TYPE_CHECKING:
    from ..frozen import Frozen


class Attention(Mixer):
    """What a :class:`parts.Attention` does."""

    unit = "head"
    looks_back = True

    def __init__(self, part: parts.Attention) -> None:
        self.part = part

    # In what kinds of attention differ. All that follows asks these alone.

    @property
    def n_kv_heads(self) -> int:
        return self.part.n_kv_heads

    @property
    def window(self) -> int | None:
        return self.part.window

    @property
    def value_map(self) -> Linear:
        return self.part.v

    moves_as_mapped = True
    """Whether what is moved is what the value map puts out, so that a key's scale may go with the pattern."""

    def frozen_values(self, y: Float[Tensor, "pos d_kv"], record: Record) -> list[Float[Tensor, "pos *"]]:
        """What is frozen of each position between the value map, whose whole output is y, and what is moved."""
        return []

    def values(
        self, y: Float[Tensor, "pos *comp d_kv"], frozen: list[Float[Tensor, "pos *"]]
    ) -> Float[Tensor, "pos *comp d_kv"]:
        """What is moved, of what the value map puts out."""
        return y

    def values_back(
        self, gradient: Float[Tensor, "pos target d"], frozen: list[Float[Tensor, "pos *"]]
    ) -> Float[Tensor, "pos target d"]:
        """A gradient with respect to what is moved, with respect to what the value map puts out."""
        return gradient

    def live_values(self, y: Float[Tensor, "pos d_kv"]) -> Float[Tensor, "pos d_kv"]:
        """What is moved with nothing frozen, of one prompt."""
        return y

    def factor(
        self, normed: Float[Tensor, "pos d_model"], moved: Callable[[], Float[Tensor, "pos d_inner"]], size: Size | None
    ) -> Float[Tensor, "pos d_inner"] | None:
        """What the heads' outputs are multiplied with. moved: all that they are before."""
        return None if self.part.gate is None else self.part.gate.to(normed)(normed, size)

    def attend(self, normed: Float[Tensor, "pos d_model"], size: Size | None = None) -> Float[Tensor, "head query key"]:
        """The attention pattern, from the normed stream."""
        q, k = self.queries_and_keys(normed, size)
        scores = torch.einsum("qhd,khd->hqk", q, k) * self.part.scores.scale
        positions = torch.arange(len(normed), device=normed.device)
        return self.shares(scores, reach(positions, positions, self.window))

    def shares(
        self, scores: Float[Tensor, "head query key"], seen: Bool[Tensor, "query key"], times: Tensor | float = 1.0
    ) -> Float[Tensor, "*times head query key"]:
        """The pattern that scores make: soft-capped, masked, with the sink's share taken off.

        times: how much of the capped scores there is, [*times, 1, 1, 1] for several at once; a sink has all of its own.
        """
        cap, sinks = self.part.scores.softcap, self.part.scores.sinks
        capped = scores if cap is None else cap * torch.tanh(scores / cap)
        capped = (times * capped).masked_fill(~seen, -torch.inf)
        if sinks is None:
            return capped.softmax(dim=-1)
        sink = sinks.to(scores)[:, None, None].expand(*capped.shape[:-1], 1)
        return torch.cat([capped, sink], dim=-1).softmax(dim=-1)[..., :-1]

    def _apart(self, scores: Float[Tensor, "head query key"], seen: Bool[Tensor, "query key"]) -> float:
        """How far the scores of two keys that one query sees lie apart at most, soft-capped; a sink's among them.

        On a device other than the host, which is not waited for, as far as in all but very certain heads.
        """
        if scores.device.type != "cpu":
            return FAR
        cap, sinks = self.part.scores.softcap, self.part.scores.sinks
        capped = scores if cap is None else cap * torch.tanh(scores / cap)
        high, low = capped.masked_fill(~seen, -torch.inf).amax(-1), capped.masked_fill(~seen, torch.inf).amin(-1)
        if sinks is not None:  # it has all of its own score, wherever on the way
            high, low = high.clamp_min(0), low.clamp_max(0)
        return float((high - low).amax())

    def cap_slope(self, score: float) -> float | None:
        """How much of a change of this score is left behind the soft-cap. None where there is none."""
        cap = self.part.scores.softcap
        return None if cap is None else 1 - math.tanh(score / cap) ** 2

    def look(self) -> Attention:
        return self

    # ----------------------------------------------------------------------------------------------------- recording

    def taps(self) -> dict[str, Tap]:
        return {"pattern": Tap(self.part.module, "out", partial(_handed_out, self.part.module))}

    def record(self, noted: Mapping[str, Tensor], norm: Norm, stream: Float[Tensor, "pos d_model"]) -> Record:
        age = torch.arange(len(stream), device=stream.device)
        return Record(pattern=noted["pattern"][:, : len(stream), : len(stream)], at={"age": age})

    # ---------------------------------------------------------------------------------------------------- the two maps

    def inner(
        self,
        normed: Float[Tensor, "pos d_model"],
        at: Float[Tensor, "pos d_model"] | None,
        record: Record,
        choices: Choices,
        size: Size | None = None,
    ) -> Float[Tensor, "pos d_inner"]:
        assert record.pattern is not None
        value_map = self.value_map.to(normed)
        y = value_map(normed, size)
        if choices.pattern == "live":
            z = self._move(self.attend(normed, size), self.live_values(y))
            factor = self.factor(normed, lambda: z, size)
        else:
            whole = (y if at is None else value_map(at)).detach()
            z = self._move(record.pattern.to(y.dtype), self.values(y, self.frozen_values(whole, record)))
            sharing = self.sharing(normed.detach() if at is None else at.detach(), record, choices.qk)
            if sharing is not None:
                z = z / 2 + (self._shared(sharing, normed, size) + sharing.rest).flatten(1)
            if at is None:
                factor = self.factor(normed.detach(), z.detach, None)
            else:
                factor = self._frozen_factor(at.detach(), whole, record)
        return z if factor is None else z * factor

    def _frozen_factor(
        self, normed: Float[Tensor, "pos d_model"], y: Float[Tensor, "pos d_kv"], record: Record
    ) -> Float[Tensor, "pos d_inner"] | None:
        def moved() -> Float[Tensor, "pos d_inner"]:
            assert record.pattern is not None
            return self._move(record.pattern.to(y.dtype), self.values(y, self.frozen_values(y, record)))

        return self.factor(normed, moved, None)

    def pattern(
        self, normed: Float[Tensor, "pos d_model"], record: Record, choices: Choices
    ) -> Float[Tensor, "pos d_inner"] | None:
        sharing = self.sharing(normed, record, choices.qk)
        if sharing is None:
            return None
        z, factor = sharing.rest.flatten(1), self._frozen_factor(normed, self.value_map.to(normed)(normed), record)
        return z if factor is None else z * factor

    def sharing(self, normed: Float[Tensor, "pos d_model"], record: Record, qk: QK | None) -> Sharing | None:
        """Between all positions of the whole normed stream.

        Prompts may be packed: a query sees what is no older than its own prompt.
        """
        if qk is None:
            return None
        assert record.pattern is not None
        scores, age = self.part.scores.to(normed), record.at["age"]
        q, k = self.queries_and_keys(normed, age=age)
        v, group = self.value_map.to(normed)(normed), self.part.n_heads // self.n_kv_heads
        v = v.unflatten(-1, (self.n_kv_heads, -1)).repeat_interleave(group, dim=1)
        found, pattern = torch.einsum("qhd,khd->hqk", q, k) * scores.scale, record.pattern.to(normed.dtype)
        counts: Tensor | float = 1.0
        patterns = pattern[None]  # as it was recorded, where the slope is taken there
        if qk.slope == "mean":
            positions = torch.arange(len(normed), device=normed.device)
            own = positions[:, None] - positions <= age[:, None]
            seen = reach(positions, positions, self.window) & own
            points = torch.tensor(along(qk.slope, self._apart(found, seen)), dtype=found.dtype)
            times, counts = on(found, points).T[:, :, None, None, None]
            patterns = self.shares(found, seen, times)
        slope = 1.0 if scores.softcap is None else 1 - torch.tanh(found / scores.softcap) ** 2
        cos, sin = (None, None) if scores.rotary is None else (x.to(normed) for x in scores.rotary(age))
        turn = None if cos is None or sin is None else (cos, sin)

        def side(linear: Linear, norm: Norm | None, heads: int) -> Side:
            scale = None if norm is None else norm.scale(linear(normed).unflatten(-1, (heads, -1)))
            return Side(linear.d_out, heads, self.part.n_heads // heads, norm, scale, turn)

        return Sharing(
            side(scores.q, scores.q_norm, self.part.n_heads),
            side(scores.k, scores.k_norm, self.n_kv_heads),
            q,
            k,
            v,
            torch.einsum("hqk,khe->qhe", pattern, v),
            patterns * (counts * (0.5 * qk.share * scores.scale * slope)),
            (patterns @ v.transpose(0, 1)).transpose(1, 2),
        )

    def looked_back(
        self,
        gradient: Float[Tensor, "target pos d_inner"],
        normed: Float[Tensor, "pos d_model"],
        record: Record,
        sharing: Sharing,
    ) -> list[tuple[Float[Tensor, "target pos d_model"], Float[Tensor, "target pos"]]]:
        scores, sides = self.part.scores.to(gradient), sharing.back(self._moved_back(gradient, normed, record))
        return [self._through(linear, each) for linear, each in zip((scores.q, scores.k), sides, strict=True)]

    def keys_looked_back(
        self,
        gradient: Float[Tensor, "1 pos d_inner"],
        parts: Float[Tensor, "comp pos d_model"],
        normed: Float[Tensor, "pos d_model"],
        record: Record,
        qk: QK,
    ) -> tuple[Float[Tensor, "comp pos d_model"], Float[Tensor, "comp pos"]] | None:
        sharing = self.sharing(normed, record, qk)
        if sharing is None:
            return None
        scores = self.part.scores.to(gradient)
        q = sharing.asking((parts @ scores.q.weight).transpose(0, 1))  # the bias vector's queries are no part's
        return self._through(scores.k, sharing.keys_back(self._moved_back(gradient, normed, record), q))

    def _moved_back(
        self, gradient: Float[Tensor, "target pos d_inner"], normed: Float[Tensor, "pos d_model"], record: Record
    ) -> Float[Tensor, "target pos head d_value"]:
        """A gradient with respect to z, with respect to what heads moved."""
        factor = self._frozen_factor(normed, self.value_map.to(normed)(normed), record)
        moved = gradient if factor is None else gradient * factor
        return moved.unflatten(-1, (self.part.n_heads, -1))

    def _through(
        self, linear: Linear, each: Float[Tensor, "row pos head d_head"]
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos"]]:
        """A gradient with respect to queries or keys, with respect to what the map is given, and to its bias vector."""
        shared = each.unflatten(2, (linear.d_out // each.shape[3], -1)).sum(3)  # by consecutive heads
        own = shared.flatten(2)
        return own @ linear.weight.T, own.new_zeros(own.shape[:2]) if linear.bias is None else own @ linear.bias

    def _shared(
        self, sharing: Sharing, normed: Float[Tensor, "pos d_model"], size: Size | None = None
    ) -> Float[Tensor, "pos head d_head"]:
        """What a normed stream's queries and keys have a share in; the biases of both maps in it."""
        scores = self.part.scores.to(normed)
        q, k = sharing.asking(scores.q(normed, size)[:, None]), sharing.asked(scores.k(normed, size)[:, None])
        return sharing.of(q, k)[:, 0]

    def _move(
        self, pattern: Float[Tensor, "head query key"], v: Float[Tensor, "pos d_kv"]
    ) -> Float[Tensor, "pos d_inner"]:
        heads = v.unflatten(-1, (self.n_kv_heads, self.part.d_head))
        heads = heads.repeat_interleave(self.part.n_heads // self.n_kv_heads, dim=1)  # consecutive heads share a value
        return torch.einsum("hqk,khd->qhd", pattern, heads).flatten(1)

    @property
    def out(self) -> Linear:
        return self.part.o

    # ------------------------------------------------------------------------------------------------------ components

    def present(
        self,
        norm: Norm,
        present: Bool[Tensor, "given comp"],
        given: Int[Tensor, "given"],
        wanted: Int[Tensor, "wanted"],
        starts: Int[Tensor, "wanted"],
        first: Bool[Tensor, "wanted comp"],
        rule: Rule,
    ) -> tuple[Bool[Tensor, "wanted comp"], Bool[Tensor, "wanted comp"]]:
        """Those of all that each query sees, and biases. Nobody competes."""
        earliest = starts if self.window is None else torch.maximum(starts, wanted - self.window + 1)
        low, high = torch.searchsorted(given, earliest), torch.searchsorted(given, wanted, right=True)
        upto = torch.cat([torch.zeros(1, present.shape[1], dtype=torch.int32), present.cumsum(0, dtype=torch.int32)])
        after = upto[high] > upto[low]
        maps = (self.value_map, self.part.o, *self._looking(rule))
        if norm.bias is not None or any(part.bias is not None for part in maps):
            after[:, BIAS] = True
        if self._looking(rule):
            after[:, PATTERN] = True
        return after, after

    def add(
        self, frozen: Frozen, before: Rows, rows: Rows, allot: Allotment, wanted: Collection[str], blocks: Blocks
    ) -> dict[str, Rows]:
        resid, norm = frozen.resid, frozen.norm
        v, o = self.value_map.to(resid), self.part.o.to(resid)
        widths = {"hook_z": o.d_in, "attn_out": o.d_out}
        found = {hook: rows.with_values(rows.values.new_zeros(len(rows.values), widths[hook])) for hook in wanted}
        n = int(before.positions[-1]) + 1
        sharing = self.sharing(norm(resid[:n]), frozen.record.first(n), allot.qk)
        maps = [v, *(part.to(resid) for part in self._looking(allot.rule))]
        w, moving = torch.cat([_gained(norm, part) for part in maps], 1), self._moving(frozen, before, rows, sharing)

        def add_some(low: int, high: int) -> None:
            present = before.present[:, low:high]
            x = before.values.index_select(0, on(before.values, before.number[:, low:high][present]))
            values, done, mixed, numbers = x @ w, 0, [], []
            for prompt in moving:
                here, there = present[prompt.keys], rows.present[prompt.queries, low:high]
                size = int(here.sum())
                if size:
                    z, query = prompt.mix(values[done : done + size], here, there, blocks.size)
                    mixed.append(z)
                    numbers.append(rows.number[prompt.queries, low:high][query:][there[query:]])
                done += size
            if mixed:
                number, z = torch.cat(numbers), torch.cat(mixed) if len(mixed) > 1 else mixed[0]
                index, out = on(x, number), z @ o.weight
                if frozen.post is not None:
                    here = on(x, rows.positions[rows.index[0][number]])
                    out = frozen.post.frozen(out, frozen.post_scale.index_select(0, here))
                for hook, output in found.items():  # set, not added: this may be done again
                    output.values.index_copy_(0, index, z if hook == "hook_z" else out)
                rows.values.index_add_(0, index, out)

        width = resid.element_size() * (resid.shape[1] + o.d_in + w.shape[1])
        blocks.work((before.present.sum(dim=0) + rows.present.sum(dim=0)).tolist(), width, add_some)
        self._add_biases(frozen, rows, found, sharing, allot.rule)
        frozen.add_biases(rows, found, "attn_out")
        return found

    def _looking(self, rule: Rule) -> tuple[Linear, ...]:
        """The maps to queries and keys, where they have a share."""
        return (self.part.scores.q, self.part.scores.k) if rule.shares_scores else ()

    def _moving(self, frozen: Frozen, before: Rows, rows: Rows, sharing: Sharing | None) -> list[Mixing]:
        """Each prompt's pattern, with all that is frozen beside it.

        A key's scale goes with the pattern, and the norm's gain with W_V, so that rows are taken as they are.
        """
        pattern, scale = frozen.record.pattern, frozen.scale[:, 0]
        assert pattern is not None
        normed = frozen.norm(frozen.resid) if self._looks_inside else None
        y = None if normed is None else self.value_map.to(normed)(normed)
        factor = None if normed is None or y is None else self._frozen_factor(normed, y, frozen.record)
        values = [] if y is None else self.frozen_values(y, frozen.record)
        ends = pairwise([*frozen.starts, len(frozen.resid)])
        return [
            Mixing.of(self, pattern, scale, values, factor, sharing, before.positions, rows.positions, prompt)
            for prompt in ends
        ]

    @property
    def _looks_inside(self) -> bool:
        """Whether something of the whole stream is needed to carry components of it."""
        return self.part.gate is not None

    def _add_biases(
        self, frozen: Frozen, rows: Rows, found: dict[str, Rows], sharing: Sharing | None, rule: Rule
    ) -> None:
        """What the bias vectors before the heads add; and, where queries and keys have a share, ``pattern``."""
        norm, v = frozen.norm, self.value_map.to(frozen.resid)
        b_v = v.bias if norm.bias is None else v(norm.bias)
        z = None if b_v is None else self._moved_bias(frozen, b_v, rows.positions)
        if sharing is not None:
            self._add_constant(frozen, rows, found, PATTERN, at(sharing.rest, rows.positions).flatten(1))
            if norm.bias is not None or any(part.bias is not None for part in self._looking(rule)):
                beta = sharing.q.new_zeros(len(sharing.q), v.d_in) + (0 if norm.bias is None else norm.bias)
                asked = at(self._shared(sharing, beta), rows.positions).flatten(1)
                z = asked if z is None else z / 2 + asked
            elif z is not None:
                z = z / 2
        if z is not None:
            self._add_constant(frozen, rows, found, BIAS, z)

    def _moved_bias(
        self, frozen: Frozen, b_v: Float[Tensor, "d_kv"], positions: Int[Tensor, "some"]
    ) -> Float[Tensor, "some d_inner"]:
        """As much of the norm's and the value map's as a query's pattern has in all."""
        assert frozen.record.pattern is not None
        heads = b_v.view(self.n_kv_heads, -1).repeat_interleave(self.part.n_heads // self.n_kv_heads, dim=0)
        return (at(frozen.record.pattern, positions, 1).to(b_v.dtype).sum(-1).T[..., None] * heads).flatten(1)

    def _add_constant(
        self, frozen: Frozen, rows: Rows, found: dict[str, Rows], component: int, z: Float[Tensor, "some d_inner"]
    ) -> None:
        """A component gets what its heads are at the rows' positions, through the gate and W_O."""
        if self._looks_inside:
            normed = frozen.norm(frozen.resid)
            factor = self._frozen_factor(normed, self.value_map.to(normed)(normed), frozen.record)
            z = z if factor is None else z * at(factor, rows.positions)
        out = z @ self.part.o.weight.to(z)
        if frozen.post is not None:
            out = frozen.post.frozen(out, at(frozen.post_scale, rows.positions))
        index = on(z, rows.number[:, component])
        rows.values.index_add_(0, index, out)
        for hook, output in found.items():
            output.values.index_add_(0, index, z if hook == "hook_z" else out)

    # ----------------------------------------------------------------------------------------------------------- units

    @property
    def n_units(self) -> int:
        return self.part.n_heads

    def by_unit(self, products: Float[Tensor, "target pos d_inner"], record: Record) -> Float[Tensor, "target head"]:
        return products.unflatten(-1, (self.part.n_heads, -1)).sum((1, 3))

    def written_by(
        self, z: Float[Tensor, "pos d_inner"], groups: Sequence[Sequence[int]] | None, record: Record
    ) -> Float[Tensor, "pos group d_model"]:
        heads, weight = self.part.n_heads, self.part.o.weight.to(z)
        each = torch.einsum("nhe,hed->nhd", z.unflatten(-1, (heads, -1)), weight.unflatten(0, (heads, -1)))
        return each if groups is None else torch.stack([each[:, list(group)].sum(1) for group in groups], dim=1)

    def split_by_source(
        self, frozen: Frozen, inner: Float[Tensor, "target pos d_inner"], rows: Rows, qk: QK | None = None
    ) -> Float[Tensor, "target head comp"]:
        """⟨U_h[k], X̂[k]⟩ for every component of the stream, U_h[k] being what a target reads at k through head h.

        rows: of the stream at every position; the last components are ``bias`` and ``rest``, and ``pattern`` before
        them where queries and keys have a share.
        """
        part, norm, pattern = self.part, frozen.norm, frozen.record.pattern
        assert pattern is not None
        v, normed = self.value_map.to(inner), norm(frozen.resid)
        y, sharing = v(normed), self.sharing(normed, frozen.record, qk)
        factor = self._frozen_factor(normed, y, frozen.record)
        gradient = (inner if factor is None else inner * factor).unflatten(-1, (part.n_heads, part.d_head))
        moved = torch.einsum("hnk,tnhe->tkhe", pattern.to(inner.dtype), gradient)
        values = self.frozen_values(y, frozen.record)
        at_keys = self.values_back(moved.flatten(2).transpose(0, 1), values).transpose(0, 1)
        at_keys = at_keys.unflatten(-1, (part.n_heads, part.d_head))
        maps = [(v, at_keys)]
        if sharing is not None:
            scores = part.scores.to(inner)
            maps = [(v, at_keys / 2), *zip((scores.q, scores.k), sharing.back(gradient), strict=True)]
        read = sum(torch.einsum("tkhe,dhe->tkhd", u, self._by_head(linear.weight)) for linear, u in maps)
        assert isinstance(read, Tensor)
        pos, comp = (on(inner, index) for index in rows.index)
        products = torch.einsum("trhd,rd->thr", read[:, pos], norm.frozen(rows.values, frozen.scale[pos]))
        shares = products.new_zeros(*products.shape[:2], rows.n_components)
        shares.index_add_(2, comp, products)
        if norm.bias is not None:
            shares[..., BIAS] += torch.einsum("tkhd,d->th", read, norm.bias)
        for linear, u in maps:
            if linear.bias is not None:
                shares[..., BIAS] += torch.einsum("tkhe,he->th", u, self._by_head(linear.bias))
        if sharing is not None:
            shares[..., PATTERN] += torch.einsum("tnhe,nhe->th", gradient, sharing.rest)
        return shares

    def _by_head(self, x: Float[Tensor, "*d_model d_out"]) -> Float[Tensor, "*d_model head d_head"]:
        """What a map puts out, or its weight, for each head that uses it: consecutive heads share a key and a value."""
        each = x.unflatten(-1, (-1, self.part.d_head))
        return each.repeat_interleave(self.part.n_heads // each.shape[-2], dim=-2)

    # ---------------------------------------------------------------------------------------------------------- scores

    def queries_and_keys(
        self, normed: Float[Tensor, "pos d_model"], size: Size | None = None, age: Int[Tensor, "pos"] | None = None
    ) -> tuple[Float[Tensor, "pos head d_head"], Float[Tensor, "pos head d_head"]]:
        """Normed and rotated queries and keys of every head. age: where in its prompt each is (None: 0, 1, ...)."""
        scores = self.part.scores.to(normed)
        q = scores.q(normed, size).unflatten(-1, (self.part.n_heads, -1))
        k = scores.k(normed, size).unflatten(-1, (self.part.n_kv_heads, -1))
        q = q if scores.q_norm is None else scores.q_norm(q)
        k = k if scores.k_norm is None else scores.k_norm(k)
        k = self._turned(k, age).repeat_interleave(self.part.n_heads // self.part.n_kv_heads, dim=1)
        return self._turned(q, age), k

    def split_queries_and_keys(
        self, frozen: Frozen, head: int, components: Float[Tensor, "pos comp d_model"]
    ) -> tuple[Float[Tensor, "pos comp d_head"], Float[Tensor, "pos comp d_head"]]:
        """Every component's share of each position's rotated query and key; biases in the component ``bias``."""
        norm, scores = frozen.norm, self.part.scores.to(components)
        x_hat = norm.frozen(components, frozen.scale[:, None])
        if norm.bias is not None:
            x_hat[:, BIAS] += norm.bias
        whole = norm(frozen.resid)
        group = head // (self.part.n_heads // self.part.n_kv_heads)
        q = _head_share(scores.q, scores.q_norm, head, self.part.n_heads, x_hat, whole)
        k = _head_share(scores.k, scores.k_norm, group, self.part.n_kv_heads, x_hat, whole)
        return self._turned(q), self._turned(k)

    def _turned(
        self, x: Float[Tensor, "pos some d_head"], age: Int[Tensor, "pos"] | None = None
    ) -> Float[Tensor, "pos some d_head"]:
        if self.part.scores.rotary is None:
            return x
        cos, sin = self.part.scores.rotary(torch.arange(len(x), device=x.device) if age is None else age)
        return rotate(x, cos.to(x)[:, None], sin.to(x)[:, None])

    # ---------------------------------------------------------------------------------------------------------- sizes

    def blank(self, n: int, dtype: torch.dtype, compute: torch.dtype) -> Record:
        pattern = torch.empty(self.part.n_heads, n, n, dtype=dtype, device="meta")
        return Record(pattern, at={"age": torch.arange(n, device="meta")})

    def swept(self, n: int) -> int:
        return 4 * self.part.n_heads * n

    def shared(self, n: int, qk: QK | None) -> int:
        return 0 if qk is None else 2 * len(along(qk.slope, CERTAIN)) * self.part.n_heads * n * n


CERTAIN = 28.0
"""How far scores lie apart where nobody has seen them: as far as in most heads."""
FAR = 44.0
"""The same where it is computed with, and cannot be looked at."""


def reach(queries: Int[Tensor, "query"], keys: Int[Tensor, "key"], window: int | None) -> Bool[Tensor, "query key"]:
    """Which keys each query can see."""
    distance = queries[:, None] - keys[None]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _handed_out(module: Any, out: Any) -> Tensor:
    if not (isinstance(out, tuple) and len(out) > 1 and isinstance(out[1], Tensor)):
        raise UserError(
            f"the attention of layer {module.layer_idx} hands out no pattern, though it was asked to run eagerly: its "
            "forward must have been replaced (a patch, or a kernel); load the model without that"
        )
    return out[1]


def _head_share(
    linear: Linear, norm: Norm | None, head: int, heads: int, x_hat: Tensor, whole: Tensor
) -> Float[Tensor, "pos comp d_head"]:
    width = linear.d_out // heads
    columns = slice(head * width, (head + 1) * width)
    own = Linear(linear.weight[:, columns], None if linear.bias is None else linear.bias[columns])
    share = x_hat @ own.weight
    if own.bias is not None:
        share[:, BIAS] += own.bias
    # QK-norm: its scale is frozen at what the whole query or key gives.
    return share if norm is None else norm.frozen(share, norm.scale(own(whole))[:, None])


def _gained(norm: Norm, linear: Linear) -> Float[Tensor, "d_model d_out"]:
    """The weight that makes of the stream, but for the norm's scale, what ``linear`` makes of the normed stream."""
    return norm.centre((norm.gain[:, None] * linear.weight).T).T
