"""Masking what a probe holds to be untrue."""

from statistics import mean

import numpy as np
import pytest
import torch

from depass_sae.evaluation.paper import truthfulness
from depass_sae.evaluation.paper.probes import Probe
from depass_sae.evaluation.paper.statements import Statement
from depass_sae.evaluation.paper.truthfulness import Told

from ...attribution.tiny import handle, model

SOME = [
    Statement("the price of supply is", " Rome", " Paris"),
    Statement("Mary gave John", " Paris", " Rome"),
    Statement("supply and demand set", " John", " Mary"),
    Statement("In the price of", " demand", " supply"),
]


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    monkeypatch.setattr(truthfulness, "LAYERS", (0, 1))
    return 0, 1


def test_what_is_told_stands_before_what_is_asked() -> None:
    lm = handle()
    told = Told.of(lm, SOME[0])
    text = lm.tokenizer.decode(told.ids, skip_special_tokens=True)
    assert text == "the price of supply is Paris. the price of supply is"
    assert lm.tokenizer.decode([told.ids[pos] for pos in told.untrue]) == " Paris"
    assert told.info[-1] < len(told.ids) - 1
    left = told.without(list(told.untrue))
    assert lm.tokenizer.decode(left, skip_special_tokens=True) == "the price of supply is. the price of supply is"


def test_tokens_contributions_are_the_probes_logits_less_what_does_not_count(layers: tuple[int, ...]) -> None:
    lm, rng = handle(), np.random.default_rng(0)
    told = Told.of(lm, SOME[0])
    probes = {layer: Probe(rng.normal(size=(1, model().config.hidden_size)), np.zeros(1)) for layer in layers}
    found = truthfulness._responsible(lm, told, probes, [3])
    expected = np.zeros(len(told.info))
    for layer, probe in probes.items():
        w = torch.tensor(probe.weight[0], dtype=torch.float32)
        target = lm.attribute_tokens(told.ids, direction=w, layer=layer, pos=3).target
        expected[:4] += target.contributions.numpy()[:4] / len(layers)
    assert np.allclose(found, expected, atol=1e-5)
    both = truthfulness._responsible(lm, told, probes, [2, 3])
    two = truthfulness._responsible(lm, told, probes, [2])
    assert np.allclose(both, (found + two) / 2, atol=1e-5)


def test_ways_mask_as_many_tokens_of_what_was_told(layers: tuple[int, ...]) -> None:
    pytest.importorskip("sklearn")
    records = truthfulness.run(handle(), some=SOME)
    ways = list(truthfulness.ways(records))
    assert ways[:3] == ["no information", "misinformation", "the untrue word"]
    for way in ways:
        some = [one for one in records if one["way"] == way]
        assert {one["prompt"] for one in some} == {one.prompt for one in SOME}
        assert all(0 <= one["share"] <= 1 for one in some)
    for name in truthfulness.PROBES:
        masked = {
            how: [one["masked"] for one in records if one["way"] == f"{name}, {how}"]
            for how in ("direct", "DePass", "DePass, contrast", "random")
        }
        assert len(set(map(tuple, masked.values()))) == 1
        assert mean(masked["direct"]) >= 1


def test_contrast_takes_off_what_is_usual_at_a_place(layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = handle()
    told = Told.of(lm, SOME[0])
    width = model().config.hidden_size
    sure = {layer: Probe(np.zeros((1, width)), np.array([-1.0])) for layer in layers}  # no token looks untruthful
    scores = np.zeros(len(told.info))
    scores[[1, 3]] = 5.0, 4.0
    monkeypatch.setattr(truthfulness, "_responsible", lambda *_: scores)
    usual = np.zeros(64)
    usual[1] = 3.0
    found = truthfulness._masks(lm, told, {"probe": sure}, {"probe": usual})
    assert found["probe, DePass"] == [[1]]
    assert found["probe, DePass, contrast"] == [[3]]
    assert all(len(gone) == 1 for gone in found["probe, random"] + found["probe, direct"])


def test_the_largest_go_in_the_order_of_the_text() -> None:
    assert truthfulness._largest(np.array([0.1, 3.0, -4.0, 2.0]), 2) == [1, 3]
