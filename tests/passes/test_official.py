"""Agreement with the official DePass implementation, and where it is not right (data/official/README.md)."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from depass_sae.models.adapter import Adapter
from depass_sae.models.load import adapter_for
from depass_sae.models.place import Place
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.memory import Budget
from depass_sae.passes.record import Trace, trace
from depass_sae.passes.sources import Heads, Modules, Source, Subspace, Vectors, tokens

from .models import attention_of, norms_of, recorded_pattern

DATA = Path(__file__).parents[1] / "data" / "official"
PROMPTS = ("p12", "p30")
LAYERS, HEADS = 4, 8
END = (LAYERS - 1, "resid_post")
OFFICIAL_NAME = {"softmax": "softmax", "max": "max", "linear": "taylor"}
FIRST = {"skip": "first_skipped", "compete": "first_competes"}
TOLERANCE = {"softmax": 5e-5, "max": 1e-5, "linear": 1e-5}  # of the largest entry


@cache
def model() -> Adapter:
    return adapter_for(AutoModelForCausalLM.from_pretrained(DATA / "tiny-llama", dtype=torch.float32))


@cache
def golden(prompt: str) -> dict[str, Tensor]:
    return load_file(DATA / f"{prompt}.safetensors")


@cache
def seen(prompt: str) -> Trace:
    outputs = [(layer, "hook_z") for layer in range(LAYERS)]
    return trace(model(), golden(prompt)["input_ids"], outputs=outputs)


def parts(prompt: str, source: Source, allocation: Allocation, at: Place = END, **options: Budget) -> Tensor:
    """[pos, comp, d_model] at a point, bias and rest last."""
    run = seen(prompt)
    reads = {at: torch.arange(len(run.token_ids))}
    return propagate(run, source.start(run), reads, allocation, **options)[at].dense()


def after_final_norm(prompt: str, components: Tensor) -> Tensor:
    norm = model().final_norm
    return components * norm.scale(seen(prompt).resid_post)[:, None] * norm.gain


def tokens_of(prompt: str) -> Source:
    return tokens([str(i) for i in seen(prompt).token_ids.tolist()])


def heads_of(prompt: str, layer: int) -> Source:
    """One part per head, from the pattern and the value and output weights; the rest is the residual before."""
    attention, norm = attention_of(model(), layer), norms_of(model(), layer)[0]
    values = norm(seen(prompt).resid_pre[layer]) @ attention.v.weight
    values = values.unflatten(-1, (attention.n_kv_heads, -1)).repeat_interleave(HEADS // attention.n_kv_heads, dim=1)
    z = torch.einsum("hqk,khd->qhd", recorded_pattern(seen(prompt), layer), values)
    out = torch.einsum("qhd,hde->qhe", z, attention.o.weight.unflatten(0, (HEADS, -1)))
    return Vectors(out, [f"head {h}" for h in range(HEADS)], (layer, "resid_mid"))


def deviation(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def as_official(prompt: str, components: Tensor, expected: Tensor) -> Tensor:
    """In the official order, the residual first, and only the last position where only that was kept."""
    found = after_final_norm(prompt, torch.cat([components[:, -1:], components[:, :-2]], dim=1))
    return found[-1] if expected.dim() == 2 else found


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_recorded_pass_is_the_one_that_the_official_code_saw(prompt: str) -> None:
    expected = golden(prompt)
    for layer in range(LAYERS):
        assert deviation(seen(prompt).resid_pre[layer], expected[f"resid_pre.{layer}"]) < 1e-5
        assert deviation(seen(prompt).resid_mid[layer], expected[f"resid_mid.{layer}"]) < 1e-5
    assert deviation(seen(prompt).resid_post, expected["resid_post.3"]) < 1e-5
    assert deviation(model().final_norm(seen(prompt).resid_post), expected["final_normed"]) < 1e-5
    assert deviation(seen(prompt).logits, expected["logits"]) < 1e-5


@pytest.mark.parametrize("first_token", FIRST)
@pytest.mark.parametrize("rule", OFFICIAL_NAME)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_agree(prompt: str, rule: str, first_token: str) -> None:
    expected = golden(prompt)[f"tokens.{OFFICIAL_NAME[rule]}.{FIRST[first_token]}"]
    components = parts(prompt, tokens_of(prompt), Allocation(rule, first_token=first_token))
    assert deviation(after_final_norm(prompt, components[:, :-2]), expected) < TOLERANCE[rule]


@pytest.mark.parametrize("rule", OFFICIAL_NAME)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_stopped_before_layer_2_agree(prompt: str, rule: str) -> None:
    expected = golden(prompt)[f"tokens_at_layer2.{OFFICIAL_NAME[rule]}.first_skipped"]
    components = parts(prompt, tokens_of(prompt), Allocation(rule), at=(2, "resid_pre"))
    assert deviation(components[:, :-2], expected) < TOLERANCE[rule]


@pytest.mark.parametrize("rule", ["softmax", "linear"])
@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("prompt", PROMPTS)
def test_heads_agree(prompt: str, layer: int, rule: str) -> None:
    expected = golden(prompt)[f"heads.layer{layer}.{OFFICIAL_NAME[rule]}"]
    for source in (heads_of(prompt, layer), Heads(layer)):
        components = parts(prompt, source, Allocation(rule))
        assert deviation(as_official(prompt, components, expected), expected) < TOLERANCE[rule]


@pytest.mark.parametrize("rule", ["softmax", "linear"])
@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("module", ["attn", "mlp"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_modules_agree(prompt: str, module: Any, layer: int, rule: str) -> None:
    expected = golden(prompt)[f"module_{module}.layer{layer}.{OFFICIAL_NAME[rule]}"]
    before, after = ("resid_pre", "resid_mid") if module == "attn" else ("resid_mid", "resid_post")
    out = seen(prompt).at((layer, after)) - seen(prompt).at((layer, before))
    for source in (Vectors(out[:, None], [module], (layer, after)), Modules(layer, module)):
        components = parts(prompt, source, Allocation(rule))
        assert deviation(as_official(prompt, components, expected), expected) < TOLERANCE[rule]


@pytest.mark.parametrize("rule", ["softmax", "linear"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_subspace_agrees(prompt: str, rule: str) -> None:
    expected = golden(prompt)[f"subspace.at_layer2.{OFFICIAL_NAME[rule]}"]
    projector = golden(prompt)["subspace.projector"]
    inside = seen(prompt).resid_pre[2] @ projector
    for source in (Vectors(inside[:, None], ["inside"], (2, "resid_pre")), Subspace(projector, 2, "resid_pre")):
        components = parts(prompt, source, Allocation(rule))
        assert deviation(as_official(prompt, components, expected).flip(1), expected) < TOLERANCE[rule]


# ------------------------------------------------------------------------------- where the official code is not right


def test_the_official_heads_are_off_where_position_0_overwrites_a_score() -> None:
    components = parts("p12", heads_of("p12", 1), Allocation("softmax"))
    unmodified = golden("p12")["as_is.heads.layer1.softmax"]
    assert 0.1 < deviation(as_official("p12", components, unmodified), unmodified) < 0.4


@pytest.mark.parametrize("first_token", FIRST)
@pytest.mark.parametrize("size", [1, 7, 10, 100])
def test_blocks_of_any_size_agree_with_the_official_result(size: int, first_token: str) -> None:
    expected = golden("p30")[f"tokens.softmax.{FIRST[first_token]}"]
    allocation = Allocation("softmax", first_token=first_token)
    components = parts("p30", tokens_of("p30"), allocation, budget=Budget(size))
    assert deviation(after_final_norm("p30", components[:, :-2]), expected) < TOLERANCE["softmax"]


@pytest.mark.parametrize("rule", ["linear-norm", "relu"])
def test_the_rules_that_are_broken_in_the_official_code_are_complete(rule: str) -> None:
    components = parts("p30", tokens_of("p30"), Allocation(rule))
    assert deviation(components.sum(1), seen("p30").resid_post) < 1e-5
