"""The command line: documents and tables on stdout, everything else on stderr, one line for every mistake."""

import copy
import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import depass_sae as ds
from depass_sae.__main__ import main as entry
from depass_sae.cli import _Status, main
from depass_sae.texts import is_hidden

from .attribution.tiny import HOSTILE, TEXT, VOCAB, fitting_sae, model, random_sae, tokenizer
from .graph.sample import sample_graph
from .passes.models import CONTEXT, D_MLP, D_MODEL, HEADS, LAYERS
from .test_files import closed

__all__ = ["closed"]
pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Files:
    """What lies on the disk: a model with its tokenizer, one without, and SAEs for it."""

    model: Path
    bare: Path
    fitting: Path
    saes: Path

    def options(self, saes: str = "fitting") -> list[str]:
        return ["--model", str(self.model), "--sae", str(getattr(self, saes))]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp("cli")
    for name in ("model", "bare"):
        model().save_pretrained(root / name)
    tokenizer().save_pretrained(root / "model")
    fitting_sae().save_model(root / "fitting")
    for kind, hook in (("jumprelu", "0.resid_post"), ("gated", "1.resid_post"), ("topk", "1.attn_out")):
        random_sae(kind, hook).save_model(root / "saes" / f"{kind}_{hook}")
    return Files(root / "model", root / "bare", root / "fitting", root / "saes")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command in this process, with everything that reaches the file descriptors."""

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["depass-sae", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Done(ended.value.code or 0, out, err)  # type: ignore[arg-type]

    return call


def process(*arguments: str, **environment: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "depass_sae", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def assert_refused(done: Done, why: str = "") -> None:
    """Status 2, nothing on stdout, one line on stderr."""
    assert done.status == 2, done
    assert done.out == ""
    assert done.err.startswith("depass-sae: ")
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    assert why in done.err


# ---------------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize(
    ("options", "question"),
    [
        (["--feature", "1/3"], {"feature": "1/3"}),
        (["--feature", "1/3@5"], {"feature": "1/3", "pos": 5}),
        (["--feature", "1.resid_post/3", "--pos", "all"], {"feature": "1/3", "pos": "all"}),
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
    run: Callable[..., Done], files: Files, options: list[str], question: dict[str, Any]
) -> None:
    done = run("tokens", "--prompt", TEXT, *files.options(), *options, "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == ds.load(files.model, saes=files.fitting).attribute_tokens(TEXT, **question).to_dict()


def test_features_as_json_is_the_reports_own_document(run: Callable[..., Done], files: Files) -> None:
    lm = ds.load(files.model, saes=files.saes)
    every = run("features", "--prompt", TEXT, *files.options("saes"), "--json")
    assert json.loads(every.out) == lm.features(TEXT).to_dict()
    one = run("features", "-p", TEXT, *files.options("saes"), "--layer", "0", "--json")
    assert json.loads(one.out) == lm.features(TEXT, layer=0).to_dict()


def test_a_contrast_as_json_is_its_own_document(run: Callable[..., Done], files: Files) -> None:
    done = run("tokens", "-f", "1/3", "-p", TEXT, "--against", "supply", *files.options(), "--json")
    lm = ds.load(files.model, saes=files.fitting)
    assert json.loads(done.out) == lm.contrast(TEXT, "supply", "1/3").to_dict()


@pytest.mark.parametrize("ids", ["5 6 7", "5,6,7", "[5, 6, 7]", " 5  6 7 ", "5, 6, 7,"])
def test_ids_are_taken_exactly_as_they_are(run: Callable[..., Done], files: Files, ids: str) -> None:
    done = run("tokens", "--feature", "1/3", "--ids", ids, *files.options(), "--json")
    assert json.loads(done.out)["token_ids"] == [5, 6, 7]


def test_a_model_without_a_tokenizer_is_asked_by_ids(run: Callable[..., Done], files: Files) -> None:
    done = run("tokens", "--logit", "9", "--ids", "5 6 7", "--model", str(files.bare), "--json")
    document = json.loads(done.out)
    assert document["tokens"] == ["#5", "#6", "#7"]
    assert document["logit"] == {"token": "#9", "id": 9, "against": None}
    difference = run("tokens", "--logit-diff", "9", "8", "--ids", "5 6 7", "--model", str(files.bare), "--json")
    assert json.loads(difference.out)["logit"]["against"]["id"] == 8


def test_the_gate_of_a_gated_sae_can_be_asked(run: Callable[..., Done], files: Files) -> None:
    done = run("tokens", "-f", "1.resid_post/3", "-p", TEXT, *files.options("saes"), "--path", "gate", "--json")
    assert json.loads(done.out)["feature"]["path"] == "gate"


def test_dtypes_are_passed_on(run: Callable[..., Done], files: Files) -> None:
    options = ["tokens", "--logit", "5", "--ids", "5 6", "--model", str(files.bare), "--json"]
    assert json.loads(run(*options, "--dtype", "float64").out)["dtype"] == "float64"
    assert json.loads(run(*options, "--dtype", "bfloat16", "--trace-dtype", "float32").out)["dtype"] == "float32"


def test_odd_texts_survive_json(run: Callable[..., Done], files: Files) -> None:
    text = "a" + "".join(HOSTILE) + "é東🙂"
    done = run("tokens", "-f", "1/3", "--prompt", text, *files.options(), "--json")
    assert json.loads(done.out)["prompt"] == text
    assert "\x1b" not in done.out


# -------------------------------------------------------------------------------------------------------------- tables


def test_tokens_prints_the_prompt_and_a_table(run: Callable[..., Done], files: Files) -> None:
    done = run("tokens", "-f", "1/3", "-p", TEXT, *files.options(), "--top", "3")
    att = ds.load(files.model, saes=files.fitting).attribute_tokens(TEXT, "1/3")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[0] == "".join(att.tokens[: att.target.pos + 1])
    assert "feature 1/3 at " in done.out
    assert f"{att.pre_activation:+.3f}" in done.out
    assert "others" in done.out
    assert "\x1b" not in done.out  # stdout is no terminal here


def test_features_prints_a_table_per_sae(run: Callable[..., Done], files: Files) -> None:
    done = run("features", "-p", TEXT, *files.options("saes"), "--top", "2")
    assert done.status == 0
    for title in ("layer 0, resid_post", "layer 1, attn_out", "layer 1, resid_post"):
        assert title in done.out
    assert "1.attn_out/" in done.out
    assert "supply (4)" in done.out


def test_features_can_be_sorted_by_what_is_specific(run: Callable[..., Done], files: Files) -> None:
    done = run("features", "-p", TEXT, *files.options(), "--sort", "specific", "--json")
    assert json.loads(done.out) == ds.load(files.model, saes=files.fitting).features(TEXT, sort="specific").to_dict()
    assert "above their usual" in run("features", "-p", TEXT, *files.options(), "--sort", "specific").out
    assert_refused(run("features", "-p", TEXT, *files.options(), "--sort", "size"), "activation or specific")


def test_a_table_that_no_window_shows_is_as_wide_as_it_needs_to_be(
    run: Callable[..., Done], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    (layer,) = ds.load(files.model, saes=files.fitting).features(TEXT).layers
    done = run("features", "-p", TEXT, *files.options(), "--top", "40")
    for at in layer.positions[1:]:
        (line,) = [line for line in done.out.splitlines() if f"({at.pos})" in line]
        assert all(f"{activation:.2f}" in line for activation in at.activations)
    assert "…" not in done.out


def test_words_with_characters_of_several_tokens_are_whole(run: Callable[..., Done], files: Files) -> None:
    options = ["--logit", " Paris", "-p", "✨ naïve 東", "--by", "word", *files.options()]
    done = run("tokens", *options, "--json")
    sources = json.loads(done.out)["targets"][0]["contributions"]
    texts = [source["token"].strip() for source in sources]
    assert {"✨", "naïve", "東"} <= set(texts), texts
    assert "\ufffd" not in done.out
    assert "naïve (" in run("tokens", *options).out


def test_a_contrast_prints_a_table_of_differences(run: Callable[..., Done], files: Files) -> None:
    prompts = ["-p", "supply and demand", "--against", "supply and price"]
    done = run("tokens", "--logit", " Paris", *prompts, *files.options())
    assert (done.status, done.err) == (0, "")
    assert "difference" in done.out
    assert "price (3)" in done.out


def test_odd_texts_are_harmless_in_tables(run: Callable[..., Done], files: Files) -> None:
    text = "a" + "".join(HOSTILE)
    for pos in range(2, 2 + len(HOSTILE)):
        done = run("tokens", "-f", "1/3", "-p", text, "--pos", str(pos), *files.options())
        assert done.status == 0
        assert "\x1b" not in done.out
    assert "[/bold] (5)" in done.out


def test_measured_effects_are_in_the_table(run: Callable[..., Done], files: Files) -> None:
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


def test_two_start_tokens_are_warned_of_on_stderr(run: Callable[..., Done], files: Files) -> None:
    done = run("tokens", "-f", "1/3", "--ids", "0 0 80 90", *files.options(), "--json")
    assert done.status == 0
    assert "warning: the prompt begins with two start tokens ('<bos>')" in done.err
    assert json.loads(done.out)["token_ids"] == [0, 0, 80, 90]


def test_an_sae_that_does_not_fit_is_warned_of_on_stderr_and_the_document_stays_whole(
    run: Callable[..., Done], files: Files
) -> None:
    for command in (["features"], ["tokens", "-f", "0/3"]):
        done = run(*command, "-p", TEXT, *files.options("saes"), "--json")
        assert done.status == 0
        assert json.loads(done.out)["schema_version"] == 1
        lines = done.err.splitlines()
        assert len(lines) == (3 if command == ["features"] else 1)
        for line in lines:
            assert line.startswith("warning: ")
            assert line.endswith("it seems to belong to another model, layer, hook or scale.")


def test_a_feature_that_fires_nowhere_is_noted_on_stderr(run: Callable[..., Done], files: Files) -> None:
    done = run("tokens", "-f", "1/159", "-p", TEXT, *files.options(), "--json")
    assert done.status == 0
    assert done.err.startswith("feature 1/159 fires nowhere on this prompt; shown is its largest pre-activation")
    assert json.loads(done.out)["note"] == done.err.strip()


def test_a_token_that_is_hardly_meant_is_noted_on_stderr(
    run: Callable[..., Done], files: Files, tmp_path: Path
) -> None:
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


# ------------------------------------------------------------------------------------------------------------ mistakes

PROMPT = ["--prompt", TEXT]


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
    run: Callable[..., Done], files: Files, options: list[str], why: str, form: list[str]
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
def test_a_mistake_in_features_is_one_line_and_status_2(
    run: Callable[..., Done], files: Files, options: list[str], why: str
) -> None:
    assert_refused(run("features", *files.options("saes"), *options), why)


@pytest.mark.parametrize("arguments", [["token"], ["nonsense", "--prompt", "x"], ["--nonsense"], []])
def test_a_mistyped_command_is_one_line_and_status_2(run: Callable[..., Done], arguments: list[str]) -> None:
    assert_refused(run(*arguments))


def test_saes_that_are_not_there_are_told_of(run: Callable[..., Done], files: Files) -> None:
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


def test_an_sae_of_another_width_is_told_of(run: Callable[..., Done], files: Files, tmp_path: Path) -> None:
    random_sae(d_in=16).save_model(tmp_path / "narrow")
    question = ["tokens", "-f", "1/3", *PROMPT, "--model", str(files.model)]
    assert_refused(run(*question, "--sae", str(tmp_path / "narrow")), "reads 16 dimensions, but resid_post of")


def damaged(source: Path, target: Path, name: str, change: Callable[[Path], None]) -> str:
    shutil.copytree(source, target)
    change(target / name)
    return str(target)


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def not_json(path: Path) -> None:
    path.write_text("{")


def with_nan(path: Path) -> None:
    weights = load_file(path)
    next(value for name, value in sorted(weights.items()) if name.endswith(("W_enc", "norm.weight"))).view(-1)[0] = (
        float("nan")
    )
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("change", [missing, truncated, with_nan])
def test_a_damaged_sae_is_told_of(run: Callable[..., Done], files: Files, tmp_path: Path, change: Any) -> None:
    sae = damaged(files.fitting, tmp_path / "sae", "sae_weights.safetensors", change)
    for command in (["tokens", "-f", "1/3"], ["features"]):
        assert_refused(run(*command, *PROMPT, "--model", str(files.model), "--sae", sae), "sae")


@pytest.mark.parametrize("change", [missing, not_json])
def test_an_sae_without_its_configuration_is_told_of(
    run: Callable[..., Done], files: Files, tmp_path: Path, change: Any
) -> None:
    sae = damaged(files.fitting, tmp_path / "sae", "cfg.json", change)
    assert_refused(run("features", *PROMPT, "--model", str(files.model), "--sae", sae), "cfg.json")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", missing), ("model.safetensors", truncated), ("model.safetensors", with_nan),
        ("config.json", missing), ("config.json", not_json), ("tokenizer.json", not_json),
    ],
)  # fmt: skip
def test_a_damaged_model_is_told_of(
    run: Callable[..., Done], files: Files, tmp_path: Path, name: str, change: Any
) -> None:
    broken = damaged(files.model, tmp_path / "model", name, change)
    assert_refused(run("tokens", "-f", "1/3", *PROMPT, "--model", broken, "--sae", str(files.fitting)))


def test_a_model_that_is_not_there_is_told_of(run: Callable[..., Done], files: Files, tmp_path: Path) -> None:
    question = ["tokens", "-f", "1/3", *PROMPT, "--sae", str(files.fitting), "--model"]
    assert_refused(run(*question, str(tmp_path / "missing")), "there is no directory")
    assert_refused(run(*question, str(files.model / "config.json")), "is a file; a model is a directory")
    assert_refused(run(*question, str(files.fitting)), "no config.json")
    assert_refused(run(*question, "not a model"), "'not a model' is neither a directory nor a hub id")
    assert_refused(run(*question, ""))


def test_a_text_for_a_model_without_a_tokenizer_is_told_of(run: Callable[..., Done], files: Files) -> None:
    assert_refused(run("tokens", "--logit", "5", *PROMPT, "--model", str(files.bare)), "its prompts are token ids")


@pytest.mark.parametrize("command", ["heads", "modules", "neurons"])
def test_components_print_a_table_or_their_own_document(run: Callable[..., Done], files: Files, command: str) -> None:
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


def test_heads_by_token_are_their_own_document_and_a_second_table(run: Callable[..., Done], files: Files) -> None:
    question = ["heads", "-f", "1/3", "-p", TEXT, "--by-token", *files.options()]
    table, document = run(*question), run(*question, "--json")
    found = ds.load(files.model, saes=files.fitting).attribute_heads(TEXT, "1/3", by_token=True)
    assert (table.status, table.err, document.status, document.err) == (0, "", 0, "")
    assert "which tokens each head carries" in table.out
    assert json.loads(document.out) == found.to_dict()
    for head in json.loads(document.out)["targets"][0]["heads"]:
        values = [entry["value"] for entry in (*head["by_token"], *head["other"])]
        assert sum(values) == pytest.approx(head["value"], abs=1e-5 * max(map(abs, values)))


@pytest.mark.parametrize(
    ("options", "question"),
    [
        (["--feature", "1/3@5"], {"feature": "1/3", "pos": 5}),
        (["--feature", "1.resid_post/3", "--pos", "all"], {"feature": "1/3", "pos": "all"}),
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
    run: Callable[..., Done], files: Files, command: str, options: list[str], question: dict[str, Any]
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


def test_directions_of_features_are_subspaces(run: Callable[..., Done], files: Files) -> None:
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


def test_the_tensors_of_a_file_are_subspaces(run: Callable[..., Done], files: Files, matrix: Path) -> None:
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


def test_a_logit_of_a_model_without_saes_has_subspaces_too(
    run: Callable[..., Done], files: Files, matrix: Path
) -> None:
    options = ["--matrix", str(matrix), "--at", "2.resid_pre", "--model", str(files.bare), "--json"]
    done = run("subspace", "--logit", "9", "--ids", "5 6 7", *options)
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["logit"]["id"] == 9


@pytest.mark.parametrize("against", [None, "mean", "uniform", "2"])
@pytest.mark.parametrize("by", ["tokens", "features"])
def test_attention_prints_a_table_or_its_own_document(
    run: Callable[..., Done], files: Files, by: str, against: str | None
) -> None:
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


def test_attention_says_where_there_is_nothing_to_hold_a_key_against(run: Callable[..., Done], files: Files) -> None:
    pair = ["-l", "0", "-H", "1", "-q", "0", "-k", "0", "--against", "mean"]
    done = run("attention", *pair, "--ids", "5 6 7", "--model", str(files.bare), "--json")
    assert done.status == 0
    assert done.err == json.loads(done.out)["note"] + "\n" != "\n"


def test_attention_by_tokens_needs_no_sae(run: Callable[..., Done], files: Files) -> None:
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
    run: Callable[..., Done], files: Files, arguments: list[str], why: str, form: list[str]
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
    run: Callable[..., Done], files: Files, tmp_path: Path, tensors: dict[str, Any], why: str
) -> None:
    path = save(tmp_path / "spaces.safetensors", tensors)
    question = ["subspace", "-f", "1/3", *PROMPT, *files.options(), "--matrix", str(path)]
    assert_refused(run(*question, "--at", "1.resid_pre"), why)
    assert_refused(run(*question), "--at says where the matrix's subspace lies")


@pytest.mark.parametrize("damage", [truncated, not_json, missing])
def test_a_damaged_matrix_is_told_of(
    run: Callable[..., Done], files: Files, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = save(tmp_path / "spaces.safetensors", {"a": torch.ones(99, D_MODEL)})
    damage(path)
    options = ["--matrix", str(path), "--at", "1.resid_pre"]
    assert_refused(run("subspace", "-f", "1/3", *PROMPT, *files.options(), *options), "cannot be read as safetensors")
    assert_refused(
        run("subspace", "-f", "1/3", *PROMPT, *files.options(), "--matrix", str(tmp_path), "--at", "1.resid_pre")
    )


# ------------------------------------------------------------------------------------------------------------ progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_goes_to_a_terminals_stderr_and_the_model_may_have_any_name() -> None:
    terminal = Terminal()
    with _Status(terminal) as status:
        status("loading models/[/x]/llama[v2]")
        status.progress("carrying [red] components", 1, 2)


# ----------------------------------------------------------------------------------------------------- whole processes


def test_a_hub_that_cannot_be_reached_is_one_line(files: Files, tmp_path: Path) -> None:
    done = process(
        "tokens", "--model", "owner/model", "--logit", "x", "--ids", "5",
        HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path),
    )  # fmt: skip
    assert_refused(done, "the hub cannot be reached")


def test_the_line_is_not_wrapped_in_a_narrow_terminal() -> None:
    done = process("tokens", "--prompt", "x", "--nonsense", COLUMNS="20")
    assert_refused(done, "No such option: --nonsense")


def test_a_process_prints_one_document_and_nothing_else(files: Files) -> None:
    done = process("tokens", "-f", "1/3", "-p", TEXT, *files.options(), "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["feature"] == {"layer": 1, "index": 3, "hook": "resid_post"}


COMMANDS = ("tokens", "features", "heads", "modules", "neurons", "subspace", "attention")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, contextlib; sys.argv = ['depass-sae', *sys.argv[1:]]\n"
        "from depass_sae.cli import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "assert not {'torch', 'transformers', 'sae_lens'} & set(sys.modules)"
    )
    for arguments in (["--version"], ["--help"], *([name, "--help"] for name in (*COMMANDS, "models"))):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if arguments == ["--version"]:
            assert (done.stdout, done.stderr) == (f"depass-sae {ds.__version__}\n", "")
        else:
            assert "Usage: depass-sae" in done.stdout


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert ds.__version__ == project["version"]


def test_an_unexpected_error_ends_with_status_1_and_an_empty_stdout() -> None:
    code = (
        "import sys, depass_sae.cli as cli\n"
        "def broken(*_): raise ZeroDivisionError('a bug')\n"
        "cli.prompt_of = broken\n"
        "sys.argv = ['depass-sae', 'features']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ZeroDivisionError: a bug" in done.stderr


def test_a_reader_that_has_seen_enough_is_told_of_nothing() -> None:
    code = (
        "import sys, depass_sae.cli as cli\n"
        "cli.prompt_of = lambda *_: cli._print_json({'a': ['x' * 100] * 10000}) or sys.exit(5)\n"
        "sys.argv = ['depass-sae', 'features']; cli.main()"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=buffered, **pipes) as running:
        running.stdout.read(10)
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode in (0, 1)


# ---------------------------------------------------------------------------------- what is written, and where it goes


@pytest.fixture
def graphs(tmp_path: Path) -> list[str]:
    """Two graph files, with a label that orders a terminal about."""
    paths = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    for seed, path in enumerate(paths):
        g = sample_graph(seed=seed)
        for name in g:
            g.nodes[name]["label"] = "\x1b[31mred \u202e\x9b é"
        ds.write_graph(g, path)
    return paths


class Encoded(io.TextIOWrapper):
    """A stream of some encoding, strict as stdout is."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "latin-1", "ascii", "cp437"])
def test_tables_and_lines_are_printed_in_any_encoding(
    monkeypatch: pytest.MonkeyPatch, graphs: list[str], encoding: str
) -> None:
    out, err = Encoded(encoding), Encoded(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for arguments, status in ((graphs, 0), (["→\x1b.json", graphs[1]], 2)):
        monkeypatch.setattr(sys, "argv", ["depass-sae", "diff", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == status
    assert "largest changes of weight" in out.text
    assert ("█" if encoding in ("utf-8", "cp437") else "#") in out.text
    assert ("b − a" if encoding == "utf-8" else "b - a") in out.text
    assert err.text.startswith("depass-sae: cannot read ")
    assert err.text.count("\n") == 1
    assert not {char for char in out.text + err.text if is_hidden(char)} - {"\n"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252", "ascii"])
def test_json_is_valid_in_any_encoding_and_readable_in_utf_8(
    monkeypatch: pytest.MonkeyPatch, files: Files, encoding: str
) -> None:
    out, text = Encoded(encoding), "a é東🙂" + "".join(HOSTILE) + "\u202e\x9b\x7f"
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["depass-sae", "tokens", "-f", "1/3", "-p", text, *files.options(), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert json.loads(out.text)["prompt"] == text
    assert ("é東🙂" in out.text) == (encoding == "utf-8")
    assert not {char for char in out.text if is_hidden(char)} - {"\n"}


def test_a_stdout_that_takes_nothing_is_one_line_and_one_that_is_closed_is_none() -> None:
    help_ = f"{sys.executable} -m depass_sae --help"
    full = subprocess.run(f"{help_} > /dev/full", shell=True, stderr=subprocess.PIPE)
    assert (full.returncode, full.stderr) == (2, b"depass-sae: cannot write the output: No space left on device\n")
    shut = subprocess.run(f"{help_} >&-", shell=True, stderr=subprocess.PIPE)
    assert (shut.returncode, shut.stderr) == (0, b"")


def test_ctrl_c_before_the_command_line_is_imported_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "depass_sae.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "depass_sae.cli")
    monkeypatch.setattr(sys, "meta_path", [Impatient(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        entry()
    assert ended.value.code == 130
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"depass-sae": "depass_sae.__main__:main"}


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
    run: Callable[..., Done], graphs: list[str], tmp_path: Path, command: list[str], option: str
) -> None:
    command = [part.format(a=graphs[0], b=graphs[1]) for part in command]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for place, why in ((graphs[0], "Not a directory"), (str(tmp_path / ("n" * 300)), "File name too long")):
        done = run(*command, f"{place}/{option}", *(["--model", "no/model"] if command[0] != "diff" else []))
        assert_refused(done, why)
        assert "cannot write" in done.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_graph_that_cannot_take_its_verification_is_told_of_before_the_work(
    run: Callable[..., Done], closed: Path
) -> None:
    assert_refused(run("verify", str(closed / "g.json"), "--model", "no/model"), "cannot write ")


def test_an_empty_name_is_no_place(run: Callable[..., Done]) -> None:
    assert_refused(run("case-study", "-p", "a", "-f", "1/3", "--out", ""), "the folder has no name")
    assert_refused(run("graph", "-p", "a", "--format", "json", "--out", ""), "it is a folder")


# -------------------------------------------------------------------------------------------------------------- graphs


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


def test_what_was_written_is_said_beside_a_document_that_has_stdout(run, files, tmp_path) -> None:
    path = tmp_path / "g.json"
    done = run("graph", *graph_options(files), "--target", "logit:5", "--json", "--out", str(path))
    assert json.loads(done.out) == json.loads(path.read_text())
    assert done.err.splitlines()[-1] == f"wrote {path}"
    card = tmp_path / "card.json"
    done = run("feature", "1/3", "-p", TEXT, *files.options(), "--json", "--out", str(card))
    assert json.loads(done.out) == json.loads(card.read_text())
    assert done.err == f"wrote {card}\n"


def test_circuit_tracers_format_goes_to_a_folder(run, files, tmp_path) -> None:
    options = [*graph_options(files), "--feature", "1.resid_post/3", "--format", "circuit-tracer"]
    assert_refused(run("graph", *options), "circuit-tracer is a folder of files: name it with --out")
    (tmp_path / "file").touch()
    assert_refused(run("graph", *options, "--out", str(tmp_path / "file")), "it is no folder")
    assert run("graph", *options, "--out", str(tmp_path / "viewer")).status == 0
    (listed,) = json.loads((tmp_path / "viewer" / "graph-metadata.json").read_text())["graphs"]
    assert json.loads((tmp_path / "viewer" / f"{listed['slug']}.json").read_text())["metadata"] == listed


def test_labels_and_groups_are_in_the_graphs_that_are_written(run, files, tmp_path) -> None:
    (tmp_path / "labels.csv").write_text("feature,label\n1/3,of all things\n", encoding="utf-8")
    path = tmp_path / "g.json"
    named = ["--labels", str(tmp_path / "labels.csv"), "--group", "--out", str(path)]
    assert run("graph", *graph_options(files), "--feature", "1.resid_post/3", *named).status == 0
    g = ds.read_graph(path)
    (name,) = [target["node"] for target in g.graph["target"]]
    assert g.nodes[name]["label"] == "of all things"
    assert g.graph["groups"] == ds.group_automatically(g)


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
    assert "rank correlation over 5 nodes" in done.out
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
        (["--layer", "2"], "there is no SAE on the residual stream at layer 2"),
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
