"""The models that are timed: SmolLM2 with its real weights, and random weights in the shapes of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from depass_sae.models.adapter import Adapter
from depass_sae.models.load import adapter_for, load_model


@dataclass(frozen=True)
class Shape:
    """A model of this size with random weights. kind: transformers' model_type; more: what only that has."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    d_mlp: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    kind: str = "llama"
    vocabulary: int = 2048
    more: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Adapter:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        config = AutoConfig.for_model(
            self.kind,
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.hidden // self.heads,
            intermediate_size=self.d_mlp,
            max_position_embeddings=4096,
            initializer_range=0.05,  # sharp enough that neurons have favourites, as those of trained models do
            **self.more,
        )
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(config).to(self.dtype)
        return adapter_for(model.eval())


_SANDWICHED = {"query_pre_attn_scalar": 64, "sliding_window": 4096}
_ROUTED = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 352, "norm_topk_prob": True}

SHAPES = {
    "512x8": Shape(512, 8, 8, 4, 1408),
    "1024x8": Shape(1024, 8, 16, 4, 2816),
    "gemma2-512x8": Shape(512, 8, 8, 4, 1408, kind="gemma2", more=_SANDWICHED),
    "moe-512x8": Shape(512, 8, 8, 4, 1408, kind="qwen3_moe", more=_ROUTED),
    "smollm2-random": Shape(576, 30, 9, 3, 1536, vocabulary=49_152, more={"tie_word_embeddings": True}),
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 14336, torch.bfloat16, "cuda"),
}


def build(name: str) -> Adapter:
    """``smollm2`` or one of the shapes."""
    if name == "smollm2":
        return adapter_for(load_model("smollm2").model)
    return SHAPES[name].build()


def prompt(adapter: Adapter, length: int) -> torch.Tensor:
    """Token ids: for random weights any will do; SmolLM2 has enough text in any ids, too."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(min(adapter.vocab_size, 2048), (length,), generator=generator).to(adapter.model.device)
