"""The backward engine: from a target to every source at every layer in one sweep (``linear``, ``half``, ``half-qk``).

Under these rules the frozen pass is an affine map of the residual stream, so a target ⟨w, x⟩ at one point is
⟨G, x′⟩ + bias at every earlier one. G is found by going backwards once, sublayer by sublayer:

    G_before = G_after + Jᵀ (G_after + what reads this sublayer's output),    bias += ⟨G_output, df/dβ⟩

with f the frozen sublayer (frozen.py), J its Jacobian, and β = 1 the size of its bias vectors. What the component
``pattern`` puts into heads under ``half-qk`` is one more constant, counted apart. A source's contribution is then an
inner product with what it put into the stream: ⟨G, part⟩. With attention, norms and MLP left live the same sweep gives
the gradient of the unfrozen network, and ⟨G, part⟩ is the first-order *effect* of taking the part away; it sums to
nothing.

Only inner products leave the sweep: it visits each sublayer and hands over the gradients there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..models.place import Place
from .choices import Choices
from .frozen import INSIDE, Frozen
from .looking import Hop
from .record import Trace
from .support import Few, Part, Support


@dataclass(frozen=True)
class Level:
    """One sublayer on the way back: the targets' gradients around it.

    after, before: with respect to the residual stream after and before the sublayer, targets read there included; past:
    the latter without what goes through this sublayer.
    output: with respect to what the sublayer adds (attn_out, mlp_out): ``after``, and what reads the output itself.
    inner: with respect to hook_z [n_heads * d_head], or to the neurons [d_mlp]; found: what the recorded stream gives
    there, where the step had to compute it.
    bias: what bias vectors at each position add to each target from here on (with everything live: their first-order
    effect), this sublayer's own output bias not included; bias_written: with it; bias_before: with all of this
    sublayer's. pattern, pattern_before: the same of what no part of the stream has made of heads' patterns.
    """

    frozen: Frozen
    choices: Choices
    after: Float[Tensor, "target pos d_model"]
    output: Float[Tensor, "target pos d_model"]
    inner: Float[Tensor, "target pos d_inner"]
    found: Float[Tensor, "pos d_inner"] | None
    past: Float[Tensor, "target pos d_model"]
    before: Float[Tensor, "target pos d_model"]
    bias: Float[Tensor, "target pos"]
    bias_written: Float[Tensor, "target pos"]
    bias_before: Float[Tensor, "target pos"]
    pattern: Float[Tensor, "target pos"]
    pattern_before: Float[Tensor, "target pos"]

    @property
    def number(self) -> int:
        """The sublayer's, among all."""
        return self.frozen.sublayer.number

    @property
    def layer(self) -> int:
        return self.frozen.sublayer.place.layer

    @property
    def sublayer(self) -> str:
        """``attn`` or ``mlp``."""
        return self.frozen.sublayer.name

    @property
    def looks_back(self) -> bool:
        """Whether the sublayer moves what stands at one position to others: whether its units are heads."""
        return self.frozen.mixer.looks_back

    @cached_property
    def recorded(self) -> Float[Tensor, "pos d_inner"]:
        """What the recorded stream gives inside."""
        if self.found is not None:
            return self.found
        return self.frozen.inside(self.frozen.resid, self.choices).z

    def units(self) -> Float[Tensor, "target unit"]:
        """What each head or neuron contributes: ⟨gradient, inner value⟩, summed over positions."""
        return self.frozen.mixer.by_unit(self.inner * self.recorded, self.frozen.record)


Gradient = Float[Tensor, "target pos d"]
Seeds = Mapping[Place, Gradient]
"""Where targets are read: for each place the direction of every target at every position, mostly zeros."""
Met = Callable[[Gradient], Seeds]
"""Takes the gradient with respect to all that stands at a cut, and hands back what of it goes on at other places."""


@dataclass(frozen=True)
class Cuts:
    """Where a sweep is cut off: of what arrives from above nothing goes on to what the model made the tensor of.

    Seeds at such a place read what lies below the cut.

    values: of hook_z, attn_out or mlp_out. equations: of what a sublayer adds, by its place: something else stands for
    the whole sublayer. raw: the same before the norm on what it adds.
    """

    values: Mapping[Place, Met] = field(default_factory=dict)
    equations: Mapping[Place, Met] = field(default_factory=dict)
    raw: Mapping[Place, Met] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.values or self.equations or self.raw)


@dataclass(frozen=True)
class Step:
    """The gradient and the biases before a sublayer. level: None where no gradient came to what is inside it."""

    number: int
    before: Gradient
    bias_before: Float[Tensor, "target pos"]
    level: Level | None


def sweep(trace: Trace, seeds: Seeds, choices: Choices, *, down_to: int = 0, few: Few | None = None) -> Iterator[Level]:
    """Visit the sublayers from the last one that a seed reads back to number ``down_to``.

    All seeds have the same number of targets and the trace's positions. Live attention is for a trace of one prompt.
    few: the only targets and positions at which a seed is not zero, if whoever asks knows them.
    """
    for step in steps(trace, seeds, choices, Cuts(), down_to=down_to, few=few):
        assert step.level is not None
        yield step.level


def steps(
    trace: Trace,
    seeds: Seeds,
    choices: Choices,
    cuts: Cuts,
    *,
    down_to: int = 0,
    looking: Hop | None = None,
    few: Few | None = None,
) -> Iterator[Step]:
    """The same, cut off at places beside the stream; sublayers that nothing is left to go through are passed by.

    looking: by which targets come as several rows, some of which go through where heads look.
    """
    assert choices.pattern == "frozen" or len(trace.starts) == 1
    given = {Place(*place): seed for place, seed in seeds.items()}
    example = next(iter(given.values()))
    last = max(down_to + 1, *(place.behind for place in given))  # the stream behind all that is read
    waiting: dict[int, Tensor] = {}  # gradients with respect to a stream before the next one on the way
    zeros = trace.resid_post.new_zeros(*example.shape[:2], trace.adapter.d_model)
    # Where nothing is cut every sublayer is passed, be it with a gradient of zero.
    after = _plus(None if cuts else zeros, *_at_stream(given, last))
    bias = pattern = zeros.new_zeros(zeros.shape[:2])
    support = None
    if few is not None:
        shape, ways = (bias.shape[0], bias.shape[1]), 1 if looking is None else looking.ways
        support = Support.of(few, trace.starts, shape, ways, bias.device)
    near = support is not None and 2 * len(support.near.positions) <= bias.numel()
    for frozen in trace.backwards(last, down_to):
        number = frozen.sublayer.number
        past = _plus(after, *_at_stream(given, number), waiting.pop(number, None))
        found = _back(frozen, after, bias, pattern, choices, given, cuts, looking, support, near)
        near = near and not frozen.mixer.looks_back  # which spreads them
        for depth, gradient in found.onwards.items():
            waiting[depth] = _sum(gradient, waiting.get(depth))
        before = _plus(past, waiting.pop(number, None))
        after, bias, pattern = before, found.bias_before, found.pattern_before
        whole = zeros if before is None else before
        yield Step(number, whole, bias, found.level(choices, zeros, past, whole))


@dataclass(frozen=True)
class _Passed:
    """What one step back through a sublayer gave. onwards: the gradients of the streams that it reads."""

    frozen: Frozen
    after: Gradient | None
    output: Gradient | None
    inner: Gradient | None
    recorded: Float[Tensor, "pos d_inner"] | None
    onwards: dict[int, Gradient]
    bias: Float[Tensor, "target pos"]
    bias_written: Float[Tensor, "target pos"]
    bias_before: Float[Tensor, "target pos"]
    pattern: Float[Tensor, "target pos"]
    pattern_before: Float[Tensor, "target pos"]

    def level(self, choices: Choices, zeros: Gradient, past: Gradient | None, before: Gradient) -> Level | None:
        if self.inner is None:
            return None
        after, output, past = (zeros if x is None else x for x in (self.after, self.output, past))
        return Level(
            self.frozen, choices, after, output, self.inner, self.recorded, past, before, self.bias, self.bias_written,
            self.bias_before, self.pattern, self.pattern_before,
        )  # fmt: skip


def _back(
    frozen: Frozen,
    after: Gradient | None,
    bias: Tensor,
    pattern: Tensor,
    choices: Choices,
    seeds: Seeds,
    cuts: Cuts,
    looking: Hop | None,
    support: Support | None,
    near: bool,
) -> _Passed:
    """One step back through a sublayer, at the recorded stream.

    support: where gradients are, if that is known; near: whether nothing has looked back yet.
    """
    place = frozen.sublayer.place
    own = {at.hook: seed for at, seed in seeds.items() if at.depth == frozen.sublayer.number}
    onwards: dict[int, Tensor] = {}

    def met(cut: Mapping[Place, Met], at: Place, gradient: Tensor | None) -> Tensor | None:
        """The one place where a gradient meets a cut: what is left of it for what the model made the tensor of."""
        if gradient is None or at not in cut:
            return gradient
        for other, more in cut[at](gradient).items():
            if other.is_stream:
                onwards[other.depth] = _sum(more, onwards.get(other.depth))
            else:
                own[other.hook] = _sum(more, own.get(other.hook))
        return None

    output = _plus(met(cuts.values, place, after), own.get(place.hook))
    passing, raw, bias_written = met(cuts.equations, place, output), None, bias
    if passing is not None:
        ahead = frozen.raw_gradient(passing, choices)
        raw = met(cuts.raw, place, ahead)
        written = frozen.output_bias(passing, raw)
        bias_written = bias if written is None else bias + written
    parts = None if support is None else [support.near] if near else support.far
    if raw is not None and parts is not None and not frozen.mixer.looks_back and not own:
        within, through, inner_bias = _through_parts(frozen, raw, parts, choices)
        onwards[frozen.sublayer.reads.depth] = _sum(through, onwards.get(frozen.sublayer.reads.depth))
        bias_before = bias_written + inner_bias
        return _Passed(frozen, after, output, within, None, onwards, bias, bias_written, bias_before, pattern, pattern)
    first = support if near and frozen.mixer.looks_back else None
    inner = None if raw is None else _within(frozen, raw, None if first is None else first.near)
    for hook in (hook for hook, what in INSIDE.items() if what == "z"):
        inner = met(cuts.values, Place(place.layer, hook), inner) if _is_within(frozen, hook) else inner
    inner = _plus(inner, *_read_at(own, "z"))
    reads = [(name, seed) for name in ("normed", "bare") for seed in _read_at(own, name)]
    if inner is None and not reads:
        return _Passed(frozen, after, output, None, None, onwards, bias, bias_written, bias_written, pattern, pattern)
    recorded, through, inner_bias = _through(frozen, raw, inner, reads, choices, None if first is None else first.rows)
    hop = None if looking is None or inner is None else looking.hop(frozen, inner)
    if hop is not None:
        missing = len(through) - len(hop[0])
        through[missing:] += hop[0]  # which nobody else has yet
        inner_bias = inner_bias + functional.pad(hop[1], (0, 0, missing, 0))
    depth = frozen.sublayer.reads.depth
    onwards[depth] = _sum(through, onwards.get(depth))
    made = frozen.pattern(choices)
    pattern_before = pattern if made is None or inner is None else pattern + (inner * made).sum(2)
    return _Passed(
        frozen, after, output, inner, recorded, onwards, bias, bias_written, bias_written + inner_bias, pattern,
        pattern_before,
    )  # fmt: skip


def _within(frozen: Frozen, raw: Gradient, near: Part | None) -> Gradient:
    """The gradient inside. near: all that is not zero, before a sublayer that looks back."""
    if near is None:
        return frozen.mixer.back(raw, frozen.record)
    some = frozen.mixer.back(near.of(raw), frozen.record)
    inner = some.new_zeros(*raw.shape[:2], some.shape[2])
    near.put(some, inner)
    return inner


def _through(
    frozen: Frozen,
    raw: Gradient | None,
    inner: Gradient | None,
    reads: Sequence[tuple[str, Tensor]],
    choices: Choices,
    rows: int | None = None,
) -> tuple[Float[Tensor, "pos d_inner"], Gradient, Float[Tensor, "target pos"]]:
    """What the recorded stream gives inside, the gradient of the stream that is read, and what bias vectors there add.

    reads: by the names of what stands inside, the gradients of what is read there beside ``inner``. rows: of so many
    these are not zero (None: of all).
    """
    with torch.enable_grad():
        x = frozen.resid.detach().requires_grad_()
        size = torch.ones(len(x), dtype=x.dtype, device=x.device, requires_grad=True)
        inside = frozen.inside(x, choices, size)
        pairs = [] if inner is None else [(inside.z, inner)]
        bias_vectors = None if raw is None else frozen.live_bias(inside, choices, size)
        pairs += [] if bias_vectors is None or raw is None else [(bias_vectors, raw)]
        pairs += [(getattr(inside, name), seed) for name, seed in reads]
        through, inner_bias = torch.autograd.grad(
            [y for y, _ in pairs],
            (x, size),
            [g[:rows] for _, g in pairs],
            is_grads_batched=True,
            materialize_grads=True,
        )
    inner_bias = inner_bias.expand(through.shape[:2])  # where there are no biases: one 0 for all
    if missing := len(pairs[0][1]) - len(through):
        through, inner_bias = (
            functional.pad(through, (0, 0, 0, 0, 0, missing)),
            functional.pad(inner_bias, (0, 0, 0, missing)),
        )
    return inside.z.detach(), through, inner_bias


def _through_parts(
    frozen: Frozen, raw: Gradient, parts: Sequence[Part], choices: Choices
) -> tuple[Gradient, Gradient, Float[Tensor, "target pos"]]:
    """The gradients inside and of the stream that is read, and what bias vectors add, computed where there is any."""
    found: list[Tensor] = []
    for part in parts:
        some, rows = frozen.some(part.positions), part.of(raw)
        inner = some.mixer.back(rows, some.record)
        _, through, inner_bias = _through(some, rows, inner, (), choices)
        if not found:
            found = [x.new_zeros(*raw.shape[:2], *x.shape[2:]) for x in (inner, through, inner_bias)]
        for into, x in zip(found, (inner, through, inner_bias), strict=True):
            part.put(x, into)
    inner, through, inner_bias = found
    return inner, through, inner_bias


def _is_within(frozen: Frozen, hook: str) -> bool:
    return Place(frozen.sublayer.place.layer, hook).depth == frozen.sublayer.number


def _read_at(own: Mapping[str, Tensor], what: str) -> list[Tensor]:
    """The seeds that read one of the things inside a sublayer."""
    return [seed for hook, seed in own.items() if INSIDE.get(hook) == what]


def _at_stream(seeds: Seeds, depth: int) -> list[Tensor]:
    """The seeds that read the stream behind so many sublayers."""
    return [seed for place, seed in seeds.items() if place.is_stream and place.depth == depth]


def _plus(gradient: Tensor | None, *seeds: Tensor | None) -> Tensor | None:
    for seed in seeds:
        gradient = seed if gradient is None else _sum(gradient, seed)
    return gradient


def _sum(gradient: Tensor, seed: Tensor | None) -> Tensor:
    return gradient if seed is None else gradient + seed
