"""A tiny random Llama and contexts for it: the demo's machinery needs no real weights."""

from __future__ import annotations

import random

import pytest
import torch

from depass_sae.demo.corpus import Context


@pytest.fixture(scope="package")
def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="package")
def texts() -> list[Context]:
    """Contexts of 5 to 20 tokens, one in ten held out."""
    rng = random.Random(0)
    return [
        Context("random", (0, *(rng.randrange(1, 97) for _ in range(rng.randrange(4, 20)))), held_out=i % 10 == 0)
        for i in range(200)
    ]
