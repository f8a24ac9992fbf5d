"""Whatever is wrong with what a user writes is one line and status 2, and most of it before a model is loaded.

Each option is given a family of wrong values; what only looks wrong is taken.
"""

import json
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.texts import is_hidden, visible

from .attribution.tiny import D_MODEL, TEXT, fitting_sae, handle, model, random_sae, tokenizer
from .cli.calling import Done, Files, files, run
from .graph.sample import sample_graph

pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.DepassWarning")
__all__ = ["files", "run"]
Run = Callable[..., Done]

ROOT = Path(__file__).parent.parent
ENDLESS = "9" * 5000
"""More digits than Python makes a number of."""
HUGE = str(10**30)
LONG = "n" * 300
NOBODY = "~nosuchuser/x"
ABSENT = ["--model", "./no-such-model"]

P = ["-p", TEXT]
PAIR = ["-l", "1", "-H", "0", "-q", "3", "-k", "1"]
COMPLETE = {
    "features": P,
    "tokens": [*P, "-f", "1/3"],
    "heads": [*P, "-f", "1/3"],
    "modules": [*P, "-f", "1/3"],
    "neurons": [*P, "-f", "1/3"],
    "subspace": [*P, "-f", "1/3", "--direction", "1/3"],
    "attention": [*P, *PAIR],
    "downstream": [*P, "token:3"],
    "steer": [*P, "--set", "1/3=0"],
    "graph": P,
    "circuit": P,
    "circuit-of": ["tests/task.jsonl"],
    "feature": [*P, "1/3"],
    "case-study": [*P, "-f", "1/3", "--out", "no-such-folder"],
    "scan": ["tests/p.txt", "--out", "no-such-folder"],
}
"""Every command that loads a model, with what it needs; an option that follows goes before one of these."""
QUESTIONS = ["tokens", "heads", "modules", "neurons", "subspace"]
SEVERAL = ["features", "tokens", "heads", "modules", "neurons"]
"""Those that take a file of prompts."""
RULED = [*QUESTIONS, "attention", "graph", "circuit", "feature", "case-study"]
EVERY = list(COMPLETE)

NO_NUMBER = [
    "",
    " ",
    "x",
    "1.5",
    "1e3",
    "²",
    "½",
    "0x10",
    "nan",
    "inf",
    ENDLESS,
    "[1]",
    '{"a": 1}',
    "1,5",
    "\x1b[1m",
    "🙂",
]
NO_WHOLE = ["", "x", "1.5", "²", ENDLESS]
NO_SHARE = ["", "x", "nan", "inf", "-0.1", "0", "1.1", "1e999", ENDLESS, "²", "[0.5]"]
NO_COUNT = [*NO_NUMBER, "-1", "0", f"-{HUGE}"]
NO_NAME = ["", " ", "nonsense", "5", "x" * 5000, "\x1b[31mred", "a\nb", "²", "\u202e", "\ud800", "None", "[]"]
NO_POSITION = [
    "",
    " ",
    "last",
    "1.5",
    "²",
    ENDLESS,
    "MAX",
    "all ",
    "1,2",
    "[1]",
    '{"a": 1}',
    "--5",
    "+5",
    "1\x00",
    "½",
    "None",
]
NO_FEATURE = [
    *("", " ", "x", "1", "1/", "/3", "1/x", "1/-1", "1//3", "1/3@", "1/3@x", "1/3@-1", "1/²", "1/3/4", "1.5/3", "1:3"),
    *(f"{ENDLESS}/3", f"1/{ENDLESS}", f"1/3@{ENDLESS}", '{"layer": 1}', "1\\3", "1/3\x00", "1/ 3", "1.RESID/3"),
]  # fmt: skip
NO_IDS = ["", " ", "x", "5 x", "5 -6", "1.5", "²", ENDLESS, "[]", "5;6", "0x1", '{"input_ids": [5]}', "5 🙂", "None"]
NO_MEMORY = [
    "",
    " ",
    "0",
    "-1",
    "4XB",
    "GiB",
    "9" * 400,
    "nan",
    "inf",
    "1e9",
    "²GiB",
    "0.0001",
    "4GiB4",
    "4,5GB",
    "[4]",
]
NO_TEMPERATURE = ["0", "-1", "-0.0", "nan", "inf", "-inf", "", "hot", "1e999", "1,5", "{}", "²", ENDLESS]
NO_SEED = [str(2**64), str(-(2**63) - 1), HUGE, ENDLESS, "", "x", "1.5", "1e3", "²", "nan"]
NO_PLACE = ["", f"{LONG}.json", "nu\0l.json", f"{NOBODY}.json", "no-suffix", "g.docx", "pyproject.toml/g.json"]
NO_OUT = [*NO_PLACE, "g.graphml", "g", ".json/"]
NO_FILE = ["", "missing.csv", f"{LONG}.csv", "nu\0l.csv", f"{NOBODY}.csv", ".", "/", "tests", "/dev/null/x.csv"]
NO_DEVICE = [
    "",
    "toaster",
    "meta",
    "hpu",
    "privateuseone",
    "xpu",
    "mps",
    "vulkan",
    "cuda:99",
    f"cuda:{ENDLESS}",
    "cpu:-1",
    "5",
]
NO_DTYPE = ["", "int8", "complex64", "float8", "bool", "Float32", "torch.float32", "32", "x" * 5000]
NO_FOLDER = ["", "./missing", NOBODY, f"./{LONG}", "./nu\0l", "/", "~", "./pyproject.toml"]

PROMPT_FILES = {"p.txt": b"a b\nc d\n", "empty.txt": b" \n\n", "latin.txt": b"caf\xe9\n", "no.jsonl": b'{"txt": 1}\n'}
TASK = b"".join(b'{"text": "%c b", "target": "logit: c"}\n' % letter for letter in b"defg")
TASK_FILES = {
    "task.jsonl": TASK, "three.txt": b"a b\nc d\ne f\n", "some.jsonl": TASK + b'{"text": "x b"}\n',
    "contrasts.jsonl": TASK + b'{"text": "x b", "target": "logit: c", "contrast": "y b"}\n',
    "key.jsonl": TASK.replace(b"target", b"answer"), "number.jsonl": TASK.replace(b'"logit: c"', b"5"),
    "target.jsonl": TASK.replace(b"logit: c", b"1/x"), "list.jsonl": b"[5]\n" * 4,
}  # fmt: skip
PROMPT_FILES |= TASK_FILES

NO_TARGET = [
    "logprob:5 against mean", "logit:5 against ,", 'logit:" Paris" against "x" "y"', "direction:", "direction:1",
    "direction:1:", "direction:x:probe.npy", "direction:1.RESID:probe.npy", "direction:1:probe.pt", "direction:1:tests",
    "direction:1:missing.npy", "direction:1:missing.safetensors#x", "direction:1:nu\0l.npy", f"direction:1:{LONG}.npy",
    "direction:1:pyproject.toml", f"direction:1:{NOBODY}.npy", "direction:-1:missing.npy",
]  # fmt: skip

EARLY: list[tuple[Sequence[str], str, Sequence[str]]] = [
    (RULED, "--rule", NO_NAME),
    (RULED, "--temperature", NO_TEMPERATURE),
    (RULED, "--first-token", ["", "Skip", "none", "0"]),
    (RULED, "--qk-share", ["", "x", "0", "-0.5", "1.5", "nan", "inf", "half", "²"]),
    (RULED, "--qk-slope", ["", "Local", "integrated", "0", "x" * 5000]),
    (RULED, "--memory", NO_MEMORY),
    (QUESTIONS, "--path", ["", "Gate", "both", "magnitude ", "x" * 5000]),
    ([*QUESTIONS, "graph", "circuit"], "--pos", NO_POSITION),
    ([*QUESTIONS, "graph", "circuit", "case-study"], "--feature", NO_FEATURE),
    (["subspace"], "--direction", [*NO_FEATURE, "1/3@4", "1/3@99"]),
    (["graph", "circuit"], "--target", [*NO_FEATURE, "logit-diff:x", "logit-diff:", "LOGIT:5", *NO_TARGET]),
    (["features"], "--sort", ["", "Activation", "specific ", "²", "x" * 5000]),
    (["heads", "modules", "neurons"], "--sort", ["", "Effect", "abs ", "size", "activation", "²", "x" * 5000]),
    (["heads", "modules", "neurons"], "--effects", ["", "yes", "1"]),
    (["tokens"], "--by", ["", "Token", "tokens", "letter", "²"]),
    (["attention"], "--by", ["", "token", "heads", "x" * 5000]),
    (["steer"], "--set", ["", "1/3", "1/3=", "=2", "1/3=x", "head:0.1=2", "1/3=nan", "what=1", "1/3=\u00b2"]),
    (["steer"], "--scale", ["1/4", "token:3=2", "1/3=2"]),
    (["steer"], "--generate", [*NO_WHOLE, "-1", HUGE, "10001"]),
    (["steer"], "--temperature", [*NO_TEMPERATURE[3:], "-1", "1"]),
    (["steer"], "--top-k", [*NO_WHOLE, "-1", "0", "1", HUGE]),
    (["downstream"], "--sort", ["", "abs", "Total", "\u00b2", "x" * 5000]),
    (["graph"], "--grow", ["", "Weight", "influence", "x" * 5000]),
    (["attention"], "--against", ["", "median", "1.5", "²", ENDLESS, "Mean"]),
    (["attention"], "--head", NO_WHOLE),
    (["attention"], "--query", NO_WHOLE),
    (["tokens", "case-study"], "--ablate", [*NO_WHOLE, "-1", HUGE, "10001"]),
    (["tokens", "circuit", "circuit-of", "case-study", "steer"], "--seed", NO_SEED),
    (["features", "graph", "circuit", "circuit-of", "case-study"], "--layer", NO_WHOLE),
    (["circuit", "circuit-of"], "--errors", ["", "Keep", "roots", "through", "x" * 5000]),
    (["circuit", "circuit-of"], "--newcomers", ["", "Remove", "stay", "²"]),
    (["circuit", "circuit-of"], "--seconds", ["0", "-1", "nan", "inf", "", "long", "1e999", "²", ENDLESS]),
    (["circuit"], "--draws", [*NO_WHOLE, "-1", "0", "19", HUGE, "10001"]),
    (["circuit"], "--contrast", [""]),
    ([*SEVERAL[:3], "graph", "circuit", "circuit-of", "feature", "attention", "downstream"], "--top", NO_COUNT),
    (["case-study"], "--top", NO_COUNT),
    (["feature"], "--strongest", [*NO_WHOLE, "0"]),
    (["subspace"], "--rank", [*NO_WHOLE, "0"]),
    (["graph", "case-study"], "--max-nodes", [*NO_WHOLE, "-1", "0", "1", HUGE]),
    (["case-study"], "--verify", [*NO_WHOLE, "-1"]),
    (["graph"], "--node-threshold", NO_SHARE),
    (["graph"], "--edge-threshold", NO_SHARE[2:6]),
    (["graph"], "--errors", ["", "Roots", "both", "x" * 5000]),
    (["graph", "circuit"], "--format", ["", "gexf", ".json", "json ", "png"]),
    (["graph", "circuit", "feature"], "--out", NO_PLACE),
    ([*QUESTIONS, "features", "attention", "downstream", "circuit-of"], "--out", NO_OUT),
    (["feature"], "--prompts", NO_FILE),
    (["case-study", "scan"], "--out", ["", NOBODY, LONG, "nu\0l", "pyproject.toml"]),
    (["scan"], "--out", ["tests", "", NOBODY, "nu\0l", "pyproject.toml"]),
    (["scan"], "--top", [*NO_COUNT, HUGE, "1001"]),
    (["scan"], "--samples", [*NO_WHOLE, "-1", HUGE]),
    (["scan"], "--window", [*NO_COUNT, "3", HUGE]),
    (["scan"], "--limit", NO_COUNT),
    (["scan"], "--unit", [*NO_COUNT, HUGE]),
    (["scan"], "--documents", ["", "Line", "lines", "word", "²", "x" * 5000]),
    (["scan"], "--column", ["", " "]),
    (["scan"], "--full", [*NO_FEATURE, "1/3@4", "1/3,", "ALL", "1/3,x"]),
    (["feature", "graph", "circuit", "case-study"], "--index", [*NO_FILE, "x"]),
    (["case-study"], "--title", ["", " ", "two\nlines", "\x1b[1m", "\u202eback", "a\ufeffb", "\udce9", "\u2029"]),
    (["graph", "circuit", "feature", "case-study"], "--labels", NO_FILE),
    (["subspace"], "--at", ["", "x", "1", "1.", "resid_post", "1.RESID", f"{ENDLESS}.resid_post", "-1.x", "²"]),
    (EVERY, "--device", NO_DEVICE[:4]),
    (["features"], "--device", NO_DEVICE),
    (["features", "heads"], "--dtype", NO_DTYPE),
    (["features", "graph"], "--trace-dtype", NO_DTYPE),
    (["features", "graph", "feature"], "--sae", NO_FOLDER),
    (["features", "subspace"], "--sae-id", ["", "x"]),
    (["tokens", "feature", "graph"], "--cache-dir", ["", NOBODY, LONG, "nu\0l"]),
    (["tokens", "case-study"], "--offload-folder", ["", NOBODY, LONG, "nu\0l", "x"]),
    (EVERY, "--nonsense", ["x"]),
]  # fmt: skip


def early() -> Iterator[list[str]]:
    """All that is told of though the model is not there."""
    for commands, option, values in EARLY:
        for number, command in enumerate(commands):
            for value in values[number : number + 1] if number else values:  # all of them once, then one
                yield [command, *_without(COMPLETE[command], option), f"{option}={value}"]
    for command in EVERY:
        for ids in [] if command == "feature" else NO_IDS if command == "tokens" else NO_IDS[3:5]:
            yield [command, *COMPLETE[command][2:], f"--ids={ids}"]
        yield [command, *COMPLETE[command][2:]]
        yield [command, *COMPLETE[command][2:], "--prompt="]
        yield [command, *COMPLETE[command], "--promt", "x"]
        yield [command, *COMPLETE[command], "--top"]
        yield [command, *COMPLETE[command], "stray", "words"]
        if command != "feature":
            yield [command, *COMPLETE[command], "--ids", "5"]
    for value in [*NO_FILE[1:5], NO_FILE[-1], "hf:", "hf:x", "hf:a/b c", "pyproject.toml", "tests/none.txt"]:
        yield ["scan", value, "--out", "no-such-folder"]
        yield ["scan", "tests/p.txt", value, "--out", "no-such-folder"]
    for value in NO_FEATURE:
        yield ["feature", *P, value]
    yield ["feature", *P, "1/3@4"]
    yield ["feature", "1/3", "-p", TEXT, "--prompt="]
    for command in QUESTIONS:
        rest = [*P, *(["--direction", "1/3"] if command == "subspace" else [])]
        yield [command, *rest]
        yield [command, *rest, "-f", "1/3", "--logit", " Paris"]
        yield [command, *rest, "--logit", " Paris", "--logit-diff", " Paris", " Rome"]
        yield [command, *rest, "--logit", " Paris", "--path", "gate"]
        yield [command, *rest, "--logit", " Paris", "--target", "1/3"]
        yield [command, *rest, "--target", "logit:5", "--path", "gate"]
        for target in ("", "1/x", "logit-diff:x", *(NO_TARGET if command == "tokens" else NO_TARGET[:1])):
            yield [command, *rest, f"--target={target}"]
    for command, option in [
        ("features", "-f=1/3"), ("features", "--pos=3"), ("features", "--rule=half"), ("features", "--memory=1GB"),
        ("features", "--by-depth"),
        ("heads", "--by-depth"),
        ("tokens", "--effects"), ("tokens", "--sort=effect"), ("subspace", "--effects"),
        ("heads", "--by=word"), ("heads", "--ablate=1"), ("modules", "--by-token"), ("neurons", "--against=x"),
        ("subspace", "--top=3"), ("subspace", "--prompts=x"), ("attention", "--pos=3"), ("attention", "--prompts=x"),
        ("circuit-of", "--draws=20"), ("circuit-of", "--contrast=x"), ("circuit-of", "--rule=half"),
        ("graph", "--ablate=1"), ("graph", "--prompts=x"), ("feature", "--pos=3"), ("feature", "--ids=5"),
    ]:  # fmt: skip
        yield [command, *COMPLETE[command], option]
    yield ["tokens", *COMPLETE["tokens"], "--against="]
    yield ["tokens", *COMPLETE["tokens"], "--against=x", "--by-depth"]
    yield ["tokens", *COMPLETE["tokens"], "--replace-from", __file__]
    for command in SEVERAL:
        question = [] if command == "features" else ["-f", "1/3"]
        for name in ("missing.txt", "empty.txt", "latin.txt", "no.jsonl", "tests"):
            yield [command, *question, "--prompts", f"tests/{name}"]
        yield [command, *question, "--prompts", "tests/p.txt", *P]
        yield [command, *question, "--prompts", "tests/p.txt", "--ids", "5 6"]
        yield [command, *question, "--prompts", "tests/p.txt", "--out", "g"]
        if command != "features":
            yield [command, "--prompts", "tests/p.txt"]
            yield [command, "-f", "1/3@4", "--prompts", "tests/p.txt"]
            yield [command, "-t", "logprob:5@4", "--prompts", "tests/p.txt"]
            yield [command, *question, "--prompts", "tests/p.txt", "--pos", "4"]
    for command in ("heads", "modules", "neurons"):
        yield [command, "-f", "1/3", "--prompts", "tests/p.txt", "--pos", "all"]
        yield [command, "-f", "1/3", "--prompts", "tests/p.txt", "--sort", "specific"]
    yield ["heads", "-f", "1/3", "--prompts", "tests/p.txt", "--by-token"]
    yield ["tokens", "-f", "1/3", "--prompts", "tests/p.txt", "--against", "x"]
    yield ["heads", *COMPLETE["heads"], "--by-token", "--rule", "softmax"]
    yield ["subspace", *COMPLETE["subspace"], "--matrix", "x"]
    yield ["subspace", *P, "-f", "1/3", "--matrix", __file__]
    for matrix in NO_FILE:
        yield ["subspace", *P, "-f", "1/3", "--at", "1.resid_post", f"--matrix={matrix}"]
    yield ["graph", *P, "--rule", "relu"]
    for name in ("missing.txt", "empty.txt", "latin.txt", "no.jsonl", "tests"):
        yield ["graph", "-t", "1/3", "--prompts", f"tests/{name}"]
    for more in (P, ["--ids", "5 6"], ["--pos", "4"], ["-f", "1/3@4"], ["-t", "logit:5@4"], ["--out", "g"]):
        yield ["graph", "--prompts", "tests/p.txt", *more]
    for command in ("graph", "circuit"):
        yield [command, *P, "--against", "mean"]
        yield [command, *P, "--target", "1/3", "--against", "mean"]
        yield [command, *P, "--target", "logit:5 against 7", "--against", "mean"]
        for against in ("", " ", ",", '"x', '" Rome",', '" Rome" " London"'):
            yield [command, *P, "--logit", " Paris", f"--against={against}"]
    yield ["circuit", *P, "--rule", "relu"]
    yield ["circuit", *P, "-f", "1/3", "--logit", " Paris"]
    yield ["circuit", *P, "-t", "1/3", "--logit-diff", " Paris", " Rome"]
    yield ["circuit", "--ids", "5 6", "--contrast", "x"]
    yield ["circuit", *P, "--json", "--format", "html"]
    for name in (*NO_FILE, *(f"tests/{name}" for name in [*PROMPT_FILES, "missing.jsonl"] if name != "task.jsonl")):
        yield ["circuit-of", name]
    yield ["graph", *P, "--rule", "softmax", "--heads"]
    yield ["graph", *P, "--rule", "softmax", "--errors", "through"]
    yield ["graph", *P, "--json", "--format", "html"]
    yield ["case-study", *P, "-f", "1/3"]
    yield ["case-study", *P, "--out", "x"]
    yield ["case-study", "no-such.yaml", "--out", "x"]
    yield ["case-study", "--out", "x"]
    for left_out in range(2, 8, 2):
        yield ["attention", *P, *PAIR[:left_out], *PAIR[left_out + 2 :]]


def _without(arguments: list[str], option: str) -> list[str]:
    """What a command needs, without the option that is given another value."""
    short = {"--feature": "-f", "--layer": "-l", "--head": "-H", "--query": "-q"}.get(option, option)
    if short not in arguments:
        return arguments
    at = arguments.index(short)
    return arguments[:at] + arguments[at + 2 :]


def wrong(done: Done) -> str:
    """The one line of what was refused, or what is wrong with how it was."""
    lines = done.err.splitlines()
    if done.status != 2:
        return f"!status {done.status}: {done.err[-300:]}{done.out[:100]}"
    if done.out or len(lines) != 1 or "Traceback" in done.err or len(done.err) > 600:
        return f"!{len(lines)} lines of {len(done.err)} characters, and {len(done.out)} on stdout: {done.err[:300]}"
    if any(is_hidden(char) for char in lines[0]) or not lines[0].startswith("depass-sae: "):
        return f"!{lines[0]}"
    return lines[0]


def test_there_are_many_of_them() -> None:
    assert len({tuple(case) for case in early()}) > 500


@pytest.mark.parametrize("command", EVERY)
def test_a_mistake_is_told_of_in_one_line_before_a_model_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "tests").mkdir()
    for name, content in PROMPT_FILES.items():
        (tmp_path / "tests" / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    found = {}
    for case in early():
        if case[0] == command:
            said = wrong(run(*case, *ABSENT))
            if said.startswith("!") or "no-such-model" in said:
                found[" ".join(part[:60] for part in case)] = said
    assert not found
    assert sorted(os.listdir()) == ["pyproject.toml", "tests"]
    assert sorted(os.listdir("tests")) == sorted(PROMPT_FILES)


@pytest.mark.parametrize("command", ["tokens", "features", "attention"])
def test_a_file_that_a_library_is_missing_for_is_told_of_before_the_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for module, suffix in (("pyarrow", "parquet"), ("pandas", "csv"), ("matplotlib.figure", "png")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            said = wrong(run(command, *COMPLETE[command], "--out", f"a.{suffix}", *ABSENT))
        assert f".{suffix} files need {module.partition('.')[0]}: pip install" in said
    assert not os.listdir()


LATE = [
    ["tokens", *P, "-f", "1/160"],
    ["tokens", *P, "-f", "1.mlp_out/3"],
    ["tokens", *P, "-f", "2/3"],
    ["tokens", *P, "-f", f"{'9' * 18}/3"],
    ["tokens", *P, "-f", f"1/{'9' * 18}"],
    ["tokens", *P, "-f", f"1/3@{'9' * 18}"],
    ["tokens", *P, "-f", "1/3", "--pos", "-1"],
    ["tokens", *P, "-f", "1/3", "--pos", "0"],
    ["tokens", *P, "-f", "1/3@4", "--pos", "5"],
    ["tokens", *P, "-f", "1/3", "--path", "gate"],
    ["tokens", *P, "--logit", ""],
    ["tokens", *P, "--logit", ENDLESS],
    ["tokens", *P, "--logit", " marzipan\x00\x1b[1m"],
    ["tokens", *P, "--logit-diff", " Paris", ""],
    ["tokens", "--ids", "5 6", "--logit", ENDLESS],
    ["tokens", "--ids", "5 6", "--logit", "9" * 18],
    ["tokens", "--ids", "5 6", "--logit", "-1"],
    ["tokens", "--ids", "9" * 18, "-f", "1/3"],
    ["tokens", "-p", "\ud800", "-f", "1/3"],
    ["tokens", "-p", "supply " * 5000, "-f", "1/3"],
    ["tokens", *P, "-f", "1/3", "--ablate", "1", "--replace-from", "missing.txt"],
    ["tokens", *P, "-f", "1/3", "--ablate", "1", "--replace-from", f"{NOBODY}.txt"],
    ["tokens", *P, "-f", "1/3", "--ablate", "1", "--replace-from", "nu\0l"],
    ["graph", *P, "--target", "logit:²²"],
    ["graph", *P, "--target", f"logit:{ENDLESS}"],
    ["graph", *P, "--target", "logit:"],
    ["graph", *P, "--target", 'logit:" Paris"@99'],
    ["graph", *P, "--target", f'logit:" Paris"@{ENDLESS}'],
    ["graph", *P, "--max-nodes", "2"],
    ["graph", *P, "--layer", "-1"],
    ["graph", *P, "--layer", HUGE],
    ["circuit", *P, "--contrast", "supply"],
    ["circuit", *P, "--contrast", TEXT],
    ["circuit", *P, "--feature", "1/3"],
    ["circuit", *P, "--layer", HUGE],
    ["circuit", *P, "--pos", "99"],
    ["features", *P, "--layer", HUGE],
    ["features", *P, "--layer", "-1"],
    ["attention", *P, *PAIR, "--head", HUGE],
    ["attention", *P, *PAIR, "--layer", f"-{HUGE}"],
    ["attention", *P, *PAIR, "--query", HUGE],
    ["attention", *P, *PAIR, "--against", "-1"],
    ["subspace", *P, "-f", "1/3", "--direction", "1/3", "--at", f"{'9' * 18}.resid_post"],
    ["subspace", *P, "-f", "1/3", "--direction", "1/3", "--direction", "0/3"],
    ["feature", *P, "1/160"],
    ["tokens", *P, "-f", "1/160", "--out", "a.html", "--out", "new/a.json"],
    ["case-study", *P, "-f", "1/3@99", "--out", "no-such-folder"],
    ["scan", __file__.replace(".py", ".md"), "--out", "ix"],
    ["scan", str(ROOT / "README.md"), "--out", "ix", "--full", "1/160"],
    ["scan", str(ROOT / "README.md"), "--out", "ix", "--full", "7/3"],
    ["scan", str(ROOT / "README.md"), "--out", "ix", "--window", "100000"],
    ["scan", str(ROOT / "README.md"), "--out", "ix", "--layer", "7"],
]
"""What it takes a model to know. ² is no number: int() takes none of what str.isdigit() takes beyond decimals."""


@pytest.mark.parametrize("case", LATE, ids=lambda case: " ".join(part[:20] for part in case if part not in P))
def test_what_only_the_model_knows_to_be_wrong_is_one_line_too(
    run: Run, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = wrong(run(*case, *files.options()))
    assert not said.startswith("!"), said
    assert not os.listdir()


@pytest.mark.parametrize(
    "name", ["", " ", NOBODY, LONG, f"./{LONG}", "nu\0l", "./nu\0l", "./missing", "/", "a/b/c", "x\ny", ENDLESS]
)
def test_a_model_that_is_none_is_one_line(run: Run, name: str) -> None:
    for command in ("features", "tokens"):
        said = wrong(run(command, *COMPLETE[command], "--model", name))
        assert not said.startswith("!"), said


def test_files_that_are_not_there_are_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = str(tmp_path / "g.json")
    ds.write_graph(sample_graph(), graph)
    (tmp_path / "tests").mkdir()
    for name in NO_FILE + [f"{path[:-4]}.json" for path in NO_FILE if path.endswith(".csv")]:
        for case in (["verify", name], ["diff", name, graph], ["diff", graph, name]):
            assert not (said := wrong(run(*case))).startswith("!"), said
    for name in ("", "g.docx", f"{LONG}.html", f"{NOBODY}.html", "nu\0l.html", "g.png"):
        assert not (said := wrong(run("diff", graph, graph, f"--out={name}"))).startswith("!"), said
    wrong_values = {"--max-nodes": [*NO_WHOLE, "-1"], "--seed": NO_SEED, "--top": ["0", "x"], "--memory": NO_MEMORY}
    for option, values in wrong_values.items():
        for value in values:
            said = wrong(run("verify", graph, f"{option}={value}", *ABSENT))
            assert not said.startswith("!"), said
            assert "no-such-model" not in said
    assert sorted(os.listdir()) == ["g.json", "tests"]


# ---------------------------------------------------------------------------------------------------------- in Python


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    return handle([fitting_sae(), random_sae("gated", "0.resid_post")])


@cache
def an_index(lm: ds.LM) -> ds.Index:
    return lm.scan([TEXT], Path(tempfile.mkdtemp()) / "ix")


NOTHING_LIKE_IT = [
    True,
    1.5,
    "x",
    b"1",
    None,
    [],
    {},
    object(),
    float("nan"),
    torch.ones(2),
    np.array([1.5]),
    int,
    1j,
    {1},
]
"""Whoever takes one of them for a whole number from 1 takes them all."""
NO_TEXT = [3, 1.5, True, b"x", [], {}, object(), str, ["1/3"], Path("x")]
NO_FLAG = [1, 0, "no", "", None, [], 1.0, object(), torch.ones(2)]
NO_PATH = [5, 1.5, True, b"x", [], {}, object(), Path]
NO_PROMPT: list[Any] = [
    *(5, None, 1.5, True, b"abc", bytearray(b"abc"), {5, 6}, {}, {"input_ids": 5}, {"input_ids": "abc"}, [1.5]),
    *(["a", 5], [True, False], [[5]], object(), torch.ones(3), torch.tensor([True]), torch.tensor(5), [None], [{}]),
    *(torch.ones(2, dtype=torch.cfloat), [{"role": 5}, 3], {"role": "user"}, {"input_ids": [5, None]}),
    *({"input_ids": None}, iter("ab"), "", []),
]  # fmt: skip

PYTHON: dict[str, tuple[Callable[[ds.LM, Any], Any], Sequence[Any]]] = {
    "encode": (lambda lm, x: lm.encode(x), NO_PROMPT),
    "prompt": (lambda lm, x: lm.attribute_tokens(x, "1/3"), NO_PROMPT[::3]),
    "against": (lambda lm, x: lm.contrast(TEXT, x, "1/3"), NO_PROMPT[1::3]),
    "prompts": (
        lambda lm, x: lm.attribute_tokens_batch(x, "1/3"),
        [5, None, "a", [5, 6], {}, [None], [[]], [5.5], b"ab"],
    ),
    "a card's prompts": (lambda lm, x: lm.card("1/3", x), [5, None, {}, [], [None], [[]], b"ab", [b"ab"]]),
    "a corpus": (
        lambda lm, x: lm.scan(x, "ix"),
        [
            5,
            None,
            1.5,
            True,
            b"x",
            {},
            object(),
            "",
            "missing.txt",
            "hf:x",
            [],
            [""],
            [None],
            [b"x"],
            [[]],
            [5],
            iter([]),
        ],
    ),
    "an index": (lambda lm, x: ds.open_index(x), [*NO_PATH, "", "missing", ".", None]),
    "the index of a why": (lambda lm, x: lm.why(x, "1/3"), [None, 5, "ix", Path("ix"), {}, object()]),
    "why's contexts": (lambda lm, x: lm.why(an_index(lm), "1/3", contexts=x), [*NOTHING_LIKE_IT, 0, 101]),
    "why's feature": (lambda lm, x: lm.why(an_index(lm), x), [*NO_TEXT, None, "", "1", "1/3@4", "9/3"]),
    "why's rule": (lambda lm, x: lm.why(an_index(lm), "1/3", rule=x), [*NO_TEXT, "", "Half"]),
    "why's model": (lambda lm, x: an_index(lm).why("1/3", x), [5, "x", {}, object()]),
    "similar": (lambda lm, x: an_index(lm).similar(x), [*NO_TEXT, None, "", "1", "1/3@4", "9/3"]),
    "similar top": (lambda lm, x: an_index(lm).similar("1/3", x), [*NOTHING_LIKE_IT, 0]),
    "export path": (lambda lm, x: an_index(lm).export_contexts(x), [*NO_PATH, "", None, "a.txt", f"{NOBODY}.jsonl"]),
    "export features": (
        lambda lm, x: an_index(lm).export_contexts("a.jsonl", x),
        [5, "1/3", True, [], [5], ["x"], ["1/3@4"], {}],
    ),
    "export format": (lambda lm, x: an_index(lm).export_contexts("a.jsonl", format=x), [*NO_TEXT, None, "", "csv"]),
    "export list": (lambda lm, x: an_index(lm).export_contexts("a.jsonl", list=x), [*NO_TEXT, "", "dead", "Dense"]),
    "export layer": (lambda lm, x: an_index(lm).export_contexts("a.jsonl", layer=x), [*NO_TEXT, "", "x", "99"]),
    "export contexts": (lambda lm, x: an_index(lm).export_contexts("a.jsonl", contexts=x), [*NOTHING_LIKE_IT, 0]),
    "where a corpus goes": (lambda lm, x: lm.scan(["a"], x), [*NO_PATH, "", None]),
    "window": (
        lambda lm, x: lm.scan(["a"], "ix", window=x),
        [v for v in NOTHING_LIKE_IT if v is not None] + [3, 10**9],
    ),
    "contexts": (lambda lm, x: lm.scan(["a"], "ix", top=x), [*NOTHING_LIKE_IT, 0, 1001]),
    "samples": (lambda lm, x: lm.scan(["a"], "ix", samples=x), [*NOTHING_LIKE_IT, -1, 101]),
    "repeats": (lambda lm, x: lm.scan(["a"], "ix", repeats=x), NO_FLAG),
    "full": (lambda lm, x: lm.scan(["a"], "ix", full=x), [5, True, b"x", {}, "", "x", "1/3@4", ["1/3", 5], "ALL"]),
    "limit": (lambda lm, x: lm.scan(["a"], "ix", limit=x), [v for v in NOTHING_LIKE_IT if v is not None] + [0, -1]),
    "documents": (lambda lm, x: lm.scan(["a"], "ix", documents=x), [*NO_TEXT, None, "", "word"]),
    "column": (lambda lm, x: lm.scan(["a"], "ix", column=x), [*NO_TEXT, None, "", " "]),
    "unit": (lambda lm, x: lm.scan(["a"], "ix", unit=x), [*NOTHING_LIKE_IT, 0, 10**9]),
    "features layer": (
        lambda lm, x: lm.features(TEXT, x),
        [v for v in NOTHING_LIKE_IT if v is not None] + [-1, 10**30],
    ),
    "sort": (lambda lm, x: lm.features(TEXT, sort=x), [*NO_TEXT, None, "", "Activation"]),
    "feature": (lambda lm, x: lm.attribute_tokens(TEXT, x), [*NO_TEXT, None, "", "1"]),
    "targets": (
        lambda lm, x: lm.attribute_tokens_each(TEXT, x),
        ["1/3", 5, None, [5], [None], {"1/3": 1}, [], [["1/3"]]],
    ),
    "pos": (
        lambda lm, x: lm.attribute_tokens(TEXT, "1/3", pos=x),
        [v for v in NOTHING_LIKE_IT if v is not None] + [-1, 10**30],
    ),
    "logit": (
        lambda lm, x: lm.attribute_tokens(TEXT, logit=x),
        [True, 1.5, b"x", [], [5], {}, object(), -1, 10**30, None],
    ),
    "target": (
        lambda lm, x: lm.attribute_tokens(TEXT, target=x),
        [*NO_TEXT, "", "1", *(text for text in NO_TARGET), "logit:5+5", "logit:9999999"],
    ),
    "logprob": (
        lambda lm, x: lm.attribute_tokens(TEXT, logprob=x),
        [True, 1.5, b"x", [], [5], {}, object(), -1, 10**30, None],
    ),
    "logit's against": (
        lambda lm, x: lm.attribute_tokens(TEXT, logit=5, against=x),
        [True, 1.5, b"x", [], {}, object(), -1, 10**30, "Mean", "", [None], [7, 7], [["x"]]],
    ),
    "against without a logit": (lambda lm, x: lm.attribute_tokens(TEXT, "1/3", against=x), ["mean", 5]),
    "logit_diff": (
        lambda lm, x: lm.attribute_tokens(TEXT, logit_diff=x),
        ["ab", 5, [5], [5, 6, 7], [5, None], (True, 5), {1, 2}],
    ),
    "direction": (
        lambda lm, x: lm.attribute_tokens(TEXT, direction=x, layer=1),
        [
            "x",
            5,
            [],
            {},
            object(),
            ["a"],
            torch.ones(3),
            torch.full((D_MODEL,), torch.nan),
            torch.ones(D_MODEL, dtype=torch.cfloat),
        ],
    ),
    "a direction's layer": (
        lambda lm, x: lm.attribute_tokens(TEXT, direction=torch.ones(D_MODEL), layer=x),
        [*NOTHING_LIKE_IT, -1, 99],
    ),
    "a direction's hook": (
        lambda lm, x: lm.attribute_tokens(TEXT, direction=torch.ones(D_MODEL), layer=1, hook=x),
        [5, True, "", "x", []],
    ),
    "layer without a direction": (lambda lm, x: lm.attribute_tokens(TEXT, "1/3", layer=x), [1, 5]),
    "logit of several targets": (lambda lm, x: lm.attribute_tokens_each(TEXT, ["1/3"], logit=x), [5, " Paris"]),
    "path": (lambda lm, x: lm.attribute_tokens(TEXT, "1/3", path=x), [*NO_TEXT, "", "gate", "x", None]),
    "by": (lambda lm, x: lm.attribute_tokens(TEXT, "1/3", by=x), [*NO_TEXT, "", "letter", None]),
    "ablate": (lambda lm, x: lm.attribute_tokens(TEXT, "1/3", ablate=x), [*NOTHING_LIKE_IT, -1, 10**30]),
    "seed": (lambda lm, x: lm.attribute_tokens(TEXT, "1/3", seed=x), [*NOTHING_LIKE_IT, 2**64, -(2**63) - 1]),
    "replace_from": (
        lambda lm, x: lm.attribute_tokens(TEXT, "1/3", ablate=1, replace_from=x),
        [*NO_PATH, "", NOBODY, LONG, "\0"],
    ),
    "rule": (lambda lm, x: lm.attribute_heads(TEXT, "1/3", rule=x), [*NO_TEXT, "", "Half"]),
    "temperature": (
        lambda lm, x: lm.attribute_heads(TEXT, "1/3", temperature=x),
        [True, "0.1", None, [], {}, object(), 1j, 0, -1, float("nan"), float("inf"), 10**400, torch.ones(2)],
    ),
    "first_token": (lambda lm, x: lm.attribute_modules(TEXT, "1/3", first_token=x), [*NO_TEXT, "", "Skip", None]),
    "qk_share": (
        lambda lm, x: lm.attribute_heads(TEXT, "1/3", qk_share=x),
        [True, "0.5", None, [], {}, object(), 1j, 0, -1, 1.5, float("nan"), float("inf"), 10**400, torch.ones(2)],
    ),
    "qk_slope": (lambda lm, x: lm.attribute_modules(TEXT, "1/3", qk_slope=x), [*NO_TEXT, "", "Local", None]),
    "memory": (
        lambda lm, x: lm.attribute_neurons(TEXT, "1/3", memory=x),
        [True, float("nan"), float("inf"), 0, -1, 0.5, 1.5, "x", "", b"1", [], {}, object(), "9" * 400],
    ),
    "progress": (lambda lm, x: lm.attribute_tokens(TEXT, "1/3", progress=x), [5, "x", True, [], object()]),
    "by_token": (lambda lm, x: lm.attribute_heads(TEXT, "1/3", by_token=x), NO_FLAG),
    "effects": (lambda lm, x: lm.attribute_neurons(TEXT, "1/3", effects=x), NO_FLAG),
    "effects over prompts": (lambda lm, x: lm.importance([TEXT], "1/3", effects=x), NO_FLAG),
    "parts' sort": (lambda lm, x: lm.attribute_modules(TEXT, "1/3", sort=x), [*NO_TEXT, None, "", "Effect", "size"]),
    "subspace": (
        lambda lm, x: lm.attribute_subspace(TEXT, "1/3", subspace=x),
        [None, 5, "x", torch.ones(2, D_MODEL), ds.Heads(0)],
    ),
    "names": (
        lambda lm, x: lm.attribute_subspace(TEXT, "1/3", subspace=ds.Subspace(torch.ones(1, D_MODEL), 0), names=x),
        ["a", 5, [5], ["a", "b"], [None], {"a": 1}],
    ),
    "directions": (
        lambda lm, x: lm.decoder_directions(x),
        ["1/3", 5, None, [5], [], ["1/3@4"], ["1/3@99"], ["1/3", "0/3"]],
    ),
    "at": (lambda lm, x: lm.decoder_directions(["1/3"], at=x), [5, True, "", "x", (1, "resid_post"), "1"]),
    "source": (lambda lm, x: lm.votes(TEXT, x), ["tokens", 5, None, ds.Heads, [], ds.Heads(99), ds.Heads(-1)]),
    "decode pos": (lambda lm, x: lm.votes(TEXT, ds.Heads(0), pos=x), [True, 1.5, "max", [], -1, 10**30]),
    "decode top": (lambda lm, x: lm.votes(TEXT, ds.Heads(0), top=x), [*NOTHING_LIKE_IT, 0, -1]),
    "downstream of": (lambda lm, x: lm.downstream(TEXT, x), [*NO_TEXT, "", "token:", "token:99", "1/3@", "head:1"]),
    "changes": (
        lambda lm, x: lm.intervene(TEXT, x),
        [*NOTHING_LIKE_IT, {}, {"1/3": None}, {3: 1}, {"1/3": "x"}, {"1/3": True}],
    ),
    "generate": (lambda lm, x: lm.intervene(TEXT, {"1/3": 0}, generate=x), [*NOTHING_LIKE_IT, -1, 10**30]),
    "changes of prompts": (lambda lm, x: lm.intervene_batch(x, {"1/3": 0}), [*NOTHING_LIKE_IT, TEXT, [], [5]]),
    "sets of changes": (
        lambda lm, x: lm.intervene_each(TEXT, x),
        [*NOTHING_LIKE_IT, {}, [], [{}], {"1/3": 0}, [{"1/3": None}], [5]],
    ),
    "drawing": (
        lambda lm, x: lm.intervene(TEXT, {"1/3": 0}, generate=1, temperature=x),
        [NOTHING_LIKE_IT[0], *NOTHING_LIKE_IT[2:], -1, float("inf")],
    ),
    "top_k": (
        lambda lm, x: lm.intervene(TEXT, {"1/3": 0}, generate=1, temperature=1, top_k=x),
        [1.5, True, "", "x", [], {}, object(), 0, -1],
    ),
    "downstream sort": (lambda lm, x: lm.downstream(TEXT, "token:3", sort=x), [*NO_TEXT, "", "abs"]),
    "grow": (lambda lm, x: lm.graph(TEXT, grow=x), [*NO_TEXT, "", "influence"]),
    "head": (lambda lm, x: lm.attribute_attention(TEXT, 1, x, 3, 1), [*NOTHING_LIKE_IT, -1, 10**30]),
    "key": (lambda lm, x: lm.attribute_attention(TEXT, 1, 0, 3, x), [*NOTHING_LIKE_IT, -1, 4, 10**30]),
    "attention by": (lambda lm, x: lm.attribute_attention(TEXT, 1, 0, 3, 1, by=x), [*NO_TEXT, "", "token", None]),
    "attention against": (
        lambda lm, x: lm.attribute_attention(TEXT, 1, 0, 3, 1, against=x),
        [True, 1.5, [], "x", "", -1, 9],
    ),
    "decompose source": (lambda lm, x: lm.decompose(TEXT, x, layer=1), ["token", "", 5, None, ds.Heads, []]),
    "decompose layer": (lambda lm, x: lm.decompose(TEXT, layer=x), [*NOTHING_LIKE_IT, -1, 10**30]),
    "decompose read": (lambda lm, x: lm.decompose(TEXT, layer=1, read=x), [5, True, "", "resid", None]),
    "decompose start": (lambda lm, x: lm.decompose(TEXT, layer=1, start=x), [*NOTHING_LIKE_IT, -1, 3, 10**30]),
    "card top": (lambda lm, x: lm.card("1/3", TEXT, top=x), [*NOTHING_LIKE_IT, 0, -1]),
    "card strongest": (lambda lm, x: lm.card("1/3", TEXT, strongest=x), [*NOTHING_LIKE_IT, 0, -1]),
    "card labels": (
        lambda lm, x: lm.card("1/3", TEXT, labels=x),
        [5, True, [], "", "x.txt", NOBODY, {5: "x"}, {"1/3": 5}],
    ),
    "card cache_dir": (lambda lm, x: lm.card("1/3", TEXT, cache_dir=x), [5, True, [], b"x", "", NOBODY]),
    "card write": (lambda lm, x: lm.card("1/3", TEXT).write(x), [*NO_PATH, None, "", "x", f"{NOBODY}.json"]),
    "case features": (lambda lm, x: lm.case_study(TEXT, x), [5, None, [], [5], {}, "", "1"]),
    "case title": (lambda lm, x: lm.case_study(TEXT, "1/3", title=x), [5, True, [], "", " ", "a\nb", "\x1b"]),
    "case top": (lambda lm, x: lm.case_study(TEXT, "1/3", top=x), [*NOTHING_LIKE_IT, 0]),
    "case verify": (lambda lm, x: lm.case_study(TEXT, "1/3", verify=x), [*NOTHING_LIKE_IT, -1]),
    "case asked": (lambda lm, x: lm.case_study(TEXT, "1/3", asked=x), [5, {}, "x"]),
    "graph target": (lambda lm, x: lm.graph(TEXT, x), [5, True, "", [5], {}, [""], "logit:²²", "1/3@-1"]),
    "average_graph prompts": (lambda lm, x: lm.average_graph(x, "logit:5"), [None, 5, TEXT, {}, [], [TEXT, 5]]),
    "average_graph target": (lambda lm, x: lm.average_graph([TEXT], x), [5, True, "", [5], {}, "1/3@-1"]),
    "average_graphs": (lambda lm, x: ds.average_graphs(x), [None, 5, "g.json", [], [5], {}]),
    "graph against": (lambda lm, x: lm.graph(TEXT, logit=5, against=x), [True, 1.5, [], {}, "Mean", [7, 7], -1]),
    "graph logprob": (lambda lm, x: lm.graph(TEXT, logprob=x), [True, 1.5, b"x", [], {}, -1, 10**30]),
    "graph direction": (
        lambda lm, x: lm.graph(TEXT, direction=x, layer=1),
        ["x", 5, [], {}, object(), torch.ones(3), torch.full((D_MODEL,), torch.nan)],
    ),
    "graph direction's layer": (
        lambda lm, x: lm.graph(TEXT, direction=torch.ones(D_MODEL), layer=x),
        [*NOTHING_LIKE_IT, -1, 99],
    ),
    "graph direction's hook": (
        lambda lm, x: lm.graph(TEXT, direction=torch.ones(D_MODEL), layer=1, hook=x),
        [5, True, "", "x", []],
    ),
    "circuit against": (lambda lm, x: lm.circuit(TEXT, logit=5, against=x), [True, 1.5, [], {}, "Mean", [7, 7], -1]),
    "graph layers": (lambda lm, x: lm.graph(TEXT, layers=x), [5, "1", True, [True], [1.5], ["1"], [-1], [99], {1: 2}]),
    "graph max_nodes": (lambda lm, x: lm.graph(TEXT, max_nodes=x), [*NOTHING_LIKE_IT, 0, -1, 1]),
    "graph threshold": (
        lambda lm, x: lm.graph(TEXT, node_threshold=x),
        [True, "0.5", [], float("nan"), 0, -1, 1.1, 10**400],
    ),
    "graph errors": (lambda lm, x: lm.graph(TEXT, errors=x), [5, True, "", "Roots", None, []]),
    "graph heads": (lambda lm, x: lm.graph(TEXT, heads=x), NO_FLAG),
    "circuit target": (lambda lm, x: lm.circuit(TEXT, x), [5, True, "", [5], ["1/3"], {}, "logit:²²", "1/3@-1"]),
    "circuit pos": (lambda lm, x: lm.circuit(TEXT, pos=x), [True, 1.5, "last", [], -1, 10**30]),
    "circuit contrast": (lambda lm, x: lm.circuit(TEXT, contrast=x), [*NO_PROMPT[2::4], TEXT, "supply"]),
    "circuit layers": (lambda lm, x: lm.circuit(TEXT, layers=x), [5, "1", True, [True], [1.5], [-1], [99]]),
    "circuit errors": (lambda lm, x: lm.circuit(TEXT, errors=x), [*NO_TEXT, "", "Keep", None]),
    "circuit newcomers": (lambda lm, x: lm.circuit(TEXT, newcomers=x), [*NO_TEXT, "", "Keep", None]),
    "circuit recompute": (lambda lm, x: lm.circuit(TEXT, recompute=x), NO_FLAG),
    "circuit seconds": (
        lambda lm, x: lm.circuit(TEXT, seconds=x),
        [True, "9", [], None, 0, -1, float("nan"), float("inf"), 10**400],
    ),
    "circuit draws": (lambda lm, x: lm.circuit(TEXT, draws=x), [*NOTHING_LIKE_IT, 0, 19, 10**30]),
    "circuit seed": (lambda lm, x: lm.circuit(TEXT, seed=x), [*NOTHING_LIKE_IT, 2**64]),
    "circuit stability": (lambda lm, x: lm.circuit(TEXT, stability=x), NO_FLAG),
    "circuit_of prompts": (lambda lm, x: lm.circuit_of(x), [None, 5, TEXT, {}, [TEXT] * 3, [TEXT, 5, 6, 7]]),
    "circuit_of targets": (
        lambda lm, x: lm.circuit_of([TEXT] * 4, x),
        [5, "logit:5", [5] * 4, ["logit:5"] * 3, ["1/x"] * 4],
    ),
    "circuit_of contrasts": (lambda lm, x: lm.circuit_of([TEXT] * 4, contrasts=x), [5, TEXT, [TEXT] * 3, [TEXT] * 4]),
    "verify": (lambda lm, x: lm.verify(x), [None, 5, "g.json", {}, []]),
    "verify max_nodes": (lambda lm, x: lm.verify(sample_graph(), max_nodes=x), [*NOTHING_LIKE_IT, -1]),
    "verify seed": (lambda lm, x: lm.verify(sample_graph(), seed=x), [*NOTHING_LIKE_IT, 2**64]),
    "load model": (
        lambda lm, x: ds.load(x),
        [5, None, True, [], object(), "", NOBODY, "./nu\0l", f"./{LONG}", Path("/no/where")],
    ),
    "load tokenizer": (lambda lm, x: ds.load(model(), x), [5, "x", True, object()]),
    "load saes": (
        lambda lm, x: ds.load(model(), saes=x),
        [
            5,
            True,
            "",
            NOBODY,
            object(),
            [5],
            {True: fitting_sae()},
            {-1: random_sae(hook=None)},
            {1.0: fitting_sae()},
            {"²": fitting_sae()},
            {ENDLESS: fitting_sae()},
            {None: fitting_sae()},
            {1: 5},
            {1: "./missing"},
            {1: NOBODY},
        ],
    ),
    "load layers": (
        lambda lm, x: ds.load(model(), saes=fitting_sae(), layers=x),
        [[True], [-1], ["1"], "1", 1.5, [1.0], True, {1: 2}],
    ),
    "load layers alone": (lambda lm, x: ds.load(model(), layers=x), [[1], 1]),
    "load sae_ids": (lambda lm, x: ds.load(model(), saes="./x", sae_ids=x), [5, [5], True, {}]),
    "load dtype": (
        lambda lm, x: ds.load("./x", dtype=x),
        [torch.int8, torch.cfloat, torch.bool, 32, "", float, "int8"],
    ),
    "load trace_dtype": (
        lambda lm, x: ds.load(model(), trace_dtype=x),
        [torch.int8, torch.cfloat, torch.bool, 32, "", float],
    ),
    "load device": (
        lambda lm, x: ds.load("./x", device=x),
        [True, 1.5, [], "", "meta", "hpu", object(), torch.device("meta")],
    ),
    "load cache_dir": (lambda lm, x: ds.load("smollm2", cache_dir=x), [5, True, [], b"x", "", NOBODY]),
    "load device_map": (lambda lm, x: ds.load(model(), device_map=x), ["auto", {"": "cpu"}]),
    "load max_memory": (lambda lm, x: ds.load("smollm2", max_memory=x), [5, "6GiB", ["6GiB"], {"cpu": "6GiB"}]),
    "load offload_folder": (lambda lm, x: ds.load("smollm2", offload_folder=x), [5, True, [], b"x", "x"]),
    "load revision": (lambda lm, x: ds.load("smollm2", revision=x), [5, True, [], b"x", "main"]),
    "load subfolder": (lambda lm, x: ds.load("smollm2", subfolder=x), [5, True, [], b"x", "inner"]),
    "load chat": (lambda lm, x: ds.load("./x", chat=x), NO_FLAG),
    "load trust": (lambda lm, x: ds.load("./x", trust_remote_code=x), NO_FLAG),
    "Heads": (lambda lm, x: ds.Heads(x), NOTHING_LIKE_IT),
    "Modules": (lambda lm, x: lm.votes(TEXT, ds.Modules(0, x)), [5, None, "", "attention", []]),
    "Neurons": (
        lambda lm, x: lm.votes(TEXT, ds.Neurons(0, x)),
        [5, "x", [5], [], [[True]], [[-1]], [["a"]], [[10**30]]],
    ),
    "Spans": (lambda lm, x: ds.Spans(x, ["a"]), [5, "x", [5], [[True]], [["a"]], None]),
    "Subspace": (
        lambda lm, x: lm.votes(TEXT, ds.Subspace(x, 0)),
        [
            5,
            "x",
            None,
            [],
            [5],
            ["x"],
            {},
            torch.ones(3),
            torch.ones(2, 3),
            torch.ones(1, D_MODEL, dtype=torch.cfloat),
            [None],
        ],
    ),
    "Subspace rank": (
        lambda lm, x: lm.votes(TEXT, ds.Subspace(torch.ones(1, D_MODEL), 0, rank=x)),
        [True, 1.5, "x", 0, -1],
    ),
    "Vectors": (
        lambda lm, x: lm.votes(TEXT, ds.Vectors(x, ["a"], (0, "resid_pre"))),
        [5, "x", None, torch.ones(3), [[1]]],
    ),
    "Vectors at": (
        lambda lm, x: ds.Vectors(torch.ones(1, 1, 1), ["a"], x),
        [5, "x", None, (0,), ("a", 0), (0, "a", 1), (True, "a")],
    ),
    "write_graph": (lambda lm, x: ds.write_graph(x, "g.json"), [5, None, "x", {}, []]),
    "write_graph path": (
        lambda lm, x: ds.write_graph(sample_graph(), x),
        [*NO_PATH, None, "", f"{NOBODY}.json", f"{LONG}.json"],
    ),
    "write_graph format": (lambda lm, x: ds.write_graph(sample_graph(), "no/g.json", x), [5, True, "", "docx", []]),
    "read_graph": (
        lambda lm, x: ds.read_graph(x),
        [*NO_PATH, None, "", f"{NOBODY}.json", "nu\0l.json", "missing.json"],
    ),
    "plot_graph": (lambda lm, x: ds.plot_graph(x), [5, None, "x", {}]),
    "plot_verification": (lambda lm, x: ds.plot_verification(x), [5, None, "x", sample_graph()]),
    "diff_graphs": (lambda lm, x: ds.diff_graphs(sample_graph(), x), [5, None, "x", {}]),
    "prune": (lambda lm, x: ds.prune(sample_graph(), node_threshold=x), [True, "x", float("nan"), 0, -1, 2, [], 1j]),
    "prune max_nodes": (lambda lm, x: ds.prune(sample_graph(), max_nodes=x), [True, "x", 1.5, -1, 0, []]),
    "read_labels": (lambda lm, x: ds.read_labels(x), [*NO_PATH, None, *NO_FILE]),
    "with_labels": (
        lambda lm, x: ds.with_labels(sample_graph(), x),
        [5, None, "x", [], {5: "x"}, {"1/3": 5}, {"x": "y"}],
    ),
    "with_contexts": (lambda lm, x: ds.with_contexts(sample_graph(), x), [5, None, "x", "missing", {}, sample_graph()]),
    "with_groups": (lambda lm, x: ds.with_groups(sample_graph(), x), [5, None, "x", [5], [{}], {"name": "x"}]),
}


@pytest.mark.parametrize("which", PYTHON)
def test_in_python_it_is_a_user_error_of_one_line(
    lm: ds.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.chdir(tmp_path)
    call, values = PYTHON[which]
    found = []
    for value in values:
        try:
            found.append(f"{value!r:.60} is taken: {call(lm, value)!r:.80}")
        except UserError as error:
            said = str(error)
            if "\n" in said or not 0 < len(said) <= 500 or any(is_hidden(char) for char in said):
                found.append(f"{value!r:.60}: {said}")
        except Exception as error:
            found.append(f"{value!r:.60}: {type(error).__name__}: {error}")
    assert not found
    assert not os.listdir()


def test_a_setting_that_there_is_not_is_pythons_own_mistake(lm: ds.LM) -> None:
    with pytest.raises(TypeError, match="there is no setting 'positon'; there are rule, temperature"):
        lm.attribute_tokens_each(TEXT, ["1/3"], positon=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'positon'"):
        lm.features(TEXT, positon=3)  # type: ignore[call-arg]


def test_both_refuse_in_the_same_words(run: Run, lm: ds.LM) -> None:
    for option, value, settings in [
        ("--rule", "Half", {"rule": "Half"}),
        ("--temperature", "nan", {"temperature": float("nan")}),
        ("--first-token", "Skip", {"first_token": "Skip"}),
        ("--qk-share", "1.5", {"qk_share": 1.5}),
        ("--qk-slope", "steep", {"qk_slope": "steep"}),
        ("--memory", "4XB", {"memory": "4XB"}),
        ("--path", "both", {"path": "both"}),
        ("--by", "letter", {"by": "letter"}),
        ("--ablate", HUGE, {"ablate": 10**30}),
        ("--seed", str(2**64), {"seed": 2**64}),
    ]:
        with pytest.raises(UserError) as caught:
            lm.attribute_tokens(TEXT, "1/3", **settings)  # type: ignore[arg-type]
        assert wrong(run("tokens", *COMPLETE["tokens"], option, value, *ABSENT)) == f"depass-sae: {caught.value}"


# ------------------------------------------------------------------------------------------ what looks wrong and is not

FINE = [
    ["tokens", *P, "-f", " 1/3 ", "--temperature", "1e308", "--rule", "softmax"],
    ["tokens", *P, "-f", "01/0003", "--pos", "06", "--top", " 3 "],
    ["tokens", *P, "-f", "1/3@22", "--memory", " 1 gib "],
    ["tokens", *P, "--logit", " Paris", "--pos", "0", "--seed", str(2**64 - 1), "--ablate", "1"],
    ["tokens", *P, "-f", "1/3", "--seed", str(-(2**63)), "--top", HUGE, "--temperature", "1e-300"],
    ["tokens", "--ids", "[0, 80,\n 90]", "-f", "１/３"],
    ["subspace", *P, "-f", "1/3", "--direction", "1/3", "--rank", HUGE, "--memory", "1"],
    ["attention", *P, "-l", "1", "-H", "0", "-q", "0", "-k", "0", "--against", "0"],
    ["graph", *P, "--max-nodes", str(2**31 - 1), "--node-threshold", "1e-300", "--target", "logit:007"],
    ["feature", "1/3", "-p", "\x00\x1b[1m", "-p", " ", "-p", "👩‍🚀 می‌خواهم", "--strongest", HUGE],
]  # fmt: skip


@pytest.mark.parametrize("case", FINE, ids=lambda case: " ".join(part[:20] for part in case if part not in P))
def test_what_only_looks_wrong_is_taken(run: Run, files: Files, case: list[str]) -> None:
    done = run(*case, *files.options(), *(["--json"] if case[0] != "graph" else []))
    assert done.status == 0, done.err
    assert "nan" not in done.out.lower()
    if case[0] != "graph":
        json.loads(done.out)


@pytest.mark.parametrize(
    "title",
    ["👩‍🚀", "می‌خواهم", "soft\u00adhyphen", "🏴\U000e0067\U000e0062\U000e0065\U000e007f", "क्‍ष", " spaces ", "\u200bx"],
)
def test_a_title_may_have_what_is_written_with_joiners(lm: ds.LM, title: str) -> None:
    study = lm.case_study(TEXT, "1/3", title=title, ablate=0, verify=0, max_nodes=8)
    assert study.to_dict()["title"] == title
    assert title.strip() in study.to_html()


def test_numbers_and_texts_of_other_libraries_are_taken(lm: ds.LM, tmp_path: Path) -> None:
    plain = lm.attribute_tokens(TEXT, "1/3", pos=5, temperature=0.5, rule="softmax").to_dict()
    for pos, temperature in [
        (np.int64(5), np.float32(0.5)),
        (torch.tensor(5), torch.tensor(0.5)),
        (np.array(5), np.float64(0.5)),
        (np.uint8(5), 0.5),
    ]:
        found = lm.attribute_tokens(
            np.str_(TEXT), np.str_("1/3"), pos=pos, temperature=temperature, rule=np.str_("softmax")
        )
        assert found.to_dict() == plain
        json.dumps(found.to_dict())
    for memory in (4e9, np.int64(10**9), np.float64(4e9), "4GiB"):
        assert (
            lm.attribute_tokens(TEXT, "1/3", pos=5, temperature=0.5, rule="softmax", memory=memory).to_dict() == plain
        )
    for layers in ([1], (1,), 1, np.array([1]), torch.tensor([1]), np.int64(1), range(1, 2)):
        assert list(ds.load(model(), tokenizer(), saes=[fitting_sae()], layers=layers).saes) == [1]
    assert list(ds.load(model(), saes={np.int64(1): fitting_sae()}, trust_remote_code=np.bool_(False)).saes) == [1]
    assert lm.votes(TEXT, ds.Subspace(np.ones((1, D_MODEL), np.float32), np.int64(0))).pos == 22
    assert lm.attribute_tokens(TEXT, direction=[1.0] * D_MODEL, layer=np.int64(1)).target.pos is not None
    for path in (str(tmp_path / "a.json"), tmp_path / "b.json"):
        ds.write_graph(sample_graph(), path)
        assert len(ds.read_graph(path)) == len(sample_graph())


def test_the_home_of_somebody_is_found_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ds.write_graph(sample_graph(), "~/g.json")
    assert os.listdir(tmp_path) == ["g.json"]
    assert len(ds.read_graph("~/g.json")) == len(sample_graph())


def test_what_gives_orders_is_hidden_and_what_is_written_is_not() -> None:
    orders = (
        "\x00\x1b\x7f\x9b\u2028\u2029\u061c\u200e\u200f\u202a\u202e\u2066\u2069\u206a\u206f\ufeff\ufff9\ufffb\ud800"
    )
    written = "\u200d\u200c\u00ad\u2060\u200b\u0600\u06dd\U000e0067\U000e007fa é東🙂"
    assert all(map(is_hidden, orders))
    assert not any(map(is_hidden, written))
    assert visible(f"a{orders}b") == "a" + "\ufffd" * len(orders) + "b"
    assert visible(written) == written


def test_a_message_that_is_too_long_for_people_keeps_its_beginning_and_its_end() -> None:
    said = str(UserError(f"it is {'x' * 9000}\nand should\tbe y"))
    assert said.startswith("it is xxx")
    assert said.endswith("xxx and should⇥be y")
    assert len(said) == 500
    assert str(UserError("short")) == "short"
    assert str(pickle.loads(pickle.dumps(UserError(said)))) == said
