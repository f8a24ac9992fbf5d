"""Loading by name: local directories, the hub, and one line for whatever is wrong with them."""

import copy
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.models.load import Checkpoint, adapter_for, load_model
from depass_sae.passes.selfcheck import check

from ..attribution.tiny import model, tokenizer
from ..passes.models import CONFIGS, SHAPES, build, tiny

WORDS = {"<s>": 0, "</s>": 1, "<unk>": 2, "the": 3, "cat": 4}


def saved(directory: Path, shape: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    tiny(shape, dtype).model.save_pretrained(directory)
    return directory


def with_tokenizer(directory: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)
    return directory


def refusal(name: str | Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_model(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_local_directory_gives_the_model_that_was_saved(tmp_path: Path, shape: str) -> None:
    loaded = load_model(saved(tmp_path, shape))
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = tiny(shape).model(ids).logits
        assert torch.allclose(loaded.model(ids.to(loaded.model.device)).logits.cpu(), expected, atol=1e-5)
    assert loaded.name == str(tmp_path)
    assert loaded.bos_id is None
    assert not loaded.model.training
    check(adapter_for(loaded.model))


def test_a_directory_without_a_tokenizer_loads_without_one(tmp_path: Path) -> None:
    assert load_model(saved(tmp_path)).tokenizer is None


def test_a_directory_with_a_tokenizer_brings_it(tmp_path: Path) -> None:
    loaded = load_model(str(with_tokenizer(saved(tmp_path))))
    assert loaded.tokenizer is not None
    assert loaded.tokenizer("the cat")["input_ids"] == [3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_dtype_is_the_checkpoints_own_unless_another_is_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    directory = saved(tmp_path, "qwen2", dtype)
    assert load_model(directory).model.dtype == dtype
    assert load_model(directory, dtype="float32").model.dtype == torch.float32
    assert load_model(directory, dtype=torch.float64).model.dtype == torch.float64


def test_an_unknown_dtype_is_refused_with_the_dtypes_there_are(tmp_path: Path) -> None:
    assert refusal(tmp_path, dtype="fp8") == "unknown dtype 'fp8'; choose one of float64, float32, bfloat16, float16"


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, device="tpu9").startswith("device 'tpu9' cannot be used here")


@pytest.mark.parametrize("name", ["./no-such-model", "/no/such/model", "~/no-such-model"])
def test_a_directory_that_is_not_there_is_refused(name: str) -> None:
    assert refusal(name) == f"there is no directory {name}"


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    assert "is a file; a model is a directory" in refusal(tmp_path / "model.bin")


def test_a_name_that_is_neither_a_directory_nor_a_hub_id_is_refused() -> None:
    message = refusal("one/two/three")
    assert message == "'one/two/three' is neither a directory nor a hub id (owner/name)"


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path)


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (saved(tmp_path) / "config.json").write_text("{")
    message = refusal(tmp_path)
    assert message.startswith(f"cannot use {tmp_path}/config.json: not JSON: Expecting property name")


def test_an_unsupported_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    message = refusal(tmp_path)
    assert message.startswith("models of type 'bert' are not supported; supported types are")
    assert all(shape in message for shape in SHAPES)


def test_a_family_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-family"}))
    assert "no-such-family" in refusal(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (saved(tmp_path) / "model.safetensors").unlink()
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    assert "safetensors" in message


@pytest.mark.parametrize("keep", [0, 5, 500, -100])
def test_weights_that_are_cut_short_are_refused(tmp_path: Path, keep: int) -> None:
    weights = saved(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "damaged or cut short" in refusal(tmp_path)


def test_weights_in_a_pickle_are_refused_and_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    weights = saved(tmp_path) / "model.safetensors"
    torch.save({**load_file(weights), "trap": Trap()}, tmp_path / "pytorch_model.bin")
    weights.unlink()
    assert "safetensors" in refusal(tmp_path)
    assert not (tmp_path / "sprung").exists()


def rewritten(directory: Path, **tensors: torch.Tensor | None) -> None:
    weights = directory / "model.safetensors"
    changed = {**load_file(weights), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
    save_file({name: t for name, t in changed.items() if t is not None}, weights, metadata={"format": "pt"})


def test_a_checkpoint_that_lacks_a_tensor_is_refused_and_names_it(tmp_path: Path) -> None:
    rewritten(saved(tmp_path), model__layers__1__mlp__up_proj__weight=None)
    message = refusal(tmp_path)
    assert "lacks weights" in message
    assert message.endswith("model.layers.1.mlp.up_proj.weight")


def test_a_checkpoint_that_lacks_many_tensors_names_three_of_them(tmp_path: Path) -> None:
    names = [f"model__layers__1__self_attn__{part}_proj__weight" for part in "qkvo"]
    rewritten(saved(tmp_path), **dict.fromkeys(names))
    assert refusal(tmp_path).endswith(" and 1 more")


def test_a_checkpoint_with_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    rewritten(saved(tmp_path), model__layers__0__mlp__up_proj__weight=torch.zeros(2, 3))
    assert "another shape" in refusal(tmp_path)


def test_nan_in_the_weights_is_refused_by_the_check(tmp_path: Path) -> None:
    rewritten(saved(tmp_path), model__norm__weight=torch.full((32,), float("nan")))
    with pytest.raises(UserError, match="logits are NaN or infinite"):
        check(adapter_for(load_model(tmp_path).model))


def quantized(directory: Path, **how: Any) -> Path:
    config = json.loads((saved(directory) / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": how}))
    (directory / "model.safetensors").unlink()
    return directory


@pytest.mark.parametrize("method", ["compressed-tensors", "hqq"])
def test_quantized_weights_are_refused_by_their_method_before_they_are_read(tmp_path: Path, method: str) -> None:
    message = refusal(quantized(tmp_path, quant_method=method, bits=4))
    assert message.startswith(f"the weights of {tmp_path} are quantized ({method}); load a checkpoint that is not")


# ----------------------------------------------------------------------------------------------------------- tokenizers


def test_a_tokenizer_with_tokens_that_the_model_lacks_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"has \d+ tokens that LlamaForCausalLM has no embedding for \(48 rows\)"):
        ds.load(tiny("llama").model, tokenizer())


def test_a_padding_token_without_an_embedding_is_no_reason_to_warn() -> None:
    words, config = copy.deepcopy(tokenizer()), CONFIGS["llama"]()
    config.vocab_size = len(words)
    words.add_special_tokens({"pad_token": "<pad>"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds.load(build(config), words)


def test_what_is_no_tokenizer_is_refused_by_its_type() -> None:
    for given, kind in (("gpt2", "str"), (tokenizer().backend_tokenizer, "Tokenizer")):
        with pytest.raises(UserError, match=rf"^a tokenizer is transformers' own, such as .*, not a {kind}$"):
            ds.load(model(), given)


# --------------------------------------------------------------------------------------- which checkpoint, and where


@pytest.mark.parametrize("shape", ["llama", "qwen3_moe"])
def test_a_directory_is_shared_out_over_memory_and_disk_and_answers_the_same(tmp_path: Path, shape: str) -> None:
    directory = saved(tmp_path / "model", shape)
    layers = {f"model.layers.{i}": "cpu" if i == 0 else "disk" for i in range(tiny(shape).n_layers)}
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk", **layers}
    away = ds.load(directory, device_map=places, offload_folder=tmp_path / "away")
    assert any(p.is_meta for p in away.model.parameters())
    found, expected = (lm.attribute_tokens([3, 4, 5, 9], logit=7) for lm in (away, ds.load(directory)))
    assert found.pre_activation == pytest.approx(expected.pre_activation, rel=1e-5)
    torch.testing.assert_close(found.contributions, expected.contributions, rtol=1e-4, atol=1e-5)


def test_a_device_map_with_a_size_for_each_device(tmp_path: Path) -> None:
    lm = ds.load(saved(tmp_path / "model"), device_map="auto", max_memory={"cpu": "60KB"}, offload_folder=tmp_path)
    assert "disk" in lm.model.hf_device_map.values()
    assert lm.attribute_tokens([3, 4, 5, 9], logit=7, rule="half").completeness_error < 1e-4


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"device_map": "auto", "device": "cpu"}, "give one of them"),
        ({"max_memory": {"cpu": "1GiB"}}, "go with a device_map"),
        ({"revision": "main"}, "which has no revisions"),
        ({"subfolder": "elsewhere"}, "elsewhere has no config.json"),
        ({"device_map": "nowhere"}, "cannot be loaded: "),
        ({"chat": True}, "came without a tokenizer|no chat template"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        ds.load(saved(tmp_path), **settings)
    assert "\n" not in str(caught.value)


def test_a_model_object_takes_no_setting_of_a_checkpoint() -> None:
    with pytest.raises(UserError, match=r"^dtype and revision are for models loaded by name"):
        ds.load(tiny("llama").model, dtype="float32", revision="main")


def test_without_accelerate_a_device_map_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depass_sae.models.load.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^device_map needs accelerate, .*: pip install accelerate$"):
        ds.load(saved(tmp_path), device_map="auto")


def test_a_model_in_a_subfolder_is_read_from_there(tmp_path: Path) -> None:
    saved(tmp_path / "inner")
    assert load_model(tmp_path, checkpoint=Checkpoint(subfolder="inner")).model.config.model_type == "llama"


# ------------------------------------------------------------------------------------------------------------ the hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What load_model says about models on a hub that a local server plays, and when that server is gone."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    home = {"HF_HOME": str(tmp_path_factory.mktemp("hub")), "PYTHONPATH": str(Path(__file__).parents[2])}
    script = Path(__file__).with_name("hub.py")
    done = subprocess.run([sys.executable, script], env=kept | home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["gated-401", "gated-403"])
def test_a_gated_model_is_refused_with_what_to_do(hub: dict[str, dict[str, Any]], name: str) -> None:
    assert hub[name]["message"] == (
        f"owner/{name} is gated: accept its licence on its page, then log in with `hf auth login` or set HF_TOKEN"
    )


@pytest.mark.parametrize("name", ["missing", "private"])
def test_a_model_that_the_hub_does_not_have_is_refused(hub: dict[str, dict[str, Any]], name: str) -> None:
    assert hub[name]["message"] == (
        f"the hub has no model 'owner/{name}' that you may read; check its name, or log in with `hf auth login`"
    )


def test_an_adapter_on_the_hub_is_told_from_a_model(hub: dict[str, dict[str, Any]]) -> None:
    assert hub["adapter"]["message"].startswith("owner/adapter holds a PEFT adapter beside a model's weights")
    assert hub["empty"]["message"].startswith("owner/empty has no config.json on the hub")


def test_a_revision_and_a_subfolder_that_the_hub_does_not_have_are_told_apart(hub: dict[str, dict[str, Any]]) -> None:
    assert hub["empty, subfolder"]["message"].startswith("owner/empty has no config.json in sub on the hub")
    assert hub["branchless, revision"]["message"].startswith("owner/branchless has no such revision on the hub")


def test_without_a_network_one_line_says_so(hub: dict[str, dict[str, Any]]) -> None:
    assert hub["offline"]["message"] == (
        "owner/offline is not on this machine and the hub cannot be reached; check the network, or give a directory"
    )


def test_refusals_of_the_hub_come_soon(hub: dict[str, dict[str, Any]]) -> None:
    assert all(answer["seconds"] < 10 for answer in hub.values()), hub
    assert all("\n" not in answer["message"] for answer in hub.values())
