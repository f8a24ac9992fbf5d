"""Gemma-2-2B with Gemma Scope and Qwen3-1.7B with Qwen-Scope, small and random, under their names and in their formats.

The widths are the real ones, for sae-lens takes them from the repositories' names; all else is small. Each row of an
encoder is the one before it moved by one, so that neither file is larger than a few megabytes.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from depass_sae.evaluation.paper_cases import FAMILIES
from tests.llama_stand_in import tokenizer
from tests.local_hub import Hub

D_MODEL = {"gemma": 2304, "qwen": 2048}
SIZES = {
    "vocab_size": len(tokenizer()), "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


def model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": D_MODEL[family]}
    if family == "gemma":
        return Gemma2ForCausalLM(Gemma2Config(**sizes, num_hidden_layers=26))
    return Qwen3ForCausalLM(Qwen3Config(**sizes, num_hidden_layers=28, tie_word_embeddings=True))


def encoder(d_sae: int, d_model: int) -> Tensor:
    """[d_sae, d_model], over few numbers."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(d_sae + d_model - 1, generator=generator) / d_model**0.5
    return numbers.as_strided((d_sae, d_model), (1, 1))


def gemma_scope() -> tuple[str, dict[str, bytes]]:
    """The repository, and layer 20's ``params.npz`` in it."""
    d_sae = 16_384
    rows, file = encoder(d_sae, D_MODEL["gemma"]), io.BytesIO()
    np.savez_compressed(
        file, w_enc=np.asfortranarray(rows.T.numpy()), w_dec=rows.numpy(), threshold=np.full(d_sae, 2, "f"),
        b_enc=np.zeros(d_sae, "f"), b_dec=np.zeros(rows.shape[1], "f"),
    )  # fmt: skip
    return "google/gemma-scope-2b-pt-res", {"layer_20/width_16k/average_l0_71/params.npz": file.getvalue()}


def qwen_scope() -> tuple[str, dict[str, bytes]]:
    """The repository, and layer 20's ``layer20.sae.pt`` in it: weights as [d_sae, d_in] and [d_in, d_sae]."""
    rows, file = encoder(32_768, D_MODEL["qwen"]), io.BytesIO()
    biases = {"b_enc": torch.zeros(len(rows)), "b_dec": torch.zeros(rows.shape[1])}
    torch.save({"W_enc": rows, "W_dec": rows.T, **biases}, file)
    return "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", {"layer20.sae.pt": file.getvalue()}


def fill(hub: Hub, family: str, folder: Path) -> None:
    """Put a family's model, which is written into a folder for that, and its SAE on a hub. Qwen has no start token."""
    model(family).to(torch.bfloat16).save_pretrained(folder)
    tokenizer(adds_bos=family == "gemma").save_pretrained(folder)
    hub.add(FAMILIES[family].model, {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.add(*(gemma_scope() if family == "gemma" else qwen_scope()))
