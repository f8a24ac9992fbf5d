"""What is being studied: a model with its adapter, its tokenizer, and the SAEs on it.

A question has a subject of its own (:meth:`Subject.asked`), which keeps what it recorded and encoded: whatever the
question is made of, a prompt runs through the model once and is encoded by an SAE once. When the question is answered
all of it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from .errors import CompletenessWarning, UserError, warn
from .models.adapter import Adapter
from .models.load import Loaded
from .models.place import Place
from .models.prompt import Prompt
from .passes.record import Trace, traces
from .passes.selfcheck import Checked, check_attention, tolerance
from .saes import Encoded, encode

if TYPE_CHECKING:
    from sae_lens import SAE


KEPT = 2**29
"""Bytes of traces, and of encodings, that a question keeps beside the latest of each."""


class Sized(Protocol):
    @property
    def size(self) -> int:
        """In bytes."""


Thing = TypeVar("Thing", bound=Sized)


@dataclass(frozen=True)
class Kept(Generic[Thing]):
    """The latest of what a question made, by what it was made of."""

    things: dict[Hashable, Thing] = field(default_factory=dict)
    sizes: dict[Hashable, int] = field(default_factory=dict)

    def add(self, key: Hashable, thing: Thing) -> None:
        for kept in (self.things, self.sizes):
            kept.pop(key, None)
        earlier = sum(self.sizes.values())
        while earlier > KEPT:
            oldest = next(iter(self.things))
            del self.things[oldest]
            earlier -= self.sizes.pop(oldest)
        self.things[key], self.sizes[key] = thing, thing.size


@dataclass(frozen=True)
class Subject:
    """trace_dtype: what the model runs in while it is traced (None: its own dtype). checked: at loading.

    again: loads it once more, as it was loaded, in another process if need be; None where nobody said how.
    traces_kept, encodings_kept: of the question that is being answered; None outside of one, where nothing is kept.
    """

    loaded: Loaded
    adapter: Adapter
    saes: dict[Place, SAE]
    checked: Checked
    trace_dtype: torch.dtype | None = None
    again: Callable[..., Subject] | None = field(default=None, repr=False, compare=False)
    traces_kept: Kept[Trace] | None = field(default=None, repr=False)
    encodings_kept: Kept[Encoded] | None = field(default=None, repr=False)

    def asked(self) -> Subject:
        """For one question, or for the part of one that it already is."""
        return self if self.traces_kept else replace(self, traces_kept=Kept(), encodings_kept=Kept())

    def trace(self, prompt: Prompt, until: int | None, outputs: Collection[Place] = ()) -> Trace:
        """One recorded pass, up to the layer ``until`` at least (None: the logits), with these places among others.

        Raises UserError where the model overflows or meets a damaged embedding.
        """
        return self.traces([prompt], until, outputs)[0]

    def traces(self, prompts: Sequence[Prompt], until: int | None, outputs: Collection[Place] = ()) -> list[Trace]:
        """Several prompts, those that the question has not seen yet recorded in one pass."""
        known = {} if self.traces_kept is None else self.traces_kept.things
        found = {prompt.token_ids: known.get(prompt.token_ids) for prompt in prompts}
        new = {p.token_ids: p for p in prompts if not _covers(found[p.token_ids], until, outputs)}
        recorded = self._record(list(new.values()), until, outputs) if new else []
        for ids, seen in zip(new, recorded, strict=True):
            found[ids] = seen
            if self.traces_kept is not None:
                self.traces_kept.add(ids, seen)
        return [found[prompt.token_ids] for prompt in prompts]  # type: ignore[misc]

    def _record(self, prompts: Sequence[Prompt], until: int | None, outputs: Collection[Place]) -> list[Trace]:
        if self.adapter.model.config._attn_implementation != self.checked.implementation:
            check_attention(self.adapter, self.trace_dtype)  # it was changed since
        ids = [prompt.ids(self.adapter.device) for prompt in prompts]
        found = traces(self.adapter, ids, until=until, outputs=outputs, dtype=self.trace_dtype)
        for prompt, seen in zip(prompts, found, strict=True):
            if not seen.resid_post.isfinite().all():
                beginning = repr(prompt.text[:40]) if prompt.text else prompt.token_ids[:8]
                which = "this prompt" if len(prompts) == 1 else f"the prompt that begins with {beginning}"
                raise UserError(
                    f"{self.loaded.name} computes NaN or infinity in {self.dtype_name} on {which}: its weights are "
                    "damaged, or overflow; try float32"
                )
        return found

    def encoding(self, seen: Trace, hook: Place) -> Encoded:
        """What the SAE at a hook makes of a traced prompt."""
        key = (hook, tuple(seen.token_ids.tolist()))
        found = None if self.encodings_kept is None else self.encodings_kept.things.get(key)
        if found is None:
            found = encode(self.saes[hook], seen.at(hook))
            if self.encodings_kept is not None:
                self.encodings_kept.add(key, found)
        return found

    @property
    def dtype_name(self) -> str:
        return str(self.trace_dtype or self.adapter.dtype).removeprefix("torch.")

    def warn_incomplete(self, what: str, error: float, hook: Place | None = None) -> None:
        """Warns where an answer's completeness error is more than rounding can be. hook: of an SAE that computed it."""
        dtypes = [self.trace_dtype or self.adapter.dtype, *([] if hook is None else [self.saes[hook].W_enc.dtype])]
        coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        bound = tolerance(coarsest, self.adapter.n_layers, self.checked.error)
        if not error <= bound:  # NaN, too
            warn(
                f"{what}: the parts miss {error:.2g} of the whole, where rounding explains {bound:.2g} at most; is a "
                "hook or an adapter active on the model, or were its weights changed since it was loaded?",
                CompletenessWarning,
            )

    def hook(self, layer: int, name: str | None = None) -> Place:
        """The hook of the SAE at a layer. Raises UserError where there is none, or where several could be meant."""
        if not self.saes:
            raise UserError("no SAEs are loaded; name some with --sae (saes=)")
        found = [hook for hook in self.saes if hook.layer == layer and name in (None, hook.name)]
        if not found:
            there = ", ".join(str(hook) for hook in sorted(self.saes))
            raise UserError(f"there is no SAE at {layer}{'.' + name if name else ''}; there are SAEs at {there}")
        if len(found) > 1:
            raise UserError(
                f"layer {layer} has several SAEs; write the feature as {' or '.join(f'{hook}/INDEX' for hook in found)}"
            )
        return found[0]


def _covers(seen: Trace | None, until: int | None, outputs: Collection[Place]) -> bool:
    """Whether a trace has all that is asked of one."""
    if seen is None or (seen.logits is None if until is None else seen.n_layers <= until):
        return False
    return all(place.is_stream or place in seen.outputs for place in outputs)
