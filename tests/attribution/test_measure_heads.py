"""What heads are worth in the live model, against a plain loop over transformers."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import depass_sae as ds
from depass_sae.errors import UserError

from ..passes.models import HEADS
from .tiny import BOS, activation, handle, pre_activations, random_sae

IDS = [BOS, *range(60, 68)]
OTHER = [BOS, *range(80, 92)]


def head_means(lm: ds.LM, ids: list[int]) -> dict[int, Tensor]:
    """By layer, what goes into o_proj on average, the start token left out."""
    return {
        layer: activation(lm.model, torch.tensor([ids]), f"{layer}.hook_z")[0, 1:].mean(0)
        for layer in range(lm.model.config.num_hidden_layers)
    }


def value(lm: ds.LM, gone: set[tuple[int, int]], means: dict[int, Tensor], pos: int) -> float:
    """The feature's pre-activation with some heads at their means at every position but the first."""
    width = lm.model.config.hidden_size // HEADS
    handles = []
    for layer in {layer for layer, _ in gone}:

        def edit(_module: Any, args: tuple[Tensor], layer: int = layer) -> tuple[Tensor]:
            z = args[0].clone()
            for at, head in gone:
                if at == layer:
                    own = slice(head * width, (head + 1) * width)
                    z[:, 1:, own] = means[layer][own]
            return (z,)

        handles.append(lm.model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(edit))
    x = activation(lm.model, torch.tensor([IDS[: pos + 1]]), "1.resid_post")[0]
    for handle_ in handles:
        handle_.remove()
    return pre_activations(lm.saes[1], x)[-1, 3].item()


@pytest.fixture(scope="module")
def lm() -> ds.LM:
    return handle(random_sae())


@pytest.mark.parametrize("reference", [None, "supply and demand"])
def test_a_heads_loss_is_that_of_a_model_with_its_mean_in_its_place(lm: ds.LM, reference: str | None) -> None:
    att = lm.attribute_heads(IDS, "1/3", pos=7, measure="replace", measure_heads=5, reference=reference)
    ids = IDS[:8] if reference is None else list(lm.encode(reference).token_ids)
    found, means = att.target.measured, head_means(lm, ids)
    said = {(row.layer, i): abs(v) for row in att.target.rows for i, v in enumerate(row.values.tolist())}
    assert set(found.heads) == set(sorted(said, key=lambda head: -said[head])[:5])
    for head, lost in found.values.items():
        assert lost == pytest.approx(value(lm, set(), means, 7) - value(lm, {head}, means, 7), abs=1e-4)
    assert found.baseline is None
    assert found.sampled.stopped == "exact"


def test_shapley_values_of_heads_are_the_mean_over_all_orders(lm: ds.LM) -> None:
    att = lm.attribute_heads(IDS, "1/3", pos=8, measure="shapley", measure_heads=4)
    found, means = att.target.measured, head_means(lm, IDS)
    expected = dict.fromkeys(found.heads, 0.0)
    for order in itertools.permutations(found.heads):
        gone = set(order)
        for head in order:
            before = value(lm, gone, means, 8)
            gone = gone - {head}
            expected[head] += (value(lm, gone, means, 8) - before) / math.factorial(4)
    assert found.values == pytest.approx(expected, abs=1e-4)
    document = att.to_dict()["targets"][0]["measured"]
    total = sum(entry["value"] for entry in document["values"]) + document["baseline"]
    assert total == pytest.approx(att.pre_activation, rel=1e-6)
    assert document["enumerated"]


def test_more_heads_are_measured_by_orders_and_sum_all_the_same(lm: ds.LM) -> None:
    att = lm.attribute_heads(IDS, "1/3", pos=8, measure="shapley", measure_heads=11, measure_seconds=1e-9)
    found = att.target.measured
    total = sum(found.values.values()) + found.baseline
    assert total == pytest.approx(att.pre_activation, rel=1e-6)
    assert (len(found.values), found.sampled.stopped) == (min(11, 2 * HEADS), "time" if 2 * HEADS > 10 else "exact")
    shown = " ".join(str(att.table()).split())
    assert "Shapley value" in shown
    assert "heads measured" in shown


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"measure": "banzhaf"}, "shapley or replace"),
        ({"measure": "shapley", "measure_heads": 0}, "1 at least"),
        ({"measure": "shapley", "measure_seconds": 0.0}, "greater than 0"),
        ({"measure_heads": 3}, "give --measure"),
        ({"reference": "supply"}, "give --measure"),
    ],
)
def test_what_cannot_be_measured_is_refused(lm: ds.LM, asked: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        lm.attribute_heads(IDS, "1/3", **asked)
