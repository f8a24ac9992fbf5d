"""A model directory's config.json: sizes that cannot be are refused before anything is made of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from depass_sae.errors import UserError
from depass_sae.models.load import adapter_for, load_model

COUNT = "should be a whole number from 1, and is"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    llama = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=50, n_positions=32, bos_token_id=1, eos_token_id=1)
    GPT2LMHeadModel(gpt2).save_pretrained(folder / "gpt2")
    return folder


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"num_hidden_layers": 0}, f"num_hidden_layers {COUNT} 0"),
    ("llama", {"num_hidden_layers": -1}, f"num_hidden_layers {COUNT} -1"),
    ("llama", {"num_hidden_layers": "2"}, f'num_hidden_layers {COUNT} "2"'),
    ("llama", {"num_hidden_layers": True}, f"num_hidden_layers {COUNT} True"),
    ("llama", {"num_hidden_layers": 2.5}, f"num_hidden_layers {COUNT} 2.5"),
    ("llama", {"num_hidden_layers": None}, "expected int, got NoneType"),
    ("llama", {"num_hidden_layers": 1}, "has 1 layers by its config.json, and weights of more: model.layers.1"),
    ("llama", {"num_hidden_layers": 3}, r"lacks weights or has them in another shape: model.layers.2"),
    ("llama", {"num_hidden_layers": 10**7}, "it says 10000000 layers, and the checkpoint holds 21 weights in all"),
    ("llama", {"num_hidden_layers": 10**15}, "it says 1000000000000000 layers"),
    ("llama", {"num_attention_heads": 0}, f"num_attention_heads {COUNT} 0"),
    ("llama", {"num_attention_heads": -4}, f"num_attention_heads {COUNT} -4"),
    ("llama", {"num_attention_heads": 10**7, "num_key_value_heads": 1, "head_dim": 4}, "numbers at least"),
    ("llama", {"num_key_value_heads": 0}, f"num_key_value_heads {COUNT} 0"),
    ("llama", {"num_key_value_heads": 3}, "should divide the number of heads, 4, and is 3"),
    ("llama", {"hidden_size": 0}, f"hidden_size {COUNT} 0"),
    ("llama", {"hidden_size": -16}, f"hidden_size {COUNT} -16"),
    ("llama", {"hidden_size": 18}, r"hidden size \(18\) is not a multiple"),
    ("llama", {"hidden_size": 10**9}, "numbers at least, and the checkpoint holds 5520"),
    ("llama", {"intermediate_size": 0}, f"intermediate_size {COUNT} 0"),
    ("llama", {"intermediate_size": 10**9}, "numbers at least"),
    ("llama", {"vocab_size": -5}, f"vocab_size {COUNT} -5"),
    ("llama", {"vocab_size": 10**9}, "numbers at least"),
    ("llama", {"head_dim": 0}, f"head_dim {COUNT} 0"),
    ("llama", {"max_position_embeddings": -1}, f"max_position_embeddings {COUNT} -1"),
    ("llama", {"hidden_act": "banana"}, "names 'banana', which transformers does not know"),
    ("llama", {"text_config": {"num_hidden_layers": 0}}, f"num_hidden_layers {COUNT} 0"),
    ("gpt2", {"n_layer": 0}, f"n_layer {COUNT} 0"),
    ("gpt2", {"n_head": 3}, "3 heads do not share a width of 16 evenly"),
    ("gpt2", {"n_inner": 0}, f"n_inner {COUNT} 0"),
    ("gpt2", {"n_positions": 10**9}, "numbers at least"),
]


@pytest.mark.parametrize(("family", "change", "message"), WRONG, ids=str)
def test_sizes_that_cannot_be_are_one_line(
    saved: Path, tmp_path: Path, family: str, change: dict[str, Any], message: str
) -> None:
    model = shutil.copytree(saved / family, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message) as caught:
        load_model(model)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ("", "not JSON"),
        ("[]", r"it should hold an object, not \[\]"),
        ("null", "it should hold an object, not None"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "a number of too many digits"),
    ],
    ids=["brackets", "nothing", "a list", "null", "digits"],
)
def test_a_config_that_is_no_object_of_json_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=rf"^cannot use .*config.json: .*{message}"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_config_with_names_that_stand_twice_and_numbers_that_are_no_json_is_taken(
    saved: Path, tmp_path: Path, family: str
) -> None:
    model = shutil.copytree(saved / family, tmp_path / "model")
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("{", '{"note": 1, "note": [0.0, Infinity],', 1))
    assert len(load_model(model).model.state_dict()) > 20


def test_a_model_object_without_layers_is_one_line() -> None:
    model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=8, num_hidden_layers=0, vocab_size=9,
                                         num_attention_heads=2))  # fmt: skip
    with pytest.raises(UserError, match=r"^this LlamaForCausalLM has no layers$"):
        adapter_for(model)
