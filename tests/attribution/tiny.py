"""A tiny model with a tokenizer, tiny SAEs for every hook, and what transformers and sae-lens say of them."""

import copy
import warnings
from functools import cache
from typing import Any

import sae_lens
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import depass_sae as ds
from depass_sae.saes import parse_hook
from depass_sae.saes.hook import transformer_lens_name

from ..passes.models import CONFIGS, D_MODEL, build
from ..saes.builders import CLASSES

VOCAB, D_SAE, BOS, EOS, SINK = 352, 40, 0, 1, 80
TEXT = "In economics, supply and demand set the price of a marked-up apple."
HOSTILE = ("<script>alert(1)</script>", "\x1b[31mred\x1b[0m", "[red]", "[/bold]", "line\nbreak", ":smile:")


@cache
def tokenizer(adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE that knows a few words; longer ones are several tokens. ``HOSTILE`` texts are one token each."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    known = ("In", "economics,", "supply", "and", "demand", "set", "the", "price", "of", "a", "mark.", "Mary", "John")
    known += ("gave", "Paris", "Rome")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(HOSTILE),
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([word for text in known for word in (text, f" {text}") for _ in range(5)], trainer)
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>")
    made.add_tokens(list(HOSTILE))
    return made


@cache
def model(shape: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """One of the tiny shapes with room for the tokenizer's vocabulary."""
    config = CONFIGS[shape]()
    config.vocab_size = VOCAB
    return build(config, dtype)


@cache
def sinking(shape: str = "llama") -> PreTrainedModel:
    """The same with an attention sink wherever a prompt has the token ``SINK``."""
    made = copy.deepcopy(model(shape))
    with torch.no_grad():
        made.get_input_embeddings().weight[SINK] *= 10_000
    return made


def width(shape: str, hook: str) -> int:
    config = CONFIGS[shape]()
    heads = config.num_attention_heads * (getattr(config, "head_dim", None) or D_MODEL // config.num_attention_heads)
    return heads if hook.endswith("hook_z") else D_MODEL


def random_sae(
    kind: str = "jumprelu", hook: str | None = "1.resid_post", *, d_in: int = D_MODEL, seed: int = 0, **options: Any
) -> Any:
    """An SAE of random weights. hook: what its metadata name; metadata: more of them."""
    name, needed = CLASSES[kind]
    needed = needed | ({"d_out": d_in} if "d_out" in needed else {})
    options.setdefault("apply_b_dec_to_input", "transcoder" not in kind)  # sae-lens refuses it there
    metadata = options.pop("metadata", {}) | ({} if hook is None else {"hook_name": lens_name(hook)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sae-lens comments on some metadata
        config = getattr(sae_lens, f"{name}Config")(d_in=d_in, d_sae=D_SAE, **needed, **options)
        for key, value in metadata.items():
            config.metadata[key] = value
        sae = getattr(sae_lens, name)(config)
    generator = torch.Generator().manual_seed(seed)
    for key, weight in sorted(sae.named_parameters()):
        values = torch.randn(weight.shape, generator=generator) * (0.4 if key.startswith("W_") else 0.2)
        weight.data.copy_(values.abs() if key == "threshold" else values)
    return sae


def fitting_sae(hook: str = "1.resid_post", **metadata: Any) -> Any:
    """An SAE that gives back exactly what it reads: one feature for each sign of each dimension, and many dead ones."""
    config = sae_lens.StandardSAEConfig(d_in=D_MODEL, d_sae=5 * D_MODEL, apply_b_dec_to_input=False)
    for key, value in ({"hook_name": lens_name(hook)} | metadata).items():
        config.metadata[key] = value
    sae = sae_lens.StandardSAE(config)
    for weight in sae.parameters():
        weight.data.zero_()
    signs = torch.cat([torch.eye(D_MODEL), -torch.eye(D_MODEL)])
    sae.W_dec.data[: 2 * D_MODEL] = signs
    sae.W_enc.data[:, : 2 * D_MODEL] = signs.T
    sae.b_enc.data[2 * D_MODEL :] = -1.0
    return sae


def lens_name(hook: str) -> str:
    return transformer_lens_name(parse_hook(hook))


def handle(saes: Any = None, shape: str = "llama", adds_bos: bool = True, **options: Any) -> ds.LM:
    return ds.load(model(shape), tokenizer(adds_bos), saes=saes, **options)


# ------------------------------------------------------------------------------ what the libraries themselves compute


def _one_of(module: Any, *names: str) -> Any:
    return next(getattr(module, name) for name in names if hasattr(module, name))


def _bare(norm: Any, x: Tensor) -> Tensor:
    """A norm without its gain and bias."""
    centred = isinstance(norm, torch.nn.LayerNorm)
    x = x - x.mean(-1, keepdim=True) if centred else x
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@torch.no_grad()
def uncapped_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """[batch, pos, vocab] as the unembedding puts them out, before a soft-cap."""
    seen: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.append(out))
    try:
        model(ids, use_cache=False)
    finally:
        handle.remove()
    return seen[0]


@torch.no_grad()
def activation(model: PreTrainedModel, ids: Tensor, hook: str) -> Tensor:
    """[batch, pos, d] at "layer.name", by hooks on the transformers modules."""
    layer, name = int(hook.partition(".")[0]), hook.partition(".")[2]
    block = next(found for found in model.modules() if isinstance(found, torch.nn.ModuleList))[layer]
    attention = _one_of(block, "self_attn", "linear_attn", "attn", "attention")
    sandwich = hasattr(block, "pre_feedforward_layernorm")
    norm = _one_of(block, "pre_feedforward_layernorm", "ln_2", "post_attention_layernorm")
    seen: dict[str, Tensor] = {}

    def first(value: Any) -> Tensor:
        return value[0] if isinstance(value, tuple) else value

    def note(**found: Any) -> None:
        seen.update({key: first(value) for key, value in found.items()})

    adds = (block.post_attention_layernorm, block.post_feedforward_layernorm) if sandwich else (attention, block.mlp)
    handles = [
        block.register_forward_pre_hook(lambda _, args: note(resid_pre=args)),
        block.register_forward_hook(lambda _, args, out: note(resid_post=out)),
        adds[0].register_forward_hook(lambda _, args, out: note(attn_out=out)),
        _one_of(attention, "o_proj", "out_proj", "c_proj", "dense").register_forward_pre_hook(
            lambda _, args: note(hook_z=args)
        ),
        norm.register_forward_pre_hook(lambda _, args: note(ln2_normalized=_bare(norm, args[0]))),
        block.mlp.register_forward_pre_hook(lambda _, args: note(mlp_in=args)),
        adds[1].register_forward_hook(lambda _, args, out: note(mlp_out=out)),
    ]
    try:
        model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen["resid_pre"] + seen["attn_out"] if name == "resid_mid" else seen[name]


@torch.no_grad()
def pre_activations(sae: Any, x: Tensor, path: str = "magnitude") -> Tensor:
    """[..., d_sae] by sae-lens's own hook; what topk compares, where activations are in units of the decoder's norm."""
    if path == "gate":
        return sae.process_sae_in(x) @ sae.W_enc + sae.b_gate
    _, cache = sae.run_with_cache(x)
    rescaled = getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)
    return cache["hook_sae_acts_pre"] * (sae.W_dec.norm(dim=-1) if rescaled else 1)
