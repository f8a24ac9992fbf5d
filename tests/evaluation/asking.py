"""Questions of tiny random models, and what transformers itself makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import depass_sae as ds
from depass_sae.evaluation.prompts import Item
from depass_sae.evaluation.question import Question, ask
from depass_sae.passes.settings import Settings

from ..attribution.tiny import BOS, TEXT, handle, model, random_sae

IDS = (BOS, *range(60, 70))


def question(
    lm: ds.LM | None = None,
    prompt: Any = IDS,
    target: str | None = "logit:7 against mean",
    removal: str = "text",
    **item: Any,
) -> Question:
    lm = lm or handle(random_sae())
    found = ask(
        lm._subject.asked(), Item(prompt, target=target, **item), "here", None, True, removal, 0, Settings()
    )  # fmt: skip
    assert isinstance(found, Question)
    return found


def firing(lm: ds.LM, prompt: Any = IDS, pos: int = 8) -> str:
    """The feature of layer 1 that fires most at a position."""
    report = lm.features(prompt if isinstance(prompt, str) else list(prompt))
    (layer,) = report.to_dict()["layers"]
    (here,) = (one for one in layer["positions"] if one["pos"] == pos)
    return f"1/{here['features'][0]['index']}@{pos}"


def logit_over_mean(logits: Tensor, token: int = 7) -> Tensor:
    return logits[..., token] - logits.mean(-1)


@contextmanager
def hooked(*pairs: tuple[torch.nn.Module, Any]) -> Iterator[None]:
    """Functions of (module, args, output) that make another output."""
    handles = [module.register_forward_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for one in handles:
            one.remove()


__all__ = ["BOS", "IDS", "TEXT", "firing", "handle", "hooked", "logit_over_mean", "model", "question", "random_sae"]
