"""What questions take, told from a model's config alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.estimating import Estimate, estimate
from depass_sae.models.load import adapter_for, outline
from depass_sae.models.place import Place
from depass_sae.models.smollm2 import SIZES, prepare
from depass_sae.passes.forward import Allocation, propagate
from depass_sae.passes.memory import Budget
from depass_sae.passes.record import trace
from depass_sae.passes.sources import tokens

from .cli.calling import Run, assert_refused, run  # noqa: F401
from .passes.models import CONFIGS, EVERY, WHOLE, tiny

N = 16
FAST: dict[str, Any] = {"tokens": N, "tflops": 1.0}


def by_name(found: Estimate) -> dict[tuple[str, str | None], Any]:
    return {(taken.question, taken.rule): taken for taken in found.questions}


@pytest.mark.parametrize("shape", [*EVERY, *WHOLE])
def test_every_family_is_estimated_and_its_trace_is_as_large_as_it_will_be(shape: str) -> None:
    found = estimate((CONFIGS | WHOLE)[shape](), **FAST, dtype="float32")
    assert found.trace == trace(tiny(shape), torch.arange(N)).size
    model = tiny(shape).model
    assert found.weights == sum({x.data_ptr(): x.nbytes for x in (*model.parameters(), *model.buffers())}.values())
    assert {taken.question for taken in found.questions} == {"tokens", "heads", "neurons", "attention", "decompose"}
    for taken in found.questions:
        assert taken.passes > 1
        assert taken.peak >= found.weights + found.trace + taken.work


@pytest.mark.parametrize("shape", ["gpt_neox", "qwen3_5_moe_text"])
def test_what_is_asked_of_saes_is_estimated_too(shape: str) -> None:
    found = estimate(CONFIGS[shape](), **FAST, sae_width=64, sae_layers=2)
    assert found.layers == (0, 2)
    assert [taken.question for taken in found.questions][-5:] == ["features", "card", "graph", "verify", "case study"]
    assert found.encodings == 2 * N * (64 + 64 + 32) * 4
    for taken in found.questions[-5:]:
        assert taken.passes > 1
        assert taken.peak >= found.weights + found.saes + found.trace + taken.work


def test_smollm2_is_estimated_as_the_model_it_is() -> None:
    config = json.loads((prepare() / "config.json").read_text())
    assert {key: config[key] for key in SIZES} == SIZES


def test_no_weights_are_needed_but_the_config_alone(tmp_path: Path) -> None:
    CONFIGS["qwen3"]().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]
    adapter = outline(tmp_path, dtype="bfloat16")
    assert all(weight.is_meta for weight in adapter.model.parameters())
    assert adapter.dtype == torch.bfloat16
    assert estimate(tmp_path, **FAST).model == str(tmp_path)


def test_longer_prompts_carried_tokens_and_wider_saes_take_more() -> None:
    short, long = (estimate(CONFIGS["llama"](), tokens=n, tflops=1.0, sae_width=64) for n in (8, 32))
    assert long.trace > 4 * short.trace
    for key, taken in by_name(long).items():
        assert taken.seconds > by_name(short)[key].seconds
    found = by_name(long)
    assert found["tokens", "softmax"].passes > 3 * found["tokens", "half"].passes  # N(N+1)/2 rows
    assert found["decompose", "softmax"].work > found["tokens", "half"].work
    wide = estimate(CONFIGS["llama"](), tokens=32, tflops=1.0, sae_width=128)
    assert wide.saes > 1.9 * long.saes
    assert wide.encodings > 1.7 * long.encodings


def test_a_sweep_takes_about_two_forward_passes_beside_the_recorded_one() -> None:
    config = CONFIGS["llama"]()
    config.update({"hidden_size": 256, "intermediate_size": 700, "vocab_size": 1000})
    assert 1.5 < by_name(estimate(config, **FAST))["tokens", "half"].passes < 3.5


def test_what_is_told_of_a_long_prompt_from_a_short_one_is_nearly_what_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaled = estimate(CONFIGS["llama"](), tokens=32, tflops=1.0)
    monkeypatch.setattr("depass_sae.estimating.SHORT", 32)
    whole = estimate(CONFIGS["llama"](), tokens=32, tflops=1.0)
    for one, other in zip(scaled.questions, whole.questions, strict=True):
        assert one.passes == pytest.approx(other.passes, rel=0.2), one.question
        assert one.peak == other.peak


def test_a_trace_in_a_higher_dtype_has_the_weights_in_it_while_it_is_recorded() -> None:
    low = estimate(CONFIGS["llama"](), **FAST, dtype="bfloat16")
    high = estimate(CONFIGS["llama"](), **FAST, dtype="bfloat16", trace_dtype="float32")
    assert low.traced == low.weights == high.weights
    assert high.traced == pytest.approx(2 * low.weights, rel=0.02)
    assert high.trace > low.trace


def test_time_follows_from_the_speed_and_is_told_in_its_class() -> None:
    times = [by_name(estimate(CONFIGS["gpt2"](), tokens=N, tflops=speed))["tokens", "half"] for speed in (1, 1e-8)]
    assert times[1].seconds == pytest.approx(1e8 * times[0].seconds)
    assert times[0].time == "seconds"
    assert times[1].time in ("minutes", "hours")


def test_without_saes_nothing_is_said_of_them_but_how_to_ask() -> None:
    found = estimate(CONFIGS["llama"](), **FAST)
    assert "graph" not in {taken.question for taken in found.questions}
    assert "--sae-width" in str(found.table())
    assert found.saes == found.encodings == 0


def test_the_document_has_all_of_it() -> None:
    found = ds.estimate(CONFIGS["llama"](), **FAST, sae_width=64)
    document = json.loads(json.dumps(found.to_dict()))
    assert document["layers"] == [0, 1, 2]
    assert document["questions"][0].keys() == {"question", "rule", "work", "peak", "passes", "seconds", "time"}
    assert len(document["questions"]) == len(found.questions)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": 33}, "context is 32"),
        ({"sae_layers": 1}, "--sae-width"),
        ({"sae_layers": 9, "sae_width": 8}, "3 layers"),
        ({"tflops": 0.0}, "tflops"),
        ({"dtype": "float32", "trace_dtype": "bfloat16"}, "lower than the model's"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"device": "quantum"}, "device"),
        ({"graph": 0}, "graph is 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        estimate(CONFIGS["llama"](), **(FAST | options))


def test_a_model_of_no_family_and_what_is_no_model_are_refused(tmp_path: Path) -> None:
    from transformers import T5Config

    for model, why in ((T5Config(), "not supported"), (tmp_path, "no config.json"), ("./nowhere", "no directory")):
        with pytest.raises(UserError, match=why):
            estimate(model, **FAST)


def test_the_command_prints_tables_or_the_document(run: Run, tmp_path: Path) -> None:  # noqa: F811
    CONFIGS["gpt2"]().save_pretrained(tmp_path)
    asked = ["estimate", str(tmp_path), "--tokens", "12", "--tflops", "0.5", "--sae-width", "64"]
    done = run(*asked)
    assert done.status == 0
    assert "What each question takes" in done.out
    document = json.loads(run(*asked, "--json").out)
    assert document["tokens"] == 12
    assert document["tflops"] == 0.5
    assert_refused(run("estimate", str(tmp_path), "--tokens", "1000"), "context")


# ----------------------------------------------------------------------------------------------- against real passes


def medium() -> Any:
    """A model of some size."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=2048,
    )  # fmt: skip


def most_held(work: Callable[[], object]) -> int:
    """Bytes of tensors that stand at once while something is worked out, by torch's own count."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))


@pytest.mark.long
def test_a_real_pass_takes_what_was_estimated() -> None:
    n = 256
    found = estimate(medium(), tokens=n, tflops=1.0, dtype="float32")
    beside = by_name(found)["tokens", "softmax"].peak - found.weights
    adapter = adapter_for(AutoModelForCausalLM.from_config(medium(), dtype=torch.float32).eval())

    def work() -> None:
        seen = trace(adapter, torch.arange(n))
        start = tokens([str(pos) for pos in range(n)]).start(seen)
        where = {Place(adapter.n_layers - 1, "resid_post"): torch.tensor([n - 1])}
        propagate(seen, start, where, Allocation("softmax"), budget=Budget(2**40))

    assert most_held(work) == pytest.approx(beside, rel=0.05)
