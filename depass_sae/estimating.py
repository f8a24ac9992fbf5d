"""What questions take before anything is loaded: memory, and time in forward passes, from a model's config alone.

The model is made on the meta device, where weights have shapes and no numbers, and the passes themselves are rehearsed
on it (:mod:`.passes.rehearsal`): what they hold and multiply is counted, so that nothing here says again how they work.
What depends on numbers is assumed: how many features fire (:data:`ACTIVE`), and that experts are chosen evenly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from .arguments import typed
from .attribution.document import SCHEMA_VERSION
from .attribution.measure import BATCH_TOKENS
from .errors import UserError
from .graph.build import GraphSettings, graph_bytes
from .graph.cuts import Active, Cut, Standing, embedding_cut
from .graph.flow import inflow
from .graph.grow import AT_ONCE
from .graph.reads import Reads
from .graph.verify import DRAWS, REPLACEMENTS
from .models.adapter import Adapter
from .models.load import DTYPES, dtype_named, outline, usable
from .models.place import Place
from .passes.backward import Level
from .passes.choices import CONTRIBUTION, EFFECT
from .passes.forward import propagate
from .passes.many import Aim, Batch, sweep_each
from .passes.memory import Blocks, Budget
from .passes.plan import forecast, planned
from .passes.record import Trace, blank
from .passes.rehearsal import Effort, rehearse
from .passes.rules import rule_named
from .passes.settings import Settings
from .passes.sources import Heads, Neurons, Source, Split, tokens
from .report.card.making import STRONGEST
from .report.case.case import CaseSettings
from .saes import Stands
from .saes.encode import FeatureParts, encode
from .subject import KEPT
from .view.blocks import Block, Column, Note, Row, Table
from .view.shown import Shown
from .view.words import count, number

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import PreTrainedConfig

ACTIVE = 64
"""Features that are taken to fire at each position."""
PRODUCT = 1024
"""Rows and columns of the matrix product by which a machine's speed is measured."""
SHORT = 4
"""Passes that would go through too many blocks are rehearsed on prompts of so many tokens, and of twice as many."""
GIB = 2**30


@dataclass(frozen=True)
class Taken:
    """What one question takes, with all that it is made of.

    Bytes: of the pass, beside weights, SAEs, encodings and trace; peak: of all of these at once. passes: in plain
    forward passes of the prompt. seconds: its matrix products at the given speed; what else it does takes time, too.
    """

    question: str
    rule: str | None
    work: int
    peak: int
    passes: float
    seconds: float

    @property
    def time(self) -> str:
        return "seconds" if self.seconds < 60 else "minutes" if self.seconds < 3600 else "hours"


@dataclass(frozen=True)
class Estimate(Shown):
    """What every question takes on one model, for a prompt of so many tokens. Sizes are in bytes.

    weights: as the model is loaded; traced: as it is while a pass is recorded. saes: all of them, at ``layers``;
    encodings: what a question keeps of them. plain: what a forward pass multiplies and adds.
    """

    model: str
    tokens: int
    dtype: str
    trace_dtype: str
    device: str
    tflops: float
    weights: int
    traced: int
    trace: int
    saes: int
    encodings: int
    sae_width: int | None
    layers: tuple[int, ...]
    plain: int
    questions: tuple[Taken, ...]

    @property
    def title(self) -> str:
        return f"What questions take on {self.model}"

    def to_dict(self) -> dict[str, Any]:
        """The document that ``depass-sae estimate --json`` prints."""
        found = {**asdict(self), "layers": list(self.layers)}
        found["questions"] = [{**asdict(taken), "time": taken.time} for taken in self.questions]
        return {"schema_version": SCHEMA_VERSION, **found}

    def blocks(self, top: int | None = None) -> tuple[Block, ...]:
        sizes = [("weights", self.weights), ("trace", self.trace)]
        if self.traced != self.weights:
            sizes.insert(1, (f"weights while traced, {self.trace_dtype}", self.traced))
        if self.layers:
            sizes += [(f"{count(len(self.layers))} SAEs of {count(self.sae_width)} features", self.saes)]
            sizes += [("encodings that are kept", self.encodings)]
        held = Table(
            "What is held", (Column("part"), Column("GiB", "number", 2, bar=True)),
            tuple(Row((name, size / GIB)) for name, size in sizes),
        )  # fmt: skip
        columns = (
            *(Column("question"), Column("rule"), Column("pass, GiB", "number", 2)),
            *(Column("peak, GiB", "number", 2, bar=True), Column("forward passes", "number", 1), Column("time")),
        )
        rows = (
            Row((taken.question, taken.rule or "", taken.work / GIB, taken.peak / GIB, taken.passes, taken.time))
            for taken in self.questions
        )
        caption = (
            f"A forward pass of {count(self.tokens)} tokens takes {number(self.plain / 1e12)} TFLOP; the time is that "
            f"of matrix products at {number(self.tflops)} TFLOP/s on {self.device}. Targets are at the last position, "
            "behind the last layer."
        )
        assumed = f"{ACTIVE} features are taken to fire at each position."
        missing = "For features, cards, graphs and case studies say how wide the SAEs are: --sae-width (sae_width=)."
        said = Note(assumed if self.layers else missing, "quiet")
        return (held, Table("What each question takes", columns, tuple(rows), caption), said)


@typed
def estimate(
    model: str | Path | PreTrainedConfig = "smollm2",
    *,
    tokens: int,
    graph: int = GraphSettings.max_nodes,
    sae_width: int | None = None,
    sae_layers: int | None = None,
    dtype: str | torch.dtype | None = None,
    trace_dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    tflops: float | None = None,
    trust_remote_code: bool = False,
) -> Estimate:
    """What every question takes in memory and time, for a prompt of so many tokens; of the model only its config is
    read.

    model: "smollm2", a hub id (its config.json is fetched), a local directory, or a config object. graph: how many
    nodes a graph has. sae_width: features of each SAE on the residual stream (None: there are none); sae_layers: on how
    many layers (None: all). dtype, trace_dtype: as in :func:`load`. device: where it would run (None: as in
    :func:`load`). tflops: its speed in float32 products (None: this machine's is measured, in a second).

    Raises UserError for a model that has no config or is of no supported family, and for sizes that cannot be.
    """
    for name, size in {"tokens": tokens, "graph": graph, "sae_width": sae_width, "sae_layers": sae_layers}.items():
        if size is not None and size < 1:
            raise UserError(f"{name} is {size}, and should be 1 at least")
    if tflops is not None and not (tflops > 0 and math.isfinite(tflops)):
        raise UserError(f"tflops should be greater than 0 and finite, not {tflops}")
    if sae_layers is not None and sae_width is None:
        raise UserError("say how wide the SAEs are, too: --sae-width (sae_width=)")
    adapter = outline(model, dtype=dtype, trust_remote_code=trust_remote_code)
    if sae_layers is not None and sae_layers > adapter.n_layers:
        raise UserError(f"there are {adapter.n_layers} layers, and sae_layers is {sae_layers}")
    if adapter.context_length is not None and tokens > adapter.context_length:
        raise UserError(f"the model's context is {adapter.context_length:,} tokens, and tokens is {tokens:,}")
    there, tracing = usable(device), dtype_named(trace_dtype)
    if tracing is not None and torch.promote_types(tracing, adapter.dtype) != tracing:
        raise UserError(f"trace_dtype {_name(tracing)} is lower than the model's {_name(adapter.dtype)}")
    saes = _spread(adapter.n_layers, 0 if sae_width is None else sae_layers or adapter.n_layers)
    speed = measured_tflops(there) if tflops is None else tflops
    how = _Rehearsals(adapter, tokens, tracing, there, sae_width or 0, saes, graph)
    name = str(model) if isinstance(model, str | Path) else getattr(model, "_name_or_path", "") or model.model_type
    return Estimate(
        model=name,
        tokens=tokens,
        dtype=_name(adapter.dtype),
        trace_dtype=_name(tracing or adapter.dtype),
        device=str(there),
        tflops=speed,
        weights=how.weights,
        traced=how.traced,
        trace=how.trace.size,
        saes=how.sae_bytes,
        encodings=how.encodings,
        sae_width=sae_width,
        layers=tuple(saes),
        plain=how.plain.flops,
        questions=tuple(how.taken(question, speed) for question in how.questions()),
    )


def measured_tflops(device: torch.device) -> float:
    """The speed of float32 products on a device, in 10¹² multiplications and additions a second: the best of some."""
    x, best = torch.ones(PRODUCT, PRODUCT, device=device), math.inf
    for _ in range(8):
        _finish(device)
        began = time.perf_counter()
        x @ x
        _finish(device)
        best = min(best, time.perf_counter() - began)
    return 2 * PRODUCT**3 / best / 1e12


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(dtype: torch.dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


def _spread(layers: int, count: int) -> list[int]:
    """So many of the layers, evenly, the last among them."""
    return [(i + 1) * layers // count - 1 for i in range(count)]


# -------------------------------------------------------------------------------------------------------- rehearsals


@dataclass(frozen=True)
class _Question:
    """effort: beside the recorded pass. encoded: how many SAEs encode the prompt."""

    name: str
    rule: str | None
    effort: Effort
    encoded: int = 0


@dataclass(frozen=True)
class _Rehearsals:
    """Every pass on one prompt of ``n`` tokens, rehearsed when it is asked for."""

    adapter: Adapter
    n: int
    dtype: torch.dtype | None
    device: torch.device
    sae_width: int
    layers: Sequence[int]
    nodes: int

    # -------------------------------------------------------------------------------------------------- what is held

    @cached_property
    def weights(self) -> int:
        return self._weights_in(None)

    @cached_property
    def traced(self) -> int:
        """While the model is in the trace's dtype."""
        return self._weights_in(self.dtype)

    def _weights_in(self, dtype: torch.dtype | None) -> int:
        tensors = {id(tensor): tensor for tensor in (*self.adapter.model.parameters(), *self.adapter.model.buffers())}
        sizes = [x.numel() * (dtype if dtype and x.is_floating_point() else x.dtype).itemsize for x in tensors.values()]
        return sum(sizes)

    @cached_property
    def trace(self) -> Trace:
        return blank(self.adapter, self.n, dtype=self.dtype)

    @cached_property
    def sae(self) -> SAE:
        from sae_lens import StandardSAE, StandardSAEConfig

        with torch.device("meta"):
            return StandardSAE(StandardSAEConfig(d_in=self.adapter.d_model, d_sae=self.sae_width, device="meta"))

    @cached_property
    def sae_bytes(self) -> int:
        return len(self.layers) * sum(x.nbytes for x in self.sae.parameters()) if self.layers else 0

    @cached_property
    def encodings(self) -> int:
        """What a question keeps of all SAEs' encodings."""
        if not self.layers:
            return 0
        one = encode(self.sae, self.trace.resid_post).size
        return one * min(len(self.layers), KEPT // one + 1)

    # ---------------------------------------------------------------------------------------------------- the passes

    @cached_property
    def layers_alone(self) -> Effort:
        """The model's own forward pass, as its parts make it, sublayer by sublayer."""
        seen = self.trace

        def run() -> None:
            for i in range(2 * seen.n_layers):
                frozen = seen.sublayer(i)
                frozen.out(frozen.inside(frozen.resid, EFFECT), EFFECT)

        return _rehearsed(run)

    @cached_property
    def plain(self) -> Effort:
        """The same with its logits."""
        inside, unembed = self.layers_alone, self.adapter.unembed.weight
        logits = self.n * unembed.shape[1] * self.adapter.dtype.itemsize
        return Effort(inside.flops + 2 * self.n * unembed.numel(), max(inside.peak, logits))

    @cached_property
    def encoding(self) -> Effort:
        return _rehearsed(lambda: encode(self.sae, self.trace.resid_post))

    @cached_property
    def back(self) -> Effort:
        """From one target to the embeddings; tokens, heads and neurons on the way."""
        return self.swept(1)

    def swept(self, aims: int) -> Effort:
        """Back from the end of the last layer."""

        def visit(_: Batch, levels: Iterator[Level]) -> None:
            for level in levels:
                level.units()

        w = torch.empty(self.adapter.d_model, dtype=self.trace.resid_post.dtype, device="meta")
        several = [Aim(self._end, w, self.n - 1)] * aims
        return _rehearsed(lambda: sweep_each([self.trace], several, CONTRIBUTION["half"], visit, Budget()))

    def carried(
        self, source: Callable[[Trace], Split], to: Place, settings: Settings, everywhere: bool = False
    ) -> Effort:
        """A source's components forward to a place, at its last position or at all of them.

        Its memory is what the pass itself forecasts, a block, and what a sublayer takes of the whole prompt. Its work
        is rehearsed on short prompts, since a long one has too many blocks to be gone through: a row takes as much in
        every map, and in attention in proportion to the length.
        """
        began, start = rehearse(lambda: source(self.trace))
        rows, need = _planned(start, self.trace, to, settings, everywhere)
        each = []
        for n in sorted({min(self.n, SHORT), min(self.n, 2 * SHORT)}):
            seen = blank(self.adapter, n, dtype=self.dtype)
            start, reads = source(seen), {to: _read(seen, everywhere)}
            went = _rehearsed(lambda: propagate(seen, start, reads, settings.allocation))  # noqa: B023 (called at once)
            each.append(went.flops / max(1, _planned(start, seen, to, settings, everywhere)[0]))
        a_row = each[-1] + (each[-1] - each[0]) * max(0, self.n - 2 * SHORT) / SHORT
        flops = rows * max(a_row, each[-1])
        held = need + Blocks(Budget(), self.device).size + self.layers_alone.peak
        return Effort(began.flops + round(flops), max(began.peak, held))

    def by_layer(self, source: Callable[[int], Source], settings: Settings) -> Effort:
        """Each layer's parts carried to the end; the middle one stands for all."""
        one = self.carried(source(self.adapter.n_layers // 2).start, self._end, settings)
        return Effort(one.flops * self.adapter.n_layers, one.peak)

    def looked(self, layer: int, settings: Settings) -> Effort:
        """A head's score, split by pairs of tokens."""
        place = Place(layer, "resid_pre")
        frozen = self.trace.sublayer(Place(layer, "attn_out").depth)
        there = self.carried(_by_token, place, settings, everywhere=True)
        like = self.trace.resid_post

        def split() -> Any:
            parts = like.new_empty(self.n, self.n + 2, like.shape[1])
            return frozen.mixer.look().split_queries_and_keys(frozen, 0, parts)

        apart = _rehearsed(split)
        return Effort(there.flops + apart.flops, max(there.peak, apart.peak + self._stream_of_tokens))

    @cached_property
    def inflow(self) -> Effort:
        """Of one node of a graph, at the highest SAE, from the one before it or the embeddings.

        Rehearsed for as many as join at once, of which a long prompt has not all go back together.
        """
        seen, like = self.trace, self.trace.resid_post
        *below, high = [None, *self.layers]
        cut = embedding_cut(seen) if below[-1] is None else self._cut(below[-1])
        assert high is not None
        nodes = max(2, min(AT_ONCE, BATCH_TOKENS // self.n))
        w, one = like.new_empty(nodes, like.shape[1]), like.new_empty(nodes)
        reads = Reads(Place(high, "resid_post"), torch.full((nodes,), self.n - 1), w, w, one, one)
        some = _rehearsed(lambda: inflow(seen, Standing([cut]), 0, reads, Settings()))
        return Effort(some.flops // nodes, some.peak)

    def _cut(self, layer: int) -> Cut:
        like = self.trace.resid_post
        count = self.n * min(ACTIVE, self.sae_width)
        pos = torch.arange(count) // (count // self.n)
        each = like.new_empty(count)
        found = FeatureParts(pos, pos % self.sae_width, each, each, self.sae.W_dec.detach(), like, like, None)
        place = Place(layer, "resid_post")
        active, nowhere = Active(found.pos, found.index, found.activation), (False,) * self.n
        return Cut(layer, place, Stands(place), None, active, {place: found}, like, nowhere, like)

    @property
    def _end(self) -> Place:
        return Place(self.adapter.n_layers - 1, "resid_post")

    @property
    def _stream_of_tokens(self) -> int:
        return self.n * (self.n + 1) // 2 * self.adapter.d_model * self.trace.resid_post.element_size()

    # ------------------------------------------------------------------------------------------------- the questions

    def questions(self) -> Iterator[_Question]:
        half, softmax = Settings(), Settings().by("softmax")
        yield _Question("tokens", "half", self.back)
        yield _Question("tokens", "softmax", self.carried(_by_token, self._end, softmax))
        for name, source in (("heads", Heads), ("neurons", Neurons)):
            yield _Question(name, "half", self.back)
            yield _Question(name, "softmax", self.by_layer(source, softmax))
        if (layer := self._last_to_look) is not None:
            yield _Question("attention", "half", self.looked(layer, half))
        for settings in (half, softmax):
            yield _Question("decompose", settings.rule, self.decomposed(settings))
        if self.layers:
            yield from self._of_saes()

    def decomposed(self, settings: Settings) -> Effort:
        there = self.carried(_by_token, self._end, settings, everywhere=True)
        dense = self.n * (self.n + 2) * self.adapter.d_model * self.trace.resid_post.element_size()
        return Effort(there.flops, max(there.peak, self._stream_of_tokens + dense))

    def _of_saes(self) -> Iterator[_Question]:
        every, few = len(self.layers), min(3, len(self.layers))
        yield _Question("features", None, Effort(0, 0), every)
        card = _together(self.swept(STRONGEST), *[self.inflow] * STRONGEST * (few - 1))
        yield _Question("card", "half", card, few)
        graph = self.graphed(self.nodes)
        yield _Question("graph", "half", graph, every)
        case = CaseSettings()
        yield _Question("verify", None, self.verified(self.nodes), every)
        study = _together(
            self.back, self.replaced(case.ablate), card, self.graphed(case.max_nodes),
            self.verified(case.verify),
        )  # fmt: skip
        yield _Question("case study", "half", study, every)

    def graphed(self, nodes: int) -> Effort:
        some = self.inflow
        sources = self.n * (min(ACTIVE, self.sae_width) + 1) + 2
        return Effort(some.flops * nodes, some.peak + graph_bytes(nodes, sources))

    def verified(self, nodes: int) -> Effort:
        """Nodes taken out one at a time, tokens among them replaced; and features kept or taken out together."""
        replaced = min(self.n, nodes)
        runs = nodes - replaced + REPLACEMENTS * replaced + 2 * (1 + DRAWS)
        written = 2 * (1 + DRAWS) * len(self.layers) * self.encoding.flops
        return Effort(runs * self.plain.flops + written, max(REPLACEMENTS * self.plain.peak, self.encoding.peak))

    def replaced(self, times: int) -> Effort:
        """Every token replaced so many times, many prompts in a pass."""
        at_once = min(times * self.n, max(1, BATCH_TOKENS // self.n))
        return Effort(times * self.n * self.plain.flops, at_once * self.plain.peak)

    @property
    def _last_to_look(self) -> int | None:
        """The last layer whose attention has scores."""
        for layer in reversed(range(self.adapter.n_layers)):
            try:
                self.trace.sublayer(Place(layer, "attn_out").depth).mixer.look()
            except UserError:
                continue
            return layer
        return None

    def taken(self, question: _Question, tflops: float) -> Taken:
        """With the recorded pass and the encodings that a question begins with."""
        flops = self.plain.flops + question.effort.flops
        recording = self.traced + self.sae_bytes + self.trace.size + self.plain.peak
        answering = self.weights + self.sae_bytes + self.trace.size + question.effort.peak
        if question.encoded:
            flops += question.encoded * self.encoding.flops
            answering += self.encodings * question.encoded // len(self.layers)
            answering = max(answering, self.weights + self.sae_bytes + self.trace.size + self.encoding.peak)
        return Taken(
            question.name,
            question.rule,
            question.effort.peak,
            max(recording, answering),
            flops / self.plain.flops,
            flops / (tflops * 1e12),
        )


def _by_token(seen: Trace) -> Split:
    return tokens([str(pos) for pos in range(len(seen.token_ids))]).start(seen)


def _read(seen: Trace, everywhere: bool) -> Int[Tensor, "pos"]:
    n = len(seen.token_ids)
    return torch.arange(n) if everywhere else torch.tensor([n - 1])


def _planned(start: Split, seen: Trace, to: Place, settings: Settings, everywhere: bool) -> tuple[int, int]:
    """How many rows a pass carries through the sublayers, and the bytes that it needs beside its blocks."""
    reads = {to: _read(seen, everywhere)}
    steps = planned(seen, start, reads, rule_named(settings.rule), settings.allocation.first_token == "skip")
    return sum(int(step.present.sum()) for step in steps), forecast(steps, seen.adapter, start, reads).total


def _rehearsed(work: Callable[[], Any]) -> Effort:
    effort, _ = rehearse(work)
    return effort


def _together(*efforts: Effort) -> Effort:
    """One after the other."""
    return Effort(sum(effort.flops for effort in efforts), max(effort.peak for effort in efforts))
