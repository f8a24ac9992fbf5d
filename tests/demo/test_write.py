"""SmolLM2 as an author: which texts it is asked for, and a decoding loop that gives what transformers' own gives."""

from __future__ import annotations

import json
import lzma
from itertools import islice

import pytest
import torch

from depass_sae.demo import write
from depass_sae.demo.topics import TOPICS


def test_the_same_seed_asks_for_the_same_texts():
    one, two = (list(islice(write.requests(3), 500)) for _ in range(2))
    assert one == two
    assert one != list(islice(write.requests(4), 500))


def test_every_topic_comes_once_before_any_comes_again():
    assert sorted(request.topic for request in islice(write.requests(0), len(TOPICS))) == sorted(TOPICS)


def test_an_opening_stays_in_the_text_and_a_request_does_not():
    for request in islice(write.requests(0), 50):
        if request.prompt.startswith("<|im_start|>"):
            assert request.opening == ""
        else:
            assert request.prompt == "<|endoftext|>" + request.opening


@pytest.mark.parametrize("new_tokens", [1, 9])
def test_continuations_follow_the_models_own_greedy_choice(tiny_llama, new_tokens, monkeypatch):
    monkeypatch.setattr(write, "TOP_K", 1)
    monkeypatch.setattr(write, "_ENDS", (-1,))
    prompts = torch.randint(3, 97, (2, 5), generator=torch.Generator().manual_seed(0))
    expected = prompts
    for _ in range(new_tokens):
        expected = torch.cat([expected, tiny_llama(expected).logits[:, -1:].argmax(-1)], dim=1)
    implementation = tiny_llama.config._attn_implementation
    try:
        rows = write.continue_batch(tiny_llama, prompts, torch.ones(2), new_tokens, torch.Generator().manual_seed(0))
    finally:
        tiny_llama.set_attn_implementation(implementation)
    assert rows == expected[:, 5:].tolist()


def test_pack_keeps_each_text_once_and_no_short_ones(tmp_path):
    long = "word " * 40
    lines = [json.dumps({"topic": "t", "kind": "k", "text": text}) for text in (long, "too short", long)]
    (tmp_path / "part.jsonl").write_text("\n".join(lines))
    assert write.pack([tmp_path / "part.jsonl"], tmp_path / "all.jsonl.xz") == 1
    with lzma.open(tmp_path / "all.jsonl.xz", "rt") as file:
        assert [json.loads(line)["text"] for line in file] == [long]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.jsonl.xz", "part.jsonl"]
