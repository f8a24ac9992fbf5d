"""The model that is taught: what it reads holds nothing that is measured, and what is made of it loads and answers."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.demo import taught
from depass_sae.demo.corpus import Context, Document
from depass_sae.errors import UserError
from depass_sae.evaluation.circuits import TASK_PROMPTS
from depass_sae.evaluation.facts import FACTS
from depass_sae.evaluation.ioi import NAMES, Sentence, filled_in, of_one_structure, sentences

COURSE = taught.Course(n_layers=2, d_model=16, n_heads=2, vocab=1200, steps=3, statements=4, facts=2, pieces=2)
RECIPE = replace(taught.RECIPE, d_sae=32, k=4, rows=512, batch=64)
MEASURED = [
    text for one in [*sentences(), *of_one_structure(TASK_PROMPTS)] for text in (one.text, one.exchanged)
]  # fmt: skip


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [Document("written", f"The weather in town {number} was fine. We went out.", False) for number in range(40)]
    monkeypatch.setattr(taught, "documents", lambda _: texts)
    monkeypatch.setattr(taught, "SAE_TEXTS", (40, 10, 10))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return taught.make_tokenizer([f"{fact.prompt}{fact.answer}." for fact in FACTS], COURSE.vocab)


def test_what_is_measured_is_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    new = filled_in("{first} saw {second}. {giver} ran to the {place} to the {thing} to", True, random.Random(0))
    drawn = iter([*(Sentence(text, " x", " y") for text in MEASURED), new])
    monkeypatch.setattr(taught, "filled_in", lambda *_: next(drawn))
    assert next(taught.statements(random.Random(0))) == f"{new.text}{new.indirect_object}."
    assert next(drawn, None) is None


def test_a_text_that_has_a_measured_sentence_in_it_or_is_held_out_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = Document("written", "Mary and John met at the store.", False)
    told = [Document("written", f"Once. {text} her friend.", False) for text in MEASURED]
    monkeypatch.setattr(taught, "documents", lambda _: [*told, replace(fine, held_out=True), fine])
    assert taught.written() == [fine]


def test_a_statement_ends_with_the_name_that_was_said_once() -> None:
    told = taught.statements(random.Random(0))
    last = set()
    for text in (next(told) for _ in range(200)):
        words = text.replace(".", " ").replace(",", " ").split()
        counts = {name: words.count(name) for name in NAMES if name in words}
        assert sorted(counts.values()) == [2, 2]
        assert words[-1] in counts
        last.add(words.index(words[-1]) < min(words.index(name) for name in counts if name != words[-1]))
    assert last == {True, False}  # either order


def test_facts_are_told_as_they_are_asked_for_and_otherwise() -> None:
    told = taught.told_facts(random.Random(0))
    texts = {next(told) for _ in range(2000)}
    for fact in FACTS:
        assert f"{fact.prompt}{fact.answer}." in texts
        assert len([text for text in texts if f"{fact.prompt}{fact.answer}" in text]) > 1


def test_every_name_and_answer_is_one_token(tokenizer: Any) -> None:
    for word in [*NAMES, *(f" {name}" for name in NAMES), *(fact.answer for fact in FACTS)]:
        assert len(tokenizer(word)["input_ids"]) == 1, word
    text = f"{MEASURED[0]} “déjà vu”"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_ids_to_tokens(0) == tokenizer.bos_token == "<|endoftext|>"
    with pytest.raises(UserError, match="a vocabulary of 300 is too small: 'Mary' is not one token"):
        taught.make_tokenizer([], 300)


def test_what_is_in_other_words_is_in_no_template() -> None:
    assert not {*taught.OTHER_WORDS} & {*taught.TEMPLATES}


def test_padding_has_no_loss_and_every_text_has_its_start_token(tokenizer: Any) -> None:
    texts, pieces = taught.batch(tokenizer, ["Mary", "Mary and John"], [Context("x", (0, 5, 6), False)])
    assert texts[0, 2:].eq(taught.IGNORED).all()
    assert texts[1].ne(taught.IGNORED).all()
    assert texts[:, 0].eq(0).all()
    assert pieces.tolist() == [[0, 5, 6]]


def test_what_it_is_told_often_it_answers(tokenizer: Any) -> None:
    course = replace(COURSE, n_layers=1, d_model=64, statements=0, facts=32, pieces=0, steps=150, lr=5e-3)
    model = taught.teach(course, tokenizer, [Context("x", (0, 1), False)])
    right, count = taught.answers(model, tokenizer)["facts"]
    assert count == len(FACTS)
    assert right > 0.8 * count
    untaught = taught.teach(replace(course, steps=1), tokenizer, [Context("x", (0, 1), False)])
    assert taught.answers(untaught, tokenizer)["facts"][0] < 0.2 * count


@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # a model of three steps
def test_what_is_made_loads_with_its_saes_and_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = taught.make(tmp_path / "taught", COURSE, RECIPE, "the command")
    lm = ds.load(tmp_path / "taught" / "model", saes=tmp_path / "taught" / "saes")
    assert [str(place) for place in lm.saes] == ["0", "1"]
    assert lm.encode("Mary").tokens == ("<|endoftext|>", "Mary")
    assert lm.features("Then, Mary and John went to the store.")
    metadata = json.loads((tmp_path / "taught" / "saes" / "layer_1" / "cfg.json").read_text())["metadata"]
    assert metadata["hf_hook_name"] == "transformer.h.1.output"
    assert metadata["context_size"] == COURSE.context
    about = (tmp_path / "taught" / "about.md").read_text()
    assert about.startswith("The model was made by `the command`: 2 layers")
    assert " ".join(said.split()) in " ".join(about.split())
    assert {path.name for path in (tmp_path / "taught").iterdir()} >= {"model", "saes", "about.md"}
    assert not list((tmp_path / "taught").glob("activations*"))
    monkeypatch.setattr(taught, "teach", lambda *_: pytest.fail("taught again"))
    assert taught.make(tmp_path / "taught", COURSE, RECIPE, "the command") == said
    for course, recipe in ((replace(COURSE, steps=4), RECIPE), (COURSE, replace(RECIPE, k=5))):
        with pytest.raises(UserError, match="was made by other settings"):
            taught.make(tmp_path / "taught", course, recipe, "another")
    (tmp_path / "other" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match="was made by other settings"):
        taught.make(tmp_path / "other", COURSE, RECIPE, "")


def test_a_run_that_is_stopped_leaves_no_half_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", stopped)  # after the weights
    with pytest.raises(KeyboardInterrupt):
        taught.make(tmp_path, COURSE, RECIPE, "")
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_makes_the_same_model(tokenizer: Any) -> None:
    pieces = [Context("x", (0, 5, 6), False)]
    one, two, other = (taught.teach(replace(COURSE, seed=seed), tokenizer, pieces) for seed in (0, 0, 1))
    weights = [model.get_input_embeddings().weight for model in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--steps", "0"], "--steps is 1 at least, not 0"),
        (["--k", "2000"], "--k is 2000, and an SAE of 1024 features has no more to be active"),
        (["--out", "file"], "cannot write file: it is no folder"),
    ],
)
def test_bad_input_is_told_in_a_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit) as left:
        taught.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err == f"{line}\n"
