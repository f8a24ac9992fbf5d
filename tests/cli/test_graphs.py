"""``graph``, ``verify`` and ``diff``: files, documents, and one line for every mistake."""

import json
from pathlib import Path

import numpy as np
import pytest

import depass_sae as ds
from depass_sae.graph.names import feature_text

from ..attribution.tiny import D_MODEL, TEXT
from ..test_files import closed
from .calling import Files, Run, assert_refused

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
__all__ = ["closed"]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["graph", "-p", "a", "--out"], "g.json"),
        (["graph", "-p", "a", "--out"], "g.png"),
        (["feature", "1/3", "-p", "a", "--out"], "card.html"),
        (["case-study", "-p", "a", "-f", "1/3", "--out"], "folder"),
        (["diff", "{a}", "{b}", "--out"], "diff.html"),
        (["verify", "{a}", "--out"], "checks.png"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_of_before_the_work_and_nothing_is_changed(
    run: Run, graphs: list[str], tmp_path: Path, command: list[str], option: str
) -> None:
    command = [part.format(a=graphs[0], b=graphs[1]) for part in command]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for place, why in ((graphs[0], "Not a directory"), (str(tmp_path / ("n" * 300)), "File name too long")):
        done = run(*command, f"{place}/{option}", *(["--model", "no/model"] if command[0] != "diff" else []))
        assert_refused(done, why)
        assert "cannot write" in done.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_graph_that_cannot_take_its_verification_is_told_of_before_the_work(run: Run, closed: Path) -> None:
    assert_refused(run("verify", str(closed / "g.json"), "--model", "no/model"), "cannot write ")


def test_an_empty_name_is_no_place(run: Run) -> None:
    assert_refused(run("case-study", "-p", "a", "-f", "1/3", "--out", ""), "the folder has no name")
    assert_refused(run("graph", "-p", "a", "--format", "json", "--out", ""), "it is a folder")


def graph_options(files: Files) -> list[str]:
    return ["--model", str(files.model), "--sae", str(files.saes), "--prompt", TEXT, "--max-nodes", "40"]


def test_a_graph_is_written_in_every_format_that_is_named(run, files, tmp_path) -> None:
    outs = [tmp_path / name for name in ("g.json", "g.graphml", "g.html")]
    named = [part for out in outs for part in ("--out", str(out))]
    done = run("graph", *graph_options(files), "--target", "logit:5", *named)
    assert done.status == 0
    assert "nodes" in done.out
    assert "whole graph: completeness" in done.out
    assert done.out.splitlines()[-3:] == [f"wrote {out}" for out in outs]
    assert outs[2].read_text().startswith("<!doctype html>")
    one, two = (ds.read_graph(out) for out in outs[:2])
    assert set(one.edges) == set(two.edges)


def test_json_and_neuronpedias_format_go_to_stdout_alone(run, files) -> None:
    done = run("graph", *graph_options(files), "--logit-diff", " Mary", " John", "--json")
    document = json.loads(done.out)
    assert next(iter(document)) == "schema_version"
    assert "wrote" not in done.err
    assert document["graph"]["target"][0]["node"].startswith("logit:")
    done = run("graph", *graph_options(files), "--feature", "1.resid_post/3", "--format", "neuronpedia")
    assert json.loads(done.out)["metadata"]["schema_version"] == 1


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], True),
        (["--pairs", "0"], False),
        (["--grow", "weight"], False),
        (["--rule", "softmax", "--layer", "1.resid_post"], False),  # which knows whole streams alone
    ],
)
def test_neuronpedias_file_has_pairs_of_queries_and_keys_unless_none_are_asked_for(
    run, files, options: list[str], found: bool
) -> None:
    asked = ["graph", *graph_options(files), "--logit", " Mary", "--format", "neuronpedia", *options]
    done = run(*asked)
    assert done.status == 0, done.err
    nodes = json.loads(done.out)["nodes"]
    looked = [node["qk_tracing_results"] for node in nodes if "qk_tracing_results" in node]
    assert any(one["pair_wise_contributors"] for one in looked) == found


@pytest.mark.parametrize(
    ("options", "node"),
    [
        (["--logit", " Paris", "--against", "mean"], "-mean@"),
        (["--target", 'logit:" Paris"', "--against", '" Mary"," John"'], ","),
        (["--target", 'logit:" Paris" against rivals'], ","),
        (["--target", 'logprob:" Paris"'], "-softmax@"),
        (["--target", 'logit:" Paris"+" Mary"'], "+"),
        ([], "-mean@"),
    ],
)
def test_what_a_logit_is_held_to_is_an_option_or_part_of_the_target(run, files, options: list[str], node: str) -> None:
    document = json.loads(run("graph", *graph_options(files), *options, "--json").out)
    assert all(node in target["node"] for target in document["graph"]["target"])


def test_a_direction_is_read_from_a_file(run, files, tmp_path) -> None:
    probe = tmp_path / "probe.npy"
    np.save(probe, np.linspace(-1, 1, D_MODEL, dtype=np.float32))
    done = run("graph", *graph_options(files), "--target", f"direction:1:{probe}@6", "--json")
    assert json.loads(done.out)["graph"]["target"][0]["node"] == "direction:1.resid_post/0@6"
    done = run("tokens", "--model", str(files.model), "-p", TEXT, "--target", f"direction:1:{probe}@6", "--json")
    assert json.loads(done.out)["direction"] == {"layer": 1, "hook": "resid_post"}
    assert_refused(run("circuit", *graph_options(files)[:6], "--target", f"direction:1:{probe}@6"), "not a direction")


def test_every_question_takes_its_target_as_a_text(run, files) -> None:
    asked = ["--model", str(files.model), "-p", TEXT, "--json"]
    one = json.loads(run("tokens", *asked, "--target", 'logit-diff:" Paris"," Mary"').out)
    assert one == json.loads(run("tokens", *asked, "--logit-diff", " Paris", " Mary").out)
    for command in ("heads", "modules", "neurons"):
        found = json.loads(run(command, *asked, "--target", 'logprob:" Paris"').out)
        assert found["logit"]["against"] == "softmax"


def test_a_file_of_prompts_gives_the_mean_of_their_graphs(run, files, tmp_path) -> None:
    (tmp_path / "p.txt").write_text(f"{TEXT}\nMary gave John a mark.\n")
    asked = ["graph", *graph_options(files)[:4], "--prompts", str(tmp_path / "p.txt"), "--max-nodes", "30"]
    done = run(*asked, "--target", 'logit:" Paris" against mean', "--out", str(tmp_path / "g.json"))
    assert done.status == 0, done.err
    assert "the mean over 2 prompts" in done.out
    assert ds.read_graph(tmp_path / "g.json").graph["average"]["prompts"] == [TEXT, "Mary gave John a mark."]
    assert_refused(run(*asked, "--target", "1/3@4"), "name no position")
    assert_refused(run("verify", str(tmp_path / "g.json"), *files.options("saes")), "a mean over prompts")


def test_circuit_tracers_format_goes_to_a_folder(run, files, tmp_path) -> None:
    options = [*graph_options(files), "--feature", "1.resid_post/3", "--format", "circuit-tracer"]
    assert_refused(run("graph", *options), "circuit-tracer is a folder of files: name it with --out")
    (tmp_path / "file").touch()
    assert_refused(run("graph", *options, "--out", str(tmp_path / "file")), "it is no folder")
    assert run("graph", *options, "--out", str(tmp_path / "viewer")).status == 0
    (listed,) = json.loads((tmp_path / "viewer" / "graph-metadata.json").read_text())["graphs"]
    assert json.loads((tmp_path / "viewer" / f"{listed['slug']}.json").read_text())["metadata"] == listed


def test_labels_and_groups_are_in_the_graphs_that_are_written(run, files, tmp_path) -> None:
    (tmp_path / "labels.csv").write_text("feature,label\n1.resid_post/3,of all things\n", encoding="utf-8")
    path = tmp_path / "g.json"
    named = ["--labels", str(tmp_path / "labels.csv"), "--group", "--out", str(path)]
    assert run("graph", *graph_options(files), "--feature", "1.resid_post/3", *named).status == 0
    g = ds.read_graph(path)
    (name,) = [target["node"] for target in g.graph["target"]]
    assert g.nodes[name]["label"] == "of all things"
    assert g.graph["groups"] == ds.group_automatically(g)


def test_an_index_gives_contexts_and_labels_and_labels_that_are_given_go_before_its(run, files, tmp_path) -> None:
    ix = ds.load(files.model, saes=files.saes).scan([TEXT] * 5, tmp_path / "ix")
    (tmp_path / "labels.csv").write_text("feature,label\n1.resid_post/3,of all things\n", encoding="utf-8")
    options = [*graph_options(files), "--feature", "1.resid_post/3", "--labels", str(tmp_path / "labels.csv")]
    assert run("graph", *options, "--index", str(ix.folder), "--out", str(tmp_path / "g.json")).status == 0
    assert run("graph", *options, "--out", str(tmp_path / "plain.json")).status == 0
    g = ds.read_graph(tmp_path / "g.json")
    assert g.graph["contexts"] == ds.with_contexts(ds.read_graph(tmp_path / "plain.json"), ix).graph["contexts"]
    assert any(about["contexts"] for about in g.graph["contexts"]["features"].values())
    labels = {feature_text(node): node["label"] for _, node in g.nodes(data=True) if node["kind"] == "feature"}
    assert labels.pop("1.resid_post/3") == "of all things"
    assert labels == {name: ix.feature(name).label or "" for name in labels}
    assert any(labels.values())


def test_tokens_with_quotes_and_positions_are_targets(run, files) -> None:
    done = run("graph", *graph_options(files), "--logit-diff", '"', ",", "--pos", "2", "--json")
    assert done.status == 0, done.err
    (target,) = json.loads(done.out)["graph"]["target"]
    assert target["node"].endswith("@2")


def test_a_prompt_of_ids_takes_a_graphs_logits_as_ids(run, files) -> None:
    options = ["--model", str(files.model), "--sae", str(files.saes), "--ids", "1 5 9", "--max-nodes", "40"]
    done = run("graph", *options, "--logit", "5", "--json")
    assert [target["node"] for target in json.loads(done.out)["graph"]["target"]] == ["logit:5@2"]


def test_verify_writes_its_result_into_the_file(run, files, tmp_path) -> None:
    path = tmp_path / "g.json"
    run("graph", *graph_options(files), "--target", "logit:5", "--out", str(path))
    picture = tmp_path / "checks.png"
    done = run("verify", str(path), "--sae", str(files.saes), "--max-nodes", "5", "--out", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert done.status == 0
    assert "same sign over 5 nodes" in done.out
    assert done.out.splitlines()[-2:] == [f"wrote {path}", f"wrote {picture}"]
    verified = ds.read_graph(path).graph["verification"]
    assert len(verified["nodes"]) == 5
    numbers = tmp_path / "checks.json"
    run("verify", str(path), "--sae", str(files.saes), "--max-nodes", "5", "--out", str(numbers))
    assert json.loads(numbers.read_text()) == verified
    again = run("verify", str(path), "--sae", str(files.saes), "--max-nodes", "5", "--json")
    assert json.loads(again.out) == verified


def test_a_verification_is_written_as_a_picture_or_as_numbers_beside_the_graph(run, files, tmp_path) -> None:
    path = tmp_path / "g.json"
    run("graph", *graph_options(files), "--target", "logit:5", "--out", str(path))
    done = run("verify", str(path), "--sae", str(files.saes), "--out", str(tmp_path / "checks.html"))
    assert (done.status, done.out) == (2, "")
    assert "is no place for a verification: let it end with .json, .png, .svg, .pdf" in done.err
    before = path.read_bytes()
    assert_refused(run("verify", str(path), "--out", str(path)), "is the graph's own file")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "g.docx"], "does not say which format"),
        (["--out", "pyproject.toml/g.json"], "Not a directory"),
        (["--format", "gexf"], "the format 'gexf' is not known"),
        (["--target", "logit-diff:x"], "write a difference of logits as"),
        (["--target", "seventeen"], "is no feature"),
        (["--max-nodes", "3"], "max_nodes 3 is too few"),
        (["--rule", "relu"], "a graph takes the rules"),
        (["--layer", "2"], "there is no SAE or transcoder at layer 2"),
    ],
)
def test_a_mistake_about_graphs_is_one_line_and_status_2(run, files, arguments, message) -> None:
    done = run("graph", *graph_options(files), *arguments)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_graph_that_cannot_be_read_is_one_line_and_status_2(run, tmp_path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for path in (tmp_path / "broken.json", tmp_path / "missing.json", tmp_path / "g.html"):
        done = run("verify", str(path))
        assert (done.status, done.out) == (2, "")
        assert done.err.count("\n") == 1


def test_two_rules_side_by_side(run, files, tmp_path) -> None:
    for rule in ("half", "linear"):
        named = ["--rule", rule, "--out", str(tmp_path / f"{rule}.json")]
        assert run("graph", *graph_options(files), "--target", "logit:5", *named).status == 0
    paths = [str(tmp_path / f"{rule}.json") for rule in ("half", "linear")]
    done = run("diff", *paths, "--out", str(tmp_path / "diff.html"))
    assert done.status == 0
    assert "half" in done.out
    assert done.out.endswith(f"wrote {tmp_path / 'diff.html'}\n")
    assert (tmp_path / "diff.html").read_text().startswith("<!doctype html>")
