"""Every model type, from a checkpoint on disk to an answer of every kind: what docs/models.md says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.demo.models_table import FAMILY_ROWS
from depass_sae.models.families import FAMILIES

from .attribution.tiny import random_sae, tokenizer
from .passes.models import CONFIGS, LAYERS, VOCAB, WHOLE, build

TYPES = tuple(FAMILY_ROWS)
pytestmark = pytest.mark.filterwarnings("ignore::depass_sae.errors.SAEFitWarning")
IDS = [0, 17, 5, 33, 40, 21]
SAES = ("0.resid_post", "2.resid_post")


@pytest.fixture(scope="module", params=TYPES)
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def lm(model_type: str, tmp_path_factory: pytest.TempPathFactory) -> ds.LM:
    """Loaded as a user loads it: a directory that save_pretrained wrote."""
    place: Path = tmp_path_factory.mktemp(model_type)
    build((CONFIGS | WHOLE)[model_type]()).save_pretrained(place)
    return ds.load(place, dtype="float32", saes=[random_sae("jumprelu", hook, seed=i) for i, hook in enumerate(SAES)])


def test_every_type_of_every_family_has_a_row() -> None:
    assert sorted(TYPES) == sorted(name for family in FAMILIES for name in family.model_types)


@pytest.mark.parametrize("rule", ["half", "softmax"])
def test_tokens_heads_modules_and_neurons_add_up(lm: ds.LM, rule: str) -> None:
    ask: Any
    for ask in (lm.attribute_tokens, lm.attribute_heads, lm.attribute_modules, lm.attribute_neurons):
        found = ask(IDS, "2/3", pos=4, rule=rule)
        assert found.completeness_error < 1e-4
        assert found.to_dict()["targets"][0]["completeness_error"] < 1e-4
        assert str(found.table())
        assert found._repr_html_()


def test_a_logit_is_read_before_its_soft_cap(lm: ds.LM) -> None:
    ids = torch.tensor([IDS])
    with torch.no_grad():
        own = lm.model(ids).logits[0, -1, 9]
    found = lm.attribute_tokens(IDS, logit=9)
    assert found.completeness_error < 1e-4
    cap = lm._subject.adapter.softcap
    pre = torch.tensor(found.pre_activation)
    assert torch.isclose(pre if cap is None else cap * torch.tanh(pre / cap), own, rtol=1e-4, atol=1e-4)


def test_a_subspace_adds_up(lm: ds.LM) -> None:
    found = lm.attribute_subspace(IDS, "2/3", subspace=ds.Subspace(torch.eye(32)[:3], 0), pos=4)
    assert found.completeness_error < 1e-4


def test_a_score_is_split_in_layers_of_softmax_attention_and_refused_in_others(lm: ds.LM, model_type: str) -> None:
    said = FAMILY_ROWS[model_type][1].get("attention scores", "yes")
    for layer in range(LAYERS):
        if said != "yes" and layer != 1:
            with pytest.raises(ds.UserError, match="gated delta rule"):
                lm.attribute_attention(IDS, layer, 0, 4, 3)
        else:
            assert lm.attribute_attention(IDS, layer, 0, 4, 3).completeness_error < 1e-4


def test_a_graph_adds_up_and_is_verified(lm: ds.LM) -> None:
    g = lm.graph(IDS, "2/3@4", max_nodes=40, heads=True)
    for name, node in g.nodes(data=True):
        if node["kind"] in ("feature", "logit"):
            flow = sum(e["weight"] for _, _, e in g.in_edges(name, data=True) if e["kind"] in ("flow", "remainder"))
            assert flow + node["constant"] == pytest.approx(node["pre_activation"], abs=1e-3, rel=1e-3)
    checked = lm.verify(g, max_nodes=6).graph["verification"]
    assert checked["nodes"]
    assert checked["target"] == pytest.approx(g.nodes[g.graph["target"][0]["node"]]["pre_activation"], rel=1e-3)


def test_a_source_that_is_replaced_is_measured(lm: ds.LM) -> None:
    found = lm.attribute_tokens(IDS, logit=9, ablate=2)
    assert found.target.measured is not None


def test_texts_work_where_there_is_a_tokenizer(model_type: str) -> None:
    config = (CONFIGS | WHOLE)[model_type]()
    if model_type in WHOLE:
        pytest.skip("the text model's tokenizer is the same")
    config.vocab_size = max(VOCAB, len(tokenizer()))
    lm = ds.load(build(config), tokenizer())
    assert lm.attribute_tokens("supply and demand", logit=9).completeness_error < 1e-4
