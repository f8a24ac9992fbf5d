"""A stock GPT-2, or Llama, whose norms change nothing, so that a mechanism can be written into it as plain matrices.

In GPT-2, beside the dimensions that a mechanism uses, the *stream*, there are three more:

* *balance*: minus the sum of the stream. Whatever writes to the stream writes here, too, so that the mean over all
  dimensions is 0, of every part as of the whole, and taking it off takes nothing.
* +C and −C in every token's embedding, and nothing else there ever: the variance is (2 C² + |x|²) / d, of which C is
  nearly all.

With gains √(2 C²/d + ε) a LayerNorm gives x · (1 + |x|²/2C²)^(−½): what error remains is |x|²/4C² of what it gives,
x being the stream with its balance. At C = 8,192 and |x|² = 20 that is 7e-8. Whatever reads the stream reads nothing of
the three.

All logits have 1 from the final norm's bias, in a dimension of its own: of logits that were all 0 there would be
nothing but rounding to compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

C = 8192.0


@dataclass(frozen=True)
class Head:
    """One head of a layer, by its maps from and to the stream. Scores are (x q)·(x k), with nothing divided off."""

    q: Float[Tensor, "stream rank"]
    k: Float[Tensor, "stream rank"]
    v: Float[Tensor, "stream inner"]
    o: Float[Tensor, "inner stream"]
    q_bias: Float[Tensor, "rank"] | None = None
    k_bias: Float[Tensor, "rank"] | None = None
    v_bias: Float[Tensor, "inner"] | None = None

    @property
    def width(self) -> int:
        return max(self.q.shape[1], self.v.shape[1])


@dataclass(frozen=True)
class Neurons:
    """An MLP's neurons: relu(x into + bias) out + out_bias, and where they are gated (x up) relu(x into + bias)."""

    into: Float[Tensor, "stream neuron"]
    bias: Float[Tensor, "neuron"]
    out: Float[Tensor, "neuron stream"]
    out_bias: Float[Tensor, "stream"]
    up: Float[Tensor, "stream neuron"] | None = None


@dataclass(frozen=True)
class Layer:
    heads: Mapping[int, Head]
    neurons: Neurons | None = None


@dataclass(frozen=True)
class Mechanism:
    """A transformer without norms. embed, position: what stands in the stream. read: its logits, [stream, token]."""

    embed: Float[Tensor, "token stream"]
    position: Float[Tensor, "pos stream"]
    layers: Sequence[Layer]
    read: Float[Tensor, "stream token"]

    @property
    def width(self) -> int:
        return self.embed.shape[1]


def gpt2_of(mechanism: Mechanism) -> GPT2LMHeadModel:
    """The mechanism as transformers' own GPT-2, in float64, norms neutral."""
    from transformers import GPT2Config, GPT2LMHeadModel

    n_heads = 1 + max((head for layer in mechanism.layers for head in layer.heads), default=0)
    widest = max((head.width for layer in mechanism.layers for head in layer.heads.values()), default=1)
    d_head = max(widest, -(-(mechanism.width + 4) // n_heads))
    n_inner = max((len(layer.neurons.bias) for layer in mechanism.layers if layer.neurons is not None), default=1)
    config = GPT2Config(
        vocab_size=len(mechanism.embed), n_positions=len(mechanism.position), n_embd=n_heads * d_head,
        n_layer=len(mechanism.layers), n_head=n_heads, n_inner=n_inner, activation_function="relu",
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = GPT2LMHeadModel(config).double().eval().requires_grad_(False)
    d = config.n_embd
    for name, weight in model.named_parameters():
        gain = name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
        weight.fill_(math.sqrt(2 * C**2 / d + config.layer_norm_epsilon) if gain else 0.0)
    text, stream = model.transformer, mechanism.width
    text.wte.weight[:, : stream + 1] = balanced(mechanism.embed)
    text.wte.weight[:, stream + 1], text.wte.weight[:, stream + 2] = C, -C
    text.wpe.weight[:, : stream + 1] = balanced(mechanism.position)
    model.lm_head.weight[:, :stream] = mechanism.read.T
    text.ln_f.bias[stream + 3], model.lm_head.weight[:, stream + 3] = 1.0, 1.0
    for block, layer in zip(text.h, mechanism.layers, strict=True):
        for number, head in layer.heads.items():
            _put(block.attn, number, head, d_head, stream)
        if layer.neurons is not None:
            n = len(layer.neurons.bias)
            block.mlp.c_fc.weight[:stream, :n] = layer.neurons.into
            block.mlp.c_fc.bias[:n] = layer.neurons.bias
            block.mlp.c_proj.weight[:n, : stream + 1] = balanced(layer.neurons.out)
            block.mlp.c_proj.bias[: stream + 1] = balanced(layer.neurons.out_bias[None])[0]
    return model


def llama_of(mechanism: Mechanism) -> LlamaForCausalLM:
    """The mechanism as transformers' own Llama, gated MLPs and all, in float64.

    Its norms take no mean off, so that there is no balance, and one dimension of C is enough: they give x · (1 +
    |x|²/C²)^(−½). The start token's logit is 1. Heads look evenly at all they see: a rotary leaves no other simple.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    stream, n_heads = mechanism.width, 1 + max(head for layer in mechanism.layers for head in layer.heads)
    widest = max(head.width for layer in mechanism.layers for head in layer.heads.values())
    d_head = 2 * -(-max(widest, -(-(stream + 1) // n_heads)) // 2)  # even, for the rotary
    config = LlamaConfig(
        vocab_size=len(mechanism.embed), max_position_embeddings=len(mechanism.position), hidden_size=n_heads * d_head,
        num_hidden_layers=len(mechanism.layers), num_attention_heads=n_heads, num_key_value_heads=n_heads,
        intermediate_size=max(len(layer.neurons.bias) for layer in mechanism.layers if layer.neurons is not None),
        hidden_act="relu", mlp_bias=True, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.fill_(math.sqrt(C**2 / config.hidden_size + config.rms_norm_eps) if "norm" in name else 0.0)
    model.model.embed_tokens.weight[:, :stream] = mechanism.embed
    model.model.embed_tokens.weight[:, stream] = C
    model.lm_head.weight[:, :stream] = mechanism.read.T
    model.lm_head.weight[0, stream] = 1 / C
    for block, layer in zip(model.model.layers, mechanism.layers, strict=True):
        for number, head in layer.heads.items():
            assert not head.q.any()
            assert not head.k.any()
            rows = slice(number * d_head, number * d_head + len(head.o))
            block.self_attn.v_proj.weight[rows, :stream] = head.v.T
            block.self_attn.o_proj.weight[:stream, rows] = head.o.T
        if (mlp := layer.neurons) is not None:
            assert mlp.up is not None
            block.mlp.gate_proj.weight[:, :stream], block.mlp.gate_proj.bias[:] = mlp.into.T, mlp.bias
            block.mlp.up_proj.weight[:, :stream] = mlp.up.T
            block.mlp.down_proj.weight[:stream], block.mlp.down_proj.bias[:stream] = mlp.out.T, mlp.out_bias
    return model


def balanced(rows: Float[Tensor, "row stream"]) -> Float[Tensor, "row stream+1"]:
    """With minus their sums behind them."""
    return torch.cat([rows, -rows.sum(1, keepdim=True)], dim=1)


def _put(attention: Any, number: int, head: Head, d_head: int, stream: int) -> None:
    """Queries are multiplied by the √d_head that GPT-2 divides scores by."""
    qkv, out = attention.c_attn, attention.c_proj
    for block, (weight, bias, scale) in enumerate(
        [(head.q, head.q_bias, math.sqrt(d_head)), (head.k, head.k_bias, 1.0), (head.v, head.v_bias, 1.0)]
    ):
        first = block * (qkv.weight.shape[1] // 3) + number * d_head
        columns = slice(first, first + weight.shape[1])
        qkv.weight[:stream, columns] = scale * weight
        if bias is not None:
            qkv.bias[columns] = scale * bias
    rows = slice(number * d_head, number * d_head + head.o.shape[0])
    out.weight[rows, : stream + 1] = balanced(head.o)


def tokenizer_of(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word; the first begins every prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=words[0])
