"""Relevances of AttnLRP by lxt itself: ``pip install --no-deps lxt==2.1``, then ``python tests/data/lxt/make.py``.

Writes relevances.json beside itself: of SmolLM2-135M in float64, the prompts' tokens for the likeliest next token's
logit over the vocabulary's mean. lxt alone computes: the model, patched by it, and its own recipe, the gradient times
the input embeddings.
"""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama

from depass_sae.models.smollm2 import prepare

for other in ("bert", "vit_torch"):  # which lxt imports beside Llama: they want torchvision and an older transformers
    sys.modules[f"lxt.efficient.models.{other}"] = MagicMock()

from lxt.efficient.models.llama import attnLRP  # noqa: E402

PROMPTS = (
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "In economics, supply and demand is a model for understanding how prices are determined in a market",
)


def main() -> None:
    folder = prepare()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    table = modeling_llama.ALL_ATTENTION_FUNCTIONS
    for module, patch in attnLRP.items():
        patch(module)
    modeling_llama.ALL_ATTENTION_FUNCTIONS = table  # lxt's plain dict is none for this transformers; eager is patched
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        embedded = model.get_input_embeddings()(ids).requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits[0, -1]
        token = logits.argmax()
        value = logits[token] - logits.mean()
        value.backward()
        relevance = (embedded * embedded.grad).sum(-1)[0]
        found.append({
            "prompt": prompt, "token_ids": ids[0].tolist(), "token": int(token), "value": value.item(),
            "relevance": relevance.tolist(),
        })  # fmt: skip
    said = {"made_by": "lxt 2.1, lxt.efficient, attnLRP for Llama", "dtype": "float64", "prompts": found}
    Path(__file__).with_name("relevances.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
