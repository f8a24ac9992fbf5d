"""SAEs that name another model than the one they are put on are warned of, and no others."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from transformer_lens.supported_models import MODEL_ALIASES

import depass_sae as ds
from depass_sae.errors import SAEFitWarning
from depass_sae.saes import Hook, load_saes
from depass_sae.saes.shipped import shipped_saes
from depass_sae.saes.trained_on import warn_of_others

from ..attribution.tiny import fitting_sae, model, random_sae
from .builders import Recipe

# What transformers calls the models that sae-lens's registry names otherwise.
HUB_IDS = {alias: hub_id for hub_id, aliases in MODEL_ALIASES.items() for alias in aliases}
REGISTRY = sorted({release.model for release in get_pretrained_saes_directory().values()})


def said(trained_on: str | None, put_on: str) -> list[str]:
    sae = Recipe("topk").build(**({} if trained_on is None else {"model_name": trained_on}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_others({Hook(3, "resid_post"): sae}, put_on)
    assert all(issubclass(warning.category, SAEFitWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", REGISTRY)
def test_every_model_of_the_registry_is_known_by_its_hub_id_and_is_none_of_the_others(name: str) -> None:
    hub_id = name if "/" in name else HUB_IDS[name]
    assert "/" in hub_id or hub_id == "gpt2"
    assert not said(name, hub_id)
    assert not said(name, f"/models/{hub_id}")
    variants = ("-it", "-pt", "-Instruct", "-Base")

    def stem(text: str) -> str:
        text = HUB_IDS.get(text, text).rpartition("/")[2].lower().removeprefix("meta-")
        for suffix in variants:
            text = text.removesuffix(suffix.lower())
        return text

    for other in REGISTRY:
        assert bool(said(name, other)) == (stem(other) != stem(name)), other


@pytest.mark.parametrize(
    ("trained_on", "put_on"),
    [
        ("gpt2-small", "openai-community/gpt2"),
        ("gpt2", "gpt2-small"),
        ("gemma-2-2b", "google/gemma-2-2b-it"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B-Instruct"),
        ("meta-llama/Llama-2-7b-hf", "Llama-2-7b-chat-hf"),
        ("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.1"),
        ("EleutherAI/pythia-70m-deduped", "pythia-70m-deduped"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2"),
        ("meta-llama/Llama-3.1-8B", "/cache/models--meta-llama--Llama-3.1-8B/snapshots/0123abc"),
        # nothing is known to compare
        (None, "gpt2"),
        ("", "gpt2"),
        ("custom", "gpt2"),
        ("gpt2-small", "LlamaForCausalLM"),
        ("gpt2-small", "GPT2LMHeadModel"),
        ("gpt2-small", "Qwen2ForCausalLM"),
        ("gpt2-small", "/runs/checkpoint-500"),
        ("meta-llama/Llama-3.1-8B", "./llama-run3"),
    ],
)  # fmt: skip
def test_other_names_of_a_model_and_names_of_none_are_no_reason_to_warn(trained_on: str | None, put_on: str) -> None:
    assert not said(trained_on, put_on)


@pytest.mark.parametrize(
    ("trained_on", "put_on"),
    [
        ("gpt2-small", "EleutherAI/pythia-160m"),
        ("gpt2-small", "distilgpt2"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3-8B"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.3"),
        ("gemma-2b", "google/gemma-2-2b"),
        ("HuggingFaceTB/SmolLM2-360M", "smollm2"),
        ("/data/gemma-2-2b", "/models/llama-3.2-3b"),
    ],
)
def test_another_model_is_named(trained_on: str, put_on: str) -> None:
    (message,) = said(trained_on, put_on)
    assert message.startswith("the SAE at 3.resid_post was trained on ")
    assert Path(trained_on).name in message
    assert Path(put_on).name in message


def test_saes_of_one_other_model_are_one_warning() -> None:
    saes: Any = {Hook(i, "resid_post"): Recipe("topk").build(model_name="gpt2-small") for i in (3, 5)}
    with pytest.warns(SAEFitWarning) as caught:
        warn_of_others(saes, "EleutherAI/pythia-160m")
    assert [str(warning.message) for warning in caught] == [
        "the SAEs at 3.resid_post, 5.resid_post were trained on gpt2-small, and this model is EleutherAI/pythia-160m: "
        "their features may mean nothing"
    ]


def test_a_directory_is_known_by_what_its_configuration_notes(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for noted, warned in (("openai-community/gpt2", False), ("EleutherAI/pythia-160m", True), ("/tmp/run", False)):
        (directory / "config.json").write_text(json.dumps({"_name_or_path": noted}))
        assert bool(said("gpt2-small", str(directory))) == warned
    (directory / "config.json").write_text("[]")
    assert not said("gpt2-small", str(directory))


def test_loading_warns_at_the_users_line_and_says_nothing_of_the_shipped_saes(tmp_path: Path) -> None:
    directory = tmp_path / "Llama-3.2-1B"
    model().save_pretrained(directory)
    with pytest.warns(SAEFitWarning, match="was trained on gpt2-small, and this model is Llama-3.2-1B") as caught:
        ds.load(directory, saes=random_sae(metadata={"model_name": "gpt2-small"}))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", SAEFitWarning)
        ds.load(directory, saes=random_sae(metadata={"model_name": "meta-llama/Llama-3.2-1B"}))
        ds.load(model(), saes=fitting_sae(model_name="gpt2-small"))  # an object that says nothing of its name
        warn_of_others(load_saes(shipped_saes()), "smollm2")
