"""The table of docs/truth.md is what is computed, and no mutant, in a model or in what answers, leaves it as it is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from depass_sae.attribution import shapley
from depass_sae.errors import CompletenessWarning
from depass_sae.evaluation.truth import compiled
from depass_sae.evaluation.truth.circuit import Circuit
from depass_sae.evaluation.truth.copying import CopyHead, Induction
from depass_sae.evaluation.truth.dictionaries import DICTIONARIES
from depass_sae.evaluation.truth.gates import GATES, Gate, Product
from depass_sae.evaluation.truth.page import FINDINGS, HEAD, Table, read_back, section, summary
from depass_sae.evaluation.truth.questions import EXACT, QUESTIONS, WAYS, Verdict, verdicts
from depass_sae.evaluation.truth.registry import CIRCUITS
from depass_sae.passes.backward import Level
from depass_sae.passes.mixers import sharing
from depass_sae.passes.rules import RULES, Neurons

PAGE = (Path(__file__).parents[2] / "docs" / "truth.md").read_text()
TABLE: Table = read_back(PAGE)
GATE = {gate.name: gate for gate in GATES}


def named(rows: Mapping[str, Mapping[str, Verdict]]) -> dict[str, dict[str, str]]:
    return {question: {way: verdict.verdict for way, verdict in row.items()} for question, row in rows.items()}


@pytest.mark.parametrize("name", CIRCUITS)
def test_a_circuits_table_is_what_is_computed(name: str) -> None:
    circuit = CIRCUITS[name]()
    assert circuit.name == name
    assert section(circuit, named(verdicts(circuit))) in f"{PAGE}\n"


def test_the_page_is_made_of_its_tables() -> None:
    assert list(TABLE) == list(CIRCUITS)
    assert PAGE.startswith(f"{HEAD}{summary(TABLE)}\n{FINDINGS}")
    assert {question for rows in TABLE.values() for question in rows} == set(QUESTIONS)


# ------------------------------------------------------------------------------------------------- what the page says


def exact(question: str, way: str) -> set[str]:
    return {name for name, rows in TABLE.items() if rows.get(question, {}).get(way) == "exact"}


def test_what_heads_alone_move_is_exact_by_all_rules_but_half_qk() -> None:
    moving = {"copy head", "copy head, certain", "induction", "tracr: induction", "tracr: sorting"}
    for rule in RULES:
        assert (moving <= exact("tokens", rule)) == (rule != "half-qk")
    assert not exact("tokens", "half-qk") & moving
    assert {rule for rule in RULES if "tracr: balance" not in exact("tokens", rule)} == {"softmax", "max", "half-qk"}


def test_gates_are_exact_by_relu_and_by_softmax_where_scores_are_far_apart() -> None:
    assert {"AND", "OR", "XOR", "AND of small scores", "tracr: bigram"} <= exact("tokens, worth", "relu")
    assert {"AND", "OR", "XOR", "tracr: bigram"} <= exact("tokens, worth", "softmax")
    assert TABLE["AND of small scores"]["tokens, worth"]["softmax"] == "ranked"
    for rule in ("linear", "half"):
        assert [TABLE[name]["tokens, worth"][rule] for name in ("AND", "OR", "XOR")] == [
            "proportional",
            "wrong",
            "wrong",
        ]


def test_half_qks_parts_are_several_times_the_true_ones_where_a_head_looks_evenly_at_large_scores() -> None:
    found = verdicts(CIRCUITS["tracr: balance"](), ("tokens",))["tokens"]
    assert found["half"].error < 1e-5
    assert found["half-qk"].error > 3


def test_a_product_is_exact_by_half_alone() -> None:
    assert {rule for rule in RULES if "product" in exact("tokens, worth", rule)} == {"half"}


def test_no_rule_sees_a_silent_neuron_nor_unequal_weights_nor_what_was_counted_nor_looks() -> None:
    for name in (
        "OR by silence",
        "AND of unequal weights",
        "copy head",
        "induction",
        "tracr: histogram",
        "tracr: matching",
        "tracr: induction",
    ):
        assert not {rule for rule in RULES if name in exact("tokens, worth", rule)}


def test_softmax_misses_by_the_little_that_every_part_has_at_scores_of_1() -> None:
    found = verdicts(CIRCUITS["tracr: matching"](), ("features, worth",))["features, worth"]
    assert found["softmax"].verdict == "proportional"
    assert EXACT < found["softmax"].error < 10 * math.exp(-10)
    assert "tracr: bigram" in exact("features, worth", "softmax")


def test_all_hangs_on_the_one_head_of_a_gate_and_half_on_its_token() -> None:
    lone = {way for way in WAYS if "tracr: bigram" in exact("heads, worth", way)}
    assert lone == {"linear", "half", "half-qk", "half-qk, mean", "effect"}
    assert {TABLE["tracr: bigram"]["heads, worth"][rule] for rule in ("relu", "softmax")} == {"proportional"}
    assert "tracr: bigram" in exact("tokens, worth", "relu")


def test_the_step_of_a_count_is_the_heads_by_rules_that_give_biases_nothing() -> None:
    for question in ("heads", "heads, worth"):
        of = TABLE["tracr: histogram"][question]
        assert {way for way, verdict in of.items() if verdict == "exact"} == {"relu", "softmax", "max"}
    assert {TABLE["tracr: histogram"]["heads"][way] for way in ("linear", "half", "effect")} == {"wrong"}
    wrong = {way for way, verdict in TABLE["tracr: histogram"]["tokens"].items() if verdict == "wrong"}
    assert wrong == {"softmax", "linear-norm", "max"}


def test_through_layers_of_steps_heads_and_neurons_are_exact_by_no_way() -> None:
    for question in ("heads, worth", "neurons, worth"):
        assert set(TABLE["tracr: matching"][question].values()) == {"wrong"}


def test_what_a_neuron_adds_is_exact_by_all_ways() -> None:
    asked = {name for name, rows in TABLE.items() if "neurons" in rows}
    assert {"tracr: histogram", "tracr: matching", "tracr: bigram"} <= asked
    assert all(exact("neurons", way) == asked for way in WAYS)


def test_the_constant_in_the_token_makes_every_rule_wrong() -> None:
    row = TABLE["tracr: bigram, not folded"]["tokens, worth"]
    assert {row[rule] for rule in RULES} == {"wrong"}


def test_edges_by_looking_are_exact_however_certain_a_head_is() -> None:
    assert exact("graph, by looking", "half") == {"copy head", "copy head, certain", "induction"}


def test_scores_are_split_exactly_by_all_rules_but_half_qk() -> None:
    asked = {name for name, rows in TABLE.items() if "QK" in rows}
    assert {rule for rule in RULES if exact("QK", rule) != asked} == {"half-qk"}


def test_what_is_measured_in_the_live_model_is_exact() -> None:
    for question in ("measured Shapley", "circuit"):
        assert exact(question, "live") == {name for name, rows in TABLE.items() if question in rows}


def test_features_are_as_true_as_their_dictionary() -> None:
    assert "dictionary, orthonormal" in exact("features", "half")
    assert TABLE["dictionary, superposed"]["features"]["half"] == "wrong"


# ------------------------------------------------------------------------------------------------------------- mutants


def tracr(name: str) -> Any:
    return SimpleNamespace(circuit=partial(compiled.circuit, name))


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        (CopyHead(), ("heads", "heads × tokens")),
        (Induction(), ("heads", "heads × tokens")),
        (GATE["XOR"], ("heads, worth",)),
        (Product(), ("heads × tokens",)),
        (DICTIONARIES[0], ("heads", "heads × tokens")),
        (tracr("matching"), ("QK",)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_heads_exchanged_in_the_model_are_exchanged_in_the_answers(made: Any, asked: tuple[str, ...]) -> None:
    mutant = made.circuit(swapped=True)
    before, after = TABLE[mutant.name], named(verdicts(mutant, asked))
    for question in asked:
        there = {way for way, verdict in before[question].items() if verdict == "exact"}
        assert there
        assert not {way for way in there if after[question][way] == "exact"}
    followed = named(verdicts(replace(mutant, cases=[exchanged(case) for case in mutant.cases]), asked))
    assert followed == {question: before[question] for question in asked}


@pytest.mark.parametrize(
    ("name", "asked"), [("histogram", ("heads", "heads, worth")), ("bigram", ("heads, worth", "heads × tokens"))]
)
def test_an_only_head_at_another_place_is_found_there(name: str, asked: tuple[str, ...]) -> None:
    mutant = compiled.circuit(name, swapped=True)
    after = named(verdicts(mutant, asked))
    followed = named(verdicts(replace(mutant, cases=[exchanged(case) for case in mutant.cases]), asked))
    for question in asked:
        there = {way for way, verdict in TABLE[mutant.name][question].items() if verdict == "exact"}
        assert there == {way for way, verdict in followed[question].items() if verdict == "exact"}
        assert there
        assert "exact" not in after[question].values()


def exchanged(case: Any) -> Any:
    """What is true of the case where heads 0 and 1 of every layer are exchanged, and where one now looks for it."""
    truths = {
        question: {(name[0], 1 - name[1], *name[2:]): value for name, value in case.truths[question].items()}
        for question in ("heads", "heads, worth", "heads × tokens")
        if question in case.truths
    }
    look = case.look and (case.look[0], 1 - case.look[1], *case.look[2:])
    return replace(case, truths={**case.truths, **truths}, look=look)


def test_a_neuron_with_another_sign_in_the_model_changes_what_was_exact() -> None:
    mutant = GATE["AND"].circuit(sign=True)
    asked = ("tokens, worth", "neurons", "measured Shapley")
    after = named(verdicts(mutant, asked))
    for question in asked:
        for way, verdict in TABLE["AND"][question].items():
            if verdict in ("exact", "proportional"):
                assert after[question][way] == "wrong"
    turned = replace(mutant, cases=[negated(case) for case in mutant.cases])
    assert named(verdicts(turned, asked)) == {question: TABLE["AND"][question] for question in asked}


@pytest.mark.parametrize(("name", "neuron"), [("histogram", (0, 5)), ("bigram", (0, 1)), ("matching", (5, 3))])
def test_a_programs_neuron_with_another_sign_changes_what_it_adds(name: str, neuron: tuple[int, int]) -> None:
    mutant = compiled.circuit(name, sign=neuron)
    asked = ("neurons",)
    assert set(named(verdicts(mutant, asked))["neurons"].values()) == {"wrong"}
    turned = [of_other_sign(case, neuron) for case in mutant.cases if "neurons" in case.truths]
    assert set(named(verdicts(replace(mutant, cases=turned), asked))["neurons"].values()) == {"exact"}


def of_other_sign(case: Any, neuron: tuple[int, int]) -> Any:
    adds = case.truths["neurons"].items()
    return replace(case, truths={"neurons": {name: -value if name == neuron else value for name, value in adds}})


def negated(case: Any) -> Any:
    return replace(
        case,
        truths={question: {name: -value for name, value in truth.items()} for question, truth in case.truths.items()},
    )


def changed(circuit: Circuit, question: str) -> set[str]:
    """The ways by which the verdict on a question is another now."""
    [after] = named(verdicts(circuit, (question,))).values()
    return {way for way, verdict in after.items() if verdict != TABLE[circuit.name][question][way]}


def test_heads_in_another_order_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    units: Callable[[Level], torch.Tensor] = Level.units
    monkeypatch.setattr(Level, "units", lambda level: units(level).flip(1))
    assert {"linear", "half", "effect"} <= changed(CopyHead().circuit(), "heads")


def test_a_rule_that_turns_a_neuron_around_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULES["relu"]

    def turned(neurons: Neurons) -> None:
        rule.split(neurons)
        neurons.s[..., 0] *= -1

    monkeypatch.setitem(RULES, "relu", replace(rule, split=turned))
    gate: Gate = GATE["AND"]
    with pytest.warns(CompletenessWarning):
        assert changed(gate.circuit(), "tokens, worth") == {"relu"}


def test_an_integral_of_too_few_points_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "POINTS", 3)
    monkeypatch.setattr(sharing, "SPARE", -1000)  # however certain a head is
    assert {"linear", "half"} <= changed(CopyHead().circuit(), "graph, by looking")


def test_coalitions_that_count_wrongly_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = shapley.coalition_weights
    monkeypatch.setattr(shapley, "coalition_weights", lambda kept: weights(kept).flip(0))
    assert changed(CopyHead().circuit(), "measured Shapley") == {"live"}
