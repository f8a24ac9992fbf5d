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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.place import Place
from .choices import Choices
from .frozen import INSIDE, Frozen
from .record import Trace


@dataclass(frozen=True)
class Level:
    """One sublayer on the way back: the targets' gradients around it.

    after, before: with respect to the residual stream after and before the sublayer, targets read there included; past:
    the latter without what goes through this sublayer.
    output: with respect to what the sublayer adds (attn_out, mlp_out): ``after``, and what reads the output itself.
    inner: with respect to hook_z [n_heads * d_head], or to the neurons [d_mlp]; recorded: what the recorded stream
    gives there.
    bias: what bias vectors at each position add to each target from here on (with everything live: their first-order
    effect), this sublayer's own output bias not included; bias_written: with it; bias_before: with all of this
    sublayer's. pattern, pattern_before: the same of what no part of the stream has made of heads' patterns.
    """

    frozen: Frozen
    after: Float[Tensor, "target pos d_model"]
    output: Float[Tensor, "target pos d_model"]
    inner: Float[Tensor, "target pos d_inner"]
    recorded: Float[Tensor, "pos d_inner"]
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

    def units(self) -> Float[Tensor, "target unit"]:
        """What each head or neuron contributes: ⟨gradient, inner value⟩, summed over positions."""
        return self.frozen.mixer.by_unit(self.inner * self.recorded, self.frozen.record)


Seeds = Mapping[Place, Float[Tensor, "target pos d"]]
"""Where targets are read: for each place the direction of every target at every position, mostly zeros."""


def sweep(trace: Trace, seeds: Seeds, choices: Choices, *, down_to: int = 0) -> Iterator[Level]:
    """Visit the sublayers from the last one that a seed reads back to number ``down_to``.

    All seeds have the same number of targets and the trace's positions. Live attention is for a trace of one prompt.
    """
    assert choices.pattern == "frozen" or len(trace.starts) == 1
    given = {Place(*place): seed for place, seed in seeds.items()}
    example = next(iter(given.values()))
    last = max(down_to + 1, *(place.behind for place in given))  # the stream behind all that is read
    waiting: dict[int, Tensor] = {}  # gradients with respect to a stream before the next one on the way
    after = trace.resid_post.new_zeros(*example.shape[:2], trace.adapter.d_model)
    after = _plus(after, *_at_stream(given, last))
    bias = pattern = after.new_zeros(after.shape[:2])
    for number in range(last - 1, down_to - 1, -1):
        frozen = trace.sublayer(number)
        past = _plus(after, *_at_stream(given, number), waiting.pop(number, None))
        level, through = _back(frozen, after, past, bias, pattern, choices, given)
        reads = frozen.sublayer.reads.depth
        if reads != number:
            waiting[reads] = _plus(through, waiting.get(reads))
        yield level
        after, bias, pattern = level.before, level.bias_before, level.pattern_before


def _back(
    frozen: Frozen, after: Tensor, past: Tensor, bias: Tensor, pattern: Tensor, choices: Choices, seeds: Seeds
) -> tuple[Level, Float[Tensor, "target pos d_model"]]:
    """One step back through a sublayer, at the recorded stream; and the gradient with respect to what it reads."""
    own = {place.hook: seed for place, seed in seeds.items() if place.depth == frozen.sublayer.number}
    output = _plus(after, own.get(frozen.sublayer.place.hook))
    raw = frozen.raw_gradient(output, choices)
    inner = _plus(frozen.mixer.back(raw, frozen.record), *_read_at(own, "z"))
    with torch.enable_grad():
        x = frozen.resid.detach().requires_grad_()
        size = torch.ones(len(x), dtype=x.dtype, device=x.device, requires_grad=True)
        inside = frozen.inside(x, choices, size)
        pairs = [(inside.z, inner)]
        bias_vectors = frozen.live_bias(inside, choices, size)
        pairs += [] if bias_vectors is None else [(bias_vectors, raw)]
        pairs += [(getattr(inside, name), seed) for name in ("normed", "bare") for seed in _read_at(own, name)]
        through, inner_bias = torch.autograd.grad(
            [y for y, _ in pairs], (x, size), [g for _, g in pairs], is_grads_batched=True, materialize_grads=True
        )
    written = frozen.output_bias(output, raw)
    after_written = bias if written is None else bias + written
    before = past + through if frozen.sublayer.reads.depth == frozen.sublayer.number else past
    recorded, bias_before = inside.z.detach(), after_written + inner_bias
    made = frozen.pattern(choices)
    pattern_before = pattern if made is None else pattern + (inner * made).sum(2)
    level = Level(
        frozen, after, output, inner, recorded, past, before, bias, after_written, bias_before, pattern, pattern_before
    )
    return level, through


def _read_at(own: Mapping[str, Tensor], what: str) -> list[Tensor]:
    """The seeds that read one of the things inside a sublayer."""
    return [seed for hook, seed in own.items() if INSIDE.get(hook) == what]


def _at_stream(seeds: Seeds, depth: int) -> list[Tensor]:
    """The seeds that read the stream behind so many sublayers."""
    return [seed for place, seed in seeds.items() if place.is_stream and place.depth == depth]


def _plus(gradient: Tensor, *seeds: Tensor | None) -> Tensor:
    for seed in seeds:
        gradient = gradient if seed is None else gradient + seed
    return gradient
