"""One ordinary forward pass of the model, recorded: the stream at every place, and what is frozen of every sublayer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.adapter import Adapter
from ..models.place import Place, stream_at
from ..models.sublayer import Sublayer, given, returned
from .frozen import Frozen
from .mixers import mixer_of
from .mixers.mixer import Record
from .running import hooks, look, recording, run, watch, watch_in


@dataclass(frozen=True)
class Trace:
    """What one forward pass computed, sublayer by sublayer, attention and MLP of each layer in turn.

    streams: the residual stream before each of them, and behind the last. records: what else is frozen of each.
    outputs: what stands inside or behind a sublayer, only where it was asked for. logits: the model's own; uncapped:
    before their soft-cap, where there is one.

    Streams and outputs are in the adapter's compute dtype; patterns and neurons stay in the model's, they are the
    largest. Rules by which components compete share out these neurons; the products of ``linear`` and ``half`` are
    formed from the recorded stream, so that in a model of half precision the two differ by its rounding.

    starts: where each prompt begins: one, or several that are packed one after the other (:meth:`packed`).
    """

    adapter: Adapter = field(repr=False)
    token_ids: Int[Tensor, "pos"]
    streams: list[Float[Tensor, "pos d_model"]] = field(repr=False)
    records: list[Record] = field(repr=False)
    outputs: dict[Place, Float[Tensor, "pos d"]] = field(repr=False)
    logits: Float[Tensor, "pos vocab"] | None = field(repr=False)
    uncapped: Float[Tensor, "pos vocab"] | None = field(repr=False)
    starts: tuple[int, ...] = (0,)
    _swept: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def n_layers(self) -> int:
        return len(self.records) // 2

    @property
    def resid_pre(self) -> list[Float[Tensor, "pos d_model"]]:
        """Of every layer."""
        return self.streams[:-1:2]

    @property
    def resid_mid(self) -> list[Float[Tensor, "pos d_model"]]:
        """Of every layer."""
        return self.streams[1::2]

    @property
    def resid_post(self) -> Float[Tensor, "pos d_model"]:
        """Of the last layer."""
        return self.streams[-1]

    @property
    def prompts(self) -> list[slice]:
        """The positions of each prompt."""
        return [slice(*ends) for ends in pairwise([*self.starts, len(self.token_ids)])]

    @cached_property
    def prompt_of(self) -> Int[Tensor, "pos"]:
        """Which prompt each position belongs to; on the host."""
        owner = torch.zeros(len(self.token_ids), dtype=torch.long)
        owner[list(self.starts[1:])] = 1
        return owner.cumsum(0)

    def sublayer(self, number: int) -> Frozen:
        """One of them, as it was on this prompt."""
        return self._frozen(self.adapter.sublayer(number))

    def backwards(self, last: int, down_to: int) -> Iterator[Frozen]:
        """Those before number ``last``, from there down to one of them; each layer is described once."""
        layer = None
        for number in range(last - 1, down_to - 1, -1):
            if layer is None or number % 2:
                layer = self.adapter.layer(number // 2)
            yield self._frozen(layer.sublayers[number % 2])

    def _frozen(self, part: Sublayer) -> Frozen:
        record = self.records[part.number]
        return Frozen(part, mixer_of(part.mixer), self.streams[part.reads.depth], record, self.starts)

    def swept(self, n: int) -> int:
        """Numbers that a target takes at each of n positions on its way back through the widest layer."""
        if n not in self._swept:
            kinds = [mixer_of(part.mixer) for i in range(self.n_layers) for part in self.adapter.layer(i).sublayers]
            self._swept[n] = max(
                sum(kind.swept(n) for kind in pair) for pair in zip(kinds[::2], kinds[1::2], strict=True)
            )
        return self._swept[n]

    def post_scale(self, place: Place, positions: Int[Tensor, "some"]) -> Float[Tensor, "some 1"] | float:
        """Of the norm behind the sublayer that a place belongs to; 1 where there is none, or nothing lies behind."""
        if place.is_stream:
            return 1.0
        frozen = self.sublayer(place.depth)
        return 1.0 if frozen.post is None else frozen.post_scale[positions]

    @property
    def size(self) -> int:
        """In bytes."""
        recorded = (x for record in self.records for x in (record.pattern, record.neurons, *record.at.values()))
        all_of_it = (*self.streams, *self.outputs.values(), self.logits, self.uncapped, *recorded)
        # Without a soft-cap the uncapped logits are the logits.
        return sum({(x.untyped_storage()._cdata, x.data_ptr()): x.nbytes for x in all_of_it if x is not None}.values())

    def first(self, n: int) -> Trace:
        """The first n positions of a trace of one prompt, which no later one has touched."""
        if n == len(self.token_ids):
            return self
        return replace(
            self,
            token_ids=self.token_ids[:n],
            streams=[x[:n] for x in self.streams],
            records=[record.first(n) for record in self.records],
            outputs={place: x[:n] for place, x in self.outputs.items()},
            logits=None if self.logits is None else self.logits[:n],
            uncapped=None if self.uncapped is None else self.uncapped[:n],
        )

    def without_neurons(self) -> Trace:
        """Without what no gradient needs."""
        return replace(self, records=[record.without_neurons() for record in self.records])

    @staticmethod
    def packed(traces: Sequence[Trace]) -> Trace:
        """Traces of one model as one, their positions one after the other. Outputs and logits stay behind."""
        if len(traces) == 1:
            return traces[0]
        return replace(
            traces[0],
            token_ids=torch.cat([trace.token_ids for trace in traces]),
            streams=[torch.cat(x) for x in zip(*(trace.streams for trace in traces), strict=True)],
            records=[Record.together(x) for x in zip(*(trace.records for trace in traces), strict=True)],
            outputs={},
            logits=None,
            uncapped=None,
            starts=tuple(accumulate((len(trace.token_ids) for trace in traces[:-1]), initial=0)),
        )

    def at(self, place: tuple[int, str]) -> Float[Tensor, "pos d"]:
        """The model's own activation at a place."""
        place = Place(*place)
        return self.streams[place.depth] if place.is_stream else self.outputs[place]


def blank(
    adapter: Adapter,
    n: int,
    *,
    until: int | None = None,
    outputs: Collection[Place] = (),
    dtype: torch.dtype | None = None,
) -> Trace:
    """A trace of n positions, as large as a recorded one, of which nothing was computed: its tensors have no numbers.

    What is planned and forecast for it holds for every prompt of this length. Options as of :func:`trace`.
    """
    compute, n_layers = adapter.compute_dtype(dtype), adapter.n_layers if until is None else until + 1
    own = dtype or max(adapter.dtypes, key=lambda one: one.itemsize)

    def empty(width: int, dtype: torch.dtype = compute) -> Tensor:
        return torch.empty(n, width, dtype=dtype, device="meta")

    records = []
    for part in (part for index in range(n_layers) for part in adapter.layer(index).sublayers):
        record = mixer_of(part.mixer).blank(n, own, compute)
        raw = {} if part.post is None else {"raw": empty(adapter.d_model, own)}
        records.append(replace(record, at={**record.at, **raw}))
    vocabulary, capped = adapter.unembed.weight.shape[1], adapter.softcap is not None
    logits = empty(vocabulary) if until is None else None
    return Trace(
        adapter=adapter,
        token_ids=torch.zeros(n, dtype=torch.long),
        streams=[empty(adapter.d_model) for _ in range(2 * n_layers + 1)],
        records=records,
        outputs={place: empty(adapter.width(place)) for place in outputs if not place.is_stream},
        logits=logits,
        uncapped=empty(vocabulary) if capped and logits is not None else logits,
    )


class _Stop(Exception):
    """Leaves the model's forward once the last layer that matters is done."""


def trace(
    adapter: Adapter,
    token_ids: Int[Tensor, "pos"],
    *,
    until: int | None = None,
    outputs: Collection[tuple[int, str]] = (),
    dtype: torch.dtype | None = None,
) -> Trace:
    """Run the model once on ``token_ids`` and record it.

    until: the last layer that is needed; the pass stops there and has no logits. None: the whole model.
    outputs: which places inside and behind sublayers to keep beside the residual stream.
    dtype: run the model in this higher dtype ("float32" takes the rounding of a bfloat16 model away).
    """
    return traces(adapter, [token_ids], until=until, outputs=outputs, dtype=dtype)[0]


def traces(
    adapter: Adapter,
    prompts: Sequence[Int[Tensor, "pos"]],
    *,
    until: int | None = None,
    outputs: Collection[tuple[int, str]] = (),
    dtype: torch.dtype | None = None,
) -> list[Trace]:
    """Run the model once on prompts of any lengths, and record each; options as of :func:`trace`.

    They are padded at their ends, where no position of theirs can look, each with its own last token.
    """
    longest = max(map(len, prompts))
    compute, home = adapter.compute_dtype(dtype), adapter.device
    n_layers = adapter.n_layers if until is None else until + 1
    places = [stream_at(depth, n_layers) for depth in range(2 * n_layers + 1)]
    inside = [place for place in (Place(*place) for place in outputs) if not place.is_stream]
    batch = torch.stack([torch.cat([ids, ids[-1:].expand(longest - len(ids))]) for ids in prompts])
    activations: dict[Place, Tensor] = {}
    noted: list[dict[str, Tensor]] = [{} for _ in places[1:]]
    ends: list[Tensor] = []  # the logits before their soft-cap, and as they are

    def keep(place: Place) -> Callable[[Tensor], None]:
        def note(x: Tensor) -> None:
            activations[place] = x.detach().to(home, compute)
            if until is not None and place == places[-1]:
                raise _Stop

        return note

    def keep_own(number: int, name: str) -> Callable[[Tensor], None]:
        def note(x: Tensor) -> None:
            # Routers are given positions, whichever prompt they are of.
            x = x.detach().to(home)
            noted[number][name] = x.unflatten(0, batch.shape) if x.dim() == 2 else x

        return note

    with recording(adapter, dtype), hooks() as handles:
        layers = [adapter.layer(index) for index in range(n_layers)]
        parts = [part for layer in layers for part in layer.sublayers]
        mixers = [mixer_of(part.mixer) for part in parts]
        for number, (part, mixer) in enumerate(zip(parts, mixers, strict=True)):
            after = {} if part.post is None else {"raw": given(part.post.module)}  # type: ignore[arg-type]
            for name, tap in (mixer.taps() | after).items():
                look(tap, handles, keep_own(number, name))
        for place in [*places[:-1], *inside, places[-1]]:
            watch_in(layers[place.layer], place.hook, handles, keep(place))
        if adapter.softcap is not None:
            look(returned(adapter.model.get_output_embeddings()), handles, ends.append)
        with suppress(_Stop):
            ends.append(run(adapter, batch).logits)
        norms = [part.norm.to(home, compute) for part in parts]

    def of_prompt(i: int, ids: Int[Tensor, "pos"]) -> Trace:
        streams = [activations[place][i, : len(ids)] for place in places]
        records = []
        for part, mixer, norm, own in zip(parts, mixers, norms, noted, strict=True):
            mine = {name: x[i] for name, x in own.items()}
            record = mixer.record(mine, norm, streams[part.reads.depth])
            raw = {"raw": mine["raw"][: len(ids)]} if "raw" in mine else {}
            records.append(replace(record, at={**record.at, **raw}))
        logits = ends[-1][i, : len(ids)].to(home, compute) if ends else None
        return Trace(
            adapter=adapter,
            token_ids=ids,
            streams=streams,
            records=records,
            outputs={place: activations[place][i, : len(ids)] for place in inside},
            logits=logits,
            uncapped=logits if len(ends) < 2 else ends[0][i, : len(ids)].to(home, compute),
        )

    return [of_prompt(i, ids) for i, ids in enumerate(prompts)]


def read_batch(
    adapter: Adapter,
    token_ids: Int[Tensor, "batch pos"],
    place: tuple[int, str] | None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "batch d"]:
    """What a batch of prompts of equal length gives at their last position: the activation at a place, or the logits.

    The model runs as it is, nothing frozen, and no further than the place: this is how interventions are measured.
    """
    compute = adapter.compute_dtype(dtype)
    noted: list[Tensor] = []

    def note(x: Tensor) -> None:
        noted.append(x[:, -1].to(adapter.device, compute))
        raise _Stop

    with recording(adapter, dtype, patterns=False), hooks() as handles:
        if place is not None:
            watch(adapter, place, handles, note)
        try:
            output = run(adapter, token_ids, logits_to_keep=1)
        except _Stop:
            return noted[0]
    return output.logits[:, -1].to(adapter.device, compute)


def read_places(
    adapter: Adapter,
    token_ids: Int[Tensor, "batch pos"],
    places: Collection[tuple[int, str]],
    dtype: torch.dtype | None = None,
) -> dict[Place, Float[Tensor, "batch pos d"]]:
    """The activations at places of a batch of prompts. The model runs as it is, and no further than the last of
    them."""
    compute, asked = adapter.compute_dtype(dtype), {Place(*place) for place in places}
    noted: dict[Place, Tensor] = {}

    def keep(place: Place) -> Callable[[Tensor], None]:
        def note(x: Tensor) -> None:
            noted[place] = x.to(adapter.device, compute)
            if len(noted) == len(asked):
                raise _Stop

        return note

    with recording(adapter, dtype, patterns=False), hooks() as handles:
        for place in asked:
            watch(adapter, place, handles, keep(place))
        with suppress(_Stop):
            run(adapter, token_ids, logits_to_keep=1)
    return noted
