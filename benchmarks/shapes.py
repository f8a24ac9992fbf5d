"""The models that are timed: SmolLM2 with its real weights, and random weights in the shapes of larger ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from depass_sae.models.adapter import Adapter
from depass_sae.models.load import adapter_for, load_model


@dataclass(frozen=True)
class Shape:
    """A Llama of this size with random weights."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    d_mlp: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def build(self) -> Adapter:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=2048,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.d_mlp,
            max_position_embeddings=4096,
            initializer_range=0.05,  # sharp enough that neurons have favourites, as those of trained models do
        )
        with torch.device(self.device):
            model = LlamaForCausalLM(config).to(self.dtype)
        return adapter_for(model.eval())


SHAPES = {
    "512x8": Shape(512, 8, 8, 4, 1408),
    "1024x8": Shape(1024, 8, 16, 4, 2816),
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
