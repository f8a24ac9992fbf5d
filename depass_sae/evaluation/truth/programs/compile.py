"""Compiles the programs of this folder with tracr, and writes their weights and what tracr itself says of inputs.

tracr is a tool for making these files, and nothing here needs it afterwards. In an environment of its own:

    pip install tracr-pypi==1.0.0 jax dm-haiku safetensors
    python depass_sae/evaluation/truth/programs/compile.py

A program is a .json file (what it is, its words, inputs and what it gives for them) and a .safetensors file: the
embeddings, the maps of every layer as they act on the stream, and ``recorded.N``, the stream that tracr's own model
ends with on input N. Layers and neurons that are all zero are left out. Positions are those of the prompt, whose first
token is tracr's BOS; models are compiled with causal masks, as GPT-2 has them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

BOS = "compiler_bos"
LETTERS = ("a", "b", "c", "d", "e")
BLANK = 9


def before(sop: rasp.SOp, by: int = 1) -> rasp.SOp:
    """What stood so many positions earlier."""
    return rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == q - by), sop)


def induction() -> rasp.SOp:
    """What came after this token where it was before."""
    match = rasp.Select(before(rasp.tokens).named("before"), rasp.tokens, rasp.Comparison.EQ)
    return rasp.Aggregate(match, rasp.tokens).named("output")


def histogram() -> rasp.SOp:
    """How often this token has been there by now."""
    same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
    return rasp.SelectorWidth(same).named("output")


def sorting() -> rasp.SOp:
    """Three different numbers, then three blanks, then three more: there the numbers stand in order.

    A causal model learns a number's rank only when all have been read, so that it is worked out at the first blanks.
    """
    copied = before(rasp.tokens, by=3).named("copied")
    smaller = rasp.Select(rasp.tokens, copied, lambda k, q: k != BLANK and q != BLANK and k < q)
    rank = rasp.SelectorWidth(smaller).named("rank")
    of_blanks = rasp.SequenceMap(lambda r, i: r if 3 <= i < 6 else BLANK, rank, rasp.indices).named("of_blanks")
    mine = rasp.Select(of_blanks, rasp.indices, lambda k, q: k == q - 6)
    return rasp.Aggregate(mine, copied).named("output")


def balance() -> rasp.SOp:
    """Of all tokens by now, the share that opens a bracket less the share that closes one (tracr's own program)."""
    return lib.make_pair_balance(rasp.tokens, "(", ")").named("output")


def matching() -> rasp.SOp:
    """Whether all brackets by now are matched (tracr's own program; true to that at the last position)."""
    return lib.make_shuffle_dyck(["()"]).named("output")


def bigram() -> rasp.SOp:
    """Whether this is "b", and the token before it "a"."""
    return rasp.SequenceMap(lambda p, t: p == "a" and t == "b", before(rasp.tokens), rasp.tokens).named("output")


@dataclass(frozen=True)
class Program:
    make: Callable[[], rasp.SOp]
    words: Sequence[Any]
    longest: int
    inputs: Sequence[Sequence[Any]]


PROGRAMS = (
    Program(induction, LETTERS, 7, ["abca", "dcbd", "eabcea"]),
    Program(histogram, LETTERS, 6, ["abaa", "bbcb", "abcd"]),
    Program(sorting, (1, 2, 3, 4, BLANK), 9, [(*x, *[BLANK] * 6) for x in ((3, 1, 2), (1, 2, 3), (2, 3, 1))]),
    Program(balance, ("(", ")", "x"), 6, ["(())", "((x)", ")x("]),
    Program(matching, ("(", ")", "x"), 6, ["(())", "(x)", ")(", "(("]),
    Program(bigram, LETTERS, 6, ["cab", "bab", "cbab", "aab"]),
)


def maps(params: dict[str, dict[str, np.ndarray]], config: Any) -> dict[str, np.ndarray]:
    """Every layer's, by ``layer.N.what``; heads one by one, queries with the √key_size that tracr divides scores by."""
    found: dict[str, np.ndarray] = {}
    for layer in range(config.num_layers):
        attn, mlp = f"transformer/layer_{layer}/attn", f"transformer/layer_{layer}/mlp"
        size = config.key_size
        for head in range(config.num_heads):
            some = slice(head * size, (head + 1) * size)
            own = {}
            for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
                own[short] = params[f"{attn}/{name}"]["w"][:, some]
                assert not params[f"{attn}/{name}"]["b"].any()
            own["q"] = own["q"] / np.sqrt(size)
            own["o"] = params[f"{attn}/linear"]["w"][some]
            assert not params[f"{attn}/linear"]["b"].any()
            if own["o"].any():
                found |= {f"layer.{layer}.head.{head}.{name}": weight for name, weight in own.items()}
        first, second = params[f"{mlp}/linear_1"], params[f"{mlp}/linear_2"]
        used = second["w"].any(1)
        assert not first["b"].any()
        assert not second["b"].any()
        if used.any():
            found |= {f"layer.{layer}.into": first["w"][:, used], f"layer.{layer}.out": second["w"][used]}
    return found


def write(program: Program, folder: Path) -> None:
    model = compiling.compile_rasp_to_model(program.make(), set(program.words), program.longest, causal=True)
    config, ids = model.model_config, model.input_encoder.encoding_map
    words = [BOS, *program.words]
    tensors = {
        "embed": np.asarray(model.params["token_embed"]["embeddings"])[[ids[word] for word in words]],
        "position": np.asarray(model.params["pos_embed"]["embeddings"]),
        **maps({key: {k: np.asarray(v) for k, v in value.items()} for key, value in model.params.items()}, config),
    }
    outputs = []
    for number, given in enumerate(program.inputs):
        said = model.apply([BOS, *given])
        outputs.append([x if isinstance(x, str | bool) else float(x) if x is not None else None for x in said.decoded])
        tensors[f"recorded.{number}"] = np.asarray(said.transformer_output)[0]
    assert all(weight.dtype.kind == "f" for weight in tensors.values())
    name = program.make.__name__
    document = {
        "name": name,
        "program": inspect.getsource(program.make),
        "words": [str(word) for word in words],
        "stream": model.residual_labels,
        "layers": config.num_layers,
        "heads": config.num_heads,
        "key_size": config.key_size,
        "inputs": [[str(x) for x in (BOS, *given)] for given in program.inputs],
        "outputs": [[str(x) for x in row] for row in outputs],
    }
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    # As float32, which holds all of them: they are small whole numbers, halves, and 1/n of a few n.
    save_file({key: np.ascontiguousarray(w, np.float32) for key, w in tensors.items()}, folder / f"{name}.safetensors")
    print(name, len(model.residual_labels), "dimensions", config.num_layers, "layers", document["outputs"])


if __name__ == "__main__":
    for program in PROGRAMS:
        write(program, Path(__file__).parent)
