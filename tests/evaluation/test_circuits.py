"""What the page about circuits says is what was measured, and what is measured is asked of a model that knows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.attribution.logits import LogitTarget
from depass_sae.evaluation.circuits import (
    CONTRAST,
    COUNTS,
    FACT,
    OBJECTS,
    STUDY,
    TASK,
    Of,
    _of_sentence,
    as_many,
    asked,
    main,
    measured,
    page,
    run,
)  # fmt: skip
from depass_sae.evaluation.facts import FACTS
from depass_sae.evaluation.ioi import Sentence, of_one_structure, sentences
from depass_sae.evaluation.resumed import median
from depass_sae.graph.circuit import Search, find_circuit
from depass_sae.graph.feature_game import Removal
from depass_sae.passes.settings import Settings

from ..attribution.tiny import fitting_sae, model, tokenizer


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    return ds.load("smollm2", layers=[28])


@torch.no_grad()
def first(lm: ds.LM, text: str) -> str:
    found = lm.model(torch.tensor([lm.encode(text).token_ids])).logits[0, -1].argmax()
    return str(lm.tokenizer.decode(found))  # type: ignore[union-attr]


def test_the_model_knows_the_facts(lm: ds.LM) -> None:
    assert [fact for fact in FACTS if first(lm, fact.prompt) != fact.answer] == []
    assert len({fact.prompt for fact in FACTS}) == len(FACTS) >= 30


def test_of_a_sentence_the_contrast_is_as_long_and_asks_for_the_other_name(lm: ds.LM) -> None:
    for sentence in sentences():
        other = sentence.exchanged
        assert other != sentence.text
        assert len(lm.encode(other)) == len(lm.encode(sentence.text))
        assert other.count(sentence.indirect_object) == sentence.text.count(sentence.indirect_object) + 1
        assert other.count(sentence.subject) == sentence.text.count(sentence.subject) - 1


def test_what_the_model_gets_wrong_is_not_asked(lm: ds.LM) -> None:
    subject = lm._subject.asked()
    for number in range(0, len(sentences()), 5):
        sentence, found = sentences()[number], asked(subject, OBJECTS, number)
        assert (found is not None) == (first(lm, sentence.text) == sentence.indirect_object)
        against = asked(subject, CONTRAST, number)
        if against is not None:
            assert isinstance(against.target, LogitTarget)
            assert against.target.against is not None
            assert against.contrast is not None


def test_of_one_prompt_everything_is_measured(lm: ds.LM) -> None:
    found = measured(lm._subject, FACT, 0, Search(seconds=0.01))
    json.dumps(found)
    assert (found["kind"], found["prompt"]) == (FACT, FACTS[0].prompt)
    assert found["sizes"]["circuit"] == found["size"] <= found["players"]
    assert found["kept"]["share"] >= 0.8
    assert found["spent"] >= found["seconds"] > 0
    as_much = found["as_many"]["effect"]["kept"]
    assert as_much < 0.8 if found["sizes"]["effect"] > found["size"] else as_much >= 0.8
    assert found["as_many"]["contribution"] != found["as_many"]["effect"]


def test_what_has_nothing_to_explain_is_not_asked(lm: ds.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    question = asked(lm._subject.asked(), FACT, 0)
    assert question is not None
    nothing = replace(question, target=LogitTarget(5, 5))
    monkeypatch.setattr("depass_sae.evaluation.circuits.asked", lambda *_: nothing)
    found = measured(lm._subject, FACT, 0, Search(seconds=0.01))
    assert not found["asked"]
    assert "which is nothing on this prompt" in found["why"]


def test_as_many_features_are_the_largest_by_size(lm: ds.LM) -> None:
    question = asked(lm._subject.asked(), FACT, 0)
    assert question is not None
    circuit, _ = find_circuit(lm._subject.asked(), question, None, Removal(), Search(seconds=0.01), Settings.of())
    found = as_many(circuit)
    for name, size in (("effect", circuit.effects), ("contribution", circuit.contributions)):
        bound = sorted(map(abs, size.tolist()), reverse=True)[circuit.found.size - 1]
        kept = size.abs() >= bound
        assert int(kept.sum()) == circuit.found.size
        assert circuit.game.play(kept[None]).share.item() == pytest.approx(found[name]["kept"], abs=1e-5)
        assert circuit.game.play(~kept[None]).share.item() == pytest.approx(found[name]["removed"], abs=1e-5)


def record(kind: str, number: int, circuit: int | None, effect: int = 100, **more: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"kind": kind, "number": number, "asked": True, "players": 1000}
    if circuit is None:
        return known | {"unsolved": "no"}
    share = {"share": 0.85}
    random = {"kept": {"mean": 0.31}, "removed": {"mean": 0.72}}
    return known | {
        "size": circuit, "sizes": {"circuit": circuit, "effect": effect, "contribution": 200}, "minimal": True,
        "kept": share, "removed": {"share": 0.25}, "random": random, "no_features": {"share": 0.2},
        "all_without_errors": {"share": 0.61}, "sufficient": True, "necessary": number % 2 == 0, "seconds": 9.0,
        "stability": {"jaccard": 0.44}, "spent": 21.0,
        "as_many": {"effect": {"kept": 0.55, "removed": 0.33}, "contribution": {"kept": 0.45, "removed": 0.37}}, **more,
    }  # fmt: skip


def row(text: str, kind: str, section: str) -> list[str]:
    lines = text[text.index(section) :].splitlines()
    return next([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {kind} |"))


def test_what_is_unsolved_counts_as_all_features_and_what_was_not_asked_not_at_all() -> None:
    records = [record(FACT, 0, 20), record(FACT, 1, 40, effect=900), record(FACT, 2, None)]
    text = page([*records, {"kind": FACT, "number": 3, "asked": False}], 30)
    sizes, left, lost = (row(text, FACT, f"## {name}") for name in ("How many", "What is left", "What is lost"))
    assert sizes[1] == "3"
    assert sizes[3].startswith("40 (20 to 1,000)")
    assert sizes[4].startswith("900 (100 to 1,000)")
    assert sizes[6].startswith("0.20 (0.04 to 1.00)")
    assert [cell.split()[0] for cell in sizes[8:]] == ["9", "21"]
    assert [cell.split()[0] for cell in left[1:8]] == ["2", "0.85", "0.55", "0.45", "0.31", "0.20", "0.61"]
    assert left[8] == "2 of 3"
    assert [cell.split()[0] for cell in lost[1:6]] == ["2", "0.25", "0.33", "0.37", "0.72"]
    assert (lost[6], lost[7].split()[0]) == ("1 of 3", "0.44")
    assert row(text, "all", "## How many")[1] == "3"
    assert STUDY not in text[text.index("## How many") :]


def test_a_task_has_a_row_of_its_own_and_is_in_nomedian() -> None:
    left = {"share": 0.81, "first": 3, "sufficient": 2, "prompts": 4}
    task = {
        "kind": TASK, "number": 1, "asked": True, "players": 5000, "size": 40, "tested": left,
        "learned": left | {"share": 0.93, "first": 4}, "by_effect": left | {"share": 0.4, "first": 1},
        "none": left | {"share": 0.1, "first": 0},
        "features": {"always": 7, "half": 11},
    }  # fmt: skip
    text = page([record(FACT, 0, 20), task], 30)
    assert row(text, "all", "## How many")[1] == "1"
    expected = [
        CONTRAST,
        "4",
        "5,000",
        "40",
        "0.93, 4 first",
        "0.81, 3 first",
        "0.40, 1 first",
        "0.10, 0 first",
        "7",
        "11",
    ]
    assert row(text, CONTRAST, "## One circuit") == expected
    assert "## One circuit" not in page([record(FACT, 0, 20)], 30)


def test_sentences_of_one_structure_have_the_same_word_at_every_position(lm: ds.LM) -> None:
    made = of_one_structure(40)
    assert len({len(lm.encode(sentence.text)) for sentence in made}) == 1
    givers = {len(lm.encode(sentence.text.rpartition(sentence.subject)[0])) for sentence in made}
    assert len(givers) == 1


def test_other_saes_are_measured_the_same_way_but_for_the_features_of_the_case_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model().save_pretrained(tmp_path / "tiny")
    tokenizer().save_pretrained(tmp_path / "tiny")
    fitting_sae("0.resid_post").save_model(tmp_path / "saes")
    monkeypatch.setattr(
        "depass_sae.evaluation.circuits.of_one_structure", lambda _: [Sentence("supply", " Parisian", " x")]
    )
    of = Of(str(tmp_path / "tiny"), str(tmp_path / "saes"))
    assert [kind for kind in COUNTS if of.has(kind)] == [OBJECTS, CONTRAST, FACT, TASK]
    assert all(Of().has(kind) for kind in COUNTS)
    assert (
        _of_sentence(of.subject(), Sentence("supply", " Parisian", " x"), contrast=True) is None
    )  # its tokenizer has the answer in pieces
    assert [str(hook) for hook in of.subject().saes] == ["0.resid_post"]
    found = measured(of.subject(), TASK, 1, Search(seconds=0.01))
    assert not found["asked"]
    assert "a task is of 4 prompts at least, not of 0" in found["why"]
    assert "## One circuit" not in page([found], 30)
    assert f"on {of.model} and the SAEs of {of.sae}, with 30 s" in page([], 30, of)
    assert "on SmolLM2-135M and the SAEs shipped for it, with 30 s" in page([], 30)


def test_a_page_says_what_was_typed_and_what_is_told_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("depass_sae.evaluation.circuits.run", lambda *_: [record(FACT, 0, 20)])
    Path("about.md").write_text("It was made by hand.\n")
    command = "--seconds 5.0 --no-stability --model m --sae s --work w.jsonl --out p.md --about about.md"
    main([*command.split(), "--workers", "3"])
    text = Path("p.md").read_text()
    assert f"Made by `python -m depass_sae.evaluation.circuits {command}` on m and the SAEs of s, with 5 s" in text
    assert text.index("It was made by hand.") < text.index("## How many")
    main(["--out", "p.md"])
    assert "Made by `make circuits` on SmolLM2" in Path("p.md").read_text()
    main(["--out", "p.md", "--prompts", "3"])  # which `make circuits` does not measure
    assert "Made by `python -m depass_sae.evaluation.circuits --prompts 3` on" in Path("p.md").read_text()
    with pytest.raises(SystemExit) as left:
        main(["--about", "none.md"])
    assert left.value.code == 2
    assert "none.md" in capsys.readouterr().err


@pytest.mark.parametrize("named", ["--work w.jsonl", "--out p.md", ""])
def test_results_of_another_model_do_not_go_among_those_of_smollm2(
    named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("depass_sae.evaluation.circuits.run", lambda *_: pytest.fail("was begun"))
    with pytest.raises(SystemExit) as left:
        main(["--sae", "s", *named.split()])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_median_has_the_interval_of_prompts_drawn_again() -> None:
    assert median([5.0], 0) == "5 (5 to 5)"
    assert median([1.0] * 3 + [9.0] * 97, 0) == "9 (9 to 9)"
    assert median(list(map(float, range(101))), 0).startswith("50 (")


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "work" / "c.jsonl"
    path.parent.mkdir()
    records = [record(kind, 0, 20) for kind in COUNTS]  # of a task no other keys are looked at here
    path.write_text("".join(json.dumps(one) + "\n" for one in [*records, record(FACT, 5, 30)]))
    before = path.read_text()
    assert run(path, 1, Search(), 1) == records
    assert path.read_text() == before
