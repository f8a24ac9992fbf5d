"""What is being studied: a model with its adapter, its tokenizer, and the SAEs on it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .errors import CompletenessWarning, UserError, warn
from .models.adapter import Adapter
from .models.load import Loaded
from .models.place import Place
from .models.prompt import Prompt
from .passes.record import Trace, traces
from .passes.selfcheck import Checked, check_attention, tolerance

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class Subject:
    """trace_dtype: what the model runs in while it is traced (None: its own dtype). checked: at loading."""

    loaded: Loaded
    adapter: Adapter
    saes: dict[Place, SAE]
    checked: Checked
    trace_dtype: torch.dtype | None = None

    def trace(self, prompt: Prompt, until: int | None, outputs: Collection[Place] = ()) -> Trace:
        """One recorded pass. Raises UserError where the model overflows or meets a damaged embedding."""
        return self.traces([prompt], until, outputs)[0]

    def traces(self, prompts: Sequence[Prompt], until: int | None, outputs: Collection[Place] = ()) -> list[Trace]:
        """Several prompts recorded in one pass."""
        if self.adapter.model.config._attn_implementation != self.checked.implementation:
            check_attention(self.adapter, self.trace_dtype)  # it was changed since
        ids = [prompt.ids(self.adapter.model.device) for prompt in prompts]
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
