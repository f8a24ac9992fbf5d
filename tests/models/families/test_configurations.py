"""Configurations that are seldom, and legal: what transformers makes of them is what the tables say."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedConfig

from depass_sae.models.load import adapter_for
from depass_sae.passes.selfcheck import check
from tests.passes.models import CONFIGS, LAYERS, attention_of, build


def slides_everywhere(config: PreTrainedConfig) -> None:
    config.use_sliding_window, config.sliding_window = True, 3


def names_a_cap(config: PreTrainedConfig) -> None:
    config.attn_logit_softcapping = 1.0


def acts_otherwise(config: PreTrainedConfig) -> None:
    config.hidden_act = "gelu"


SELDOM: list[tuple[str, Callable[[PreTrainedConfig], None]]] = [
    ("qwen3_moe", slides_everywhere),
    ("gemma3_text", names_a_cap),
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
