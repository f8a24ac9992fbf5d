"""Configurations that are seldom, and legal: what transformers makes of them is what the tables say."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

import depass_sae as ds
from depass_sae.models.adapter import Adapter
from depass_sae.models.load import adapter_for
from depass_sae.models.place import Place
from depass_sae.passes.selfcheck import check
from tests.attribution.tiny import random_sae
from tests.passes.models import CONFIGS, LAYERS, attention_of, build

IDS = [3, 17, 5, 33, 40, 21]


def slides_everywhere(config: PreTrainedConfig) -> None:
    config.use_sliding_window, config.sliding_window = True, 3


def names_layers(config: PreTrainedConfig) -> None:
    config.layer_types, config.sliding_window = ["full_attention", "sliding_attention", "full_attention"], 3


def names_a_cap(config: PreTrainedConfig) -> None:
    config.attn_logit_softcapping = 1.0


def caps_logits(config: PreTrainedConfig) -> None:
    config.final_logit_softcapping = 3.0


def acts_otherwise(config: PreTrainedConfig) -> None:
    config.hidden_act = "gelu"


SELDOM: list[tuple[str, Callable[[PreTrainedConfig], None]]] = [
    ("qwen3_moe", slides_everywhere),
    ("qwen3_moe", names_layers),
    ("mistral", names_layers),
    ("llama", names_layers),
    ("qwen3", names_layers),
    ("gemma3_text", names_a_cap),
    ("gemma3_text", caps_logits),
    ("qwen3_5_text", acts_otherwise),
]


@pytest.mark.parametrize(("shape", "change"), SELDOM, ids=lambda x: getattr(x, "__name__", x))
def test_what_a_config_says_seldom_is_read_as_the_model_reads_it(
    shape: str, change: Callable[[PreTrainedConfig], None]
) -> None:
    config = CONFIGS[shape]()
    change(config)
    check(adapter_for(build(config)))


def test_qwens_experts_slide_in_all_layers_or_in_none() -> None:
    config = CONFIGS["qwen3_moe"]()
    assert [attention_of(adapter_for(build(config)), i).window for i in range(LAYERS)] == [None] * LAYERS
    slides_everywhere(config)
    assert [attention_of(adapter_for(build(config)), i).window for i in range(LAYERS)] == [3] * LAYERS


def uneven(config: PreTrainedConfig) -> None:
    """Layers with unlike numbers of heads, as wide as nothing else; biases of gated values."""
    config.attention_bias, config.linear_value_head_dim = True, 10
    config.linear_num_value_heads, config.linear_num_key_heads = 6, 3


def unbiased(config: PreTrainedConfig) -> None:
    """Norms with a bias before values without one."""
    config.attention_bias = False


@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
@pytest.mark.parametrize(
    ("shape", "change"),
    [("qwen3_5_text", uneven), ("gpt_neox", unbiased)],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_layers_that_are_unlike_are_read_each_as_it_is(shape: str, change: Callable[[PreTrainedConfig], None]) -> None:
    config = CONFIGS[shape]()
    change(config)
    model = build(config)
    adapter = adapter_for(model)
    places = [Place(layer, "hook_z") for layer in range(LAYERS)]
    saes = [random_sae("standard", str(place), d_in=adapter.width(place)) for place in places]
    lm = ds.load(model, saes=[*saes, *(random_sae("standard", f"{layer}.resid_post", seed=layer) for layer in (0, 2))])
    for rule in ("half", "softmax"):
        for place in places:
            assert lm.attribute_tokens(IDS, f"{place}/3@5", rule=rule).completeness_error < 1e-4
            parts = lm.decompose(IDS, layer=place.layer, read="attn_out", rule=rule)
            assert parts.completeness_error < 1e-4
    stream = ["0.resid_post", "2.resid_post"]
    g = lm.graph(IDS, "2.resid_post/3@5", layers=stream, heads=True, max_nodes=60)
    outputs = [
        next(m for name, m in layer.named_modules() if name.endswith(("out_proj", "o_proj", "attention.dense")))
        for layer in (model.gpt_neox if shape == "gpt_neox" else model.model).layers
    ]
    tested = [
        node for node in lm.verify(g, max_nodes=400).graph["verification"]["nodes"] if node["node"].startswith("head")
    ]
    assert {g.nodes[node["node"]]["layer"] for node in tested} == {0, 1, 2}
    for node in tested:
        layer, head = g.nodes[node["node"]]["layer"], g.nodes[node["node"]]["index"]
        assert node["observed"] == pytest.approx(lost_without(lm, outputs[layer], head, adapter, layer), abs=1e-3)


def lost_without(lm: ds.LM, output: nn.Module, head: int, adapter: Adapter, layer: int) -> float:
    """What the feature loses when the entries of one head are zero before the heads' output map."""

    def zeroed(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        z = args[0].unflatten(-1, (attention_of(adapter, layer).n_heads, -1)).clone()
        z[..., head, :] = 0
        return (z.flatten(-2),)

    def pre_activation() -> float:
        with torch.no_grad():
            lm.model(torch.tensor([IDS]), use_cache=False)
        return float(streams.pop() @ lm.saes["2.resid_post"].W_enc[:, 3])

    streams: list[Tensor] = []
    handles = [adapter.layer(LAYERS - 1).module.register_forward_hook(lambda _m, _args, out: streams.append(out[0, 5]))]
    try:
        whole = pre_activation()
        handles.append(output.register_forward_pre_hook(zeroed))
        return whole - pre_activation()
    finally:
        for handle in handles:
            handle.remove()


def test_a_norms_bias_is_a_bias_where_values_have_none() -> None:
    config = CONFIGS["gpt_neox"]()
    unbiased(config)
    model = build(config)
    block = model.gpt_neox.layers[0]
    found = ds.load(model).decompose(IDS, layer=0, read="attn_out")
    v = block.attention.query_key_value.weight.unflatten(0, (4, 3, -1))[:, 2].flatten(0, 1)
    expected = block.attention.dense.weight @ (v @ block.input_layernorm.bias)
    assert torch.allclose(found.parts[:, -2], expected.expand(len(IDS), -1), atol=1e-5)
