"""How long neurons take: one pass for all of them, against taking each one out (paper, table 11).

Seconds are of the processor, on one thread. Whoever takes a neuron out runs the model once more, as many at a time as
go well together; of one layer, and of all by multiplication.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...attribution.agreement import rank_correlation
from ...passes.forward import Progress
from ..resumed import Record

if TYPE_CHECKING:
    from ...api import LM

TOGETHER = 64
"""Neurons that are taken out in one run of the model, each in a row of its own."""


def run(lm: LM, prompts: Sequence[str], layer: int, progress: Progress | None = None) -> list[Record]:
    """Of every prompt and its likeliest next token: seconds of both, and how well effects and contributions agree with
    what taking out does.
    """
    records = []
    for number, prompt in enumerate(prompts, start=1):
        token = int(lm.model(torch.tensor([lm.encode(prompt).token_ids]), use_cache=False).logits[0, -1].argmax())
        began = time.process_time()
        found = lm.attribute_neurons(prompt, logit=token, effects=True)
        ours = time.process_time() - began
        began = time.process_time()
        lost = _without(lm, prompt, layer, token)
        theirs = time.process_time() - began
        row = found.target.rows[layer]
        assert row.effects is not None
        records.append({
            "prompt": prompt, "tokens": len(lm.encode(prompt)), "ours": ours, "theirs": theirs,
            "layers": lm.model.config.num_hidden_layers, "neurons": len(lost),
            "contribution": rank_correlation(row.values.tolist(), lost.tolist()),
            "effect": rank_correlation(row.effects.tolist(), lost.tolist()),
        })  # fmt: skip
        if progress is not None:
            progress("taking neurons out", number, len(prompts))
    return records


def _without(lm: LM, prompt: str, layer: int, token: int) -> Float[Tensor, "neuron"]:
    """How far the token's logit falls where each of a layer's neurons is 0 at every position."""
    down = lm.model.model.layers[layer].mlp.down_proj
    ids = torch.tensor([lm.encode(prompt).token_ids])
    with torch.no_grad():
        whole = lm.model(ids, use_cache=False).logits[0, -1, token].double()
        lost = []
        for start in range(0, down.in_features, TOGETHER):
            some = torch.arange(start, min(start + TOGETHER, down.in_features))

            def silence(_module: object, inputs: tuple[Tensor, ...], some: Tensor = some) -> tuple[Tensor]:
                changed = inputs[0].clone()
                changed[torch.arange(len(some)), :, some] = 0
                return (changed,)

            handle = down.register_forward_pre_hook(silence)
            try:
                logits = lm.model(ids.expand(len(some), -1), use_cache=False).logits
            finally:
                handle.remove()
            lost.append(whole - logits[:, -1, token].double())
    return torch.cat(lost)
