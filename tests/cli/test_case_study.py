"""``depass-sae case-study``: a folder, the sentence, the table and the paths; one line for mistakes."""

import json
import shlex
from pathlib import Path

import pytest

import depass_sae as ds

from ..attribution.tiny import TEXT
from .calling import Files, Run, assert_refused

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
QUICK = ("--ablate", "1", "--max-nodes", "12", "--verify", "1")


def firing(files: Files) -> str:
    """A feature of the fitting SAE with a place at which it fires."""
    at = ds.load(files.model, saes=files.fitting).features(TEXT).layers[0].positions[6]
    return f"1/{at.indices[0]}@6"


def test_it_writes_the_folder_and_prints_the_sentence_the_table_and_the_paths(
    run: Run, files: Files, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    done = run("case-study", "-p", TEXT, "-f", firing(files), *QUICK, *files.options(), "--out", str(out))
    assert (done.status, done.err) == (0, "")
    document = json.loads((out / "case.json").read_text())
    said = " ".join(done.out.split())
    finding = document["features"][0]["findings"][0]
    assert all(part in said for part in (finding["answer"], *finding["points"]))
    assert "pre-activation" in done.out
    for path in out.iterdir():
        assert path.name in "".join(done.out.split())


def test_json_is_the_document_of_the_folder_and_of_python(run: Run, files: Files, tmp_path: Path) -> None:
    out, name = tmp_path / "study", firing(files)
    done = run("case-study", "-p", TEXT, "-f", name, *QUICK, *files.options(), "--out", str(out), "--json")
    assert done.status == 0
    assert sorted(done.err.splitlines()) == sorted(f"wrote {path}" for path in out.iterdir())
    document = json.loads(done.out)
    assert document == json.loads((out / "case.json").read_text())
    alone = ds.load(files.model, saes=files.fitting).case_study(TEXT, name, ablate=1, max_nodes=12, verify=1)
    assert {**document, "command": None} == alone.to_dict()


def test_an_index_gives_its_graphs_contexts_and_its_features_labels(run: Run, files: Files, tmp_path: Path) -> None:
    ix = ds.load(files.model, saes=files.fitting).scan([TEXT] * 5, tmp_path / "ix")
    name, out = firing(files), tmp_path / "study"
    options = ("-p", TEXT, "-f", name, *QUICK, *files.options(), "--index", str(ix.folder))
    assert run("case-study", *options, "--out", str(out)).status == 0
    document = json.loads((out / "case.json").read_text())
    label = ix.feature(name.partition("@")[0]).label
    assert label
    assert document["labels"][name.partition("@")[0]] == label
    assert f"--index {ix.folder}" in document["command"]
    (path,) = out.glob("graph-*.json")
    g = ds.read_graph(path)
    assert g.graph["contexts"]["features"][name.partition("@")[0]]["count"] == ix.feature(name.partition("@")[0]).count
    assert "&#34;contexts&#34;" in (out / "index.html").read_text()


def test_the_command_on_the_page_makes_the_same_bytes_again(
    run: Run, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = tmp_path / "meanings.json"
    labels.write_text(json.dumps({firing(files).partition("@")[0]: "fruit"}))
    first = tmp_path / "first"
    options = ("-p", TEXT, "-f", firing(files), *QUICK, "--title", "A study", "--labels", str(labels))
    there = ("--model", str(files.model.parent), "--subfolder", files.model.name, "--sae", str(files.fitting))
    shared = ("--device-map", "auto", "--max-memory", "cpu=1GB", "--offload-folder", str(tmp_path / "away"))
    assert run("case-study", *options, *there, *shared, "--out", str(first)).status == 0
    command = shlex.split(json.loads((first / "case.json").read_text())["command"])
    assert {*there, *shared} <= {*command}
    monkeypatch.chdir(first)
    assert run(*command[1:]).status == 0
    for path in (first / "case-study").iterdir():
        assert path.read_bytes() == (first / path.name).read_bytes()


def test_a_yaml_file_is_a_study_and_options_go_before_it(run: Run, files: Files, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"prompt: {json.dumps(TEXT)}\nfeatures: [{firing(files)}]\ntitle: of the file\nablate: 1\nmax_nodes: 12\n"
        f"verify: 1\nmodel: {files.model}\nsae: {files.fitting}\nlabels: {{{firing(files).partition('@')[0]}: fruit}}\n"
    )
    done = run("case-study", str(study), "--out", str(tmp_path / "one"), "--json")
    assert done.status == 0
    assert all(line.startswith("wrote ") for line in done.err.splitlines())
    assert json.loads(done.out)["title"] == "of the file"
    assert list(json.loads(done.out)["labels"].values()) == ["fruit"]
    done = run("case-study", str(study), "--out", str(tmp_path / "two"), "--title", "mine", "--ablate", "0", "--json")
    assert json.loads(done.out)["title"] == "mine"
    assert json.loads(done.out)["settings"]["ablate"] == 0


def test_a_feature_that_fires_nowhere_is_an_answer_with_a_note(run: Run, files: Files, tmp_path: Path) -> None:
    done = run("case-study", "-p", TEXT, "-f", "1/100", *QUICK, *files.options(), "--out", str(tmp_path / "s"))
    assert done.status == 0
    assert "fires nowhere" in done.err
    assert "1/100 does not fire at" in done.out


def test_saes_that_are_not_on_neuronpedia_cost_a_line(run: Run, files: Files, tmp_path: Path) -> None:
    options = ("-p", TEXT, "-f", firing(files), *QUICK, *files.options(), "--labels", "neuronpedia")
    done = run("case-study", *options, "--out", str(tmp_path / "s"), "--json")
    assert done.status == 0
    (said,) = [line for line in done.err.splitlines() if not line.startswith("wrote ")]
    assert said.startswith("warning: there are no labels")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "a", "-f", "1/2"], "--out"),
        (["-p", "a", "--out", "OUT"], "--feature"),
        (["-f", "1/2", "--out", "OUT"], "--prompt"),
        (["-p", "a", "-f", "nonsense", "--out", "OUT"], "nonsense"),
        (["-p", "a", "-f", "1/2@99", "--out", "OUT"], "position 99"),
        (["-p", "a", "-f", "9/2", "--out", "OUT"], "no SAE at 9"),
        (["-p", "a", "-f", "1/2", "--ablate", "-1", "--out", "OUT"], "ablate"),
        (["-p", "a", "-f", "1/2", "--rule", "magic", "--out", "OUT"], "magic"),
        (["-p", "a", "-f", "1/2", "--labels", "missing.csv", "--out", "OUT"], "missing.csv"),
        (["missing.yaml", "--out", "OUT"], "missing.yaml"),
        (["-p", "a", "-f", "1/2", "--out", "FILE"], "FILE"),
        (["-p", "a", "-f", "1/2", "--out", "OUT", "--what"], "--what"),
    ],
)
def test_mistakes_end_with_one_line(
    run: Run, files: Files, tmp_path: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    assert_refused(run("case-study", *arguments, *files.options()), words)
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]  # no folder stays of what was a mistake


def test_halves_of_characters_are_refused_wherever_a_text_of_a_study_comes_from(
    run: Run, files: Files, tmp_path: Path
) -> None:
    labels, study = tmp_path / "labels.json", tmp_path / "study.yaml"
    labels.write_text('{"1/2": "\\ud800"}')
    for text in ('prompt: "\\ud800"\nfeatures: [1/2]\n', 'prompt: a\nfeatures: [1/2]\nlabels: {1/2: "\\ud800"}\n'):
        study.write_text(text)
        assert_refused(run("case-study", str(study), *files.options(), "--out", str(tmp_path / "out")), "nicode")
    given = ["-p", "a", "-f", "1/2", "--out", str(tmp_path / "out")]
    assert_refused(run("case-study", *given, "--labels", str(labels)), "not valid Unicode")
    assert_refused(run("case-study", *given, "--title", "\ud800"), "nicode")
    assert not (tmp_path / "out").exists()
