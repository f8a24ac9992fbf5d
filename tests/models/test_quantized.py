"""Packed weights: what is carried, and what the model computes while it is traced, is what the weights stand for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import depass_sae as ds
from depass_sae.errors import QuantizationWarning
from depass_sae.models.weights import of_linear
from tests.passes.models import build, fresh

IDS = [0, 5, 9, 17, 3, 11]
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(
        vocab_size=48, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=48, n_embd=64, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
    ),
}  # fmt: skip


class QuantLinear(nn.Module):
    """As GPTQ and AWQ have it: a linear map with no weight of that name."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias
        self.register_buffer("scales", plain.weight.detach().abs().amax(1) / 127)
        self.register_buffer("qweight", (plain.weight.detach() / self.scales[:, None]).round().to(torch.int8))

    def plain(self) -> nn.Linear:
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        made.weight = nn.Parameter(self.qweight * self.scales[:, None])
        made.bias = self.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.qweight * self.scales[:, None], self.bias)


def same(found: Any, expected: Any) -> None:
    """The answers of a packed model and of a plain one with the weights that it stands for."""
    for rule in ("half", "softmax"):
        mine, plain = (lm.attribute_tokens(IDS, logit=7, rule=rule) for lm in (found, expected))
        assert mine.completeness_error < 1e-5
        assert mine.pre_activation == pytest.approx(plain.pre_activation, rel=1e-4, abs=1e-4)
        torch.testing.assert_close(mine.contributions, plain.contributions, rtol=1e-3, atol=1e-4)
    mine, plain = (lm.attribute_neurons(IDS, logit=7).to_dict()["targets"][0] for lm in (found, expected))
    assert mine["pre_activation"] == pytest.approx(plain["pre_activation"], rel=1e-4, abs=1e-4)


def test_a_linear_map_without_a_weight_is_read_off_what_it_makes_of_the_identity() -> None:
    packed, plain = fresh("llama"), fresh("llama")
    for model in (packed, plain):
        for block in model.model.layers:
            for owner, name in ((block.mlp, "down_proj"), (block.self_attn, "q_proj"), (block.self_attn, "v_proj")):
                made = QuantLinear(getattr(owner, name))
                setattr(owner, name, made if model is packed else made.plain())
    one = packed.model.layers[0].mlp.down_proj
    torch.testing.assert_close(of_linear(one).fetch(), one.plain().weight.detach(), rtol=1e-5, atol=1e-6)
    same(ds.load(packed), ds.load(plain))


def quantized(shape: str, bits: int, folder: Path) -> Any:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    build(CONFIGS[shape]()).save_pretrained(folder)
    how = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, device_map={"": "cpu"})


@pytest.mark.filterwarnings("ignore::depass_sae.errors.QuantizationWarning", "ignore:MatMul8bitLt")
@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("bits", [8, 4])
def test_what_bitsandbytes_packed_answers_as_the_model_that_it_stands_for(
    bits: int, shape: str, tmp_path: Path
) -> None:
    model, plain = quantized(shape, bits, tmp_path), quantized(shape, bits, tmp_path).dequantize()
    kept = {name: (type(p), p.dtype, p.shape) for name, p in model.named_parameters()}
    lm = ds.load(model)
    same(lm, ds.load(plain))
    assert {name: (type(p), p.dtype, p.shape) for name, p in model.named_parameters()} == kept
    assert not any("forward" in vars(module) for module in model.modules() if hasattr(module, "quant_state"))


def test_4_bits_that_a_processor_has_laid_out_anew_are_read_too(tmp_path: Path) -> None:
    model = quantized("llama", 4, tmp_path)
    one = model.model.layers[0].mlp.up_proj
    before = of_linear(one).fetch().clone()
    with torch.no_grad():
        model(torch.tensor([IDS]))
    torch.testing.assert_close(of_linear(one).fetch().to(before), before, rtol=2e-2, atol=1e-3)
    seen = ds.load(model).attribute_tokens(IDS, logit=7, rule="half")
    assert seen.completeness_error < 1e-4


def test_how_far_a_model_of_8_bits_is_from_what_it_stands_for_is_said(tmp_path: Path) -> None:
    model = quantized("llama", 8, tmp_path)
    with torch.no_grad():
        own = model(torch.tensor([IDS])).logits
    with pytest.warns(QuantizationWarning, match=r"its own logits are off by [\d.]+%"):
        ds.load(model)
    with torch.no_grad():
        assert torch.equal(model(torch.tensor([IDS])).logits, own)
