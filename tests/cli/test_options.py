"""Options as they are read: models, SAEs and prompts, and one line for every mistake."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ..attribution.tiny import VOCAB, random_sae
from ..passes.models import CONTEXT
from .calling import PROMPT, Files, Run, assert_refused, damaged, missing, not_json, truncated, with_nan

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")


@pytest.mark.parametrize("ids", ["5 6 7", "5,6,7", "[5, 6, 7]", " 5  6 7 ", "5, 6, 7,"])
def test_ids_are_taken_exactly_as_they_are(run: Run, files: Files, ids: str) -> None:
    done = run("tokens", "--feature", "1/3", "--ids", ids, *files.options(), "--json")
    assert json.loads(done.out)["token_ids"] == [5, 6, 7]


def test_a_model_without_a_tokenizer_is_asked_by_ids(run: Run, files: Files) -> None:
    done = run("tokens", "--logit", "9", "--ids", "5 6 7", "--model", str(files.bare), "--json")
    document = json.loads(done.out)
    assert document["tokens"] == ["#5", "#6", "#7"]
    assert document["logit"] == {"token": "#9", "id": 9, "against": None}
    difference = run("tokens", "--logit-diff", "9", "8", "--ids", "5 6 7", "--model", str(files.bare), "--json")
    assert json.loads(difference.out)["logit"]["against"]["id"] == 8


def test_dtypes_are_passed_on(run: Run, files: Files) -> None:
    options = ["tokens", "--logit", "5", "--ids", "5 6", "--model", str(files.bare), "--json"]
    assert json.loads(run(*options, "--dtype", "float64").out)["dtype"] == "float64"
    assert json.loads(run(*options, "--dtype", "bfloat16", "--trace-dtype", "float32").out)["dtype"] == "float32"


def test_a_model_is_shared_out_as_options_say_and_answers_the_same(run: Run, files: Files, tmp_path: Path) -> None:
    options = ["tokens", "--logit", "9", "--ids", "5 6 7", "--model", str(files.bare), "--json"]
    away = tmp_path / "away"
    shared = run(*options, "--device-map", "auto", "--max-memory", "cpu=40KB", "--offload-folder", str(away))
    assert away.is_dir()
    found, expected = (json.loads(done.out)["targets"][0] for done in (shared, run(*options)))
    assert found["pre_activation"] == pytest.approx(expected["pre_activation"], rel=1e-5)
    inner = ["--model", str(files.bare.parent), "--subfolder", files.bare.name]
    assert json.loads(run(*options, *inner).out)["targets"][0] == expected


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--chat"], "came without a tokenizer|has no chat template"),
        (["--device-map", "auto", "--max-memory", "6GiB"], "such as cpu=6GiB or 0=20GiB, not '6GiB'"),
        (["--max-memory", "cpu=6GiB"], "go with a device_map"),
        (["--offload-folder", "x"], "go with a device_map"),
        (["--device-map", "auto", "--offload-folder", __file__], "cannot write .*: it is no folder"),
        (["--device-map", "auto", "--offload-folder", ""], "an empty name is no path"),
        (["--revision", "v2"], "which has no revisions"),
        (["--subfolder", "nowhere"], "nowhere has no config.json"),
    ],
)
def test_options_of_a_checkpoint_that_do_not_fit_are_refused(
    run: Run, files: Files, options: list[str], why: str
) -> None:
    done = run("tokens", "--logit", "9", "--ids", "5 6 7", "--model", str(files.bare), *options)
    assert done.status == 2
    assert re.search(why, done.err)
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--feature", "1/160", *PROMPT], "there is no feature 160: the SAE's features are 0 to 159"),
        (["--feature", "1/-1", *PROMPT], "is no feature; write LAYER/INDEX"),
        (["--feature", "nonsense", *PROMPT], "is no feature; write LAYER/INDEX"),
        (["--feature", "1.resid_post", *PROMPT], "is no feature; write LAYER/INDEX"),
        (["--feature", "1", *PROMPT], "is no feature; write LAYER/INDEX"),
        (["--feature", "", *PROMPT], "is no feature; write LAYER/INDEX"),
        (["--feature", "1.mlp_out/3", *PROMPT], "there is no SAE at 1.mlp_out"),
        (["--feature", "2/3", *PROMPT], "there is no SAE at layer 2; the layers are 1"),
        (["--feature", "1/3", "--prompt", ""], "the prompt is empty"),
        (["--feature", "1/3"], "give the text to look at with --prompt"),
        (["--feature", "1/3", *PROMPT, "--ids", "5"], "give the text to look at with --prompt"),
        (["--feature", "1/3", "--prompt", "." * CONTEXT], f"the prompt has {CONTEXT + 1} tokens"),
        (["--feature", "1/3", "--prompt", "caf\udce9"], "the prompt is not valid Unicode"),
        (["--feature", "1/3", *PROMPT, "--against", ""], "the prompt of --against is empty"),
        (["--feature", "1/3", *PROMPT, "--pos", "23"], "position 23 is outside the prompt"),
        (["--feature", "1/3", *PROMPT, "--pos", "-1"], "position -1 is outside the prompt"),
        (["--feature", "1/3", *PROMPT, "--pos", "last"], "--pos takes max, all or a position, not 'last'"),
        (["--feature", "1/3", *PROMPT, "--pos", "1.5"], "--pos takes max, all or a position"),
        (["--feature", "1/3", *PROMPT, "--pos", ""], "--pos takes max, all or a position"),
        (["--feature", "1/3", *PROMPT, "--pos", "0"], "the special token '<bos>'"),
        (["--feature", "1/3@4", *PROMPT, "--pos", "5"], "give one of them"),
        (["--feature", "1/3", *PROMPT, "--rule", ""], "unknown rule ''"),
        (["--feature", "1/3", *PROMPT, "--rule", "nonsense"], "unknown rule 'nonsense'; the rules are softmax"),
        (["--feature", "1/3", *PROMPT, "--temperature", "0"], "temperature must be greater than 0"),
        (
            ["--feature", "1/3", *PROMPT, "--temperature", "-1", "--rule", "half"],
            "temperature must be greater than 0",
        ),
        (["--feature", "1/3", *PROMPT, "--temperature", "nan"], "temperature must be"),
        (["--feature", "1/3", *PROMPT, "--temperature", "inf"], "temperature must be"),
        (["--feature", "1/3", *PROMPT, "--temperature", "hot"], "--temperature"),
        (["--feature", "1/3", *PROMPT, "--first-token", "nonsense"], "first_token must be"),
        (["--feature", "1/3", *PROMPT, "--by", "letter"], "choose token, word or sentence"),
        (["--feature", "1/3", *PROMPT, "--path", "gate"], "has no path 'gate'"),
        (["--feature", "1/3", *PROMPT, "--path", "nonsense"], "has no path 'nonsense'"),
        (["--feature", "1/3", *PROMPT, "--logit", " Paris"], "name one target"),
        (["--logit", " Paris", "--logit-diff", " Paris", " Rome", *PROMPT], "name one target"),
        (PROMPT, "name one target"),
        (["--logit", " marzipan", *PROMPT], "a logit is one token's"),
        (["--logit-diff", " Paris", "marzipan", *PROMPT], "a logit is one token's"),
        (["--logit", " Paris", *PROMPT, "--path", "gate"], "is for features of gated SAEs"),
        (["--logit", str(VOCAB), "--ids", "5 6"], "is not in the vocabulary"),
        (["--feature", "1/3", *PROMPT, "--ablate", "-1"], "--ablate takes the number of replacements"),
        (["--feature", "1/3", *PROMPT, "--ablate", "many"], "--ablate"),
        (["--feature", "1/3", *PROMPT, "--replace-from", __file__], "give --ablate, too"),
        (["--feature", "1/3", *PROMPT, "--ablate", "1", "--replace-from", "no/such.txt"], "cannot read no/such.txt"),
        (["--feature", "1/3", *PROMPT, "--ablate", "1", "--seed", "9" * 30], "a seed is a whole number"),
        (["--feature", "1/3", *PROMPT, "--top", "0"], "--top"),
        (["--feature", "1/3", "--ids", "5 x"], "--ids takes numbers"),
        (["--feature", "1/3", "--ids", ""], "--ids takes numbers"),
        (["--feature", "1/3", "--ids", "5 -6"], "--ids takes numbers"),
        (["--feature", "1/3", "--ids", f"5 {VOCAB}"], f"token id {VOCAB} is not in the vocabulary"),
        (["--feature", "1/3", *PROMPT, "--dtype", "float8"], "unknown dtype 'float8'"),
        (["--feature", "1/3", *PROMPT, "--trace-dtype", "float8"], "unknown dtype 'float8'"),
        (["--feature", "1/3", *PROMPT, "--trace-dtype", "float16"], "lower than the model's"),
        (["--feature", "1/3", *PROMPT, "--device", "toaster"], "device 'toaster' cannot be used"),
        (["--feature", "1/3", *PROMPT, "--nonsense"], "No such option"),
        (["--feature", "1/3", *PROMPT, "--promt", "x"], "--prompt"),
        (["--feature", "1/3", *PROMPT, "stray"], "stray"),
        (["--feature", "1/3", "--prompt"], "--prompt"),
        (["--logit-diff", " Paris"], "--logit-diff"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_mistake_is_one_line_and_status_2(
    run: Run, files: Files, options: list[str], why: str, form: list[str]
) -> None:
    if form and options[-1] == "--prompt":
        form = []
    assert_refused(run("tokens", *files.options(), *form, *options), why)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--layer", "7", *PROMPT], "there is no SAE at layer 7; the layers are 0, 1"),
        (["--layer", "-1", *PROMPT], "there is no SAE at layer -1"),
        (["--layer", "one", *PROMPT], "--layer"),
        ([], "give the text to look at with --prompt"),
        (["--prompt", ""], "the prompt is empty"),
        (["--feature", "1/3", *PROMPT], "No such option"),
    ],
)
def test_a_mistake_in_features_is_one_line_and_status_2(run: Run, files: Files, options: list[str], why: str) -> None:
    assert_refused(run("features", *files.options("saes"), *options), why)


def test_saes_that_are_not_there_are_told_of(run: Run, files: Files) -> None:
    question = ["-f", "1/3", *PROMPT, "--model", str(files.model)]
    assert_refused(run("tokens", *question), "no SAEs are loaded; name some with --sae")
    assert_refused(run("features", *PROMPT, "--model", str(files.model)), "no SAEs are loaded")
    assert_refused(run("tokens", *question, "--sae", "no-such-release"), "sae-lens release 'no-such-release'")
    assert_refused(run("tokens", *question, "--sae", "./missing"), "there is no SAE directory missing")
    assert_refused(run("tokens", *question, "--sae", str(files.model)), "holds no SAE")
    assert_refused(
        run("tokens", *question, "--sae", "gpt2-small-res-jb", "--sae-id", "nonsense"), "has no SAE 'nonsense'"
    )
    assert_refused(
        run("tokens", "-f", "99/3", *PROMPT, "--model", str(files.model), "--sae", "gpt2-small-res-jb"), "99"
    )


def test_the_format_of_a_directory_is_named(run: Run, files: Files) -> None:
    question = ["features", *PROMPT, "--json", *files.options()]
    named = run(*question, "--sae-format", "sae-lens")
    assert named.status == 0
    assert named.out == run(*question).out
    assert_refused(run(*question, "--sae-format", "sparsify"), "holds no SAE: neither cfg.json and sae.safetensors")
    assert_refused(run(*question, "--sae-format", "saelens"), "those that are understood are sparsify,")
    assert_refused(run(*question[:3], "--sae-format", "sparsify"), "name that with --sae")


def test_an_sae_of_another_width_is_told_of(run: Run, files: Files, tmp_path: Path) -> None:
    random_sae(d_in=16).save_model(tmp_path / "narrow")
    question = ["tokens", "-f", "1/3", *PROMPT, "--model", str(files.model)]
    assert_refused(run(*question, "--sae", str(tmp_path / "narrow")), "reads 16 dimensions, but resid_post of")


@pytest.mark.parametrize("change", [missing, truncated, with_nan])
def test_a_damaged_sae_is_told_of(run: Run, files: Files, tmp_path: Path, change: Any) -> None:
    sae = damaged(files.fitting, tmp_path / "sae", "sae_weights.safetensors", change)
    for command in (["tokens", "-f", "1/3"], ["features"]):
        assert_refused(run(*command, *PROMPT, "--model", str(files.model), "--sae", sae), "sae")


@pytest.mark.parametrize("change", [missing, not_json])
def test_an_sae_without_its_configuration_is_told_of(run: Run, files: Files, tmp_path: Path, change: Any) -> None:
    sae = damaged(files.fitting, tmp_path / "sae", "cfg.json", change)
    assert_refused(run("features", *PROMPT, "--model", str(files.model), "--sae", sae), "cfg.json")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", missing), ("model.safetensors", truncated), ("model.safetensors", with_nan),
        ("config.json", missing), ("config.json", not_json), ("tokenizer.json", not_json),
    ],
)  # fmt: skip
def test_a_damaged_model_is_told_of(run: Run, files: Files, tmp_path: Path, name: str, change: Any) -> None:
    broken = damaged(files.model, tmp_path / "model", name, change)
    assert_refused(run("tokens", "-f", "1/3", *PROMPT, "--model", broken, "--sae", str(files.fitting)))


def test_a_model_that_is_not_there_is_told_of(run: Run, files: Files, tmp_path: Path) -> None:
    question = ["tokens", "-f", "1/3", *PROMPT, "--sae", str(files.fitting), "--model"]
    assert_refused(run(*question, str(tmp_path / "missing")), "there is no directory")
    assert_refused(run(*question, str(files.model / "config.json")), "is a file; a model is a directory")
    assert_refused(run(*question, str(files.fitting)), "no config.json")
    assert_refused(run(*question, "not a model"), "'not a model' is neither a directory nor a hub id")
    assert_refused(run(*question, ""))


def test_a_text_for_a_model_without_a_tokenizer_is_told_of(run: Run, files: Files) -> None:
    assert_refused(run("tokens", "--logit", "5", *PROMPT, "--model", str(files.bare)), "its prompts are token ids")
