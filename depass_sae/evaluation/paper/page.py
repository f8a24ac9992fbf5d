"""docs/paper.md: of each of the paper's experiments its claim, what came out here, and how it is run on other models."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean as mean_of

import torch

from ...view.markdown import markdown
from ..figures import Estimate, difference, estimate, mean
from ..found import Evaluation
from ..resumed import LEVEL, Record
from .languages import LANGUAGES, LAYER, VOTES, Found
from .neurons import TOGETHER
from .truthfulness import LAYERS, ways

HEAD = f"""# The paper's experiments

Made by `make paper` (`python -m depass_sae.evaluation.paper`) on SmolLM2-135M, on the processor; `SECTION` alone is made
again by `python -m depass_sae.evaluation.paper SECTION`. The paper's models have 1.5 to 70 billion parameters, this one
has 0.135: what it shows is that the experiments run, and which way they go here. The sentences are this project's own.

Intervals are {LEVEL:.0%}, of prompts drawn again with replacement, which says how sure the figures are for prompts like
these.
"""
WHAT = {
    "tokens": "4.1.1 Tokens (facts, indirect objects)",
    "truthfulness": "4.1.2 Tokens, through a subspace (truthfulness)",
    "components": "4.2 Heads and neurons",
    "languages": "4.3 Subspaces (languages)",
    "neurons": "Table 11: how long neurons take",
    "saes": "C.5 SAE features",
}


def section(name: str, text: str) -> str:
    return f"\n## {WHAT[name]}\n\nSection `{name}`.\n\n{text.strip()}\n"


def tokens(found: dict[str, Evaluation]) -> str:
    said = """*The paper*: tokens that DePass ranks highest are those without which the answer is lost (deleted, the answer's
probability falls faster than by other methods) and with which alone it stays; on Llama-2-7B and larger, DePass is ahead
of gradients, integrated gradients, attention and Erasure-like baselines. Its rule is `softmax`.

*Here*, a method's curve is the answer's share of what it was as its top tokens are deleted (lower is better), or alone
kept (higher). In Python: `lm.evaluate("facts", "tokens", methods=["softmax", "half", "ig"], protocols=["delete", "keep"])`."""
    return said + _evaluated(found)


def components(found: dict[str, Evaluation]) -> str:
    said = """*The paper*: without the heads and neurons that DePass ranks highest the model fails sooner than without those that
AtP or their norms rank highest, and without the lowest it keeps its answers longer. AtP is `effect` here.

*Here*, heads and neurons are silenced, the highest or the lowest first, by signed scores and by size. In Python:
`lm.evaluate("ioi", "heads", protocols=["mask-top", "mask-bottom"])`."""
    return said + _evaluated(found)


def _evaluated(found: dict[str, Evaluation]) -> str:
    return "".join(f"\n\n### {name}\n\n{markdown(one.blocks(), level=4)}" for name, one in found.items())


def truthfulness(records: Sequence[Record], separated: Sequence[Record]) -> str:
    n = len({one["prompt"] for one in records})
    lines = [
        "*The paper*: a prompt that is told something untrue answers with it; where the tokens that DePass holds responsible",
        "for a probe's verdict are masked, more answers are right than where tokens are masked that look untruthful",
        "themselves (TACS): 43 % against 26 % on Llama-2-7B, 59 % against 16 % on Llama-3.1-8B (CounterFact).",
        "",
        f"*Here*: {n} facts of five relations, each told with another's answer and then asked for. Probes of layers",
        f"{', '.join(map(str, LAYERS))} were trained on the other half of the facts, on the last token of true and of false sentences.",
        "Masked tokens are taken out; DePass takes as many as look untruthful, by rule `half`. *Share*: the right answer's",
        "probability against the wrong one's. *contrast*: less what the token at the same place contributes on average",
        "where what is told is true.",
        "",
        "| | right | share of the right answer | tokens masked |",
        "|---|---|---|---|",
    ]
    for way in ways(records):
        some = [one for one in records if one["way"] == way]
        cells = (_cell([one["right"] for one in some]), _cell([one["share"] for one in some]))
        lines.append(f"| {way} | {' | '.join(cells)} | {mean_of(one['masked'] for one in some):.1f} |")
    lines += [
        "",
        "Ahead of masking directly, of random tokens (of the share, fact by fact):",
        "",
        "| | of direct | of random |",
        "|---|---|---|",
    ]
    for name in dict.fromkeys(way.split(", ")[0] for way in ways(records) if ", DePass" in way):
        for how in ("DePass", "DePass, contrast"):
            against = (_ahead(records, f"{name}, {how}", f"{name}, {other}", "share") for other in ("direct", "random"))
            lines.append(f"| {name}, {how} | {' | '.join(against)} |")
    lines += [
        "",
        "Sentences that a probe never saw, told apart rightly:",
        "",
        "| | " + " | ".join(f"layer {layer}" for layer in LAYERS) + " |",
        "|---|" + "---|" * len(LAYERS),
    ]
    for name in dict.fromkeys(one["probe"] for one in separated):
        cells = (
            _cell([float(one["right"]) for one in separated if (one["probe"], one["layer"]) == (name, layer)])
            for layer in LAYERS
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def languages(found: Found, records: Sequence[Record], examples: Sequence[Record]) -> str:
    n, k = len(found.texts), len({one.meaning[1] for one in found.texts})
    lines = [
        "*The paper*: at layer 15 a probe for the language spans a subspace; carried to the end, its part votes for words of",
        "the prompt's language, what is off it for what the prompt is about, whatever the language, and t-SNE of the",
        "former has a cluster for every language.",
        "",
        f"*Here*: {n} beginnings of sentences ({k} sentences about countries that the probe never saw, in {len(LANGUAGES)} languages) at",
        f"layer {LAYER}. The probe tells the language of {_cell(found.accuracy)} of a text's tokens (guessing the commonest: {found.majority:.2f}).",
        "*Language*: how often the nearest text by cosine, among other sentences, is of the same language (0.25 by chance);",
        f"*meaning*: among other languages, means the same ({k * len(LANGUAGES[1:]) / n / k * len(LANGUAGES) / (len(LANGUAGES) - 1) * 1:.2f} by chance). *Votes*: how far the {VOTES} tokens voted for most are those of",
        "other sentences in the same language, and of the same sentence in other languages (Jaccard). *random*, *principal*:",
        "subspaces of the same rank. *contrast*: less the mean of all texts.",
        "",
        "| part | language | meaning | votes, same language | votes, same meaning |",
        "|---|---|---|---|---|",
    ]
    for part in dict.fromkeys(one["part"] for one in records):
        some = [one for one in records if one["part"] == part]
        keys = ("language", "meaning", "votes of the language", "votes of the meaning")
        lines.append(f"| {part} | {' | '.join(_cell([one[key] for one in some]) for key in keys)} |")
    lines += [
        "",
        "![the language's part behind the last layer, by t-SNE](paper-languages.png)",
        "",
        "What is voted for most:",
        "",
        "| part | text | tokens |",
        "|---|---|---|",
    ]
    for one in examples:
        tokens = " ".join(f"`{_plain(token)}`" for token in one["tokens"])
        lines.append(f"| {one['part']} | {one['text']} | {tokens} |")
    return "\n".join(lines)


def _plain(token: str) -> str:
    return token.strip().replace("`", "'").replace("|", "¦").replace("\n", "↵") or "␣"


def neurons(records: Sequence[Record], layer: int) -> str:
    lines = [
        "*The paper*: neurons of a layer take DePass a hundredth of the time that taking each one out takes.",
        "",
        f"*Here*: every neuron of all layers in one sweep with its effect, against taking each of layer {layer}'s out, {TOGETHER} in one run",
        "of the model. Seconds of the processor, one thread. *Agree*: Spearman's rank correlation over the neurons.",
        "",
        "| prompt | tokens | all layers in one sweep | one layer, each taken out | times, all layers | contributions agree | effects agree |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in records:
        times = one["theirs"] * one["layers"] / one["ours"]
        lines.append(
            f"| {one['prompt']} | {one['tokens']} | {one['ours']:.2f} | {one['theirs']:.1f} | {times:,.0f} | "
            f"{one['contribution']:.2f} | {one['effect']:.2f} |"
        )
    return "\n".join(lines)


SAES = """*The paper*: three features of Llama Scope's SAEs on Llama-3.1-8B and the tokens that activate them, by DePass.

*Here*: `python -m depass_sae.evaluation.llama_scope` makes the three cases with the original model and SAEs side by side
with the paper's numbers where these weights are; `notebooks/05_llama_scope.ipynb` is the same as a notebook. The gallery
(`graphs/`) has the same three questions on SmolLM2."""


def _cell(numbers: Sequence[float]) -> str:
    found = estimate(_column(numbers), mean)
    return "" if found is None else _shown(found)


def _ahead(records: Sequence[Record], way: str, other: str, key: str) -> str:
    own, others = ({one["prompt"]: one[key] for one in records if one["way"] == name} for name in (way, other))
    found = difference(_column(list(own.values())), _column([others[prompt] for prompt in own]), mean)
    return "" if found is None else _shown(found, "+")


def _column(numbers: Sequence[float]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def _shown(found: Estimate, sign: str = "") -> str:
    return f"{found.value:{sign}.2f} ({found.low:{sign}.2f} to {found.high:{sign}.2f})"
