"""``depass-sae feature``: the card on stdout, everything else on stderr, one line for mistakes."""

import json
from pathlib import Path

import pytest

import depass_sae as ds
from depass_sae.labels.contexts import Context, PublicFeature
from depass_sae.labels.neuronpedia import Fetched

from ..attribution.tiny import TEXT
from .calling import Files, Run, assert_refused

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")


def test_json_is_the_cards_own_document(run: Run, files: Files, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("the price of supply\n\nMary gave John\n", encoding="utf-8")
    done = run("feature", "1/3", "-p", TEXT, "--prompts", str(texts), *files.options(), "--top", "4", "--json")
    assert (done.status, done.err) == (0, "")
    lm = ds.load(files.model, saes=files.fitting)
    assert json.loads(done.out) == lm.card("1/3", [TEXT, "the price of supply", "Mary gave John"], top=4).to_dict()


def test_every_sae_is_loaded_so_that_there_are_neighbours_by_flow(run: Run, files: Files) -> None:
    done = run("feature", "1.resid_post/3", "-p", TEXT, *files.options("saes"), "--json")
    card = json.loads(done.out)
    assert card["name"] == "1.resid_post/3"
    assert (card["flow"]["previous"] is not None) == bool(card["firings"])


def test_tables_go_to_stdout(run: Run, files: Files) -> None:
    done = run("feature", "1/3", "-p", TEXT, *files.options())
    assert (done.status, done.err) == (0, "")
    for words in ("Feature 1/3", "fires at", "What drives it", "(rule half)", "Logits of its decoder direction"):
        assert words in done.out


@pytest.mark.parametrize("suffix", ["html", "json"])
def test_out_writes_the_card(run: Run, files: Files, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"card.{suffix}"
    assert run("feature", "1/3", "-p", TEXT, *files.options(), "--out", str(path)).status == 0
    card = ds.load(files.model, saes=files.fitting).card("1/3", TEXT)
    text = path.read_text(encoding="utf-8")
    assert (text == card.to_html()) if suffix == "html" else (json.loads(text) == card.to_dict())


def test_a_feature_that_fires_nowhere_is_an_answer(run: Run, files: Files) -> None:
    done = run("feature", "1/100", "-p", TEXT, *files.options(), "--json")
    assert done.status == 0
    assert done.err == "feature 1/100 does not fire on this prompt, so nothing is known here of what drives it\n"
    assert json.loads(done.out)["n_firings"] == 0


def test_labels_come_from_a_file(run: Run, files: Files, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("feature,label\n1/3,fruit [red]\n", encoding="utf-8")
    done = run("feature", "1/3", "-p", TEXT, *files.options(), "--labels", str(labels))
    assert "fruit [red]" in done.out


def test_saes_that_are_not_on_neuronpedia_cost_a_line(run: Run, files: Files) -> None:
    done = run("feature", "1/3", "-p", TEXT, *files.options(), "--labels", "neuronpedia", "--json")
    assert done.status == 0
    assert done.err == "warning: there are no labels: the SAEs do not say where they are on Neuronpedia\n"


def test_neuronpedia_is_asked_for_nothing_unless_it_is_named(
    run: Run, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> Fetched:
        raise AssertionError("asked")

    monkeypatch.setattr("depass_sae.labels.neuronpedia.fetch_labels", never)
    assert run("feature", "1/3", "-p", TEXT, *files.options()).status == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "give texts to look at with --prompt, or a file of them with --prompts"),
        (["--prompts", "{tmp}/none.txt"], "none.txt: No such file"),
        (["--prompts", "{tmp}/latin.txt"], "it is not UTF-8 text"),
        (["--prompts", "{tmp}/empty.txt"], "there is no prompt in it"),
        (["-p", TEXT, "--out", "{tmp}/card.doc"], "let it end with .html, "),
        (["-p", TEXT, "--out", "{tmp}/empty.txt/card.html"], "Not a directory"),
        (["-p", TEXT, "--labels", "{tmp}/none.csv"], "none.csv"),
        (["-p", TEXT, "--labels", "gemma"], "labels are read from .csv and .json files"),
        (["-p", TEXT, "--top", "0"], "--top"),
        (["-p", TEXT, "--rule", "magic"], "magic"),
    ],
)
def test_a_mistake_is_told_in_one_line(run: Run, files: Files, tmp_path: Path, options: list[str], why: str) -> None:
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n\n")
    told = [option.format(tmp=tmp_path) for option in options]
    assert_refused(run("feature", "1/3", *files.options(), *told), why)


@pytest.mark.parametrize("feature", ["1/3@2", "1/99999", "9/3", "climate"])
def test_a_feature_that_is_none_is_told_in_one_line(run: Run, files: Files, feature: str) -> None:
    assert_refused(run("feature", feature, "-p", TEXT, *files.options()))


def test_contexts_of_neuronpedia_stand_for_texts(
    run: Run, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["feature", "1/3", *files.options()]
    found = PublicFeature((Context(("the price", " of supply"), (0.0, 2.0)),), density=0.25)
    kept: list[Path | None] = []

    def fetched(*_: object, cache_dir: Path | None) -> PublicFeature:
        kept.append(cache_dir)
        return found

    monkeypatch.setattr("depass_sae.report.card.making.fetch_feature", fetched)
    card = json.loads(run(*asked, "--contexts", "neuronpedia", "--json").out)
    assert [prompt["prompt"] for prompt in card["prompts"]] == ["the price of supply"]
    assert card["public"]["density"] == 0.25
    there = ("--cache-dir", str(tmp_path / "kept"))
    assert "What Neuronpedia has" in run(*asked, "-p", TEXT, "--contexts", "neuronpedia", *there).out
    assert kept == [None, tmp_path / "kept"]
    assert_refused(run(*asked, "--contexts", "elsewhere"), "takes neuronpedia")
    assert_refused(run(*asked), "give texts")
