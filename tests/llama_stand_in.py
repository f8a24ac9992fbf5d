"""A small random Llama with Llama Scope SAEs under their real names, handed out as the Hugging Face hub does.

The model has Llama-3.1-8B's layers, the SAEs Llama Scope's 32,768 features in its own file format, and the tokenizer
splits the paper's three prompts as Llama's does, so that what is written for the real ones runs as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from depass_sae.demo.cases import CASES
from depass_sae.evaluation.paper_cases import FLOOD

from .local_hub import Hub, serve

MODEL, SAES = "meta-llama/Llama-3.1-8B", "fnlp/Llama3_1-8B-Base-LXR-8x"
BOS = "<|begin_of_text|>"
D_MODEL, D_SAE, LAYERS = 16, 32_768, 32
FEATURES = {25: (9618,), 31: (5226, 26874)}
"""By layer: those that fire on every token."""


def tokenizer(adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """Words with their leading space; ``Avocado`` in two, as Llama has it."""
    split = Split(Regex(r"Av|ocado| ?\w+|[^\w\s]"), behavior="isolated")
    found = [text for case in (*CASES, FLOOD) for text, _ in split.pre_tokenize_str(case.prompt)]
    vocabulary = {text: i for i, text in enumerate([BOS, *dict.fromkeys(found)])}
    fast = Tokenizer(WordLevel(vocabulary, unk_token=BOS))
    fast.pre_tokenizer = split
    if adds_bos:
        fast.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=BOS if adds_bos else None)


def write_model(folder: Path, width: int = D_MODEL) -> None:
    """A checkpoint in bfloat16, as the real one."""
    words = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=32, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words.save_pretrained(folder)


def sae_files(layer: int) -> dict[str, bytes]:
    """An SAE that reconstructs exactly: the first features are the directions ± of the stream, the others are off."""
    generator = torch.Generator().manual_seed(layer)
    encoder, bias, decoder = torch.zeros(D_SAE, D_MODEL), torch.full((D_SAE,), -1e3), torch.zeros(D_MODEL, D_SAE)
    axes = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    encoder[: 2 * D_MODEL], bias[: 2 * D_MODEL], decoder[:, : 2 * D_MODEL] = axes, 0.0, axes.T
    for index in FEATURES[layer]:
        encoder[index], bias[index] = 10 * torch.randn(D_MODEL, generator=generator), 5.0
    config = {
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "jump_relu_threshold": 1e-6,
        "dataset_average_activation_norm": {"in": D_MODEL**0.5},
        "hook_point_in": f"blocks.{layer}.hook_resid_post",
    }
    weights = {"encoder.weight": encoder, "encoder.bias": bias, "decoder.weight": decoder}
    return {
        "hyperparams.json": json.dumps(config).encode(),
        "checkpoints/final.safetensors": save({**weights, "decoder.bias": torch.zeros(D_MODEL)}),
    }


def fill(hub: Hub, folder: Path) -> None:
    """Put the model, which is written into a folder for that, and the SAEs of two layers on a hub."""
    write_model(folder)
    hub.add(MODEL, {path.name: path.read_bytes() for path in folder.iterdir()})
    for layer in FEATURES:
        hub.add(SAES, {f"Llama3_1-8B-Base-L{layer}R-8x/{name}": file for name, file in sae_files(layer).items()})


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """The address of a hub that has the model and the SAEs, and nothing else."""
    with serve() as here:
        fill(here, folder)
        yield here.address
