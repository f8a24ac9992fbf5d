"""Dictionaries of every format from a hub: over HTTP, with a transfer that breaks off, and with what is wrong there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from depass_sae.saes import load_saes

from .by_hand import activations
from .test_formats import WRITTEN
from .test_qwen_scope import NAME
from .test_sparsify import sparsify

ALL = pytest.mark.parametrize("name", WRITTEN)
AT_ROOT = ("llama-scope", "qwen-scope", "circuit-tracer")
"""Whose repositories here are the folder itself, as public ones of the last two are."""


def repository(name: str, kind: str = "whole") -> str:
    """Qwen-Scope's has to be called so."""
    return f"{kind}/{NAME if name == 'qwen-scope' else name}"


def put(hub: Path, name: str, kind: str = "whole") -> Path:
    """A format's folder in a repository of its own, or as one."""
    _, make, *_ = WRITTEN[name]
    there = hub / repository(name, kind)
    made = make(there.parent / f"{name}, made" / "in")
    there.parent.mkdir(parents=True, exist_ok=True)
    if name in AT_ROOT:
        made.rename(there)
        path = there
    else:
        there.mkdir()
        path = made.rename(there / made.name)
    shutil.rmtree(there.parent / f"{name}, made")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def session(folder: Path) -> dict[str, Any]:
    """What hub_session.py saw."""
    hub, asked, broken = folder / "hub", {}, []
    for name, (called, _, weights, config) in WRITTEN.items():
        path = put(hub, name)
        within = path.relative_to(hub / repository(name)).as_posix()
        broken.append(f"/{repository(name)}/resolve/main/{within}/{weights}".replace("/./", "/"))
        asked[name] = {"saes": repository(name)}
        asked[f"{name}, named"] = asked[name] | {"sae_ids": [within], "sae_format": called}
        other = "sparsify" if called != "sparsify" else "qwen-scope"
        asked[f"{name}, as another"] = asked[name] | {"sae_format": other}
        file = put(hub, name, "damaged") / weights
        os.truncate(file, file.stat().st_size // 2)
        kinds = ["damaged"]
        if config is not None:
            (put(hub, name, "no-weights") / weights).unlink()
            (put(hub, name, "no-config") / config).unlink()
            kinds += ["no-weights", "no-config"]
        asked |= {f"{name}, {kind}": {"saes": repository(name, kind)} for kind in kinds}
    for layer in (1, 2):
        sparsify(hub / "owner/several", f"layers.{layer}")
    asked |= {
        "several": {"saes": "owner/several"},
        "one of several": {"saes": "owner/several", "sae_ids": ["layers.2"]},
        "not there": {"saes": "owner/several", "sae_ids": ["layers.9"]},
        "no repository": {"saes": "owner/nothing"},
        "gated": {"saes": "owner/gated", "sae_ids": ["layers.1"]},
        "failing": {"saes": "owner/failing"},
        "foreign": {"saes": "owner/foreign"},
        "foreign, named": {"saes": "owner/foreign", "sae_ids": ["."]},
    }
    foreign = hub / "owner/foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "llama"}')
    (foreign / "model.safetensors").write_bytes(bytes(100))
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "broken.json").write_text(json.dumps(broken))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_HOME": str(folder / "cache"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    kept["PYTHONPATH"] = os.pathsep.join(path for path in [str(Path(__file__).parents[3]), *sys.path] if path)
    script = Path(__file__).with_name("hub_session.py")
    done = subprocess.run(
        [sys.executable, script, folder], env=kept, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "broken": broken}


def on_disk(folder: Path, name: str) -> dict[str, Any]:
    sae_format, *_ = WRITTEN[name]
    path = folder / "hub" / repository(name)
    return {str(hook): activations(sae).tolist() for hook, sae in load_saes(path, sae_format=sae_format).items()}


@ALL
def test_a_repository_is_known_by_its_files_and_encodes_as_its_folder_on_disk(
    session: dict[str, Any], folder: Path, name: str
) -> None:
    expected = on_disk(folder, name)
    assert any(value > 0 for acts in expected.values() for row in acts for value in row)
    assert session["found"][name] == expected
    assert session["found"][f"{name}, named"] == expected


@ALL
def test_a_transfer_that_breaks_off_goes_on_where_it_was(session: dict[str, Any], name: str) -> None:
    (path,) = [path for path in session["broken"] if path.startswith(f"/{repository(name)}/")]
    assert path not in session["not broken"]
    (part,) = session["ranges"][path]
    assert re.fullmatch(r"bytes=[1-9]\d+-", part)


def test_nothing_else_is_asked_for_in_parts(session: dict[str, Any]) -> None:
    assert set(session["ranges"]) == set(session["broken"])


def test_what_is_in_the_cache_needs_no_network(session: dict[str, Any]) -> None:
    assert {*WRITTEN, "one of several"} <= set(session["again"])
    assert session["again"] == {name: session["found"][name] for name in session["again"]}


def said(session: dict[str, Any], name: str) -> str:
    message = session["found"][name]
    assert isinstance(message, str), message
    assert "\n" not in message
    return message


@ALL
def test_a_repository_that_is_damaged_half_there_or_of_another_format_is_told_in_one_line(
    session: dict[str, Any], name: str
) -> None:
    assert "is damaged or cut short" in said(session, f"{name}, damaged")
    if WRITTEN[name][-1] is not None:
        assert f"{repository(name, 'no-weights')} holds no SAE: neither " in said(session, f"{name}, no-weights")
        half = said(session, f"{name}, no-config")
        assert re.search(r"has no (cfg|config)\.json|and no config\.yaml|holds no SAE: neither .*hyperparams", half)
    foreign = said(session, f"{name}, as another")
    assert re.search(r"holds no SAE: neither [^;]* \((sparsify|qwen-scope)\), nor", foreign)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("several", r"owner/several has 2 SAEs: choose with sae_ids; it has layers\.1, layers\.2"),
        ("not there", r"owner/several has no folder layers\.9; close to it: layers\."),
        ("no repository", r"no SAE directory and no sae-lens release, and as a hub repository: the hub has no reposi"),
        ("gated", r"owner/gated is gated: accept its licence on https://huggingface\.co/owner/gated "),
        ("failing", r"the Hugging Face hub answered 500 for owner/failing: try again later"),
        ("foreign", r"owner/foreign holds no SAE: neither cfg\.json .*\(sparsify\); .*\(sae-lens\), nor folders"),
        ("foreign, named", r"holds no SAE: neither cfg\.json and sae\.safetensors \(sparsify\); "),
    ],
)
def test_what_a_hub_does_not_have_is_told_in_one_line(session: dict[str, Any], name: str, says: str) -> None:
    assert re.search(says, said(session, name)), said(session, name)


def test_one_of_several_folders_is_chosen_by_its_name(session: dict[str, Any]) -> None:
    assert list(session["found"]["one of several"]) == ["2.resid_post"]
