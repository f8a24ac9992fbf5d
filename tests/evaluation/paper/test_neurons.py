"""How far a target falls without each neuron."""

import torch

from depass_sae.evaluation.paper import neurons

from ...attribution.tiny import TEXT, handle


def test_each_neuron_is_taken_out_alone(monkeypatch) -> None:
    monkeypatch.setattr(neurons, "TOGETHER", 5)  # does not divide their number
    lm = handle()
    lost = neurons._without(lm, TEXT, 1, 7)
    assert len(lost) == lm.model.model.layers[1].mlp.down_proj.in_features
    before = lm.model(torch.tensor([lm.encode(TEXT).token_ids])).logits[0, -1, 7]
    for neuron in (0, 6, len(lost) - 1):
        found = lm.intervene(TEXT, {f"neuron:1/{neuron}": 0})
        assert torch.allclose(before - found.logits_after[7], lost[neuron].float(), atol=1e-4)
    assert lost.abs().max() > 1e-3


def test_a_record_has_both_times_and_how_well_they_agree() -> None:
    (record,) = neurons.run(handle(), [TEXT], 1)
    assert record["ours"] > 0 < record["theirs"]
    assert record["neurons"] > 10
    assert 0.5 < record["effect"] <= 1
