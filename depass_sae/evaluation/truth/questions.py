"""What is asked of a circuit, of the code that answers users, and how an answer is held against the truth."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ...attribution.answer import Asked
from ...attribution.attention import attribute_attention
from ...attribution.components import HEADS, NEURONS, ComponentAttribution, Grain, attribute_components
from ...attribution.measure import Measure
from ...attribution.readoff import Target
from ...attribution.targets import make_target
from ...attribution.tokens import attribute_tokens_each
from ...errors import SAEFitWarning
from ...graph.build import GraphSettings, build_graph, no_graph_by
from ...graph.circuit import Search, circuit_graph
from ...graph.feature_game import Asked as AskedCircuit
from ...models.prompt import Prompt, encode
from ...passes.rules import RULES, rule_named
from ...passes.settings import Settings
from ...subject import Subject
from ...view.words import place
from .circuit import Case, Circuit, Values

if TYPE_CHECKING:
    import networkx as nx

EFFECT = "effect"
WAYS: dict[str, Mapping[str, Any]] = {
    **{name: {"rule": name} for name in RULES},
    "half-qk, mean": {"rule": "half-qk", "qk_slope": "mean"},
    EFFECT: {},
}
"""How an answer may be come by: every rule, and the first-order effect in the live model."""
LIVE = "live"
"""The way of what is measured in the live model, where no rule has a part."""

EXACT, CLOSE = 1e-4, 1e-6
"""As shares of the largest true value: how far an exact answer may be off, and what is nothing at all beside it."""


@dataclass(frozen=True)
class Ask:
    """A case of a circuit, ready to be asked about. known: what has been answered, by who answers and by which way."""

    subject: Subject
    case: Case
    prompt: Prompt
    target: Target
    known: dict[tuple[Answers, str], Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, circuit: Circuit, case: Case) -> Ask:
        subject = circuit.subject.asked()
        prompt = encode(subject.loaded, subject.adapter, case.prompt)
        return cls(subject, case, prompt, make_target(subject, logit=case.target)[0])

    @property
    def pos(self) -> int:
        return len(self.prompt) - 1

    def answer(self, answers: Answers, way: str) -> Any:
        if (answers, way) not in self.known:
            self.known[answers, way] = answers(self, way)
        return self.known[answers, way]


Answers = Callable[[Ask, str], Any]
"""What the product says of a case by one of WAYS, as :data:`.Values`; None where it does not answer by it."""


def _settings(way: str) -> Settings:
    return Settings.of(**WAYS[way])


def tokens(ask: Ask, way: str) -> Values | None:
    if way == EFFECT:
        return None
    asked = [Asked(ask.prompt, ask.target, ask.pos)]
    return _by_span(attribute_tokens_each(ask.subject, asked, settings=_settings(way))[0].target)


def _by_span(found: Any) -> Values:
    return {span.pos: value for span, value in zip(found.sources, found.contributions.tolist(), strict=True)}


def measured(ask: Ask, way: str) -> Values:
    """Shapley values in the live model: the prompts are short, so that all coalitions are played."""
    measure = Measure(measure="shapley", removal=f"mask:{ask.case.mask}")
    [found] = attribute_tokens_each(ask.subject, [Asked(ask.prompt, ask.target, ask.pos)], measure=measure)
    values = found.target.measured.values  # type: ignore[union-attr]
    return {
        span.pos: value for span, value in zip(found.target.sources, values, strict=True) if value is not None
    }  # fmt: skip


def _components(ask: Ask, way: str, kind: Grain, **how: Any) -> ComponentAttribution:
    return attribute_components(
        ask.subject, ask.prompt, ask.target, kind, pos=ask.pos, settings=_settings(way), effects=way == EFFECT, **how
    )


def _parts(ask: Ask, way: str, kind: Grain) -> Values:
    return {
        (row.layer, part): value
        for row in _components(ask, way, kind).target.rows
        for part, value in enumerate((row.effects if way == EFFECT else row.values).tolist())  # type: ignore[union-attr]
    }


heads, neurons = partial(_parts, kind=HEADS), partial(_parts, kind=NEURONS)


def heads_by_token(ask: Ask, way: str) -> Values | None:
    if way == EFFECT or rule_named(WAYS[way]["rule"]).couples:
        return None
    return {
        (row.layer, head, pos): value
        for row in _components(ask, way, HEADS, by_token=True).target.rows
        for head, split in enumerate(row.by_token.tolist())  # type: ignore[union-attr]
        for pos, value in enumerate(split[: len(ask.prompt)])
    }


def attention(ask: Ask, way: str) -> Values | None:
    """The score's table, tokens by tokens; what else is in it is named as it is there."""
    if way == EFFECT:
        return None
    assert ask.case.look is not None
    found = attribute_attention(ask.subject, ask.prompt, *ask.case.look, settings=_settings(way))
    named: dict[str, Any] = {place(token, pos): pos for pos, token in enumerate(ask.prompt.tokens)}
    return {(named.get(a, a), named.get(b, b)): value for a, b, value in found.largest()}


def _graph(ask: Ask, way: str) -> nx.DiGraph | None:
    """A graph from the tokens through every SAE, of all nodes; None where the rule makes none."""
    settings = _settings(way)
    if no_graph_by(settings.rule) is not None:
        return None
    size = GraphSettings(max_nodes=1000, edge_threshold=None)
    return build_graph(ask.subject, ask.prompt, [(ask.target, ask.pos)], size=size, settings=settings)


SOURCES = ("token", "feature", "error")


def features(ask: Ask, way: str) -> Values | None:
    """The features that feed the target."""
    if (g := ask.answer(_graph, way)) is None:
        return None
    goal = g.graph["target"][0]["node"]
    number = "effect" if way == EFFECT else "weight"
    return {
        source: edge[number] for source, _, edge in g.in_edges(goal, data=True) if g.nodes[source]["kind"] == "feature"
    }


def _edges(ask: Ask, way: str, numbers: Sequence[str]) -> Values | None:
    """All edges but those of biases and constants."""
    if way == EFFECT or (g := ask.answer(_graph, way)) is None:
        return None
    return {
        (source, target, number): edge[number]
        for source, target, edge in g.edges(data=True)
        for number in numbers
        if g.nodes[source]["kind"] in SOURCES
    }


def graph(ask: Ask, way: str) -> Values | None:
    return _edges(ask, way, ("weight",))


def looked(ask: Ask, way: str) -> Values | None:
    """Edges by where heads looked, which rules have by which components do not compete."""
    coupled = way != EFFECT and rule_named(WAYS[way]["rule"]).couples
    return None if coupled else _edges(ask, way, ("query", "key"))


def circuit(ask: Ask, way: str) -> Values:
    """The features of the smallest sufficient set, each 1."""
    asked = AskedCircuit(ask.prompt, ask.target, ask.pos)
    g = circuit_graph(ask.subject, asked, how=Search(), settings=Settings.of())
    return {name: 1.0 for name, node in g.nodes(data=True) if "contribution" in node}


@dataclass(frozen=True)
class Question:
    """about: what is asked, for people. where: of what a source's name has, what the truth has to speak of for the
    source to count: its layer, an edge's end. live: it is measured, and no rule has a part in it.
    """

    answers: Answers
    about: str
    where: Callable[[Any], Hashable] = lambda name: None
    live: bool = False

    @property
    def ways(self) -> tuple[str, ...]:
        return (LIVE,) if self.live else tuple(WAYS)

    def concerned(self, truth: Values, answer: Values) -> Values:
        """What the truth speaks of."""
        there = {self.where(name) for name in truth}
        return {name: value for name, value in answer.items() if not there or self.where(name) in there}


def _layer(name: tuple[int, ...]) -> int:
    return name[0]


def _end(name: tuple[str, str, str]) -> str:
    return name[1]


QUESTIONS = {
    "tokens": Question(tokens, "whose content arrives"),
    "tokens, worth": Question(tokens, "Shapley values of the tokens, the others masked"),
    "heads": Question(heads, "through which heads it comes", _layer),
    "heads, worth": Question(heads, "Shapley values of the heads, the others silent", _layer),
    "heads × tokens": Question(heads_by_token, "which token's content through which head", _layer),
    "QK": Question(attention, "what at the query and at the key made a score"),
    "neurons": Question(neurons, "what each neuron adds", _layer),
    "neurons, worth": Question(neurons, "Shapley values of the neurons of the layer before", _layer),
    "features": Question(features, "which features' content arrives"),
    "features, worth": Question(features, "Shapley values of the features"),
    "graph": Question(graph, "every edge's weight", _end),
    "graph, by looking": Question(looked, "what a source did by where a head looked", _end),
    "circuit": Question(circuit, "the smallest set of features that suffices", live=True),
    "measured Shapley": Question(measured, "Shapley values of the tokens, as `measure` finds them", live=True),
}


# ------------------------------------------------------------------------------------------------------------- verdicts

VERDICTS = ("exact", "proportional", "ranked", "wrong", "not answered")
"""From the best to the worst."""


@dataclass(frozen=True)
class Verdict:
    """verdict: one of VERDICTS. error: the largest, as a share of the largest true value."""

    verdict: str
    error: float


def verdict_of(truth: Values, answer: Values | None) -> Verdict:
    """An answer held against the truth; whatever one of them does not name has 0 there.

    *exact*: no value is off by more than EXACT of the largest (where all are 0, of 1). *proportional*: all are the true
    ones times one positive factor. *ranked*: what truly has something is ahead of all else, by sign, and by size in the
    order of the truth. Else *wrong*.
    """
    if answer is None:
        return Verdict("not answered", float("nan"))
    names = [*truth, *(name for name in answer if name not in truth)]
    true, said = [truth.get(name, 0.0) for name in names], [answer.get(name, 0.0) for name in names]
    size = max([abs(value) for value in true], default=0.0)
    if size <= CLOSE:
        error = max([abs(value) for value in said], default=0.0)
        return Verdict("exact" if error <= EXACT else "wrong", error)
    error = max(abs(a - b) for a, b in zip(true, said, strict=True)) / size
    if error <= EXACT:
        return Verdict("exact", error)
    factor = sum(a * b for a, b in zip(true, said, strict=True)) / sum(a * a for a in true)
    if factor > CLOSE and max(abs(factor * a - b) for a, b in zip(true, said, strict=True)) <= EXACT * factor * size:
        return Verdict("proportional", error)
    return Verdict("ranked" if _ranked(true, said, size) else "wrong", error)


def _ranked(true: list[float], said: list[float], size: float) -> bool:
    """Whether whatever is larger in truth is larger as said, and of its sign; what truly has nothing is behind."""
    pairs = [(a if abs(a) > EXACT * size else 0.0, b) for a, b in zip(true, said, strict=True)]
    for a, b in pairs:
        if a and (a * b <= 0 or abs(b) <= CLOSE * size):
            return False
        for c, d in pairs:
            if abs(a) > abs(c) + EXACT * size and abs(b) <= abs(d) + CLOSE * size:
                return False
    return True


def answers(
    circuit: Circuit, asked: Collection[str] = tuple(QUESTIONS)
) -> Iterator[tuple[str, str, Case, Values | None]]:
    """Every question that is asked and has a truth in some case, by every way: (question, way, case, answer)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAEFitWarning)  # on prompts of four tokens fit is by chance
        for case in circuit.cases:
            ask = Ask.of(circuit, case)
            for name, question in QUESTIONS.items():
                if name in case.truths and name in asked:
                    for way in question.ways:
                        answer = ask.answer(question.answers, way)
                        yield name, way, case, answer and question.concerned(case.truths[name], answer)


def verdicts(circuit: Circuit, asked: Collection[str] = tuple(QUESTIONS)) -> dict[str, dict[str, Verdict]]:
    """By question and way; over the cases the worst."""
    found: dict[str, dict[str, Verdict]] = {}
    for question, way, case, answer in answers(circuit, asked):
        verdict = verdict_of(case.truths[question], answer)
        before = found.setdefault(question, {}).setdefault(way, verdict)
        found[question][way] = max(before, verdict, key=lambda v: (VERDICTS.index(v.verdict), v.error))
    return found
