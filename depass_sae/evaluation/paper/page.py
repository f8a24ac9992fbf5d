"""docs/paper.md: of each of the paper's experiments its claim, and what came out here."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean as mean_of

import torch

from ...view.markdown import markdown
from ..figures import Estimate, difference, estimate, mean, written
from ..found import Evaluation
from ..resumed import LEVEL, Record
from .languages import LANGUAGES, LAYER, VOTES, Found
from .neurons import TOGETHER
from .truthfulness import LAYERS, ways

HEAD = f"""# The paper's experiments

Made by `make paper` on SmolLM2-135M; one section alone by `python -m depass_sae.evaluation.paper SECTION`. The paper's
models have 1.5 to 70 billion parameters, this one has 0.135: what is shown is that the experiments run, and which way
they go here. The sentences are this project's own.

With one of the paper's models, which nobody has run: `python -m depass_sae.evaluation.paper --model NAME`. With its
data, as JSON lines of prompt and answer, 4.1.1 and 4.2 are
`depass-sae evaluate counterfact.jsonl --model NAME --protocol delete --protocol keep` <!-- not run: gated weights -->
and, with `--of heads` or `--of neurons`, `--protocol mask-top --protocol mask-bottom`.

Intervals are {LEVEL:.0%}, of prompts drawn again with replacement, which says how sure the figures are for prompts like
these.
"""
OTHER = """# The paper's experiments on {model}

Made by `python -m depass_sae.evaluation.paper --model {model}`. Where a text says *here*, that model is meant.
"""
WHAT = {
    "tokens": "4.1.1 Tokens (facts, indirect objects)",
    "truthfulness": "4.1.2 Tokens, through a subspace (truthfulness)",
    "components": "4.2 Heads and neurons",
    "languages": "4.3 Subspaces (languages)",
    "neurons": "Table 11: how long neurons take",
    "saes": "C.5 SAE features",
}


def missing(names: Sequence[str]) -> str:
    """What of the page was not made."""
    if not names:
        return ""
    said = ", ".join(WHAT[name] for name in names)
    return f"\nNot made here yet: {said}; small runs are in [evaluated.md](evaluated.md).\n"


def section(name: str, text: str) -> str:
    return f"\n## {WHAT[name]}\n\nSection `{name}`.\n\n{text.strip()}\n"


def tokens(found: dict[str, Evaluation]) -> str:
    return TOKENS + _evaluated(found)


def components(found: dict[str, Evaluation]) -> str:
    return COMPONENTS + _evaluated(found)


def _evaluated(found: dict[str, Evaluation]) -> str:
    return "".join(f"\n\n### {name}\n\n{markdown(one.blocks(), level=4)}" for name, one in found.items())


def truthfulness(records: Sequence[Record], separated: Sequence[Record]) -> str:
    n = len({one["prompt"] for one in records})
    found = []
    for way in ways(records):
        some = [one for one in records if one["way"] == way]
        figures = (_cell([one[key] for one in some]) for key in ("right", "share"))
        found.append([way, *figures, f"{mean_of(one['masked'] for one in some):.1f}"])
    names = "way", "prompt"
    ahead = {
        way: [_ahead(records, names, way, f"{way.split(', ')[0]}, {other}", "share") for other in ("direct", "random")]
        for way in ways(records)
        if ", DePass" in way
    }
    apart = [
        [name, *(_cell([one["right"] for one in separated if (one["probe"], one["layer"]) == (name, layer)])
                 for layer in LAYERS)]
        for name in dict.fromkeys(one["probe"] for one in separated)
    ]  # fmt: skip
    return "\n\n".join([
        TRUTHFULNESS.format(n=n, layers=", ".join(map(str, LAYERS))),
        _table(["", "right", "share of the right answer", "tokens masked"], found),
        "Ahead in the share, fact by fact:",
        _table(
            ["", "of masking directly", "of random tokens"],
            [[way, *map(_signed, row)] for way, row in ahead.items()],
        ),
        "Sentences that a probe never saw, told apart rightly:",
        _table(["", *(f"layer {layer}" for layer in LAYERS)], apart),
        *(
            _read(f"Ahead of masking {other}", {way: row[i] for way, row in ahead.items()})
            for i, other in enumerate(("what looks untruthful", "random tokens"))
        ),
    ])  # fmt: skip


def languages(found: Found, records: Sequence[Record], examples: Sequence[Record]) -> str:
    n, sentences = len(found.texts), len({one.meaning[1] for one in found.texts})
    keys = ("language", "meaning", "votes of the language", "votes of the meaning")
    rows = [
        [part, *(_cell([one[key] for one in records if one["part"] == part]) for key in keys)]
        for part in dict.fromkeys(one["part"] for one in records)
    ]
    names, compared = ("part", "text"), ("language", "votes of the language")
    voted = [[one["part"], one["text"], " ".join(f"`{_plain(token)}`" for token in one["tokens"])] for one in examples]
    said = LANGUAGE.format(
        n=n, sentences=sentences, languages=len(LANGUAGES), layer=LAYER, accuracy=_cell(found.accuracy),
        majority=found.majority, chance=len(LANGUAGES) / n, votes=VOTES,
    )  # fmt: skip
    return "\n\n".join([
        said,
        _table(["part", "language", "meaning", "votes, same language", "votes, same meaning"], rows),
        "The language's part is ahead, text by text:",
        _table(
            ["", "language", "votes, same language"],
            [
                [f"of {other}", *(_signed(_ahead(records, names, "language", other, key)) for key in compared)]
                for other in ("random", "principal", "off the language")
                if other in {one["part"] for one in records}
            ],
        ),
        "![the language's part behind the last layer, by t-SNE](paper-languages.png)",
        "What is voted for most:",
        _table(["part", "text", "tokens"], voted),
    ])  # fmt: skip


def _plain(token: str) -> str:
    return token.strip().replace("`", "'").replace("|", "¦").replace("\n", "↵") or "␣"


def neurons(records: Sequence[Record], layer: int) -> str:
    rows = [
        [
            one["prompt"], str(one["tokens"]), f"{one['ours']:.2f}", f"{one['theirs']:.1f}",
            f"{one['theirs'] * one['layers'] / one['ours']:,.0f}", f"{one['contribution']:.2f}", f"{one['effect']:.2f}",
        ]
        for one in records
    ]  # fmt: skip
    head = [
        "prompt", "tokens", "all layers in one sweep", "one layer, each taken out", "times, all layers",
        "contributions agree", "effects agree",
    ]  # fmt: skip
    return NEURONS.format(layer=layer, together=TOGETHER) + "\n\n" + _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TRUTHFULNESS = """\
*The paper*: a prompt that is told something untrue answers with it. Where the tokens that DePass holds
responsible for a probe's verdict are masked, more answers are right than where those are masked that look
untruthful themselves (TACS): 43 % against 26 % on Llama-2-7B, 59 % against 16 % on Llama-3.1-8B (CounterFact).

*Here*: {n} facts of five relations, each told with another's answer and then asked for. Probes of layers
{layers} were trained on the other half of the facts, on the last token of true and of false sentences. Masked
tokens are taken out; DePass takes as many as look untruthful, by rule `half`. *Share*: the right answer's
probability against the wrong one's. *Contrast*: less what the token at the same place contributes on average
where what is told is true."""
LANGUAGE = """\
*The paper*: at layer 15 a probe for the language spans a subspace. Carried to the end, its part votes for words
of the prompt's language, what is off it for what the prompt is about, whatever the language; and t-SNE of the
former has a cluster for every language.

*Here*: {n} beginnings of sentences ({sentences} sentences in {languages} languages, about countries that the
probe never saw) at layer {layer}. The probe tells the language of {accuracy} of a text's tokens (guessing the
commonest: {majority:.2f}). *Language*: how often the nearest text by cosine, among other sentences, is of the
same language (0.25 by chance). *Meaning*: how often the nearest, among other languages, means the same
({chance:.2f} by chance). *Votes*: how far the {votes} tokens voted for most are those of other sentences in the
same language, and of the same sentence in other languages (Jaccard). *random*, *principal*: subspaces of the
same rank. *Contrast*: less the mean of all texts.

What a random part of the same rank does as well says nothing of the language, however clear its clusters are. What is
off the language's part is everything else that the texts have."""
NEURONS = """\
*The paper*: neurons of a layer take DePass a hundredth of the time that taking each one out takes.

*Here*: every neuron of all layers in one sweep with its effect, against taking each of layer {layer}'s out,
{together} in one run of the model. Seconds of the processor, one thread. *Agree*: Spearman's rank correlation
over the neurons."""
TOKENS = """\
*The paper*: tokens that DePass ranks highest are those without which the answer is lost (deleted, the answer's
probability falls faster than by other methods), and with which alone it stays; on its models DePass is ahead of
gradients, integrated gradients and attention. Its rule is `softmax`.

*Here*: how much of the answer is lost as a method's top tokens are deleted, and how much is left as they alone are
kept; means over how many these are. In Python: `lm.evaluate("facts", methods=["softmax", "half"],
protocols=["delete"], limit=3)`."""
COMPONENTS = """\
*The paper*: without the heads and neurons that DePass ranks highest the model fails sooner than without those
that AtP or their norms rank highest, and without the lowest it keeps its answers longer. AtP is `effect` here.

*Here* heads and neurons are silenced, the highest or the lowest first, by signed scores and by size. In Python:
`lm.evaluate("ioi", "heads", protocols=["mask-top"], methods=["half", "effect"], limit=2)`."""
SAES = """\
*The paper*: three features of Llama Scope's SAEs on Llama-3.1-8B and the tokens that activate them, by DePass.

*Here*: `python -m depass_sae.evaluation.llama_scope` makes the three cases with the original model and SAEs
side by side with the paper's numbers where these weights are; `notebooks/05_llama_scope.ipynb` is the same as a
notebook. The gallery (`graphs/`) has the same three questions on SmolLM2."""


def _cell(numbers: Sequence[float]) -> str:
    found = estimate(_column(numbers), mean)
    return "" if found is None else written(found)


def _ahead(records: Sequence[Record], names: tuple[str, str], one: str, other: str, key: str) -> Estimate | None:
    """How far one is above the other in the key. names: what tells them apart, and what their pairs have in common."""
    by, pair = names
    own, others = ({record[pair]: record[key] for record in records if record[by] == name} for name in (one, other))
    return difference(_column(list(own.values())), _column([others[name] for name in own]), mean)


def _signed(found: Estimate | None) -> str:
    return "" if found is None else written(found, sign=True)


def _read(what: str, found: dict[str, Estimate | None]) -> str:
    """What the intervals say, in words: of whom it is so, of whom the contrary, and who is not told apart."""
    known = {name: one for name, one in found.items() if one is not None}
    ahead = [name for name, one in known.items() if one.low > 0]
    behind = [name for name, one in known.items() if one.high < 0]
    said = [("", ahead), ("behind", behind), ("not told apart", [*known.keys() - {*ahead, *behind}])]
    parts = [(f"{how}: " if how else "") + " · ".join(sorted(names)) for how, names in said if names]
    return f"*{what}, beyond chance*: {'; '.join(parts if ahead else ['none', *parts])}."


def _column(numbers: Sequence[float]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]
