"""What is timed, and the limit that it is measured against, in the same process with the same threads.

Two kinds of limit. A pass that carries rows cannot be faster than the matrix products of these rows (and nothing else);
a sweep is measured against the plain forward pass of the model as transformers runs it. Both are taken in turn with
what they are the limit of, and the fastest of each counts: what else runs on the machine comes and goes.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from depass_sae.models.adapter import Adapter
from depass_sae.models.place import Place
from depass_sae.passes.backward import Level
from depass_sae.passes.choices import CONTRIBUTION
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.many import PACK, Aim, Batch, sweep_each
from depass_sae.passes.memory import Budget
from depass_sae.passes.record import Trace, trace, traces
from depass_sae.passes.sources import Heads, Neurons, Source, Vectors, tokens

from .shapes import build, prompt

REPEATS = 5
LONG = 10.0
"""Seconds above which once is enough."""
PRODUCT_ROWS, SAMPLED = 4096, 8
"""The limit's products are taken of so many rows at once, at most so many times, and scaled to all rows."""
TARGETS = 100
PROMPTS = 16


@dataclass(frozen=True)
class Row:
    """One measurement. ratio: seconds over the limit's; rows: how many (position, component) a pass carries."""

    shape: str
    length: int
    work: str
    limit: str
    seconds: float
    limit_seconds: float | None
    rows: int | None
    peak_gib: float

    @property
    def ratio(self) -> float | None:
        return None if self.limit_seconds is None else self.seconds / self.limit_seconds

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True)
class Work:
    """Something to time: ``run``, and its ``limit``. A limit may return the seconds itself, scaled."""

    name: str
    limit_name: str
    run: Callable[[], Any]
    limit: Callable[[], float]
    rows: int | None = None

    @classmethod
    def products(
        cls,
        name: str,
        adapter: Adapter,
        run: Callable[[], Any],
        rule: str,
        rows: int,
        layers: range,
        at_end: int | None = None,
    ) -> Work:
        """A pass that carries so many rows through these layers; ``at_end`` of them are wanted of the last one."""
        after = ("o", "gate", "up", "down") if rule == "half" else ("o", "gate", "down")
        counts = {(layer, name): rows for layer in layers for name in ("v", *after)}
        if at_end is not None:
            counts |= {(layers[-1], name): at_end for name in after}
        return cls(name, "products", run, lambda: product_seconds(adapter, counts), rows * len(layers))


def measured(threads: int, shape: str, length: int, everything: bool = True) -> list[Row]:
    """The works on one shape and length; or the sweeps alone, which take little however long the prompt."""
    torch.set_num_threads(threads)
    adapter = build(shape)
    with torch.no_grad():
        chosen = (w for w in works(adapter, prompt(adapter, length)) if everything or w.name.startswith("sweep"))
        return [_timed(shape, length, work, adapter.model.device) for work in chosen]


def _timed(shape: str, length: int, work: Work, device: torch.device) -> Row:
    seconds, limits = [], []
    work.limit()  # the first time pays for what is only done once
    for _ in range(REPEATS):
        limits.append(work.limit())
        seconds.append(clock(work.run, device))
        if seconds[-1] > LONG:
            break
    return Row(shape, length, work.name, work.limit_name, min(seconds), min(limits), work.rows, peak(device))


def clock(run: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device = torch.device("cpu")) -> float:  # noqa: B008 (a constant)
    """The most memory that this process has held, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


# --------------------------------------------------------------------------------------------------------------- works


def works(adapter: Adapter, ids: Tensor) -> Iterator[Work]:
    """The passes of one prompt, each with its limit."""
    n, layers = len(ids), adapter.n_layers
    last, seen = layers - 1, trace(adapter, ids)
    n_heads = seen.sublayer(0).mixer.n_units
    every, end = torch.arange(n, device=ids.device), torch.tensor([n - 1], device=ids.device)

    def carry(source: Source, rule: str, at: Tensor) -> Callable[[], Any]:
        start = source.start(seen)
        return lambda: propagate(seen, start, {Place(last, "resid_post"): at}, Allocation(rule))

    by_token = tokens([str(i) for i in range(n)])
    triangle = n * (n + 1) // 2
    for rule in ("softmax", "half"):
        maps = range(layers)
        for name, at, rows in ((f"tokens, {rule}", every, triangle), (f"tokens, {rule}, one target", end, n)):
            yield Work.products(name, adapter, carry(by_token, rule, at), rule, triangle, maps, rows)

    some = list(range(0, layers, max(1, layers // 8)))
    sources = [(Heads(layer), layer) for layer in some]
    passes = [
        Work.products(
            "", adapter, carry(source, "softmax", every), "softmax", n * (n_heads + 1), range(layer + 1, layers)
        )
        for source, layer in sources
    ]
    own = [
        lambda layer=layer: product_seconds(adapter, {(layer, name): n * (n_heads + 1) for name in ("gate", "down")})
        for layer in some
    ]
    yield Work(
        f"heads of {len(some)} layers, softmax",
        "products",
        lambda: [work.run() for work in passes],
        lambda: sum(work.limit() for work in passes) + sum(limit() for limit in own),
        sum(work.rows or 0 for work in passes),
    )
    segment = _features_like(seen, last // 2, min(2 * n, 256))
    rows = int((n - segment.present.float().argmax(dim=0)).sum()) + n  # a part costs nothing before its own position
    at_end = segment.present.shape[1] + 1
    yield Work.products(
        "features of a layer, softmax, one target",
        adapter,
        carry(segment, "softmax", end),
        "softmax",
        rows,
        range(last // 2 + 1, layers),
        at_end,
    )
    if n <= 128 and seen.records[1].neurons is not None:  # experts have too many
        d_mlp = seen.sublayer(1).mixer.n_units
        run = carry(Neurons(last - 1), "softmax", end)
        yield Work.products(
            "neurons of a layer, softmax, one target",
            adapter,
            run,
            "softmax",
            n * (d_mlp + 1),
            range(last, layers),
            d_mlp + 1,
        )

    def forward() -> float:
        return clock(lambda: adapter.model(ids[None]), ids.device)

    def back(targets: int, neurons: bool) -> Callable[[], None]:
        w = torch.randn(targets, adapter.d_model, device=ids.device, dtype=seen.resid_post.dtype)

        def visit(_: Batch, levels: Iterator[Level]) -> None:
            for level in levels:
                if level.looks_back or neurons:
                    level.units()

        def run() -> None:
            aims = [Aim(Place(last, "resid_post"), row, n - 1) for row in w]
            sweep_each([trace(adapter, ids)], aims, CONTRIBUTION["half"], visit, Budget())

        return run

    def prompts(together: bool) -> None:
        shorter = [ids[i % 4 :] for i in range(PROMPTS)]
        w = seen.resid_post[-1]
        for own in [shorter] if together else [[one] for one in shorter]:
            aims = [Aim(Place(last, "resid_post"), w, len(one) - 1, i) for i, one in enumerate(own)]
            sweep_each(traces(adapter, own), aims, CONTRIBUTION["half"], lambda _, levels: deque(levels, 0), Budget())

    if n <= PACK // PROMPTS:
        alone = lambda: clock(lambda: prompts(False), ids.device)  # noqa: E731
        yield Work(f"sweep, {PROMPTS} prompts in one", "one by one", lambda: prompts(True), alone)
    yield Work("sweep to tokens and heads", "forward pass", back(1, False), forward)
    yield Work("sweep to tokens, heads and neurons", "forward pass", back(1, True), forward)
    if n <= 128:
        one = back(1, True)
        yield Work(f"sweep, {TARGETS} targets", "one target", back(TARGETS, True), lambda: clock(one, ids.device))


def product_seconds(adapter: Adapter, rows: Mapping[tuple[int, str], int]) -> float:
    """How long matrix products take by themselves: so many rows through each map (layer, v, o, gate, up or down).

    Of experts, each row goes through as many as the router chooses.
    In the dtype that a pass computes in, which is float32 for weights of half precision, too.
    """
    seconds, dtype = 0.0, adapter.compute_dtype()
    for (index, name), count in rows.items():
        attention, mlp = (part.mixer for part in adapter.layer(index).sublayers)
        if hasattr(mlp, "expert"):
            mlp, count = mlp.expert(0), count * (mlp.k if name not in "vo" else 1)
        weight = getattr(attention if name in "vo" else mlp, name).weight.to(dtype)
        x = torch.randn(min(count, PRODUCT_ROWS), weight.shape[0], device=weight.device, dtype=dtype)
        out = torch.empty(len(x), weight.shape[1], dtype=dtype, device=weight.device)
        times = min(-(-count // len(x)), SAMPLED)

        def multiply(x: Tensor = x, weight: Tensor = weight, out: Tensor = out, times: int = times) -> None:
            for _ in range(times):
                torch.mm(x, weight, out=out)

        seconds += clock(multiply, weight.device) * count / (times * len(x))
    return seconds


def _features_like(seen: Trace, layer: int, parts: int) -> Vectors:
    """Vectors at one position each, spread over the prompt: as an SAE's active features are."""
    x = seen.at((layer, "resid_post"))
    n = len(x)
    pos = torch.arange(parts) * n // parts
    dense = x.new_zeros(n, parts, x.shape[1])
    present = torch.zeros(n, parts, dtype=torch.bool, device=x.device)
    dense[pos, torch.arange(parts)] = x[pos] / 4
    present[pos, torch.arange(parts)] = True
    return Vectors(dense, [str(i) for i in range(parts)], Place(layer, "resid_post"), present)
