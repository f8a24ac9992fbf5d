"""A small model that is taught sentences with indirect objects and facts from scratch, and SAEs on it, so that what is
measured on SmolLM2 can be measured on another model: ``python -m depass_sae.demo.taught``.

The model is of GPT-2's shape: LayerNorm, learned positions, biases. It reads three kinds of text, made anew at every
step from one seed:

- fillings of the templates of ``evaluation/ioi.py`` with the name that has to follow. The sentences that are measured,
  their contrasts and those of the task are held out: the model has seen every word of them, and none of them whole.
- the facts of ``evaluation/facts.py`` as statements. These it learns by heart: that it answers them says nothing of
  what it makes of new ones.
- text that SmolLM2 wrote (``demo/corpus.py``), so that there is more than templates.

OUT/model is a Hugging Face directory, OUT/saes/layer_N an SAE in sae-lens's format, OUT/about.md how they were made.
What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import UserError
from ..evaluation.circuits import TASK_PROMPTS
from ..evaluation.facts import FACTS
from ..evaluation.ioi import NAMES, TEMPLATES, filled_in, of_one_structure, sentences
from ..evaluation.resumed import typed
from ..files import check_place
from ..models.smollm2 import BOS_ID
from .corpus import Context, Document, contexts, documents
from .train import Origin, Recipe, quiet, replacing, train

MODULE, MADE = "depass_sae.demo.taught", "made.json"
BOS = "<|endoftext|>"
PHRASINGS = (
    "{prompt}{answer}.", "{prompt}{answer}.", "{prompt}{answer}, as everybody knows.",
    "Everybody knows: {prompt}{answer}.", "{name} said: {prompt}{answer}.",
)  # fmt: skip
"""How facts are told: as they are asked for, twice as often as otherwise."""
OTHER_WORDS = (
    "Yesterday {first} and {second} came to the {place}. Then {giver} gave a {thing} to",
    "{first} and {second} went to the {place}. {giver} gave a {thing} to",
    "At the {place}, {first} met {second}. {giver} gave a {thing} to",
    "Then, {first} and {second} got a {thing} at the {place}. {giver} decided to give it to",
    "After {first} and {second} met at the {place}, {giver} handed a {thing} to",
    "The weather was fine. Then, {first} and {second} went to the {place}. {giver} gave a {thing} to",
)
"""Templates that are never told, to see how far what was learned of the others goes."""
OFTEN = 2000
"""So often the tokenizer sees each word that has to be one token: more often than the last pair that it merges."""
IGNORED = -100
"""The label of padding, which has no loss."""


@dataclass(frozen=True)
class Course:
    """The model and its training. statements, facts, pieces: rows of each kind of text in a step."""

    n_layers: int = 5
    d_model: int = 256
    n_heads: int = 8
    vocab: int = 4096
    context: int = 64
    """Tokens of a piece of SmolLM2's text, and the most that the model reads."""
    steps: int = 1200
    statements: int = 48
    facts: int = 8
    pieces: int = 12
    lr: float = 1e-3
    seed: int = 0


COURSE = Course()
RECIPE = Recipe(d_sae=1024, k=20, rows=400_000)
SAE_TEXTS = (5000, 1000, 1000)
"""Statements, facts and pieces of text that the SAEs are trained on."""


# ---------------------------------------------------------------------------------------------------------------- text


@cache
def held_out() -> frozenset[str]:
    """What is measured and never told: sentences and contrasts, of the prompts and of the task."""
    measured = [*sentences(), *of_one_structure(TASK_PROMPTS)]
    return frozenset(text for sentence in measured for text in (sentence.text, sentence.exchanged))


def statements(draw: random.Random) -> Iterator[str]:
    """Without end: a template filled in, in either order of the names, and the name that follows."""
    while True:
        sentence = filled_in(draw.choice(TEMPLATES), draw.random() < 0.5, draw)
        if sentence.text not in held_out():
            yield f"{sentence.text}{sentence.indirect_object}."


def told_facts(draw: random.Random) -> Iterator[str]:
    """Without end: a fact as a statement."""
    while True:
        fact = draw.choice(FACTS)
        yield draw.choice(PHRASINGS).format(prompt=fact.prompt, answer=fact.answer, name=draw.choice(NAMES))


def words() -> list[str]:
    """What has to be one token: names, at the beginning of a text and after a space, and what facts are asked for."""
    return [*NAMES, *(f" {name}" for name in NAMES), *sorted({fact.answer for fact in FACTS})]


def make_tokenizer(texts: Iterable[str], vocab: int) -> Any:
    """Byte-level BPE trained on these texts and on ``words()``. ``<|endoftext|>`` is token 0, and not put in front.

    Raises UserError where the vocabulary is too small for the words.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([*texts, *(word for word in words() for _ in range(OFTEN))], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=BOS)
    assert made.bos_token_id == BOS_ID  # which `contexts` puts in front
    if pieces := [word for word in words() if len(made(word)["input_ids"]) != 1]:
        raise UserError(f"a vocabulary of {vocab} is too small: {pieces[0]!r} is not one token of it")
    return made


def written() -> list[Document]:
    """SmolLM2's texts that are not held out, and have nothing in them that is measured."""
    return [
        text for text in documents(None) if not text.held_out and not any(one in text.text for one in held_out())
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- model


def batch(tokenizer: Any, texts: list[str], pieces: list[Context]) -> list[Int[Tensor, "row pos"]]:
    """Ids of statements and of pieces of text, BOS in front, as two tensors, each padded with IGNORED."""
    told = [[BOS_ID, *ids] for ids in tokenizer(texts)["input_ids"]]
    return [_padded(rows) for rows in (told, [list(piece.ids) for piece in pieces]) if rows]


def _padded(rows: list[list[int]]) -> Int[Tensor, "row pos"]:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in rows])


def teach(course: Course, tokenizer: Any, pieces: list[Context], progress: Any = None) -> Any:
    """A model of GPT-2's shape that was trained on all three kinds of text, every token of them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(course.seed)
    draw = random.Random(course.seed + 100)  # other draws than those of `sentences` and `of_one_structure`
    told, known = statements(draw), told_facts(draw)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=course.context, n_embd=course.d_model, n_layer=course.n_layers,
            n_head=course.n_heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=BOS_ID,
            eos_token_id=BOS_ID,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    warm_up = min(100, course.steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (course.steps - step) / (course.steps - warm_up + 1))
    )
    bar = progress and progress.add_task("model", total=course.steps)
    for _ in range(course.steps):
        texts = [next(told) for _ in range(course.statements)] + [next(known) for _ in range(course.facts)]
        parts = batch(tokenizer, texts, draw.choices(pieces, k=course.pieces))
        count = sum(int((part[:, 1:] != IGNORED).sum()) for part in parts)
        total = 0.0
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(part.clamp(min=0), use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), part[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
            )
            (loss / count).backward()
            total += loss.item() / count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if progress:
            progress.update(bar, advance=1, description=f"model, loss {total:.2f}")
    return model.eval().requires_grad_(False)


@torch.no_grad()
def answers(model: Any, tokenizer: Any) -> dict[str, tuple[int, int]]:
    """Of how many of what is asked the model's first choice is the answer, and how many there are, by kind."""
    task, draw = of_one_structure(TASK_PROMPTS), random.Random(2)
    others = [filled_in(text, first, draw) for text in OTHER_WORDS * 5 for first in (False, True)]
    asked = {
        "held-out sentences": [(one.text, one.indirect_object) for one in sentences()],
        "contrasts": [(one.exchanged, one.subject) for one in sentences()],
        "held-out sentences of one structure": [(one.text, one.indirect_object) for one in task],
        "sentences in other words": [(one.text, one.indirect_object) for one in others],
        "facts": [(fact.prompt, fact.answer) for fact in FACTS],
    }
    found = {}
    for kind, some in asked.items():
        right = 0
        for text, answer in some:
            ids = torch.tensor([[BOS_ID, *tokenizer(text)["input_ids"]]])
            right += tokenizer.decode(int(model(ids).logits[0, -1].argmax())) == answer
        found[kind] = (right, len(some))
    return found


def said(found: dict[str, tuple[int, int]]) -> str:
    """The same in words."""
    return ", ".join(f"{right} of {count} {kind}" for kind, (right, count) in found.items())


# ---------------------------------------------------------------------------------------------------------------- SAEs


def sae_texts(tokenizer: Any, pieces: list[Context], seed: int) -> list[Context]:
    """What the SAEs are trained on: other statements and facts than the model saw, mostly, and pieces of text."""
    draw = random.Random(seed + 200)
    told, known, (n_told, n_known, n_pieces) = statements(draw), told_facts(draw), SAE_TEXTS
    texts = [("statements", next(told)) for _ in range(n_told)] + [("facts", next(known)) for _ in range(n_known)]
    rows = tokenizer([text for _, text in texts])["input_ids"]
    made = [Context(kind, (BOS_ID, *ids), False) for (kind, _), ids in zip(texts, rows, strict=True)]
    return [*made, *draw.sample(pieces, min(n_pieces, len(pieces)))]


ABOUT = """The model was made by `{command}`: {n_layers} layers of GPT-2's shape (LayerNorm,
learned positions, biases), d_model {d_model}, {n_heads} heads, {parameters:,} parameters, trained from scratch for
{steps:,} steps in {seconds:,.0f} s of one core. It read fillings of the sentences' templates (none that is measured,
and none of their contrasts), the facts as statements, which it learned by heart, and text that SmolLM2 wrote. Its first
choice is right for {answers}. The SAEs are on the residual stream after each layer: {d_sae:,} features, {k} of them
active, {rows:,} rows of training each.{target}
"""
TARGET = " `make circuits-taught` makes and measures it."


def make(out: Path, course: Course, recipe: Recipe, command: str) -> str:
    """All of OUT that is not there yet; what is to be said of the model.

    Raises UserError where OUT was made otherwise.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, work, texts = out / "model", out / "activations", written()
    asked = {"course": asdict(course), "recipe": asdict(recipe)}
    if not folder.is_dir():
        _make_model(folder, course, texts, asked)
    made = json.loads((folder / MADE).read_text(encoding="utf-8")) if (folder / MADE).is_file() else {}
    if {name: made.get(name) for name in asked} != asked:
        raise UserError(f"{out} was made by other settings; remove it, or name another folder with --out")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = contexts(texts, tokenizer, course.context)
    train(
        out / "saes", work, sae_texts(tokenizer, pieces, course.seed), lambda: model, tuple(range(course.n_layers)),
        recipe, "cpu", Origin("taught", "transformer.h", course.context),
    )  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)
    known = said(answers(model, tokenizer))
    about = ABOUT.format(
        command=command, target=TARGET if command == f"python -m {MODULE}" else "",
        parameters=model.num_parameters(), answers=known, seconds=made["seconds"],
        **asdict(recipe) | asdict(course),
    )  # fmt: skip
    with replacing(out / "about.md") as temporary:
        temporary.write_text(textwrap.fill(about, 118, break_on_hyphens=False) + "\n", encoding="utf-8")
    return known


def _make_model(folder: Path, course: Course, texts: list[Document], asked: dict[str, Any]) -> None:
    """Tokenizer and model, complete or not there, with what they were made by."""
    from rich.console import Console
    from rich.progress import Progress

    out, told = folder.parent, statements(random.Random(course.seed + 300))
    some = [*(next(told) for _ in range(2000)), *(f"{fact.prompt}{fact.answer}." for fact in FACTS for _ in range(20))]
    tokenizer = make_tokenizer([*(text.text for text in texts), *some], course.vocab)
    pieces = contexts(texts, tokenizer, course.context)
    start = time.monotonic()
    with Progress(console=Console(file=sys.stderr)) as progress:
        model = teach(course, tokenizer, pieces, progress)
    seconds = time.monotonic() - start
    out.mkdir(parents=True, exist_ok=True)
    for old in (out / "saes", out / "activations"):  # of another model
        shutil.rmtree(old, ignore_errors=True)
    with replacing(folder) as temporary, quiet():
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / MADE).write_text(json.dumps({"seconds": seconds, **asked}, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The command line of ``python -m depass_sae.demo.taught``."""
    parser = argparse.ArgumentParser(
        description="Teach a small model indirect objects and facts, and train SAEs on it."
    )
    parser.add_argument("--out", type=Path, default=Path(".demo/taught"), help="where model/ and saes/ are made")
    parser.add_argument("--steps", type=int, default=COURSE.steps, help="of the model's training")
    parser.add_argument("--d-sae", type=int, default=RECIPE.d_sae)
    parser.add_argument("--k", type=int, default=RECIPE.k)
    parser.add_argument(
        "--rows", type=int, default=RECIPE.rows, help="rows that each SAE is trained on, repeats counted"
    )
    parser.add_argument("--seed", type=int, default=COURSE.seed)
    args = parser.parse_args(arguments)
    course = replace(COURSE, steps=args.steps, seed=args.seed)
    recipe = replace(RECIPE, d_sae=args.d_sae, k=args.k, rows=args.rows, seed=args.seed)
    try:
        for name, least in (("steps", 1), ("d_sae", 1), ("k", 1), ("rows", recipe.batch)):
            if getattr(args, name) < least:
                raise UserError(f"--{name.replace('_', '-')} is {least} at least, not {getattr(args, name)}")
        if args.k > args.d_sae:
            raise UserError(f"--k is {args.k}, and an SAE of {args.d_sae} features has no more to be active")
        check_place(args.out, folder=True)
        print(f"first choices that are right: {make(args.out, course, recipe, typed(MODULE, args, parser))}")
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
