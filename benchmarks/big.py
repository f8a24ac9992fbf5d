"""A model that is bigger than the memory it may take: Llama-3.1-8B's shape with random weights, most of it on the disk.

The weights are written once, a layer a file (16 GB for all 32), and stay in their folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .measure import Row, peak

FREE = 40 * 10**9
"""Bytes of disk that have to be free for all layers to be written."""
FEWER = 8
SIZES = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
}  # fmt: skip
MEMORY = {"cpu": "6GiB"}
TOKENS = 32


def layers_that_fit(folder: Path) -> int:
    """All of them, or a few where the disk has little room."""
    if (folder / "config.json").exists():
        return json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    folder.mkdir(parents=True, exist_ok=True)
    return SIZES["num_hidden_layers"] if shutil.disk_usage(folder).free >= FREE else FEWER


def write(folder: Path, layers: int) -> None:
    """The weights, a layer at a time, and at last the configuration, which says that all are there."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(**SIZES | {"num_hidden_layers": layers}, tie_word_embeddings=False, dtype="bfloat16")  # type: ignore[arg-type]
    where: dict[str, str] = {}
    for file, tensors in _files(config):
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


def _files(config: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    d, d_kv, d_mlp = config.hidden_size, config.num_key_value_heads * config.head_dim, config.intermediate_size
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, columns: int, scale: float) -> Tensor:
        """Random numbers, of which a few columns are drawn and repeated: only their size matters."""
        few = torch.randn(rows, min(columns, 512), generator=generator) * scale
        return few.to(torch.bfloat16).repeat(1, -(-columns // few.shape[1]))[:, :columns].contiguous()

    def ones() -> Tensor:
        return torch.ones(d, dtype=torch.bfloat16)

    ends = {"model.embed_tokens.weight": drawn(config.vocab_size, d, 1.0), "model.norm.weight": ones()}
    yield "ends.safetensors", ends | {"lm_head.weight": drawn(config.vocab_size, d, d**-0.5)}
    shapes = {
        "self_attn.q_proj": (d, d), "self_attn.k_proj": (d_kv, d), "self_attn.v_proj": (d_kv, d),
        "self_attn.o_proj": (d, d), "mlp.gate_proj": (d_mlp, d), "mlp.up_proj": (d_mlp, d), "mlp.down_proj": (d, d_mlp),
    }  # fmt: skip
    for layer in range(config.num_hidden_layers):
        maps = {name: drawn(*shape, shape[1] ** -0.5) for name, shape in shapes.items()}
        norms = {name: ones() for name in ("input_layernorm", "post_attention_layernorm")}
        yield f"layer-{layer}.safetensors", {f"model.layers.{layer}.{k}.weight": v for k, v in (maps | norms).items()}


def big(threads: int, folder: Path, layers: int | None) -> list[Row]:
    """Loading, tokens and heads, each with the most memory that the process has had so far.

    layers: how many are written (None: all of them, or a few where the disk has little room).
    """
    import depass_sae as ds

    torch.set_num_threads(threads)
    ids = torch.randint(SIZES["vocab_size"], (TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    layers = layers or layers_that_fit(folder)
    shape = f"llama-3.1-8b, {layers} of {SIZES['num_hidden_layers']} layers, {MEMORY['cpu']}"
    found: list[Row] = []

    def timed(work: str, do: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        done = do()
        seconds = time.perf_counter() - start
        found.append(Row(shape, TOKENS, work, "", seconds, None, None, peak(torch.device("cpu"))))
        return done

    if not (folder / "config.json").exists():
        timed("writing the weights", lambda: write(folder, layers))
    lm = timed(
        "loading and checking",
        lambda: ds.load(
            folder, trace_dtype="float32", device_map="auto", max_memory=MEMORY,
            offload_folder=folder / "offload",
        ),
    )  # fmt: skip
    for rule in ("half", "softmax"):
        seen = timed(f"tokens ({rule})", lambda rule=rule: lm.attribute_tokens(ids, logit=7, rule=rule))
        assert seen.completeness_error < 1e-3
    timed("heads", lambda: lm.attribute_heads(ids, logit=7))
    return found
