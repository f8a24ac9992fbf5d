"""How long the Shapley values of a prompt's tokens take until their standard errors are a share of the pre-activation.

The limit is what samples cannot do without: a run of each order's texts (one for every token that is there or not) by
the bare layers of the model, up to the one that is read and no further, in the same process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from .start import FEATURE, PROMPT

TOKENS = 33
SECONDS, ERROR = 60.0, 0.05
"""The goal, on two cores."""
BATCH = 8
"""Texts that the bare layers take at once."""


def shapley(threads: int) -> Iterator[str]:
    """What is printed, line by line."""
    import torch

    import depass_sae as ds

    torch.set_num_threads(threads)
    lm = ds.load("smollm2")
    ids = list(lm.encode(PROMPT).token_ids[:TOKENS])
    began = time.perf_counter()
    found = lm.attribute_tokens(ids, FEATURE, measure="shapley", measure_error=ERROR, measure_seconds=SECONDS)
    seconds = time.perf_counter() - began
    measured = found.target.measured
    largest = max(error for error in measured.errors if error is not None) / abs(found.pre_activation)
    yield (
        f"{len(ids)} tokens, {FEATURE}, {threads} threads: largest standard error {largest:.1%} of the pre-activation "
        f"(goal {ERROR:.0%}) after {seconds:.1f} s (goal {SECONDS:.0f} s)"
    )
    orders = 2 * measured.replacements
    texts = orders * (len(measured.players) + 1)
    layer, _, _ = FEATURE.partition("/")
    stack = lm.model.model
    whole, stack.layers = stack.layers, stack.layers[: int(layer) + 1]
    batch = torch.tensor([ids[: found.target.pos + 1]]).expand(BATCH, -1)
    try:
        with torch.no_grad():
            stack(batch)
            began = time.perf_counter()
            for _ in range(BATCH):
                stack(batch)
            each = (time.perf_counter() - began) / BATCH**2
    finally:
        stack.layers = whole
    yield (
        f"{orders} orders, {texts} texts; {seconds / (texts * each):.2f} times what the bare layers take for these "
        f"({texts * each:.1f} s)"
    )
