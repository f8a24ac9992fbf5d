"""What the decoder of every feature writes: the tokens whose logits it raises and lowers most.

A scan writes it down before its last part becomes an index, so that whoever finishes one needs no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..attribution.votes import decoder_row, vote_logits
from ..models.place import Place
from ..passes.settings import Settings
from ..saes import CrossLayerFeatures
from ..subject import Subject
from .arrays import Ragged
from .tables import Writer

VOTES = 10
"""Tokens that a decoder raises and lowers most."""
LOGITS = 2**24
"""Logits that are held at a time."""
GROUP = 2**11
"""Rows of a row group."""
Raised = tuple[Float[np.ndarray, "vote"], Int[np.ndarray, "vote"], Float[np.ndarray, "vote"], Int[np.ndarray, "vote"]]


def write_decoders(subject: Subject, hook: Place, path: Path, settings: Settings) -> None:
    """A row for each feature of an SAE."""
    with Writer(path, GROUP) as writer:
        for raised in _votes(subject, hook, settings):
            names = ("top_logits", "top_tokens", "bottom_logits", "bottom_tokens")
            writer.add({name: Ragged.of(rows) for name, rows in zip(names, zip(*raised, strict=True), strict=True)})


def _votes(subject: Subject, hook: Place, settings: Settings) -> Iterator[list[Raised]]:
    """Of features in turn, some at a time, the logits and ids of the tokens that each raises and lowers most."""
    sae, vocabulary = subject.saes[hook], subject.adapter.vocab_size
    none = (np.zeros(0, np.float32), np.zeros(0, np.int32)) * 2
    step = max(LOGITS // vocabulary, 1)
    d_sae = sae.cfg.d_sae
    for begin in range(0, d_sae, step):
        end = min(begin + step, d_sae)
        with torch.no_grad():
            logits = vote_logits(subject, hook, _decoder_rows(sae, begin, end))
        settings.tell(f"what the features at {hook} write", end, d_sae)
        if logits is None:
            yield [none] * (end - begin)
            continue
        k = min(VOTES, logits.shape[1])
        top, bottom = logits.topk(k), logits.topk(k, largest=False)
        columns = [x.cpu().numpy() for x in (top.values, top.indices, bottom.values, bottom.indices)]
        yield [
            (a.astype(np.float32), b.astype(np.int32), c.astype(np.float32), d.astype(np.int32))
            for a, b, c, d in zip(*columns, strict=True)
        ]


def _decoder_rows(sae: Any, begin: int, end: int) -> Float[torch.Tensor, "n d_out"]:
    if isinstance(sae, CrossLayerFeatures):
        return torch.stack([decoder_row(sae, i) for i in range(begin, end)])
    return sae.W_dec[begin:end].detach()
