"""Threads that share a model: the answers of one thread, and the model as it was."""

from __future__ import annotations

import json
import logging
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch

import depass_sae as ds

from .attribution.tiny import D_MODEL, TEXT, VOCAB, random_sae, tokenizer
from .passes.models import CONFIGS, build
from .passes.test_record import assert_as_before, snapshot
from .questions import QUESTIONS, assert_alike

THREADS, PROMPTS = 4, 40


def handles() -> list[ds.LM]:
    """Two on one model, one of which runs it in another dtype."""
    config = CONFIGS["qwen3"]()
    config.vocab_size = VOCAB
    model = build(config)
    saes = [random_sae("jumprelu", "0.resid_post", d_in=D_MODEL), random_sae("topk", "1.resid_post", d_in=D_MODEL)]
    return [ds.load(model, tokenizer(), saes=saes, trace_dtype=dtype) for dtype in (None, torch.float64)]


def prompts() -> list[Any]:
    rng = random.Random(0)
    return [TEXT, *([0, *rng.choices(range(4, VOCAB), k=rng.randint(8, 14))] for _ in range(PROMPTS - 1))]


@pytest.mark.filterwarnings("ignore")
def test_four_threads_get_the_answers_of_one_and_leave_the_model_as_it_was() -> None:
    lms, questions = handles(), list(QUESTIONS)
    before = snapshot(lms[0].model)
    calls = [
        (questions[(THREADS * i + thread) % len(questions)], lms[(i + thread) % 2], prompt)
        for thread in range(THREADS)
        for i, prompt in enumerate(prompts())
    ]
    expected = [json.dumps(QUESTIONS[name](lm, prompt)) for name, lm, prompt in calls]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda call: json.dumps(QUESTIONS[call[0]](call[1], call[2])), calls))
    for (name, lm, _), one, other in zip(calls, found, expected, strict=True):
        assert_alike(json.loads(one), json.loads(other), f"{name}, {lms.index(lm)}")
    assert_as_before(lms[0].model, before, moved=True)


def test_threads_that_load_one_model_at_once_all_get_it_checked() -> None:
    model, sae = build(CONFIGS["llama"]()), random_sae("topk", "1.resid_post", d_in=D_MODEL)
    before, filters, level = snapshot(model), list(warnings.filters), logging.root.manager.disable
    with ThreadPoolExecutor(THREADS) as pool:
        lms = list(pool.map(partial(ds.load, saes=[sae]), [model] * 12))
    assert all(lm.attribute_tokens([0, 4, 5], logit=3).completeness_error < 1e-4 for lm in lms)
    assert_as_before(model, before)
    assert (list(warnings.filters), logging.root.manager.disable) == (filters, level)  # loading SAEs is quiet
