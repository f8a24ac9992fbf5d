"""Models of a kind that cannot be read as it is: one line says what it is and what to hand over instead."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import accelerate
import peft
import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel, pipeline

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.models.load import adapter_for
from depass_sae.passes.selfcheck import check

from ..attribution.tiny import model, random_sae, tokenizer
from ..passes.models import CONFIGS, SHAPES, fresh

pytestmark = [
    pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:torch.quantize_per_tensor"),
]
IDS = [0, 5, 9, 17, 3]
LORA = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn"]}


def refusal(model: Any) -> str:
    with pytest.raises(UserError) as caught:
        ds.load(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_lora(shape: str = "llama") -> Any:
    config = peft.LoraConfig(target_modules=LORA[shape], init_lora_weights=False)
    return peft.get_peft_model(fresh(shape), config)  # type: ignore[arg-type]


def replaced(model: PreTrainedModel, new: Callable[[nn.Linear], nn.Module]) -> PreTrainedModel:
    """The model with other maps in its layers."""
    for block in model.model.layers:
        block.mlp.down_proj = new(block.mlp.down_proj)
    return model


# ---------------------------------------------------------------------------------------------------------------- PEFT


@pytest.mark.parametrize("shape", LORA)
def test_a_peft_model_is_refused_with_the_way_to_merge_it_and_loads_once_it_is(shape: str) -> None:
    given = with_lora(shape)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        adapted, plain = given(ids).logits, fresh(shape)(ids).logits
    assert not torch.allclose(adapted, plain, atol=1e-2)
    message = refusal(given)
    assert message.startswith("a PeftModel keeps its adapter beside the weights")
    assert "model.merge_and_unload()" in message
    lm = ds.load(given.merge_and_unload())
    seen = lm.attribute_tokens(IDS, logit=7)
    assert seen.pre_activation == pytest.approx(adapted[0, -1, 7].item(), rel=1e-4, abs=1e-4)


def test_adapters_in_the_layers_are_refused_unless_they_are_merged_or_off() -> None:
    given = with_lora()
    assert "its merge_and_unload() returns" in refusal(given.base_model.model)
    given.merge_adapter()
    check(adapter_for(given.base_model.model))
    added = fresh("llama")
    added.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert "its merge_and_unload() returns" in refusal(added)
    added.disable_adapters()
    check(adapter_for(added))


def test_an_adapter_that_cannot_be_merged_is_told_apart() -> None:
    config = peft.PromptTuningConfig(task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=3)
    given = peft.get_peft_model(fresh("llama"), config)  # type: ignore[arg-type]
    message = refusal(given)
    assert "model.get_base_model()" in message
    assert "merge_and_unload" not in message
    check(adapter_for(given.get_base_model()))


@pytest.mark.parametrize("whole", [True, False])
def test_a_directory_with_an_adapter_is_refused_and_never_read_without_it(tmp_path: Path, whole: bool) -> None:
    if whole:
        fresh("llama").save_pretrained(tmp_path)
    with_lora().save_pretrained(tmp_path)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path} holds a PEFT adapter")
    assert "merge_and_unload()" in message


# ------------------------------------------------------------------------------------------------------------- devices


def test_a_model_that_accelerate_put_on_one_device_is_read() -> None:
    check(adapter_for(accelerate.dispatch_model(fresh("llama"), {"": "cpu"}, force_hooks=True)))
    check(adapter_for(accelerate.cpu_offload_with_hook(fresh("llama"), execution_device="cpu")[0]))


def test_a_model_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    assert refusal(empty).startswith("the model is on the meta device")


# ------------------------------------------------------------------------------------------------------------ wrappers


@pytest.fixture
def process_group() -> Iterator[None]:
    """One process that is all there is."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_parallel_wrapper_is_refused_and_names_what_is_inside(process_group: None) -> None:
    for wrapper in (nn.DataParallel, nn.parallel.DistributedDataParallel):
        message = refusal(wrapper(fresh("llama")))
        assert message == f"a {wrapper.__name__} is a wrapper; hand over model.module, the LlamaForCausalLM"


def test_weights_that_are_shared_out_over_processes_are_refused(process_group: None) -> None:
    from torch.distributed.fsdp import fully_shard

    given = fresh("llama")
    fully_shard(given, mesh=dist.init_device_mesh("cpu", (1,)))
    assert "shared out over processes" in refusal(given)


def test_a_pipeline_and_a_transformer_lens_model_are_refused_with_what_to_hand_over() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    message = refusal(pipeline("text-generation", model=model(), tokenizer=tokenizer()))
    assert message.endswith("hand over pipe.model and pipe.tokenizer")
    lens = HookedTransformer(
        HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=8, d_head=4, d_vocab=10, act_fn="gelu")
    )
    assert "hand over the transformers model" in refusal(lens)


def compiled(how: str) -> Any:
    given = fresh("llama")
    match how:
        case "wrapped":
            return torch.compile(given, backend="eager")
        case "in place":
            given.compile(backend="eager")
        case "its MLPs":
            for block in given.model.layers:
                block.mlp.compile(backend="eager")
        case "its layers":
            for i, block in enumerate(given.model.layers):
                given.model.layers[i] = torch.compile(block, backend="eager")
        case "its forward":
            given.forward = torch.compile(given.forward, backend="eager")
    return given


@pytest.mark.parametrize("how", ["wrapped", "in place", "its MLPs", "its layers", "its forward"])
def test_a_compiled_model_that_has_run_gives_what_it_gives_uncompiled(how: str) -> None:
    given = compiled(how)
    with torch.no_grad():
        given(torch.tensor([IDS]), use_cache=False)
    saes = [random_sae(hook=hook) for hook in ("0.resid_post", "1.mlp_out")]
    mine, plain = ds.load(given, saes=saes), ds.load(fresh("llama"), saes=saes)
    assert isinstance(mine.model, LlamaForCausalLM)
    for feature in ("1/3", "0/3"):
        found, expected = (lm.attribute_tokens(IDS, feature, pos=3) for lm in (mine, plain))
        assert found.pre_activation == pytest.approx(expected.pre_activation, rel=1e-5)
        assert found.completeness_error < 1e-4


# ----------------------------------------------------------------------------------------------------------- quantized


def packed(weight: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)


class QuantLinear(nn.Module):
    """No weight of that name, nor sizes, by which to ask it for one."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(plain.in_features // 8, plain.out_features, dtype=torch.int32))
        self.bias = plain.bias


class FP8Linear(nn.Linear):
    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features)
        self.weight = nn.Parameter(plain.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize(
    ("kind", "why"),
    [(QuantLinear, "no plain weight"), (FP8Linear, "its weight is float8_e4m3fn")],
)
def test_weights_that_are_not_plain_numbers_are_refused_by_what_they_are(kind: Any, why: str) -> None:
    message = refusal(replaced(fresh("llama"), kind))
    assert f"quantized or packed (a {kind.__name__}: {why}); load a checkpoint that is not" in message


@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_that_a_table_reads_is_looked_at(shape: str) -> None:
    last = adapter_for(fresh(shape)).n_layers - 1
    parts = ["mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj", "post_attention_layernorm"]
    names = [f"model.layers.{last}.{part}" for part in parts] + ["model.norm", "model.embed_tokens", "lm_head"]
    if shape == "gpt2":
        parts = ["mlp.c_proj", "attn.c_attn", "attn.c_proj", "ln_2"]
        names = [f"transformer.h.{last}.{part}" for part in parts] + ["transformer.ln_f", "transformer.wte", "lm_head"]
    for name in names:
        given = fresh(shape)
        part = given.get_submodule(name)
        part.weight = packed(part.weight)
        assert "its weight is int8" in refusal(given), name


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_what_torch_quantized_for_each_call_is_refused(dtype: torch.dtype) -> None:
    given = torch.ao.quantization.quantize_dynamic(fresh("llama"), {nn.Linear}, dtype=dtype)
    assert "a DynamicQuantizedLinear: no plain weight" in refusal(given)


def test_a_quantizers_own_kind_of_tensor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torchao.tensors")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    kind = type("Int8Tensor", (nn.Parameter,), {"__module__": module.__name__})
    given = fresh("llama")
    given.lm_head.weight = kind(given.lm_head.weight.detach())
    assert "quantized (torchao)" in refusal(given)


def test_a_sparse_weight_is_refused_with_the_way_back() -> None:
    given = fresh("llama")
    down = given.model.layers[1].mlp.down_proj
    down.weight = nn.Parameter(down.weight.detach().to_sparse(), requires_grad=False)
    assert refusal(given).endswith("make it dense: weight.to_dense()")


# -------------------------------------------------------------------------------------------- what does not go together


def test_a_config_of_another_type_than_the_model_is_refused() -> None:
    given = fresh("llama")
    given.config = CONFIGS["gpt2"]()
    message = refusal(given)
    assert message.startswith("the model's config is of type 'gpt2', but a LlamaForCausalLM is of type 'llama'")


def test_a_model_that_is_built_otherwise_is_refused_with_what_is_missing() -> None:
    given = fresh("llama")
    attention = given.model.layers[2].self_attn
    attention.qkv_proj = attention.q_proj
    del attention.q_proj
    message = refusal(given)
    assert message.startswith("this LlamaForCausalLM is not built as transformers builds a llama")
    assert "q_proj" in message


@pytest.mark.parametrize("part", ["lm_head", "model.norm"])
def test_weights_in_two_dtypes_that_do_not_run_are_refused(part: str) -> None:
    given = fresh("llama", torch.bfloat16)
    given.get_submodule(part).float()
    message = refusal(given)
    assert "its weights are in bfloat16 and float32; put them in one" in message
    ds.load(given.to(torch.float32))


def test_half_precision_on_the_host_and_inference_tensors_are_read() -> None:
    check(adapter_for(fresh("llama", torch.float16)))
    with torch.inference_mode():
        given = fresh("llama")
    check(adapter_for(given))
