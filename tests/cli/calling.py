"""The command line called in tests, on models and SAEs that lie on the disk."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import depass_sae as ds
from depass_sae.cli import main

from ..attribution.tiny import TEXT, fitting_sae, model, random_sae, tokenizer
from ..graph.sample import sample_graph


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


Run = Callable[..., Done]
PROMPT = ["--prompt", TEXT]


@dataclass(frozen=True)
class Files:
    """What lies on the disk: a model with its tokenizer, one without, and SAEs for it."""

    model: Path
    bare: Path
    fitting: Path
    saes: Path

    def options(self, saes: str = "fitting") -> list[str]:
        return ["--model", str(self.model), "--sae", str(getattr(self, saes))]


@pytest.fixture(scope="session")
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
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
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
