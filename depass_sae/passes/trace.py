"""One ordinary forward pass of the model, recorded.

The model runs as transformers wrote it, with eager attention so that it hands out its patterns; hooks note what passes
by. When the pass ends, also by an exception, the model object is as it was before: hooks, attention implementation,
training mode of every module, and the dtype of every tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import UserError
from ..models.adapter import Adapter
from .uncompiled import uncompiled

HOOKS = ("resid_pre", "hook_z", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
"""Where a layer can be read, in the order in which it computes them."""

Point = tuple[int, str]
"""A layer and one of :data:`HOOKS`."""


@dataclass(frozen=True)
class Trace:
    """What one forward pass computed, layer by layer up to ``n_layers``.

    The residual stream is kept at every layer, the outputs of sublayers only where they were asked for. All are in the
    adapter's compute dtype; patterns and neurons (what each adds along its output row) stay in the model's, they are
    the largest. Rules by which components compete share out these neurons; the products of ``linear`` and ``half`` are
    formed from the recorded stream, so that in a model of half precision the two differ by its rounding.

    starts: where each prompt begins: one, or several that are packed one after the other (:func:`packed`).
    """

    adapter: Adapter = field(repr=False)
    token_ids: Int[Tensor, "pos"]
    resid_pre: list[Float[Tensor, "pos d_model"]] = field(repr=False)
    resid_mid: list[Float[Tensor, "pos d_model"]] = field(repr=False)
    pattern: list[Float[Tensor, "head query key"]] = field(repr=False)
    neurons: list[Float[Tensor, "pos d_mlp"]] = field(repr=False)
    resid_post: Float[Tensor, "pos d_model"] = field(repr=False)
    outputs: dict[Point, Float[Tensor, "pos d"]] = field(repr=False)
    logits: Float[Tensor, "pos vocab"] | None = field(repr=False)
    starts: tuple[int, ...] = (0,)

    @property
    def n_layers(self) -> int:
        return len(self.resid_pre)

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

    def first(self, n: int) -> Trace:
        """The first n positions of a trace of one prompt, which no later one has touched."""
        if n == len(self.token_ids):
            return self
        return replace(
            self,
            token_ids=self.token_ids[:n],
            resid_pre=[x[:n] for x in self.resid_pre],
            resid_mid=[x[:n] for x in self.resid_mid],
            pattern=[a[:, :n, :n] for a in self.pattern],
            neurons=[x[:n] for x in self.neurons],
            resid_post=self.resid_post[:n],
            outputs={point: x[:n] for point, x in self.outputs.items()},
            logits=None if self.logits is None else self.logits[:n],
        )

    def at(self, point: Point) -> Float[Tensor, "pos d"]:
        """The model's own activation at a point."""
        layer, hook = point
        if hook == "resid_pre":
            return self.resid_pre[layer]
        if hook == "resid_mid":
            return self.resid_mid[layer]
        if hook == "resid_post":
            return self.resid_post if layer == self.n_layers - 1 else self.resid_pre[layer + 1]
        return self.outputs[point]


class _Stop(Exception):
    """Leaves the model's forward once the last layer that matters is done."""


@contextmanager
def recording(adapter: Adapter, dtype: torch.dtype | None = None, patterns: bool = True) -> Iterator[None]:
    """The model in evaluation mode, without gradients, in ``dtype`` and handing out its patterns; then as it was.

    Only one thread at a time has the model so: whatever changes lies on the model object, which all threads share.
    """
    with adapter.lock:
        yield from _changed(adapter.model, dtype, patterns)


def _changed(model: Any, dtype: torch.dtype | None, patterns: bool) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    implementation = model.config._attn_implementation
    tensors = [*model.parameters(), *model.buffers()]
    dtypes = [tensor.dtype for tensor in tensors]
    try:
        model.eval()
        if patterns:
            model.set_attn_implementation("eager")
        if dtype is not None:
            # Rounding up loses nothing, so that going back restores every bit; a lower dtype would not.
            if any(t.is_floating_point() and torch.promote_types(t.dtype, dtype) != dtype for t in model.parameters()):
                raise UserError(f"trace_dtype {_name(dtype)} is lower than the model's {_name(model.dtype)}")
            if any(t.is_inference() and t.is_floating_point() and t.dtype != dtype for t in tensors):
                raise UserError(
                    "a model that was made in torch.inference_mode keeps its dtype; load it outside of that, or leave "
                    "trace_dtype out"
                )
            _cast(tensors, [torch.promote_types(t.dtype, dtype) if t.is_floating_point() else t.dtype for t in tensors])
        with torch.no_grad():
            yield
    finally:
        _cast(tensors, dtypes)
        if patterns:
            model.set_attn_implementation(implementation)
        for module, mode in training.items():
            module.training = mode


def _cast(tensors: list[Tensor], dtypes: list[torch.dtype]) -> None:
    for tensor, dtype in zip(tensors, dtypes, strict=True):
        if tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run(adapter: Adapter, token_ids: Int[Tensor, "batch pos"], **options: Any) -> Any:
    """The model's own forward, and nothing beside it, whatever its config says that it returns."""
    with uncompiled(adapter.model):
        return adapter.model(
            token_ids.to(adapter.model.device),
            use_cache=False,
            output_attentions=False,  # would install transformers' own hooks, for good
            output_hidden_states=False,
            **options,
        )


@contextmanager
def hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def _hidden(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _before(handles: list[Any], module: nn.Module, note: Any) -> None:
    handles.append(
        module.register_forward_pre_hook(lambda _m, args, kwargs: note(_hidden(args, kwargs)), with_kwargs=True)
    )


def _after(handles: list[Any], module: nn.Module, note: Any) -> None:
    handles.append(module.register_forward_hook(lambda _m, _args, output: note(output)))


def watch(adapter: Adapter, point: Point, handles: list[Any], note: Any) -> None:
    """Call ``note`` with the activation [batch, pos, d] at a point whenever the model passes it."""
    layer, hook = point
    parts = adapter.layer(layer)
    match hook:
        case "resid_pre":
            _before(handles, parts.module, note)
        case "resid_mid":
            _before(handles, parts.mlp_norm.module, note)
        case "resid_post":
            _after(handles, parts.module, lambda out: note(out[0] if isinstance(out, tuple) else out))
        case "hook_z":
            _before(handles, parts.attention.o_module, note)
        case "attn_out":
            _after(handles, parts.attention.module, lambda out: note(out[0]))
        case "mlp_in":
            _before(handles, parts.mlp.module, note)
        case "mlp_out":
            _after(handles, parts.mlp.module, note)
        case _:
            raise UserError(f"unknown hook point {hook!r}; there are {', '.join(HOOKS)}")


def trace(
    adapter: Adapter,
    token_ids: Int[Tensor, "pos"],
    *,
    until: int | None = None,
    outputs: Collection[Point] = (),
    dtype: torch.dtype | None = None,
) -> Trace:
    """Run the model once on ``token_ids`` and record it.

    until: the last layer that is needed; the pass stops there and has no logits. None: the whole model.
    outputs: which sublayer outputs (hook_z, attn_out, mlp_in, mlp_out) to keep beside the residual stream.
    dtype: run the model in this higher dtype ("float32" takes the rounding of a bfloat16 model away).
    """
    return traces(adapter, [token_ids], until=until, outputs=outputs, dtype=dtype)[0]


def traces(
    adapter: Adapter,
    prompts: Sequence[Int[Tensor, "pos"]],
    *,
    until: int | None = None,
    outputs: Collection[Point] = (),
    dtype: torch.dtype | None = None,
) -> list[Trace]:
    """Run the model once on prompts of any lengths, and record each; options as of :func:`trace`.

    They are padded at their ends, where no position of theirs can look, each with its own last token.
    """
    longest = max(map(len, prompts))
    compute = adapter.compute_dtype(dtype)
    last = adapter.n_layers - 1 if until is None else until
    notes: dict[Point, Tensor] = {}
    patterns: list[Tensor] = []
    neurons: list[Tensor] = []
    batch = torch.stack([torch.cat([ids, ids[-1:].expand(longest - len(ids))]) for ids in prompts])

    def keep(point: Point) -> Any:
        def note(x: Tensor) -> None:
            notes[point] = x.detach().to(compute)
            if until is not None and point == (last, "resid_post"):
                raise _Stop

        return note

    def keep_pattern(out: Any) -> None:
        if not (isinstance(out, tuple) and len(out) > 1 and isinstance(out[1], Tensor)):
            raise UserError(
                f"the attention of layer {len(patterns)} hands out no pattern, though it was asked to run eagerly: its "
                "forward must have been replaced (a patch, or a kernel); load the model without that"
            )
        patterns.append(out[1].detach())

    with recording(adapter, dtype), hooks() as handles:
        for layer in range(last + 1):
            for hook in ("resid_pre", "resid_mid"):
                watch(adapter, (layer, hook), handles, keep((layer, hook)))
            _after(handles, adapter.layer(layer).attention.module, keep_pattern)
            _before(handles, adapter.layer(layer).mlp.down_module, lambda x: neurons.append(x.detach()))
        for point in outputs:
            if point[1] in ("hook_z", "attn_out", "mlp_in", "mlp_out"):
                watch(adapter, point, handles, keep(point))
        watch(adapter, (last, "resid_post"), handles, keep((last, "resid_post")))
        logits = None
        with suppress(_Stop):
            logits = run(adapter, batch).logits.to(compute)
    return [
        Trace(
            adapter=adapter,
            token_ids=ids,
            resid_pre=[notes[layer, "resid_pre"][i, : len(ids)] for layer in range(last + 1)],
            resid_mid=[notes[layer, "resid_mid"][i, : len(ids)] for layer in range(last + 1)],
            pattern=[pattern[i, :, : len(ids), : len(ids)] for pattern in patterns],
            neurons=[x[i, : len(ids)] for x in neurons],
            resid_post=notes[last, "resid_post"][i, : len(ids)],
            outputs={point: x[i, : len(ids)] for point, x in notes.items() if not point[1].startswith("resid")},
            logits=None if logits is None else logits[i, : len(ids)],
        )
        for i, ids in enumerate(prompts)
    ]


def read_batch(
    adapter: Adapter, token_ids: Int[Tensor, "batch pos"], point: Point | None, dtype: torch.dtype | None = None
) -> Float[Tensor, "batch d"]:
    """What a batch of prompts of equal length gives at their last position: the activation at a point, or the logits.

    The model runs as it is, nothing frozen, and no further than the point: this is how interventions are measured.
    """
    compute = adapter.compute_dtype(dtype)
    noted: list[Tensor] = []

    def note(x: Tensor) -> None:
        noted.append(x[:, -1].to(compute))
        raise _Stop

    with recording(adapter, dtype, patterns=False), hooks() as handles:
        if point is not None:
            watch(adapter, point, handles, note)
        try:
            output = run(adapter, token_ids, logits_to_keep=1)
        except _Stop:
            return noted[0]
    return output.logits[:, -1].to(compute)
