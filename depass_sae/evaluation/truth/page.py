"""docs/truth.md: which question which rule answers exactly, as a table of verdicts that can be read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .circuit import Circuit
from .questions import EXACT, LIVE, QUESTIONS, VERDICTS, WAYS, Verdict

Table = Mapping[str, Mapping[str, Mapping[str, str]]]
"""By circuit, question and way: one of VERDICTS."""

SIGNS = dict(zip(VERDICTS, ("**=**", "∝", ">", "×", "–"), strict=True))
COLUMNS = (*WAYS, LIVE)
HEAD = f"""# Which rule answers which question exactly

Made by `make truth` (`python -m depass_sae.evaluation.truth`): every question asked of transformers whose mechanism is
known, and held against what is true by the way they were built. What is true comes from a formula of the circuit's own
constants, or from its program run as Python, never from the code that answers. Which head or neuron of a compiled
program does what is told by tracr's labels of the stream's dimensions. A test computes the table again.

Models are stock classes of transformers, GPT-2 (of the product, Llama), in float64. Their norms are made neutral by a
large constant in every embedding, which leaves an error of less than 1e-6 of what a norm gives. Weights that tracr
compiled are rounded to float32, and outputs are those of tracr's own models to 5e-6.

- **=** exact: no value is off by more than {EXACT:g} of the largest.
- ∝ proportional: all values are the true ones times one positive factor.
- \\> ranked: all that truly has something is ahead of all else, in the true order and of the true sign.
- × wrong. – not answered: the question does not take the rule.

A verdict is the worst over a circuit's prompts. *half-qk, mean* has `qk_slope="mean"`; *effect* is the first-order
effect in the live model, of no rule; *live* is measured in the live model. Without gated MLPs `half` is `linear`.

Two kinds of truth, which must not be mixed: *moved* is whose content arrives (a copy head's target is the copied
token's, all of it). *Worth* is the Shapley value where what is missing is masked or silent: the token at the query, by
which a head knew where to look, has a share in that, and so have both inputs of a gate.

"""
FINDINGS = """## What it says

- **What heads alone move** (copying, induction, sorting) is exact by all rules but `half-qk`, which gives a part of it
  to queries and keys. Where neurons read the tokens first (bracket balance), `softmax` and `max` miss.
- **Gates** whose inputs weigh the same (AND, OR, XOR) are exact by `relu` and, where scores lie further apart than
  its temperature, by `softmax`: both give a threshold, a negative bias, nothing, and each input has half of an AND.
  `linear` and `half` say twice that, with minus the rest in the bias, and for OR and XOR they are wrong. Scores of
  0.05 make `softmax` wrong in size: it is not indifferent to scale. At scores of 1 every other part has e⁻¹⁰ of an
  input's share, and of many parts (bracket matching's features) that is too much. `max` is right about an XOR of two
  bits that are 1 only because both neurons' ties fall to the same one. An AND of unequal weights, whose inputs have
  half each all the same, is exact by no rule.
- **Who plays** decides what an input of an AND is worth. In bigram one comes through the only head and the other stays
  where heads are silent, so that all hangs on the head: `linear`, `half`, `half-qk` and the first-order effect say so;
  `relu` and `softmax` say half of it, which is right of the tokens.
- **A product** in a gated MLP is, token by token, exact by `half` alone; `linear` gives all of it to the gate.
- **A neuron that is silent** (OR as 1 − relu(1 − a − b)) is nobody's by any rule: a frozen pass sees a bias there.
  Measured Shapley values see it.
- **Tokens' worth through attention** is exact by no rule. `half-qk` names query and key, often in the right order, but
  not their sizes: where a head looks evenly at keys of large scores (bracket balance) its parts are several times the
  true ones. Where it is exact for the tokens of an AND, two errors cancel: `linear` doubles, and the half that goes to
  queries and keys is taken off.
- **Edges by looking** (`query`, `key`) are exact, however certain a head is.
- **A score's parts** (QK) are exact by all rules but `half-qk`, which is about the pattern's share, too.
- **tracr's constant** 1 stands in the embedding of the current token. Unless it is folded into biases, what the
  tokens of the bigram AND are worth is wrong by every rule: it is not only the model, but what is called a token's,
  that an answer is about.
- **What was counted**, and what hangs on it (histogram, bracket matching): the tokens' worth is exact by no rule;
  measured Shapley values are exact, as they are in all circuits that are asked for them. A head that counts moves the
  first token's content alone, the less the more it counted, and neurons make steps of that. `relu`, `softmax` and `max`
  give histogram's head all of a step; `linear`, `half` and the first-order effect give it nothing, because both neurons
  of a step rise alike and only their biases differ. To the other tokens, of whom nothing arrives, `softmax`,
  `linear-norm` and `max` give something all the same. Through several layers of steps (bracket matching) the worth of
  heads and of neurons is exact by no rule.
- **What a neuron adds** to the logit that reads it is exact by all rules: there is nothing to share out.
- **Dictionaries.** Contributions of features that heads alone move are exact where the SAE finds the features. Where it
  cannot, because there are more of them than dimensions, they are wrong, whatever the rule: the sums hold, of features
  that are not there.
- **Circuits** found in the live model are the true ones, wherever there is a single smallest one.
"""


def page(circuits: Iterable[tuple[Circuit, Mapping[str, Mapping[str, Verdict]]]]) -> str:
    """Markdown: in how many circuits each rule answers each question exactly, what that says, and every circuit."""
    found = list(circuits)
    table = {
        circuit.name: {q: {way: v.verdict for way, v in row.items()} for q, row in rows.items()}
        for circuit, rows in found
    }
    each = [section(circuit, table[circuit.name]) for circuit, _ in found]
    return f"{HEAD}{summary(table)}\n{FINDINGS}\n## Every circuit\n\n{''.join(each)}".rstrip() + "\n"


def section(circuit: Circuit, rows: Mapping[str, Mapping[str, str]]) -> str:
    lines = [f"### {circuit.name}\n\n{_sentence(circuit.about)} Prompts: {len(circuit.cases)}.\n\n", *_header()]
    for question in QUESTIONS:
        if question in rows:
            cells = [SIGNS[rows[question][way]] if way in rows[question] else "" for way in COLUMNS]
            lines.append(f"| {question} | {' | '.join(cells)} |\n")
    return "".join([*lines, "\n"])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _header() -> list[str]:
    return [f"| | {' | '.join(COLUMNS)} |\n", "|---" * (len(COLUMNS) + 1) + "|\n"]


def summary(table: Table) -> str:
    """Of the circuits in which a question has a true answer, in how many each way gives it exactly."""
    lines = ["## In how many circuits the answer is exact\n\n", *_header()]
    for question, of in QUESTIONS.items():
        rows = [rows[question] for rows in table.values() if question in rows]
        cells = [
            f"{sum(row[way] == 'exact' for row in rows)}/{len(rows)}"
            if any(row.get(way, "not answered") != "not answered" for row in rows)
            else "–" * (way in of.ways)
            for way in COLUMNS
        ]
        lines.append(f"| {question}: {of.about} | {' | '.join(cells)} |\n")
    return "".join(lines)


def read_back(text: str) -> Table:
    """The verdicts of a page, from its circuits' tables."""
    verdict = {sign: name for name, sign in SIGNS.items()}
    found: dict[str, dict[str, dict[str, str]]] = {}
    for part in text.split("\n### ")[1:]:
        rows = [line.strip("|\n").split("|") for line in part.splitlines() if line.startswith("| ")]
        named = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}
        found[part.splitlines()[0]] = {
            question: {way: verdict[sign] for way, sign in zip(COLUMNS, signs, strict=True) if sign}
            for question, signs in named.items()
            if question
        }
    return found
