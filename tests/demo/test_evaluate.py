"""The card's figures: each against its definition on a tiny model, and position 0 left out of all of them."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from depass_sae.demo import evaluate, train
from depass_sae.saes.shipped import shipped_saes

RECIPE = train.Recipe(d_sae=64, k=4, rows=2048, batch=128)


@pytest.fixture(scope="module")
def rows(tiny_llama, texts):
    return train.residuals(tiny_llama, texts, (1,))[1]


@pytest.fixture(scope="module")
def sae(rows, tmp_path_factory):
    from sae_lens import SAE

    folder = tmp_path_factory.mktemp("sae") / "layer_1"
    train.save_sae(train.train_sae(rows, RECIPE, "cpu", lambda n: None), 1, folder)
    return SAE.load_from_disk(folder)


def test_fit_is_its_definition_whatever_the_chunks(sae, rows):
    whole, chunked = (evaluate.fit(sae, rows, chunk=chunk) for chunk in (10**6, 100))
    with torch.no_grad():
        x, reconstruction = rows.double(), sae.decode(sae.encode(rows)).double()
    expected = 1 - (x - reconstruction).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert whole.explained_variance == pytest.approx(float(expected), abs=1e-6)
    assert asdict(whole) == pytest.approx(asdict(chunked))
    assert whole.l0 <= 4
    assert whole.tokens == len(rows)


def test_fit_without_outliers_leaves_the_longest_rows_out(sae, rows):
    with_one = torch.cat([rows, 1000 * rows[:1]])
    result = evaluate.fit(sae, with_one)
    assert result.outliers == pytest.approx(1 / len(with_one))
    assert result.explained_variance_without_outliers == pytest.approx(
        evaluate.fit(sae, rows).explained_variance, abs=1e-6
    )


def test_cross_entropy_is_the_models_own_without_position_0(tiny_llama, texts):
    total, count = 0.0, 0
    for text in texts[:7]:
        ids = torch.tensor([text.ids])
        logits = tiny_llama(ids).logits[0, 1:-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 2:], reduction="sum"))
        count += len(text.ids) - 2
    assert evaluate.cross_entropy(tiny_llama, texts[:7]) == pytest.approx(total / count, rel=1e-5)


def test_position_0_is_never_replaced(tiny_llama, texts):
    ids = texts[0].ids
    seen = []
    outputs = []
    handle = tiny_llama.model.layers[2].register_forward_pre_hook(lambda module, args: outputs.append(args[0].clone()))

    def replace_by_zero(x):
        seen.append(len(x))
        return torch.zeros_like(x)

    untouched = tiny_llama(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, 0]
    outputs.clear()
    evaluate.cross_entropy(tiny_llama, texts[:1], 1, replace_by_zero)
    handle.remove()
    assert seen == [len(ids) - 1]
    torch.testing.assert_close(outputs[0][0, 0], untouched)
    assert not outputs[0][0, 1:].any()


def test_replacing_by_itself_recovers_all_of_the_cross_entropy(tiny_llama, texts):
    class Same:
        def encode(self, x):
            return x

        def decode(self, x):
            return x

    ce = evaluate.cross_entropy(tiny_llama, texts)
    assert evaluate.ce_recovered(tiny_llama, Same(), 1, texts, ce) == pytest.approx(1, abs=1e-4)


def test_hooks_are_gone_after_a_measurement(tiny_llama, texts):
    before = [list(layer._forward_hooks) for layer in tiny_llama.model.layers]
    evaluate.cross_entropy(tiny_llama, texts[:3], 1, torch.zeros_like)
    assert [list(layer._forward_hooks) for layer in tiny_llama.model.layers] == before


def test_a_missing_sae_is_said_in_one_line(tmp_path):
    with pytest.raises(evaluate.UserError, match="no SAE for layer 5"):
        evaluate.load_saes(tmp_path, [5])


def test_goals_that_are_missed_are_named():
    good = {"explained_variance": 0.9, "ce_recovered": 0.95, "l0": 48.0, "never_fires": 0.1}
    bad = good | {"explained_variance": 0.8, "never_fires": 0.3}
    metrics = {"layers": {"5": {"held_out": good, "paper": good}, "11": {"held_out": bad, "paper": good}}}
    assert [missed[:2] for missed in evaluate.missed_goals(metrics)] == [
        (11, "held_out.explained_variance"),
        (11, "held_out.never_fires"),
    ]


def test_the_card_is_what_the_shipped_figures_give():
    from sae_lens import SAE

    folder = next(iter(shipped_saes().values())).parent
    metrics = json.loads((folder / "metrics.json").read_text())
    saes = {layer: SAE.load_from_disk(path) for layer, path in list(shipped_saes().items())[:1]}
    assert evaluate.card(metrics, saes) == (folder / "README.md").read_text()
