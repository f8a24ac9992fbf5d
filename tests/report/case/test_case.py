"""A case study holds what the other calls return, and its document says all of it."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.labels.neuronpedia import labels_from
from depass_sae.report.case.study import Study, origin, read_study, study_of
from depass_sae.texts import is_hidden

from ...attribution.tiny import SINK, TEXT, fitting_sae, handle, model, random_sae, sinking, tokenizer
from .sample import HARM, PROMPT, firing, lm, made, study

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")  # random SAEs fit nothing


def test_its_parts_are_what_the_other_calls_return():
    for finding in study().findings:
        alone = lm().attribute_tokens(PROMPT, finding.name, ablate=3)
        assert finding.tokens.to_dict() == alone.to_dict()
        assert (
            finding.heads.to_dict() == lm().attribute_heads(PROMPT, finding.name, by_token=True, effects=True).to_dict()
        )
        graph = lm().verify(lm().graph(PROMPT, finding.name, max_nodes=24), max_nodes=4)
        assert finding.graph is not None
        assert finding.graph.graph["verification"] == graph.graph["verification"]
        assert set(finding.graph.edges) == set(graph.edges)


def test_the_card_is_the_one_that_is_asked_for_alone():
    for feature in study().features:
        assert feature.card.to_dict() == lm().card(feature.name, PROMPT, labels=feature.card.labels).to_dict()


def test_activations_are_those_that_the_features_call_finds():
    for feature in study().features:
        layer, index = map(int, feature.name.split("/"))
        (found,) = lm().features(PROMPT, layer=layer).layers
        for at in found.positions:
            expected = dict(zip(at.indices, at.activations, strict=True)).get(index, 0.0)
            assert (feature.activations[at.pos] or 0.0) == pytest.approx(expected)
        assert feature.activations[0] is None


def test_a_sink_has_an_activation_only_where_it_is_asked_about():
    sunk = ds.load(sinking(), tokenizer(adds_bos=False), saes=[random_sae(hook="1.resid_post")])
    ids = [SINK, 90, 70, 60, 75]
    at_0, *others = (set(at.indices) for at in sunk.features(ids).layers[0].positions)
    index = next(i for i in at_0 if any(i in other for other in others))
    quick = {"ablate": 0, "max_nodes": 12, "verify": 2}
    (by_default,) = sunk.case_study(ids, f"1/{index}", **quick).features
    assert by_default.activations[0] is by_default.pre_activations[0] is None
    assert None not in by_default.activations[1:]
    assert "position 0 ('o') is left out as an attention sink" in by_default.note
    assert by_default.findings[0].target.pos != 0
    study = sunk.case_study(ids, f"1/{index}@0", **quick)
    assert study.features[0].activations[0] == pytest.approx(study.findings[0].target.activation)
    assert "an attention sink" in sunk.case_study(ids, f"1/{index}", **quick).to_html()


def test_another_text_to_replace_from_serves_tokens_and_graph_and_is_in_the_command(tmp_path: Path):
    path, (name,) = tmp_path / "own.txt", firing(0, 1)  # whose graph is of tokens
    path.write_text(" Paris")
    (finding,) = lm().case_study(PROMPT, name, ablate=2, max_nodes=24, verify=24, replace_from=path).findings
    assert finding.tokens.to_dict() == lm().attribute_tokens(PROMPT, name, ablate=2, replace_from=path).to_dict()
    assert max(spread for spread in finding.target.measured.spread if spread is not None) < 1e-5  # one token alone
    ids = list(lm().encode(PROMPT).token_ids)
    nodes = {entry["node"]: entry["observed"] for entry in finding.graph.graph["verification"]["nodes"]}
    checked = 0
    for pos in range(1, finding.target.pos + 1):
        if f"token:{pos}" in nodes:
            replaced = [*ids[:pos], lm().tokenizer.convert_tokens_to_ids("ĠParis"), *ids[pos + 1 :]]
            there = lm().attribute_tokens(replaced, name).pre_activation
            assert nodes[f"token:{pos}"] == pytest.approx(finding.target.pre_activation - there, rel=1e-3, abs=1e-3)
            checked += 1
    assert checked
    assert f"--replace-from {path}" in study_of(prompt=PROMPT, features=[name], replace_from=str(path)).command(
        labelled=False
    )


@pytest.mark.parametrize("top", [1, 4, 1000])
def test_the_table_sums_to_the_pre_activation_however_many_rows_it_names(top: int):
    (finding,) = made((firing(2, 1)[0],), top=top, ablate=0, verify=0).findings
    table = finding.table()
    parts = [row["value"] for row in (*table["sources"], *table["remainder"])]
    assert sum(parts) == pytest.approx(table["pre_activation"], rel=1e-4, abs=1e-4)
    assert len(table["sources"]) == min(top, finding.target.pos + 1)
    sizes = [abs(row["value"]) for row in table["sources"]]
    assert sizes == sorted(sizes, reverse=True)


def test_every_row_of_the_ledger_sums_to_its_head_and_every_layer_to_its_heads():
    for finding in study().findings:
        ledger = finding.ledger()
        assert ledger is not None
        for row in ledger["rows"]:
            whole = sum(row["values"]) + row["others"] + row["bias"] + row["rest"]
            assert whole == pytest.approx(row["value"], rel=1e-4, abs=1e-4)
        for layer in finding.layers():
            assert sum(layer["heads"]) == pytest.approx(layer["sum"])


def test_a_feature_without_a_position_is_studied_where_it_is_strongest():
    name = firing(2, 1)[0].partition("@")[0]
    (finding,) = made((name,), ablate=0, verify=0).findings
    assert finding.target.pos == lm().attribute_tokens(PROMPT, name).target.pos


def test_a_position_that_is_named_twice_is_studied_once():
    name = firing(2, 1)[0]
    assert len(made((name, name), ablate=0, verify=0).findings) == 1


def test_a_rule_that_splits_no_heads_by_token_leaves_the_ledger_out():
    (finding,) = made((firing(2, 1)[0],), rule="relu", ablate=0, verify=0).findings
    assert finding.ledger() is None
    assert finding.graph is None
    assert "relu" in (finding.no_graph or "")


def test_an_sae_beside_the_stream_has_a_study_without_a_graph():
    beside = handle([random_sae(hook="1.attn_out")])
    name = f"1/{beside.features(TEXT).layers[0].positions[5].indices[0]}@5"
    (finding,) = beside.case_study(TEXT, name, ablate=0).findings
    assert finding.graph is None
    assert "attn_out" in (finding.no_graph or "")


def test_a_prompt_of_token_ids_is_taken_as_it_is():
    ids = list(study().heading.prompt.token_ids)
    name = firing(2, 1)[0]
    one = lm().case_study(ids, name, ablate=0, verify=0)
    assert one.features[0].activations == study().features[0].activations


def test_the_document_leads_with_its_schema_version_and_is_plain_json():
    document = study().to_dict()
    assert list(document)[:2] == ["schema_version", "kind"]
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_labels_reach_the_sentence_the_graph_and_the_card():
    feature = study().features[0]
    assert feature.label == HARM
    finding = feature.findings[0]
    target = f"feature:{finding.name}"
    assert finding.graph is not None
    assert finding.graph.nodes[target]["label"] == HARM
    assert feature.card.label == HARM
    assert study().labels[feature.name] == HARM


def test_labels_of_features_that_are_not_shown_are_left_out():
    assert "99/1" not in study().with_labels({"99/1": "nothing"}).labels


def test_saes_that_are_not_on_neuronpedia_have_no_labels_there():
    found = labels_from("neuronpedia", study().pages)
    assert found.labels == {}
    assert "Neuronpedia" in (found.warning or "")


def test_a_study_of_models_made_in_python_has_no_command():
    assert study().command is None


def test_the_command_loads_the_model_as_it_was_loaded(tmp_path: Path) -> None:
    words = {
        "revision": "v2", "subfolder": "in ner", "trust_remote_code": True, "device_map": "auto",
        "max_memory": ["cpu=6GiB", "0=20GiB"], "offload_folder": "away", "chat": True,
    }  # fmt: skip
    command = shlex.split(study_of(prompt="a", features=["1/2"], **words).command(labelled=False))
    assert command[6:-2] == [
        *("--revision", "v2", "--subfolder", "in ner", "--trust-remote-code", "--device-map", "auto", "--max-memory"),
        *("cpu=6GiB", "--max-memory", "0=20GiB", "--offload-folder", "away", "--chat"),
    ]
    assert not {"--chat", "--trust-remote-code"} & {
        *Study(prompt="a", features=["1/2"]).command(labelled=False).split()
    }
    model().save_pretrained(tmp_path / "inner")
    sae = fitting_sae(release="somebody/saes", sae_id="layers.1")
    lm = ds.load(
        tmp_path, saes=sae, subfolder="inner", device_map="auto", max_memory={"cpu": 10**9}, offload_folder=tmp_path
    )
    assert origin(lm._subject) == {
        "model": str(tmp_path), "subfolder": "inner", "dtype": "float32", "trust_remote_code": False, "chat": False,
        "device_map": "auto", "max_memory": ["cpu=1000000KB"], "offload_folder": str(tmp_path),
        "sae": "somebody/saes", "sae_id": ["layers.1"],
    }  # fmt: skip


def test_the_command_says_what_is_not_the_default_and_a_shell_reads_it_as_it_was_meant():
    asked = Study(prompt="It's -- $HOME", features=["1/2@3", "4/5"], title="-dash", ablate=0, layer=[4])
    words = shlex.split(asked.command(labelled=True))
    assert words[:2] == ["depass-sae", "case-study"]
    rest = ["--prompt", "It's -- $HOME", "--feature", "1/2@3", "--feature", "4/5", "--title=-dash"]
    assert words[2:] == [*rest, "--layer", "4", "--ablate", "0", "--labels", "labels.json", "--out", "case-study"]
    assert "--labels" not in asked.command(labelled=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ablate": -1}, "ablate is -1"),
        ({"max_nodes": 1}, "max_nodes is 1"),
        ({"top": 0}, "top is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, int], message: str):
    with pytest.raises(UserError, match=message):
        made((firing(2, 1)[0],), **settings)


def test_a_study_without_a_feature_is_refused():
    with pytest.raises(UserError, match="name a feature"):
        made(())


@pytest.mark.parametrize("title", ["two\nlines", "\x1b[31m", "\ud800"])
def test_a_title_that_is_no_line_of_text_is_refused(title: str):
    with pytest.raises(UserError, match="the title has control characters"):
        made((firing(2, 1)[0],), title=title)


# ---------------------------------------------------------------------------------------------------------------- YAML


def written(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_a_yaml_file_says_all_that_the_command_line_can(tmp_path: Path):
    text = "prompt: a b\nfeatures: [17/1@2]\nlabels: {17/1: x}\nseed: 3\ntemperature: 1\n"
    found = read_study(written(tmp_path, text))
    assert found == Study(prompt="a b", features=["17/1@2"], labels={"17/1": "x"}, seed=3, temperature=1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt: a\nfeatures: [1/2]\nprompts: b", "there is no key 'prompts'; there are prompt, features, title"),
        ("prompt: a", "features is missing"),
        ("prompt: a\nfeatures: []", "features"),
        ("prompt: a\nfeatures: 1/2", "features should be a valid list"),
        ("prompt: a\nfeatures: [1/2]\nablate: many", "ablate should be a valid integer"),
        ("prompt: {a: b}\nfeatures: [1/2]", "prompt should be a text or a list of token ids"),
        ("- a", "a case study is a mapping"),
        ("prompt: [", "not YAML"),
        ("prompt: !!python/object/apply:os.system [ls]\nfeatures: [1/2]", "not YAML"),
        ("", "a case study is a mapping"),
    ],
)
def test_a_yaml_file_that_is_wrong_is_refused_with_one_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError) as caught:
        read_study(written(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "study.yaml" in str(caught.value)


def test_a_yaml_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="cannot read"):
        read_study(tmp_path / "missing.yaml")


def test_options_that_are_wrong_are_refused_with_one_line():
    with pytest.raises(UserError, match="temperature"):
        study_of(prompt="a", features=["1/2"], temperature=0.0)


@pytest.mark.smollm2
def test_smollm2_s_climate_case_from_one_end_to_the_other(tmp_path: Path):
    from depass_sae.demo.cases import CASES

    case = CASES[0]
    lm = ds.load("smollm2", layers=[11, 17])
    labels = {case.feature: case.meaning}
    name = f"{case.feature}@{case.position}"
    prompt = case.prompt.partition(" and urban")[0]  # the model is causal: what comes later changes nothing here
    done = lm.case_study(prompt, name, ablate=1, max_nodes=12, verify=1, labels=labels)
    (finding,) = done.findings
    assert finding.facts.top.pos in case.sources
    assert " climate" in finding.facts.top.token
    done.write(tmp_path / "case")
    assert {"index.html", "README.md", "case.json", "labels.json"} <= {p.name for p in (tmp_path / "case").iterdir()}
    assert done.command is not None
    assert shlex.split(done.command)[:3] == ["depass-sae", "case-study", "--prompt"]
    assert "--model" not in done.command
    assert "--sae" not in done.command


def test_the_command_shows_every_character_of_a_prompt_and_a_shell_reads_them_back():
    prompt = "it's \\ \x1b[31m \u202e\x9b \U000e0041\n\tend"
    command = Study(prompt=prompt, features=["1/2"]).command(labelled=False)
    assert not {char for char in command if is_hidden(char)} - {"\n", "\t"}
    words = f"for word in {command}; do printf '%s\\0' \"$word\"; done"
    told = subprocess.run(["bash", "-c", words], stdout=subprocess.PIPE, env={"LC_ALL": "C.UTF-8"}, check=True).stdout
    assert told.decode().split("\0")[3] == prompt
