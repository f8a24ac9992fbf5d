"""What is listed as working works: every configuration in the registry on a tiny model of its kind.

SAEs that differ in weights, widths, layer and release alone are of one configuration. A random SAE stands for each,
named, reshaped and normalised as those of the registry are; the questions are put to it, and their sums are checked.
"""

import re
import warnings
from collections import defaultdict
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import sae_lens
import torch

import depass_sae as ds
from depass_sae.attribution.answer import Answer
from depass_sae.saes.registry import ListedSAE, registry, why_not

from ..passes.models import CONFIGS, VOCAB, fresh
from .builders import CLASSES

LEAST = 13_800
LAYER, D_SAE = 1, 40
PROMPT = torch.randint(2, VOCAB, (7,), generator=torch.Generator().manual_seed(3)).tolist()
# the model_type of a configuration, or of the text model in it: which of the tiny models it is
SHAPES = {config().model_type.removesuffix("_text"): shape for shape, config in CONFIGS.items()} | {
    config().model_type: shape for shape, config in CONFIGS.items()
}


def configuration(sae: ListedSAE) -> ListedSAE:
    """The SAE without what tells it from others of its kind, at the tiny models' layer."""

    def moved(name: str | None) -> str | None:
        return None if name is None else re.sub(r"(blocks|layers)\.\d+", rf"\1.{LAYER}", name)

    hooks = {"hook_name": moved(sae.hook_name), "hf_hook_name": moved(sae.hf_hook_name)}
    return replace(sae, release="", sae_id="", model="", **hooks)


def configurations() -> dict[ListedSAE, list[ListedSAE]]:
    """Those that are listed as working."""
    found = defaultdict(list)
    for release in registry().values():
        for sae in release.saes:
            if why_not(sae) is None:
                found[configuration(sae)].append(sae)
    return found


def name(sae: ListedSAE) -> str:
    options = {
        "b_dec": sae.apply_b_dec_to_input,
        "reshaped": sae.reshapes_hook_z,
        "centred": sae.centred,
        sae.normalize_activations: sae.normalize_activations != "none",
    }
    where = "embed" if sae.hook_name == "hook_embed" else str(sae.hook_name).split(".", 2)[-1]
    return "-".join(
        [str(sae.model_type), where, str(sae.architecture), *(option for option, on in options.items() if on)]
    )


WORKING = configurations()


def random_sae(sae: ListedSAE, model_name: str, text_config: Any) -> Any:
    """As sae-lens would load it, but small."""
    class_name, needed = CLASSES[str(sae.architecture)]
    width, heads = text_config.hidden_size, text_config.num_attention_heads
    if "hook_z" in str(sae.hook_name):
        width = heads * (getattr(text_config, "head_dim", None) or width // heads)
    config = getattr(sae_lens, f"{class_name}Config")(
        d_in=width,
        d_sae=D_SAE,
        normalize_activations=sae.normalize_activations,
        apply_b_dec_to_input=sae.apply_b_dec_to_input,
        reshape_activations="hook_z" if sae.reshapes_hook_z else "none",
        **(needed | ({"d_out": width} if "d_out" in needed else {})),
    )
    metadata = {"model_name": model_name, "hook_name": sae.hook_name, "hf_hook_name": sae.hf_hook_name}
    metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": True} if sae.centred else {}
    for key, value in metadata.items():
        config.metadata[key] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sae-lens comments on some metadata
        made = getattr(sae_lens, class_name)(config)
    generator = torch.Generator().manual_seed(0)
    for key, weight in sorted(made.named_parameters()):
        values = torch.randn(weight.shape, generator=generator) * (0.4 if key.startswith("W_") else 0.2)
        weight.data.copy_(values.abs() if key == "threshold" else values)
    return made


@cache
def tiny(model_type: str) -> Any:
    """Of the shape of that type; of its text model where the tiny ones have no other."""
    return fresh(SHAPES[model_type if model_type in SHAPES else f"{model_type}_text"])


def assert_adds_up(found: Answer[Any], pre_activation: float) -> None:
    target = found.target
    assert target.pre_activation == pytest.approx(pre_activation, rel=1e-5)
    assert found.completeness_error <= 1e-4


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
@pytest.mark.parametrize("kind", WORKING, ids=name)
def test_every_configuration_answers_and_adds_up(kind: ListedSAE) -> None:
    model = tiny(str(kind.model_type))
    sae = random_sae(kind, WORKING[kind][0].model, model.config.get_text_config())
    lm = ds.load(model, saes=sae)
    (layer,) = lm.features(PROMPT).layers
    assert layer.hook.name == WORKING[kind][0].hook.name
    pos, index, activation = max(
        ((at.pos, i, a) for at in layer.positions[2:] for i, a in zip(at.indices, at.activations, strict=True)),
        key=lambda firing: firing[2],
    )
    feature = f"{layer.hook}/{index}"
    answers = [lm.attribute_tokens(PROMPT, feature, pos=pos, rule=rule) for rule in ("half", "softmax")]
    for found in (*answers, lm.attribute_heads(PROMPT, feature, pos=pos)):
        assert found.target.activation == pytest.approx(activation, rel=1e-5)
        assert_adds_up(found, answers[0].target.pre_activation)
    for found in answers:
        target = found.target
        parts = [*target.contributions.tolist(), *target.other.values(), target.constant]
        assert sum(parts) == pytest.approx(target.pre_activation, abs=1e-4 * max(map(abs, parts)))


def test_there_is_a_tiny_model_of_every_type_that_is_listed_as_working() -> None:
    types = {str(kind.model_type) for kind in WORKING}
    assert not {t for t in types if not {t, f"{t}_text"} & set(SHAPES)}


def test_that_is_nearly_the_whole_registry() -> None:
    if unsupported := {sae.model_type for r in registry().values() for sae in r.saes} - {k.model_type for k in WORKING}:
        pytest.skip(f"models of type {', '.join(sorted(map(str, unsupported)))} are not supported")
    assert sum(map(len, WORKING.values())) >= LEAST
