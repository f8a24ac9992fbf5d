"""Small corpora, scanned."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import torch

import depass_sae as ds

from ..attribution.tiny import model, random_sae, tokenizer

WORDS = ("supply", "demand", "price", "Mary", "John", "gave", "Paris", "Rome", "the", "of", "a", "economics,", "mark.")
WINDOW = 12
METADATA = {"prepend_bos": True, "context_size": WINDOW}


def texts(count: int = 60, seed: int = 0, longest: int = 40) -> list[str]:
    """Of one word up to so many, so that some are cut into windows."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


@cache
def lm() -> ds.LM:
    """Two SAEs on two layers, in float64: what is equal must stay so in whatever batch a machine computes it."""
    kinds = {"0.resid_post": "topk", "1.resid_post": "jumprelu"}
    saes = [random_sae(kind, hook, metadata=METADATA).to(torch.float64) for hook, kind in kinds.items()]
    return ds.load(model("llama", torch.float64), tokenizer(), saes=saes)


def scanned(folder: Path, source: Any = None, **options: Any) -> Any:
    """unit: so small that parts are merged on two levels."""
    return lm().scan(texts() if source is None else source, folder, **{"unit": 40, **options})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an index."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
