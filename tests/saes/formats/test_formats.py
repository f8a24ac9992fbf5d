"""Which format a folder is of, and what is said of one that is damaged, foreign or half there: of every format."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from depass_sae.saes import check_folder, load_saes
from depass_sae.saes.formats import FORMATS, folders_in

from ..builders import Recipe
from ..tracer_folder import write_config, write_transcoder
from .by_hand import refused
from .test_dictionary_learning import trained
from .test_lm_saes import saved, scope
from .test_qwen_scope import NAME
from .test_qwen_scope import scope as qwen
from .test_sparsify import sparsify


def sae_lens(path: Path) -> Path:
    Recipe("jumprelu").build(hook_name="blocks.17.hook_resid_post").save_model(path / "sae")
    return path / "sae"


def tracer(path: Path) -> Path:
    write_transcoder(path / "set", 0)
    return write_config(path / "set", model_kind="transcoder_set")


# name: (its format, how one is written, its weights, its configuration)
WRITTEN: dict[str, tuple[str, Callable[[Path], Path], str, str | None]] = {
    "sparsify": ("sparsify", lambda path: sparsify(path, "layers.1"), "sae.safetensors", "cfg.json"),
    "dictionary-learning": (
        "dictionary-learning",
        lambda path: trained(path / "trainer", "BatchTopKSAE"),
        "ae.pt",
        "config.json",
    ),
    "lm-saes": ("lm-saes", lambda path: saved(path / "sae"), "sae_weights.safetensors", "config.json"),
    "llama-scope": ("lm-saes", lambda path: scope(path / "sae"), "checkpoints/final.safetensors", "hyperparams.json"),
    "qwen-scope": ("qwen-scope", lambda path: qwen(path / NAME, 4), "layer4.sae.pt", None),
    "circuit-tracer": ("circuit-tracer", tracer, "layer_0.safetensors", "config.yaml"),
    "sae-lens": ("sae-lens", sae_lens, "sae_weights.safetensors", "cfg.json"),
}
ALL = pytest.mark.parametrize("name", WRITTEN)


@ALL
def test_a_folder_is_known_by_its_files_and_by_its_formats_name(tmp_path: Path, name: str) -> None:
    called, make, *_ = WRITTEN[name]
    path = make(tmp_path)
    assert [(folder, known.name) for folder, known in folders_in(path)] == [(path, called)]
    check_folder(path)
    for source in (path, tmp_path, [path], str(path)):
        for sae_format in (None, called):
            assert len(load_saes(source, sae_format=sae_format)) == 1


def test_every_format_is_written_here() -> None:
    assert {called for called, *_ in WRITTEN.values()} == set(FORMATS)


def test_folders_of_several_formats_lie_side_by_side(tmp_path: Path) -> None:
    for name in ("sparsify", "dictionary-learning", "lm-saes"):
        WRITTEN[name][1](tmp_path)
    assert [str(hook) for hook in load_saes(tmp_path)] == ["1.resid_post", "3.resid_post", "8.resid_post"]
    assert [str(hook) for hook in load_saes(tmp_path, sae_format="lm-saes")] == ["3.resid_post"]


def test_a_format_that_there_is_not_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    said = "there is no SAE format 'saelens'; those that are understood are sparsify, dictionary-learning, lm-saes, "
    assert refused(tmp_path, sae_format="saelens").startswith(said)
    assert "no SAE format ''" in refused("some-release", sae_format="")


@ALL
def test_a_folder_of_another_format_than_is_said_is_refused(tmp_path: Path, name: str) -> None:
    called, make, *_ = WRITTEN[name]
    path = make(tmp_path)
    for other in set(FORMATS) - {called}:
        if (name, other) not in {("sparsify", "sae-lens"), ("lm-saes", "sae-lens")}:  # some files are called alike
            assert f"{path} holds no SAE: neither {FORMATS[other].files}" in refused(path, sae_format=other)
    if called != "sae-lens":
        assert str(path) in refused(path, sae_format="sae-lens")


def test_a_folder_of_no_format_is_refused_with_all_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert all(f"({name})" in refused(tmp_path) for name in FORMATS)


@ALL
def test_weights_that_are_cut_short_are_told_from_good_ones(tmp_path: Path, name: str) -> None:
    _, make, weights, _ = WRITTEN[name]
    file = make(tmp_path) / weights
    for length in (os.path.getsize(file) // 2, 0):
        os.truncate(file, length)
        assert "is damaged or cut short" in refused(tmp_path)


@ALL
def test_files_that_are_missing_are_named(tmp_path: Path, name: str) -> None:
    _, make, weights, config = WRITTEN[name]
    path = make(tmp_path)
    for file in filter(None, (config, weights)):
        kept = (path / file).read_bytes()
        (path / file).unlink()
        assert any(said in refused(path) for said in ("has no", "holds no SAE", "and no config.yaml", "without"))
        (path / file).write_bytes(kept)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", '{"k": 1, "k": 2}'])
@pytest.mark.parametrize("name", ["sparsify", "dictionary-learning", "llama-scope"])
def test_a_configuration_that_is_no_json_of_one_meaning_is_named(tmp_path: Path, name: str, text: str) -> None:
    _, make, _, config = WRITTEN[name]
    path = make(tmp_path)
    assert config is not None
    (path / config).write_text(text)
    assert f"{path / config} " in refused(path)


def stored(file: Path) -> Any:
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def store(tensors: Any, file: Path) -> None:
    save_file(tensors, file) if file.suffix == ".safetensors" else torch.save(tensors, file)


@pytest.mark.parametrize("name", ["sparsify", "dictionary-learning", "lm-saes", "llama-scope", "qwen-scope"])
def test_a_tensor_that_is_missing_foreign_misshapen_or_no_number_is_named(tmp_path: Path, name: str) -> None:
    _, make, weights, _ = WRITTEN[name]
    file = make(tmp_path) / weights
    good = stored(file)
    chosen = next(key for key, values in sorted(good.items()) if values.ndim == 2)
    for wrong, why in (
        ({key: values for key, values in good.items() if key != chosen}, " and is missing"),
        (good | {chosen: good[chosen][:, :-1].contiguous()}, f"{chosen} should be "),
        (good | {chosen: good[chosen].to(torch.int8)}, "weights are floating-point numbers"),
        (good | {chosen: good[chosen].clone().fill_(float("nan"))}, f"{chosen} holds NaN or infinite values"),
        (good | {"another": torch.ones(2)}, "also holds another"),
        ({}, " and is missing"),
    ):
        store(wrong, file)
        message = refused(tmp_path)
        assert why in message, message
        assert str(file) in message


class Code:
    """What a pickle can do to who reads it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("name", ["dictionary-learning", "qwen-scope"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    _, make, weights, _ = WRITTEN[name]
    file, trace = make(tmp_path) / weights, tmp_path / "trace"
    torch.save(torch.load(file, weights_only=True) | {"code": Code(trace)}, file)
    assert f"{file} is damaged, or holds more than tensors (code, which is not run)" in refused(tmp_path)
    assert not trace.exists()
    file.write_text("version https://git-lfs.github.com/spec/v1")
    assert f"{file} is damaged" in refused(tmp_path)
    for foreign, why in (([1, 2], "holds no tensors by name"), ({"k": "x"}, "k is a str, not a tensor")):
        torch.save(foreign, file)
        assert why in refused(tmp_path)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    file = sparsify(tmp_path, "layers.1") / "sae.safetensors"
    save_file({name: values.bfloat16() for name, values in load_file(file).items()}, file)
    (sae,) = load_saes(tmp_path).values()
    assert sae.W_enc.dtype == torch.float32
    assert torch.equal(sae.W_enc, load_file(file)["encoder.weight"].T.float())
