"""Have SmolLM2 write the training text of the demo SAEs: ``python -m depass_sae.demo.write``.

Every text is about one of the topics and of one of the kinds in `topics`: most are answers to a request in the chat
format, the others go on from an opening line. Tokens are drawn from the 100 most likely at a temperature of 0.7 to 1.
The same seed, batch size and machine give the same text; the result that the SAEs were trained on is in the package,
so nobody has to run this.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..models.smollm2 import BOS_ID, prepare
from .topics import INSTRUCTIONS, OPENINGS, TOPICS

TOP_K = 100
TEMPERATURES = (0.7, 0.85, 1.0)
CHAT_SHARE = 0.75
_ENDS = (0, 2)  # <|endoftext|>, <|im_end|>


@dataclass(frozen=True)
class Request:
    """One text to be written."""

    topic: str
    kind: str
    prompt: str
    """What the model is given, special tokens written out."""
    opening: str
    """How the text begins: empty in the chat format."""
    temperature: float


def requests(seed: int) -> Iterator[Request]:
    """Endless requests; every topic comes once before any comes again."""
    rng = random.Random(seed)
    while True:
        for topic in rng.sample(TOPICS, len(TOPICS)):
            temperature = rng.choice(TEMPERATURES)
            if rng.random() < CHAT_SHARE:
                kind = rng.choice(INSTRUCTIONS)
                prompt = f"<|im_start|>user\n{kind.format(topic=topic)}<|im_end|>\n<|im_start|>assistant\n"
                yield Request(topic, kind, prompt, "", temperature)
            else:
                kind = rng.choice(OPENINGS)
                opening = kind.format(topic=topic, Topic=topic[0].upper() + topic[1:])
                yield Request(topic, kind, "<|endoftext|>" + opening, opening, temperature)


class _GroupedAttention:
    """Attention that reads each key-value head once for its whole group of query heads, and only the filled cache.

    transformers would copy the keys and values of all 9 heads at every token, which is half of the time on a CPU.
    """

    filled = 0

    def __call__(
        self,
        module: torch.nn.Module,
        query: Float[Tensor, "batch head new d_head"],
        key: Float[Tensor, "batch kv_head pos d_head"],
        value: Float[Tensor, "batch kv_head pos d_head"],
        attention_mask: Tensor | None,
        scaling: float,
        **_: Any,
    ) -> tuple[Tensor, None]:
        batch, heads, new, width = query.shape
        key, value = key[:, :, : self.filled], value[:, :, : self.filled]
        if new > 1:
            out = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=True
            )
        else:
            grouped = query.reshape(batch, key.shape[1], -1, width)
            out = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, scale=scaling)
            out = out.reshape(batch, heads, 1, width)
        return out.transpose(1, 2), None


@torch.inference_mode()
def continue_batch(
    model: Any,
    prompts: Int[Tensor, "batch pos"],
    temperatures: Float[Tensor, "batch"],
    new_tokens: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """Sampled continuations, each up to its end token or `new_tokens`; ends when 7 of 8 have ended."""
    from transformers import AttentionInterface, StaticCache

    attention = _GroupedAttention()
    AttentionInterface.register("grouped", attention)
    model.set_attn_implementation("grouped")
    batch, length = prompts.shape
    cache = StaticCache(config=model.config, max_cache_len=length + new_tokens)
    ends = torch.tensor(_ENDS, device=prompts.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=prompts.device)
    drawn = []
    tokens = prompts
    for step in range(new_tokens):
        attention.filled = length + step
        positions = torch.arange(attention.filled - tokens.shape[1], attention.filled, device=prompts.device)
        out = model(tokens, past_key_values=cache, position_ids=positions[None].expand(batch, -1), logits_to_keep=1)
        logits, choices = out.logits[:, -1].topk(TOP_K, dim=-1)
        weights = torch.softmax(logits.float() / temperatures[:, None], dim=-1)
        tokens = choices.gather(1, torch.multinomial(weights, 1, generator=generator))
        drawn.append(tokens)
        ended |= torch.isin(tokens[:, 0], ends)
        if ended.sum() >= batch * 7 / 8:
            break
    rows = torch.cat(drawn, dim=1).tolist()
    return [row[: min((row.index(end) for end in _ENDS if end in row), default=len(row))] for row in rows]


def write(
    out: Path, tokens: int, seed: int, batch_size: int, new_tokens: int, device: str, minutes: float | None = None
) -> int:
    """Append texts to `out` (JSON lines, one a text) until `tokens` are written or the time is up; tokens written."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = prepare()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    asked = requests(seed)
    done, started = 0, time.monotonic()
    while done < tokens and (minutes is None or time.monotonic() - started < 60 * minutes):
        # sorted by length, batches need hardly any padding
        pool = [(tokenizer.encode(request.prompt), request) for request in (next(asked) for _ in range(4 * batch_size))]
        pool.sort(key=lambda pair: len(pair[0]))
        for first in range(0, len(pool), batch_size):
            chunk = pool[first : first + batch_size]
            longest = len(chunk[-1][0])
            prompts = torch.tensor([[BOS_ID] * (longest - len(ids)) + ids for ids, _ in chunk], device=device)
            temperatures = torch.tensor([request.temperature for _, request in chunk], device=device)
            rows = continue_batch(model, prompts, temperatures, new_tokens, generator)
            with out.open("a", encoding="utf-8") as file:
                for (_, request), row in zip(chunk, rows, strict=True):
                    text = (request.opening + tokenizer.decode(row, skip_special_tokens=True)).strip()
                    record = {"topic": request.topic, "kind": request.kind, "text": text}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    done += len(row)
            rate = done / (time.monotonic() - started)
            print(f"{done:,} of {tokens:,} tokens, {rate:,.0f} a second", flush=True)
            if done >= tokens or (minutes is not None and time.monotonic() - started > 60 * minutes):
                break
    return done


def pack(parts: list[Path], out: Path) -> int:
    """Compress JSON lines (without texts under 30 words, and each text once) into one ``.jsonl.xz``; texts kept."""
    lines, seen = [], set()
    for part in parts:
        for line in part.read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["text"]
            if len(text.split()) >= 30 and text not in seen:
                seen.add(text)
                lines.append(line)
    temporary = out.with_name(out.name + ".tmp")
    with lzma.open(temporary, "wt", encoding="utf-8", preset=9 | lzma.PRESET_EXTREME) as file:
        file.write("\n".join(lines) + "\n")
    os.replace(temporary, out)
    return len(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command line of ``python -m depass_sae.demo.write``."""
    parser = argparse.ArgumentParser(description="Have SmolLM2 write the demo SAEs' training text.")
    parser.add_argument("--out", type=Path, default=Path("written.jsonl.xz"))
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=None, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=None, help="default: 96 on a CPU, 768 on a GPU")
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    raw = args.out.with_name(args.out.name.split(".")[0] + f".seed{args.seed}.jsonl")
    batch_size = args.batch_size or (768 if args.device.startswith("cuda") else 96)
    write(raw, args.tokens, args.seed, batch_size, args.new_tokens, args.device, args.minutes)
    texts = pack(sorted(raw.parent.glob(args.out.name.split(".")[0] + ".seed*.jsonl")), args.out)
    print(f"{texts:,} texts in {args.out}")


if __name__ == "__main__":
    main()
