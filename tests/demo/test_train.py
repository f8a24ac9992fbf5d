"""The trainer: what it captures, what it saves, and that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from depass_sae.demo import train
from depass_sae.demo.corpus import Context

RECIPE = train.Recipe(d_sae=64, k=4, rows=4096, batch=128, dead_after=20)


def run(out: Path, work: Path, texts, load_model, layers=(1,), recipe=RECIPE) -> None:
    train.train(out, work, texts, load_model, layers, recipe, "cpu")


def test_residuals_are_the_layers_outputs_without_position_0(tiny_llama, texts):
    rows = train.residuals(tiny_llama, texts[:5], (0, 1))
    by_length = sorted(texts[:5], key=lambda text: len(text.ids))
    hidden = [tiny_llama(torch.tensor([text.ids]), output_hidden_states=True).hidden_states for text in by_length]
    for layer in (0, 1):
        expected = torch.cat([states[layer + 1][0, 1:] for states in hidden])
        torch.testing.assert_close(rows[layer], expected)


def test_residuals_of_another_architecture_are_read_where_its_table_says(texts):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=64, n_embd=16, n_layer=3, n_head=4)).eval()
    rows = train.residuals(model, texts[:1], (0, 1))
    hidden = model(torch.tensor([texts[0].ids]), output_hidden_states=True).hidden_states
    for layer in (0, 1):
        torch.testing.assert_close(rows[layer], hidden[layer + 1][0, 1:])


def test_held_out_contexts_are_not_trained_on(tiny_llama, texts, tmp_path):
    run(tmp_path / "saes", tmp_path, texts, lambda: tiny_llama)
    captured = sum(len(train.read_layer([path], 1)) for path in tmp_path.glob("activations-*/*.safetensors"))
    assert captured == sum(len(text.ids) - 1 for text in texts if not text.held_out)


def test_a_trained_sae_loads_with_sae_lens_and_names_its_hook(tiny_llama, texts, tmp_path):
    from sae_lens import SAE

    run(tmp_path / "saes", tmp_path, texts, lambda: tiny_llama)
    sae = SAE.load_from_disk(tmp_path / "saes" / "layer_1")
    assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert sae.cfg.metadata.hf_hook_name == "model.layers.1.output"
    assert sae.cfg.metadata.prepend_bos is True
    assert sae.W_dec.dtype == torch.float32


def test_weight_matrices_are_stored_in_float16_and_biases_in_float32(tiny_llama, texts, tmp_path):
    run(tmp_path / "saes", tmp_path, texts, lambda: tiny_llama)
    weights = load_file(tmp_path / "saes" / "layer_1" / "sae_weights.safetensors")
    assert {name: w.dtype for name, w in weights.items()} == {
        "W_enc": torch.float16,
        "W_dec": torch.float16,
        "b_enc": torch.float32,
        "b_dec": torch.float32,
    }


def train_for_long(folder: Path, model: Path, texts) -> None:
    """What the killed process runs: it would train for hours."""
    from transformers import AutoModelForCausalLM

    load = partial(AutoModelForCausalLM.from_pretrained, model)
    run(folder / "saes", folder, texts, load, recipe=replace(RECIPE, rows=10**9))


def test_a_run_that_was_killed_goes_on_from_its_shards(tiny_llama, texts, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "model")
    arguments = (tmp_path, tmp_path / "model", texts)
    process = multiprocessing.get_context("spawn").Process(target=train_for_long, args=arguments)
    process.start()
    while not (shards := list(tmp_path.glob("activations-*/*.safetensors"))) and process.is_alive():
        time.sleep(0.1)
    process.kill()
    process.join()
    assert not (tmp_path / "saes" / "layer_1").exists()
    before = [path.stat().st_mtime_ns for path in shards]

    def load():
        raise AssertionError("the activations are there: the model is not needed")

    run(tmp_path / "saes", tmp_path, texts, load)
    assert [path.stat().st_mtime_ns for path in shards] == before
    assert (tmp_path / "saes" / "layer_1" / "sae_weights.safetensors").is_file()


def test_a_finished_sae_is_not_trained_again(tiny_llama, texts, tmp_path):
    run(tmp_path / "saes", tmp_path, texts, lambda: tiny_llama)
    weights = tmp_path / "saes" / "layer_1" / "sae_weights.safetensors"
    before = weights.stat().st_mtime_ns
    run(tmp_path / "saes", tmp_path, texts, lambda: tiny_llama)
    assert weights.stat().st_mtime_ns == before


def test_a_capture_goes_on_with_the_shards_that_are_missing(tiny_llama, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(train.shards, "__defaults__", (300,))
    assert len(train.shards(texts)) > 3
    paths = train.capture(lambda: tiny_llama, texts, (1,), tmp_path)
    whole = train.read_layer(paths, 1)
    kept = paths[0].stat().st_mtime_ns
    paths[2].unlink()
    train.capture(lambda: tiny_llama, texts, (1,), tmp_path)
    assert paths[0].stat().st_mtime_ns == kept
    torch.testing.assert_close(train.read_layer(paths, 1), whole)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")

    def fail_halfway():
        with train.replacing(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_seed_trains_the_same_sae(tiny_llama, texts):
    rows = train.residuals(tiny_llama, texts, (1,))[1]
    recipe = replace(RECIPE, rows=1024)
    one, two = (train.train_sae(rows, recipe, "cpu", lambda n: None) for _ in range(2))
    assert torch.equal(one.W_enc, two.W_enc)


def test_shuffled_gives_every_row_once_before_any_again():
    rows = torch.arange(100.0)[:, None]
    batches = train.shuffled(rows, 25, 0, "cpu")
    seen = torch.cat([next(batches) for _ in range(4)]).flatten().sort().values
    assert torch.equal(seen, rows.flatten())


def test_capped_scales_only_the_longest_rows():
    rows = torch.cat([torch.eye(9), 100 * torch.eye(9)[:1]])
    out = train.capped(rows)
    assert torch.equal(out[:9], rows[:9])
    torch.testing.assert_close(out[9], 2 * rows[0])


def test_limited_counts_training_tokens_and_keeps_what_is_held_out(texts):
    some = train.limited(texts, 50)
    count = sum(len(text.ids) - 1 for text in some if not text.held_out)
    assert 50 <= count < 70
    assert [text for text in some if text.held_out] == [text for text in texts if text.held_out]


def test_saving_names_the_model_and_the_context_size(tiny_llama, texts, tmp_path):
    rows = train.residuals(tiny_llama, texts, (1,))[1]
    sae = train.train_sae(rows, replace(RECIPE, rows=512), "cpu", lambda n: None)
    train.save_sae(sae, 1, tmp_path / "layer_1")
    metadata = json.loads((tmp_path / "layer_1" / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert metadata["context_size"] == 128


def test_batches_hold_contexts_of_like_length_within_their_size(texts):
    runs = list(train.batches(texts, tokens=100))
    assert sorted((text for part in runs for text in part), key=repr) == sorted(texts, key=repr)
    assert all(len(part) * max(len(text.ids) for text in part) <= 100 for part in runs)


def test_a_context_longer_than_a_batch_is_a_batch_of_its_own():
    assert [len(part) for part in train.batches([Context("x", tuple(range(50)), False)] * 2, tokens=40)] == [1, 1]
