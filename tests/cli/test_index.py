"""``scan`` and what asks its index: answers on stdout, one line for mistakes."""

import json
import shutil
from pathlib import Path

import pytest

import depass_sae as ds

from ..attribution.tiny import TEXT
from ..index.scanned import contents, texts
from .calling import Files, Run, assert_refused, process


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_bytes("\n".join(texts(30)).encode() + b"\ncaf\xe9\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: Path, files: Files) -> Path:
    lm = ds.load(files.model, saes=files.saes)
    return lm.scan(corpus, tmp_path_factory.mktemp("made") / "ix").folder


def test_a_scan_from_the_shell_is_that_from_python(
    run: Run, files: Files, tmp_path: Path, corpus: Path, folder: Path
) -> None:
    done = run("scan", str(corpus), "--out", str(tmp_path / "ix"), *files.options("saes"))
    assert (done.status, done.err) == (0, "")
    assert "Left out of the corpus: 1" in done.out
    assert "texts.txt:31" in done.out
    assert f"wrote {tmp_path / 'ix'}" in done.out
    assert contents(tmp_path / "ix") == contents(folder)
    assert_refused(run("scan", str(corpus), "--out", str(tmp_path / "ix"), *files.options()), "is an index already")


def test_every_question_gives_the_document_that_python_has(run: Run, folder: Path) -> None:
    index = ds.open_index(folder)
    name = index.dense(1).features[0].feature
    for arguments, expected in (
        (["feature", name, "--index", str(folder)], index.feature(name)),
        (["index", str(folder)], index.overview()),
        (["index", str(folder), "--list", "rare", "--top", "4"], index.rare(4)),
        (["index", str(folder), "--list", "dead", "--layer", "0"], index.dead(20, layer="0")),
        (["search", "supply", "--index", str(folder)], index.search("supply")),
        (["similar", name, "--index", str(folder), "--top", "5"], index.similar(name, top=5)),
        (["compare", str(folder), str(folder)], index.compare(index)),
    ):
        done = run(*arguments, "--json")
        assert (done.status, done.err) == (0, "")
        assert json.loads(done.out) == expected.to_dict()
        shown = run(*arguments)
        assert (shown.status, shown.err) == (0, "")
        assert shown.out


def test_answers_are_written_and_have_labels(run: Run, folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("feature,label\n0/3,fruit [red]\n", encoding="utf-8")
    page, table = tmp_path / "f.html", tmp_path / "dense.csv"
    done = run("feature", "0/3", "--index", str(folder), "--labels", str(labels), "--out", str(page))
    assert done.status == 0
    assert "fruit [red]" in done.out
    assert "fruit [red]" in page.read_text()
    assert run("index", str(folder), "--list", "dense", "--out", str(table)).status == 0
    assert table.read_text().startswith("feature,label,count,density,max\n")
    assert "0/3" in run("search", "fruit", "--index", str(folder), "--labels", str(labels)).out


@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
def test_the_strongest_contexts_of_an_index_are_taken_apart(run: Run, files: Files, folder: Path) -> None:
    contexts = ds.open_index(folder).feature("0/3").contexts
    asked = ["feature", "0/3", "--index", str(folder), "--contexts", "index", "--strongest", "2"]
    done = run(*asked, *files.options("saes"), "--json")
    assert done.status == 0
    card = json.loads(done.out)
    assert [prompt["token_ids"] for prompt in card["prompts"]] == [list(context.token_ids) for context in contexts]
    assert card["firings"][0]["activation"] == pytest.approx(contexts[0].activation, rel=1e-4)
    assert len(card["sources"]["firings"]) == 2


@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
def test_the_shell_asks_why_a_feature_fires_and_the_index_keeps_it(
    run: Run, files: Files, folder: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(folder, tmp_path / "ix")
    asked = ["feature", "0/3", "--index", str(own), "--why", "--strongest", "2", "--rule", "linear"]
    done = run(*asked, *files.options("saes"), "--json")
    assert done.status == 0, done.err
    said = json.loads(done.out)
    assert said == ds.open_index(own).feature("0/3").to_dict()
    assert len(said["causes"]["contexts"]) == 2
    assert said["causes"]["asked"]["rule"] == "linear"
    assert "Why it fires" in run("feature", "0/3", "--index", str(own)).out
    path = tmp_path / "f.jsonl"
    done = run("export", str(own), "--out", str(path), "--features", "0/3,0/4")
    assert (done.status, done.out) == (0, f"wrote {path}\n")
    assert json.loads(path.read_text().splitlines()[0])["contexts"][0]["causes"] is not None
    np = tmp_path / "np"
    assert (
        run("export", str(own), "--format", "neuronpedia", "-o", str(np), "--list", "dense", "--top", "3").status == 0
    )
    assert len(list(np.iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["feature", "0/3", "--index", "{folder}", "-p", TEXT], "leave --prompt"),
        (["feature", "0/3", "--index", "{folder}", "--contexts", "neuronpedia"], "leave --prompt"),
        (["feature", "0/3", "--contexts", "index"], "name its folder with --index"),
        (["feature", "0/3", "--index", "{tmp}/none", "--contexts", "index"], "no such folder"),
        (["feature", "0/99", "--index", "{folder}"], "features are 0 to 39"),
        (["feature", "9/3", "--index", "{folder}"], "there is no SAE at 9"),
        (["feature", "1/3", "--index", "{folder}"], "layer 1 has several SAEs"),
        (["feature", "0/3@4", "--index", "{folder}"], ""),
        (["feature", "0/3", "--index", "{tmp}/none"], "no such folder"),
        (["feature", "0/3", "--index", "{tmp}"], "has no manifest.json"),
        (["feature", "0/3", "--index", "{folder}", "--out", "a.docx"], "let it end with"),
        (["feature", "0/3", "--index", "{folder}", "--labels", "neuronpedia"], "come from a .csv or .json"),
        (["index", "{tmp}/none"], "no such folder"),
        (["index", "{folder}", "--list", "Dense"], "the lists are dense, rare, dead"),
        (["index", "{folder}", "--list", ""], "the lists are"),
        (["index", "{folder}", "--list", "rare", "--layer", "7"], "there is no SAE at 7"),
        (["index", "{folder}", "--layer", "0"], "name that with --list"),
        (["index", "{folder}", "--list", "rare", "--top", "0"], "--top"),
        (["search", "", "--index", "{folder}"], "the text is empty"),
        (["search", "\ud800", "--index", "{folder}"], "Unicode"),
        (["search", "x"], "name the folder of an index"),
        (["search", "x", "--index", "{folder}", "--labels", "none.csv"], "none.csv"),
        (["similar", "0/3"], "name the folder of an index"),
        (["similar", "0/99", "--index", "{folder}"], "features are 0 to 39"),
        (["feature", "0/3", "--why"], "name that with --index"),
        (["feature", "0/3", "--why", "--index", "{folder}", "--contexts", "index"], "leave --contexts out"),
        (["feature", "0/3", "--why", "--index", "{folder}", "--rule", "x"], "rule"),
        (["feature", "0/99", "--why", "--index", "{folder}"], "features are 0 to 39"),
        (["export", "{folder}"], "name what to write with --out"),
        (["export", "{folder}", "--out", "{tmp}/a.csv"], "should end with .jsonl"),
        (["export", "{folder}", "--out", "{tmp}/a.jsonl", "--format", "x"], "exported as autointerp or neuronpedia"),
        (["export", "{folder}", "--out", "{tmp}/a.jsonl", "--top", "3"], "name that with --list"),
        (["export", "{folder}", "--out", "{tmp}/a.jsonl", "--features", "0/3,"], "LAYER/INDEX"),
        (["export", "{folder}", "--out", "{tmp}/a.jsonl", "--features", "0/3", "--layer", "0"], "leave one of them"),
        (["export", "{folder}", "--out", "{tmp}/a.jsonl", "--list", "dead"], "have no contexts"),
        (["export", "{folder}", "--out", "{tmp}", "--format", "neuronpedia"], ""),
        (["export", "{tmp}/none", "--out", "{tmp}/a.jsonl"], "no such folder"),
        (["compare", "{folder}"], ""),
        (["compare", "{folder}", "{tmp}/none"], "no such folder"),
        (["scan", "{tmp}", "--out", "{tmp}/ix"], "has no files of texts"),
    ],
)
def test_a_mistake_is_told_in_one_line(run: Run, folder: Path, tmp_path: Path, arguments: list[str], why: str) -> None:
    told = [argument.format(folder=folder, tmp=tmp_path) for argument in arguments]
    assert_refused(run(*told), why)


def test_an_index_is_asked_without_a_model(folder: Path) -> None:
    for arguments in (["search", "supply"], ["feature", "0/3"], ["similar", "0/3"]):
        done = process(*arguments, "--index", str(folder), PYTHONPROFILEIMPORTTIME="1")
        assert done.status == 0
        imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
        assert "pyarrow" in imported
        assert not imported & {"torch", "transformers", "sae_lens"}
