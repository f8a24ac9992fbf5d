"""The questions: documents and tables on stdout, everything else on stderr."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import depass_sae as ds
from depass_sae.view.words import signed

from ..attribution.tiny import HOSTILE, TEXT, model, tokenizer
from ..passes.models import CONTEXT, D_MLP, D_MODEL, HEADS, LAYERS
from .calling import PROMPT, Files, Run, assert_refused, missing, not_json, truncated

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")


# ---------------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize(
    ("options", "question"),
    [
        (["--feature", "1/3"], {"feature": "1/3"}),
        (["--feature", "1/3@5"], {"feature": "1/3", "pos": 5}),
        (["--feature", "1.resid_post/3", "--pos", "all"], {"feature": "1.resid_post/3", "pos": "all"}),
        (["-f", "1/3", "--pos", "max", "--rule", "half"], {"feature": "1/3", "pos": "max", "rule": "half"}),
        (["-f", "1/3", "--pos", "4", "--by", "word"], {"feature": "1/3", "pos": 4, "by": "word"}),
        (
            ["-f", "1/3", "--temperature", "0.5", "--first-token", "compete"],
            {"feature": "1/3", "temperature": 0.5, "first_token": "compete"},
        ),
        (["-f", "1/3", "--ablate", "2", "--seed", "4"], {"feature": "1/3", "ablate": 2, "seed": 4}),
        (
            ["-f", "1/3", "--ablate", "2", "--replace-from", __file__],
            {"feature": "1/3", "ablate": 2, "replace_from": __file__},
        ),
        (["--logit", " Paris"], {"logit": " Paris"}),
        (["--logit-diff", " Paris", " Rome", "--pos", "3"], {"logit_diff": (" Paris", " Rome"), "pos": 3}),
    ],
)
def test_json_is_the_results_own_document_and_all_of_stdout(
    run: Run, files: Files, options: list[str], question: dict[str, Any]
) -> None:
    done = run("tokens", "--prompt", TEXT, *files.options(), *options, "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == ds.load(files.model, saes=files.fitting).attribute_tokens(TEXT, **question).to_dict()


def test_features_as_json_is_the_reports_own_document(run: Run, files: Files) -> None:
    lm = ds.load(files.model, saes=files.saes)
    every = run("features", "--prompt", TEXT, *files.options("saes"), "--json")
    assert json.loads(every.out) == lm.features(TEXT).to_dict()
    one = run("features", "-p", TEXT, *files.options("saes"), "--layer", "0", "--json")
    assert json.loads(one.out) == lm.features(TEXT, layer=0).to_dict()


def test_a_contrast_as_json_is_its_own_document(run: Run, files: Files) -> None:
    done = run("tokens", "-f", "1/3", "-p", TEXT, "--against", "supply", *files.options(), "--json")
    lm = ds.load(files.model, saes=files.fitting)
    assert json.loads(done.out) == lm.contrast(TEXT, "supply", "1/3").to_dict()


def test_the_gate_of_a_gated_sae_can_be_asked(run: Run, files: Files) -> None:
    done = run("tokens", "-f", "1.resid_post/3", "-p", TEXT, *files.options("saes"), "--path", "gate", "--json")
    assert json.loads(done.out)["feature"]["path"] == "gate"


def test_odd_texts_survive_json(run: Run, files: Files) -> None:
    text = "a" + "".join(HOSTILE) + "é東🙂"
    done = run("tokens", "-f", "1/3", "--prompt", text, *files.options(), "--json")
    assert json.loads(done.out)["prompt"] == text
    assert "\x1b" not in done.out


# -------------------------------------------------------------------------------------------------------------- tables


def test_tokens_prints_the_prompt_and_a_table(run: Run, files: Files) -> None:
    done = run("tokens", "-f", "1/3", "-p", TEXT, *files.options(), "--top", "1")
    att = ds.load(files.model, saes=files.fitting).attribute_tokens(TEXT, "1/3")
    assert (done.status, done.err) == (0, "")
    assert " of feature 1/3 at " in done.out.splitlines()[0]
    assert "".join(att.tokens[: att.target.pos + 1]) in done.out.splitlines()
    assert signed(att.pre_activation) in done.out
    assert f"{att.target.pos - 1} others" in done.out
    assert "\x1b" not in done.out  # stdout is no terminal here


def test_features_prints_a_table_per_sae(run: Run, files: Files) -> None:
    done = run("features", "-p", TEXT, *files.options("saes"), "--top", "2")
    assert done.status == 0
    for title in ("layer 0, resid_post", "layer 1, attn_out", "layer 1, resid_post"):
        assert title in done.out
    assert "1.attn_out/" in done.out
    assert "supply (4)" in done.out


def test_features_can_be_sorted_by_what_is_specific(run: Run, files: Files) -> None:
    done = run("features", "-p", TEXT, *files.options(), "--sort", "specific", "--json")
    assert json.loads(done.out) == ds.load(files.model, saes=files.fitting).features(TEXT, sort="specific").to_dict()
    assert "above their usual" in run("features", "-p", TEXT, *files.options(), "--sort", "specific").out
    assert_refused(run("features", "-p", TEXT, *files.options(), "--sort", "size"), "activation or specific")


def test_a_table_that_no_window_shows_is_as_wide_as_it_needs_to_be(
    run: Run, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    (layer,) = ds.load(files.model, saes=files.fitting).features(TEXT).layers
    done = run("features", "-p", TEXT, *files.options(), "--top", "40")
    for at in layer.positions[1:]:
        (line,) = [line for line in done.out.splitlines() if f"({at.pos})" in line]
        assert all(f"{activation:.2f}" in line for activation in at.activations)
    assert "…" not in done.out


def test_words_with_characters_of_several_tokens_are_whole(run: Run, files: Files) -> None:
    options = ["--logit", " Paris", "-p", "✨ naïve 東", "--by", "word", *files.options()]
    done = run("tokens", *options, "--json")
    sources = json.loads(done.out)["targets"][0]["contributions"]
    texts = [source["token"].strip() for source in sources]
    assert {"✨", "naïve", "東"} <= set(texts), texts
    assert "\ufffd" not in done.out
    assert "naïve (" in run("tokens", *options).out


def test_a_contrast_prints_a_table_of_differences(run: Run, files: Files) -> None:
    prompts = ["-p", "supply and demand", "--against", "supply and price"]
    done = run("tokens", "--logit", " Paris", *prompts, *files.options())
    assert (done.status, done.err) == (0, "")
    assert "difference" in done.out
    assert "price (3)" in done.out


def test_odd_texts_are_harmless_in_tables(run: Run, files: Files) -> None:
    text = "a" + "".join(HOSTILE)
    for pos in range(2, 2 + len(HOSTILE)):
        done = run("tokens", "-f", "1/3", "-p", text, "--pos", str(pos), *files.options())
        assert done.status == 0
        assert "\x1b" not in done.out
    assert "[/bold] (5)" in done.out


def test_measured_effects_are_in_the_table(run: Run, files: Files) -> None:
    done = run("tokens", "-f", "1/3", "-p", TEXT, *files.options(), "--ablate", "2")
    assert "when replaced" in done.out
    assert "each source replaced by 2 random tokens" in " ".join(done.out.split())


# ------------------------------------------------------------------------------------------------------------ warnings


def test_an_answer_whose_parts_miss_the_whole_is_warned_of_on_stderr_in_one_line(run, files) -> None:
    def steer(module: nn.Module, _args: object, out: torch.Tensor) -> torch.Tensor | None:
        # From the first question on: at the self-check's 8 tokens, while loading, all is well.
        return 2 * out if isinstance(module, LlamaDecoderLayer) and out.shape[1] != 8 else None

    handle = register_module_forward_hook(steer)
    try:
        done = run("tokens", *files.options(), "--feature", "1/3", "--prompt", TEXT, "--json")
    finally:
        handle.remove()
    assert done.status == 0
    assert json.loads(done.out)["targets"][0]["completeness_error"] > 0.1
    (line,) = done.err.splitlines()
    assert line.startswith("warning: feature 1/3 at position")
    assert "is a hook or an adapter active on the model" in line


def test_two_start_tokens_are_warned_of_on_stderr(run: Run, files: Files) -> None:
    done = run("tokens", "-f", "1/3", "--ids", "0 0 80 90", *files.options(), "--json")
    assert done.status == 0
    assert "warning: the prompt begins with two start tokens ('<bos>')" in done.err
    assert json.loads(done.out)["token_ids"] == [0, 0, 80, 90]


def test_an_sae_that_does_not_fit_is_warned_of_on_stderr_and_the_document_stays_whole(run: Run, files: Files) -> None:
    for command in (["features"], ["tokens", "-f", "0/3"]):
        done = run(*command, "-p", TEXT, *files.options("saes"), "--json")
        assert done.status == 0
        assert json.loads(done.out)["schema_version"] == 1
        lines = done.err.splitlines()
        assert len(lines) == (3 if command == ["features"] else 1)
        for line in lines:
            assert line.startswith("warning: ")
            assert line.endswith("it seems to belong to another model, layer, hook or scale.")


def test_a_feature_that_fires_nowhere_is_noted_on_stderr(run: Run, files: Files) -> None:
    done = run("tokens", "-f", "1/159", "-p", TEXT, *files.options(), "--json")
    assert done.status == 0
    assert done.err.startswith("feature 1/159 fires nowhere on this prompt; shown is its largest pre-activation")
    assert json.loads(done.out)["note"] == done.err.strip()


def test_a_token_that_is_hardly_meant_is_noted_on_stderr(run: Run, files: Files, tmp_path: Path) -> None:
    sure = copy.deepcopy(model())
    with torch.no_grad():
        last = sure.model(torch.tensor([tokenizer()(TEXT)["input_ids"]])).last_hidden_state[0, -1]
        sure.lm_head.weight[tokenizer().get_vocab()["ĠParis"]] = 10 * last / last.norm()
    sure.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    options = ["-p", TEXT, "--model", str(tmp_path), "--sae", str(files.fitting)]
    for command in (["tokens"], ["graph", "--max-nodes", "12"]):
        done = run(*command, *options, "--logit", "Paris", "--json")
        assert done.err.startswith("'Paris' is another token than ' Paris', which the model gives a probability of ")
        assert done.err.count("\n") == 1
        assert run(*command, *options, "--logit", " Paris", "--json").err == ""


@pytest.mark.parametrize("command", ["heads", "modules", "neurons"])
def test_components_print_a_table_or_their_own_document(run: Run, files: Files, command: str) -> None:
    question = [command, "-f", "1/3", "-p", TEXT, *files.options()]
    table, document = run(*question), run(*question, "--json")
    lm = ds.load(files.model, saes=files.fitting)
    found = getattr(lm, f"attribute_{command}")(TEXT, "1/3")
    assert (table.status, table.err, document.status, document.err) == (0, "", 0, "")
    assert "feature 1/3 at " in table.out
    assert json.loads(document.out) == found.to_dict()
    assert_refused(run(*question, "--pos", "99"), "outside the prompt")
    assert_refused(run(*question, "--by", "word"), "No such option")


# ------------------------------------------------------------------------- heads, modules, neurons: every layer's row


def test_heads_by_token_are_their_own_document_and_a_second_table(run: Run, files: Files) -> None:
    question = ["heads", "-f", "1/3", "-p", TEXT, "--by-token", *files.options()]
    table, document = run(*question), run(*question, "--json")
    found = ds.load(files.model, saes=files.fitting).attribute_heads(TEXT, "1/3", by_token=True)
    assert (table.status, table.err, document.status, document.err) == (0, "", 0, "")
    assert "the largest heads, by the token that they carry" in table.out
    assert json.loads(document.out) == found.to_dict()
    for head in json.loads(document.out)["targets"][0]["heads"]:
        values = [entry["value"] for entry in (*head["by_token"], *head["other"])]
        assert sum(values) == pytest.approx(head["value"], abs=1e-5 * max(map(abs, values)))


@pytest.mark.parametrize(
    ("options", "question"),
    [
        (["--feature", "1/3@5"], {"feature": "1/3", "pos": 5}),
        (["--feature", "1.resid_post/3", "--pos", "all"], {"feature": "1.resid_post/3", "pos": "all"}),
        (
            ["-f", "1/3", "--rule", "softmax", "--temperature", "0.5"],
            {"feature": "1/3", "rule": "softmax", "temperature": 0.5},
        ),
        (
            ["-f", "1/3", "--rule", "max", "--first-token", "compete"],
            {"feature": "1/3", "rule": "max", "first_token": "compete"},
        ),
        (["--logit", " Paris"], {"logit": " Paris"}),
        (["--logit-diff", " Paris", " Rome", "--pos", "3"], {"logit_diff": (" Paris", " Rome"), "pos": 3}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["heads", "modules", "neurons"])
def test_every_row_of_a_document_sums_to_the_pre_activation(
    run: Run, files: Files, command: str, options: list[str], question: dict[str, Any]
) -> None:
    done = run(command, "--prompt", TEXT, *files.options(), *options, "--json")
    document = json.loads(done.out)
    assert done.status == 0
    assert done.err == ("" if document["note"] is None else f"{document['note']}\n")
    lm = ds.load(files.model, saes=files.fitting)
    assert document == getattr(lm, f"attribute_{command}")(TEXT, **question).to_dict()
    for target in document["targets"]:
        assert [row["layer"] for row in target["rest"]] == sorted(row["layer"] for row in target["rest"])
        assert {row["layer"] for row in target["rest"]} == set(range(2 if "feature" in question else LAYERS))
        for row in target["rest"]:
            same = [p for p in target[command] if p["layer"] == row["layer"] and p.get("module") == row.get("module")]
            assert len(same) == {"heads": HEADS, "modules": 1, "neurons": D_MLP}[command]
            values = [
                *(p["value"] for p in same),
                row["value"],
                *(o["value"] for o in row["other"]),
                target["constant"],
            ]
            size = max(map(abs, (*values, target["pre_activation"])))
            assert abs(sum(values) - target["pre_activation"]) <= 1e-4 * size
        assert target["completeness_error"] <= 1e-4


# ------------------------------------------------------------------------------------------------ subspace, attention


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix") / "spaces.safetensors"
    rows = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(0))
    save_file({"b": rows[:3].contiguous(), "a": rows[3:].contiguous()}, path)
    return path


def test_directions_of_features_are_subspaces(run: Run, files: Files) -> None:
    question = ["subspace", "-f", "1/3", "-p", TEXT, *files.options(), "--direction", "1/3", "--direction", "1/7"]
    table, document = run(*question), run(*question, "--json")
    lm = ds.load(files.model, saes=files.fitting)
    space = ds.Subspace([lm.saes[1].W_dec[i][None] for i in (3, 7)], 1, "resid_post")
    found = lm.attribute_subspace(TEXT, "1/3", subspace=space, names=["1/3", "1/7"])
    assert (table.status, table.err, document.status, document.err) == (0, "", 0, "")
    assert json.loads(document.out) == found.to_dict()
    assert "1/3 (rank 1)" in table.out
    assert "off all of them" in table.out
    assert "pre-activation" in table.out


def test_the_tensors_of_a_file_are_subspaces(run: Run, files: Files, matrix: Path) -> None:
    options = ["--matrix", str(matrix), "--at", "0.resid_mid", "--rank", "2"]
    done = run("subspace", "-f", "1/3", "-p", TEXT, *files.options(), *options, "--rule", "softmax", "--json")
    tensors = load_file(matrix)
    lm = ds.load(files.model, saes=files.fitting)
    space = ds.Subspace([tensors["a"], tensors["b"]], 0, "resid_mid", rank=2)
    found = lm.attribute_subspace(TEXT, "1/3", subspace=space, names=["a", "b"], rule="softmax")
    document = json.loads(done.out)
    assert (done.status, done.err) == (0, "")
    assert document == found.to_dict()
    (target,) = document["targets"]
    values = [entry["value"] for entry in (*target["subspaces"], *target["other"])]
    assert sum(values) + target["constant"] == pytest.approx(target["pre_activation"], abs=1e-4 * max(map(abs, values)))


def test_a_logit_of_a_model_without_saes_has_subspaces_too(run: Run, files: Files, matrix: Path) -> None:
    options = ["--matrix", str(matrix), "--at", "2.resid_pre", "--model", str(files.bare), "--json"]
    done = run("subspace", "--logit", "9", "--ids", "5 6 7", *options)
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["logit"]["id"] == 9


@pytest.mark.parametrize("against", [None, "mean", "uniform", "2"])
@pytest.mark.parametrize("by", ["tokens", "features"])
def test_attention_prints_a_table_or_its_own_document(run: Run, files: Files, by: str, against: str | None) -> None:
    pair = ["--layer", "2", "--head", "1", "--query", "6", "--key", "4", "--prompt", TEXT, "--by", by]
    question = ["attention", *pair, *files.options(), *([] if against is None else ["--against", against])]
    table, document = run(*question, "--top", "40"), run(*question, "--json")
    lm = ds.load(files.model, saes=files.fitting)
    held: Any = int(against) if against == "2" else against
    found = lm.attribute_attention(TEXT, 2, 1, 6, 4, by=by, against=held)  # type: ignore[arg-type]
    assert (table.status, table.err, document.status, document.err) == (0, "", 0, "")
    assert json.loads(document.out) == found.to_dict()
    assert sum(map(sum, json.loads(document.out)["values"])) == pytest.approx(found.score, rel=1e-3, abs=1e-3)
    assert "layer 2 head 1: " in table.out
    assert "looking at" in table.out


def test_downstream_prints_a_table_or_its_own_document(run: Run, files: Files) -> None:
    question = ["downstream", "token:4", "--prompt", TEXT, *files.options(), "--sort", "effect"]
    table, document = run(*question, "--top", "4"), run(*question, "--json")
    found = ds.load(files.model, saes=files.fitting).downstream(TEXT, "token:4", sort="effect")
    assert (table.status, table.err, document.status, document.err) == (0, "", 0, "")
    assert json.loads(document.out) == found.to_dict()
    assert "drives" in table.out
    first = found.ordered()[0]
    assert f"{first.layer}/{first.index}@{first.pos}" in table.out


def test_steer_prints_a_table_or_its_own_document(run: Run, files: Files) -> None:
    changes = ["--set", "1/3@4=1.5", "--scale", "neuron:0/7=2", "--add", "1/5=0.5", "--set", "token:3= the"]
    question = ["steer", *changes, "--prompt", TEXT, *files.options(), "--generate", "2"]
    table, document = run(*question, "--top", "4"), run(*question, "--json")
    lm = ds.load(files.model, saes=files.fitting)
    wanted: dict[str, Any] = {"1/3@4": 1.5, "token:3": " the"}
    found = lm.intervene(TEXT, wanted, scale={"neuron:0/7": 2}, add={"1/5": 0.5}, generate=2)
    assert (table.status, table.err, document.status, document.err) == (0, "", 0, "")
    assert json.loads(document.out) == found.to_dict()
    assert "it goes on, after: " in table.out
    twice = run(*question, "--set", "1/3@4=2")
    assert (twice.status, "changed twice" in twice.err) == (2, True)


def test_steer_asks_every_prompt_of_a_file_and_draws(run: Run, files: Files, tmp_path: Path) -> None:
    texts = [TEXT, "supply and demand"]
    (tmp_path / "p.txt").write_text("\n".join(texts))
    question = ["steer", "--set", "1/3=9", "--add", "1/5=0.5", "--prompts", str(tmp_path / "p.txt"), *files.options()]
    drawing = ["--generate", "3", "--temperature", "1.5", "--top-k", "9", "--seed", "2"]
    table, document = run(*question, *drawing, "--top", "4"), run(*question, *drawing, "--json")
    lm = ds.load(files.model, saes=files.fitting)
    how: dict[str, Any] = {"generate": 3, "temperature": 1.5, "top_k": 9, "seed": 2}
    found = lm.intervene_batch(texts, {"1/3": 9}, add={"1/5": 0.5}, **how)
    assert (table.status, document.status, document.err) == (0, 0, "")
    assert json.loads(document.out)["prompts"] == [one.to_dict() for one in found]
    assert table.out.count("it goes on, after: ") == 2
    done = run(*question, "--out", str(tmp_path / "p.html"), "--out", str(tmp_path / "p.csv"))
    assert done.status == 0
    assert "in 2 prompts" in (tmp_path / "p.html").read_text()
    assert (tmp_path / "p.csv").read_text().startswith("prompt,name,")


def test_attention_says_where_there_is_nothing_to_hold_a_key_against(run: Run, files: Files) -> None:
    pair = ["-l", "0", "-H", "1", "-q", "0", "-k", "0", "--against", "mean"]
    done = run("attention", *pair, "--ids", "5 6 7", "--model", str(files.bare), "--json")
    assert done.status == 0
    assert done.err == json.loads(done.out)["note"] + "\n" != "\n"


def test_attention_by_tokens_needs_no_sae(run: Run, files: Files) -> None:
    pair = ["-l", "0", "-H", "1", "-q", "2", "-k", "0"]
    done = run("attention", *pair, "--ids", "5 6 7", "--model", str(files.bare), "--rule", "half", "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["rule"] == "half"


PAIR = ["-l", "2", "-H", "1", "-q", "6", "-k", "4"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["heads", "-f", "1/3", *PROMPT, "--by-token", "--rule", "softmax"], "heads are split by token with the rules"),
        (["heads", "-f", "1/160", *PROMPT], "there is no feature 160"),
        (["heads", *PROMPT], "name one target"),
        (["heads", "-f", "1/3"], "give the text to look at with --prompt"),
        (["heads", "-f", "1/3", *PROMPT, "--rule", "nonsense"], "unknown rule 'nonsense'"),
        (["heads", "-f", "1/3", *PROMPT, "--temperature", "0"], "temperature must be greater than 0"),
        (["modules", "-f", "1/3", *PROMPT, "--by-token"], "No such option"),
        (["modules", "-f", "1/3", *PROMPT, "--pos", "99"], "outside the prompt"),
        (["neurons", "-f", "1/3", *PROMPT, "--top", "0"], "--top"),
        (["neurons", "-f", "2/3", *PROMPT], "there is no SAE at layer 2"),
        (["subspace", "-f", "1/3", *PROMPT], "name the subspaces: --direction LAYER/INDEX"),
        (["subspace", "-f", "1/3", *PROMPT, "--direction", "1/3", "--matrix", "x"], "name the subspaces"),
        (["subspace", "-f", "1/3", *PROMPT, "--direction", "1/160"], "there is no feature 160"),
        (["subspace", "-f", "1/3", *PROMPT, "--direction", "nonsense"], "is no feature"),
        (["subspace", "-f", "1/3", *PROMPT, "--direction", "1/3", "--direction", "1/3"], "no direction of its own"),
        (["subspace", "-f", "1/3", *PROMPT, "--direction", "1/3", "--at", "2.resid_post"], "lies before"),
        (["subspace", "-f", "1/3", *PROMPT, "--direction", "1/3", "--at", "9.resid_post"], "there is no layer 9"),
        (["subspace", "-f", "1/3", *PROMPT, "--direction", "1/3", "--at", "1.mlp_out"], "not at mlp_out"),
        (["subspace", "-f", "1/3", *PROMPT, "--direction", "1/3", "--at", "1"], "is not a hook"),
        (["subspace", "-f", "1/3", *PROMPT, "--direction", "1/3", "--rank", "0"], "--rank"),
        (["subspace", "-f", "1/3", *PROMPT, "--matrix", "no.safetensors", "--at", "1.resid_pre"], "cannot be read"),
        (["subspace", "--direction", "1/3", *PROMPT], "name one target"),
        (["attention", *PAIR[2:], *PROMPT], "--layer"),
        (["attention", *PAIR], "give the text to look at with --prompt"),
        (["attention", *PAIR, *PROMPT, "--head", "9"], "there is no head 9; layer 2 has heads 0 to 3"),
        (["attention", *PAIR, *PROMPT, "--layer", "3"], "there is no layer 3"),
        (["attention", *PAIR, *PROMPT, "--key", "7"], "key 7 cannot be seen from query 6"),
        (["attention", *PAIR, *PROMPT, "--query", "99"], "query 99 is outside the prompt"),
        (["attention", *PAIR, *PROMPT, "--query", "last"], "--query"),
        (["attention", *PAIR, *PROMPT, "--against", "median"], "against is mean, uniform or a position"),
        (["attention", *PAIR, *PROMPT, "--against", "9"], "against 9 cannot be seen from query 6"),
        (["attention", *PAIR, *PROMPT, "--by", "heads"], "split by tokens or by features, not by 'heads'"),
        (["attention", *PAIR, *PROMPT, "--by", "features", "--layer", "1"], "where there is an SAE at 1.resid_pre"),
        (["attention", *PAIR, *PROMPT, "--rule", "nonsense"], "unknown rule 'nonsense'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_mistake_in_any_other_question_is_one_line_and_status_2(
    run: Run, files: Files, arguments: list[str], why: str, form: list[str]
) -> None:
    assert_refused(run(*arguments, *files.options(), *form), why)


def save(path: Path, tensors: dict[str, Any]) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({}, "a subspace needs a matrix of rows that span it"),
        ({"a": torch.ones(D_MODEL)}, f"rows of {D_MODEL} entries, not by [{D_MODEL}]"),
        ({"a": torch.ones(2, 5)}, f"rows of {D_MODEL} entries, not by [2, 5]"),
        ({"a": torch.zeros(2, D_MODEL)}, "no direction of its own"),
        ({"a": torch.full((2, D_MODEL), torch.nan)}, "NaN or infinite entries"),
    ],
)
def test_a_file_that_holds_no_subspace_is_told_of(
    run: Run, files: Files, tmp_path: Path, tensors: dict[str, Any], why: str
) -> None:
    path = save(tmp_path / "spaces.safetensors", tensors)
    question = ["subspace", "-f", "1/3", *PROMPT, *files.options(), "--matrix", str(path)]
    assert_refused(run(*question, "--at", "1.resid_pre"), why)
    assert_refused(run(*question), "--at says where the matrix's subspace lies")


@pytest.mark.parametrize("damage", [truncated, not_json, missing])
def test_a_damaged_matrix_is_told_of(run: Run, files: Files, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = save(tmp_path / "spaces.safetensors", {"a": torch.ones(99, D_MODEL)})
    damage(path)
    options = ["--matrix", str(path), "--at", "1.resid_pre"]
    assert_refused(run("subspace", "-f", "1/3", *PROMPT, *files.options(), *options), "cannot be read as safetensors")
    assert_refused(
        run("subspace", "-f", "1/3", *PROMPT, *files.options(), "--matrix", str(tmp_path), "--at", "1.resid_pre")
    )


# ------------------------------------------------------------------------------------------------------ several prompts

TEXTS = ["supply and demand", TEXT, "Mary gave John the price"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(f"{json.dumps({'text': text})}\n\n" for text in TEXTS))
    return str(path)


@pytest.fixture(scope="module")
def lm(files: Files) -> ds.LM:
    return ds.load(files.model, saes=files.fitting)


@pytest.mark.parametrize(
    ("options", "question"),
    [
        (["-f", "1/3"], {"feature": "1/3"}),
        (["-f", "1/3", "--pos", "all", "--by", "word"], {"feature": "1/3", "pos": "all", "by": "word"}),
        (["--logit", " Paris", "--by-depth"], {"logit": " Paris", "by_depth": True}),
        (["-f", "1/3", "--rule", "softmax", "--ablate", "1"], {"feature": "1/3", "rule": "softmax", "ablate": 1}),
    ],
)
def test_tokens_of_a_file_of_prompts_are_what_each_alone_gives(
    run: Run, files: Files, several: str, lm: ds.LM, options: list[str], question: dict[str, Any]
) -> None:
    document = json.loads(run("tokens", "--prompts", several, *files.options(), *options, "--json").out)
    assert list(document) == ["schema_version", "prompts"]
    assert [found["prompt"] for found in document["prompts"]] == TEXTS
    assert document["prompts"] == [found.to_dict() for found in lm.attribute_tokens_batch(TEXTS, **question)]


def test_of_several_prompts_the_answer_and_the_tokens_are_shown_and_tables_where_rows_are_asked_for(
    run: Run, files: Files, several: str
) -> None:
    question = ["tokens", "--logit", " Paris", "--prompts", several, *files.options()]
    brief, full = run(*question), run(*question, "--top", "2")
    for number, text in enumerate(TEXTS, start=1):
        assert f"prompt {number}\n" in brief.out
        assert f"<bos>{text}" in brief.out
    assert brief.out.count(" of logit ' Paris' at ") + brief.out.count(" contributes ") >= len(TEXTS)
    assert "constant" not in brief.out
    assert full.out.count("constant") == len(TEXTS)
    assert full.out.count("source token") == len(TEXTS)


def test_features_of_a_file_of_prompts_are_those_of_each(run: Run, files: Files, several: str, lm: ds.LM) -> None:
    options = ["--prompts", several, *files.options(), "--layer", "1", "--sort", "specific"]
    document = json.loads(run("features", *options, "--json").out)
    assert document["prompts"] == [lm.features(text, 1, "specific").to_dict() for text in TEXTS]
    assert run("features", *options).out.count("layer 1, resid_post") == len(TEXTS)


@pytest.mark.parametrize("command", ["heads", "modules", "neurons"])
def test_components_of_a_file_of_prompts_are_their_importance(
    run: Run, files: Files, several: str, lm: ds.LM, command: str
) -> None:
    question = [command, "-f", "1/9", "--prompts", several, *files.options()]
    found = lm.importance(TEXTS, "1/9", of=command)
    assert json.loads(run(*question, "--json").out) == found.to_dict()
    assert f"over {len(found.prompts)} prompts" in run(*question).out


@pytest.mark.parametrize("command", ["heads", "modules", "neurons"])
def test_effects_and_orders_are_asked_for_by_options(
    run: Run, files: Files, several: str, lm: ds.LM, command: str
) -> None:
    question = [command, "-f", "1/9", *files.options()]
    ask = getattr(lm, f"attribute_{command}")
    for options, settings in (
        (["--effects"], {"effects": True}),
        (["--sort", "effect"], {"sort": "effect"}),
        (["--sort=contribution"], {"sort": "contribution"}),
    ):
        found = json.loads(run(*question, "-p", TEXT, *options, "--json").out)
        assert found == ask(TEXT, "1/9", **settings).to_dict()
    shown = run(*question, "-p", TEXT, "--sort", "effect").out
    assert "has the largest effect on feature 1/9" in " ".join(shown.split())
    assert "effects do not add up to anything" in " ".join(shown.split())
    document = json.loads(run(*question, "--prompts", several, "--sort", "effect", "--json").out)
    assert document == lm.importance(TEXTS, "1/9", of=command, sort="effect").to_dict()


def test_what_has_to_be_said_of_one_of_several_prompts_names_it(run: Run, files: Files, several: str) -> None:
    done = run("tokens", "-f", "1/159", "--prompts", several, *files.options(), "--json")
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["prompt 1", "prompt 2", "prompt 3"]
    assert all("fires nowhere" in line for line in done.err.splitlines())


def test_a_prompt_of_a_file_that_the_model_does_not_take_is_named(run: Run, files: Files, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(f"short\n{'.' * CONTEXT}\n")
    for command in (["features"], ["tokens", "-f", "1/3"], ["heads", "-f", "1/3"]):
        done = run(*command, "--prompts", str(path), *files.options())
        assert_refused(done, f"prompt 2 of --prompts: the prompt has {CONTEXT + 1} tokens")


def test_shares_by_depth_are_one_more_map_and_in_the_document(run: Run, files: Files, lm: ds.LM) -> None:
    question = ["tokens", "-f", "1/3", "-p", TEXT, "--by-depth", *files.options()]
    assert ", by depth\n" in run(*question).out
    assert json.loads(run(*question, "--json").out) == lm.attribute_tokens(TEXT, "1/3", by_depth=True).to_dict()


# --------------------------------------------------------------------------------------------------------------- files

ASKED = {
    "features": ["-p", TEXT],
    "tokens": ["-f", "1/3", "-p", TEXT],
    "heads": ["-f", "1/3", "-p", TEXT],
    "modules": ["-f", "1/3", "-p", TEXT],
    "neurons": ["-f", "1/3", "-p", TEXT],
    "subspace": ["-f", "1/3", "-p", TEXT, "--direction", "1/3"],
    "attention": ["-p", TEXT, *PAIR],
}


@pytest.mark.parametrize("command", ASKED)
def test_every_question_writes_its_answer_into_the_files_that_are_named(
    run: Run, files: Files, tmp_path: Path, command: str
) -> None:
    outs = [tmp_path / name for name in ("new/a.json", "a.html", "a.csv", "a.tex")]
    named = [part for out in outs for part in ("--out", str(out))]
    done = run(command, *ASKED[command], *files.options(), *named, "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out) == json.loads(outs[0].read_text())
    assert outs[1].read_text().startswith("<!doctype html>")
    assert outs[2].read_text().count("\n") >= 5
    assert r"\toprule" in outs[3].read_text()
    assert done.err.splitlines()[:4] == [f"wrote {out}" for out in outs]
    plain = run(command, *ASKED[command], *files.options(), "--out", str(outs[0]))
    assert plain.out.splitlines()[-1] == f"wrote {outs[0]}"


@pytest.mark.parametrize("command", ["features", "tokens", "heads"])
def test_several_prompts_are_written_in_every_format(
    run: Run, files: Files, several: str, tmp_path: Path, command: str
) -> None:
    outs = [tmp_path / f"a.{suffix}" for suffix in ("json", "html", "tsv", "svg")]
    named = [part for out in outs for part in ("--out", str(out))]
    question = [] if command == "features" else ["--logit", " Paris"]
    done = run(command, "--prompts", several, *question, *files.options(), *named, "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out) == json.loads(outs[0].read_text())
    if command != "heads":
        rows = [line.split("\t") for line in outs[2].read_text().splitlines()]
        assert rows[0][0] == "prompt"
        assert {row[0] for row in rows[1:]} == {"1", "2", "3"}
        assert 'id="prompt-3"' in outs[1].read_text()
    assert b"<svg" in outs[3].read_bytes()


def test_where_one_file_cannot_be_made_none_is_written(
    run: Run, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ds.UserError("there is nothing to draw here")

    monkeypatch.setattr("depass_sae.view.shown.Shown.figure", broken)
    named = ["--out", str(tmp_path / "a.json"), "--out", str(tmp_path / "a.png")]
    assert_refused(run("tokens", *ASKED["tokens"], *files.options(), *named), "nothing to draw")
    assert not list(tmp_path.iterdir())
