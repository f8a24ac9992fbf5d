"""Importance over a data set: means and spreads of what each prompt alone gives, in sums that hold."""

import json
from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.passes.rules import RULES

from .tiny import TEXT, handle, random_sae

PROMPTS = [TEXT, "In economics, supply", [2, 5, 9, 4, 7, 3], "a marked apple"]


def alone(lm: ds.LM, of: str, **question: Any) -> list[Any]:
    ask = {"heads": lm.attribute_heads, "modules": lm.attribute_modules, "neurons": lm.attribute_neurons}[of]
    return [ask(prompt, **question).target for prompt in PROMPTS]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("of", ["heads", "modules", "neurons"])
def test_means_and_spreads_are_those_of_each_prompt_alone(lm: ds.LM, of: Any, rule: str) -> None:
    found = lm.importance(PROMPTS, logit=5, of=of, rule=rule)
    each = alone(lm, of, logit=5, rule=rule)
    for number, row in enumerate(found.rows):
        values = torch.stack([target.rows[number].values for target in each])
        torch.testing.assert_close(row.mean, values.mean(0))
        torch.testing.assert_close(row.std, values.std(0), rtol=1e-6, atol=1e-9)
        assert row.rest == pytest.approx(sum(target.rows[number].rest for target in each) / len(each))
    assert found.pre_activation == pytest.approx(sum(target.pre_activation for target in each) / len(each))


@pytest.mark.parametrize("of", ["heads", "modules", "neurons"])
def test_for_every_layer_the_means_sum_to_the_mean_pre_activation(lm: ds.LM, of: Any) -> None:
    found = lm.importance(PROMPTS, logit=5, of=of)
    for row in found.rows:
        whole = row.mean.sum().item() + row.rest + row.bias + found.constant
        assert whole == pytest.approx(found.pre_activation, abs=1e-5)


def test_prompts_on_which_the_feature_does_not_fire_are_left_out_and_counted(lm: ds.LM) -> None:
    for index in range(32):
        fires = [bool(t.activation) for t in alone(lm, "heads", feature=f"1/{index}")]
        if any(fires) and not all(fires):
            break
    found = lm.importance(PROMPTS, f"1/{index}")
    firing = [t for t, does in zip(alone(lm, "heads", feature=f"1/{index}"), fires, strict=True) if does]
    assert (len(found.prompts), found.silent) == (sum(fires), len(fires) - sum(fires))
    assert [told["pos"] for told in found.prompts] == [target.pos for target in firing]
    assert f"it does not fire on {found.silent} of {len(fires)} prompts" in found.note
    torch.testing.assert_close(found.rows[0].mean, torch.stack([t.rows[0].values for t in firing]).mean(0))


def test_one_prompt_has_no_spread(lm: ds.LM) -> None:
    found = lm.importance([TEXT], logit=5)
    assert all(row.std is None for row in found.rows)
    assert all(head["std"] is None for head in found.to_dict()["heads"])
    assert "±" not in "".join(line for line in found.table().splitlines() if line.startswith("L"))


def test_the_document_is_json_and_lists_every_head_and_prompt(lm: ds.LM) -> None:
    found = lm.importance(PROMPTS, "1/3")
    document = found.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert len(document["heads"]) == sum(len(row.mean) for row in found.rows)
    assert next(iter(document)) == "schema_version"
    assert {"prompt", "tokens", "token_ids"}.isdisjoint(document)
    frame = found.to_frame()
    assert frame["mean"].tolist() == [head["mean"] for head in document["heads"]]
    assert set(frame["n"]) == {len(found.prompts)}


def test_the_table_has_the_largest_mean_first_with_its_spread(lm: ds.LM) -> None:
    found = lm.importance(PROMPTS, logit=5)
    best = max(found.to_dict()["heads"], key=lambda head: abs(head["mean"]))
    table = next(block for block in found.blocks(3) if hasattr(block, "rows") and hasattr(block.rows[0], "cells"))
    assert len(table.rows) == 3
    name, mean, spread, _ = table.rows[0].cells
    assert (name, mean) == (f"L{best['layer']}H{best['head']}", best["mean"])
    assert (spread.mean, spread.std) == (best["mean"], best["std"])


def test_what_cannot_be_is_refused(lm: ds.LM) -> None:
    for question, said in (
        ({"prompts": TEXT, "logit": 5}, "name several prompts"),
        ({"prompts": PROMPTS, "logit": 5, "pos": 3}, "leave the position out"),
        ({"prompts": PROMPTS, "logit": 5, "of": "experts"}, "importance is of heads, modules, neurons"),
        ({"prompts": PROMPTS}, "ask for one target"),
    ):
        with pytest.raises(UserError, match=said):
            lm.importance(**question)
    dead = random_sae()
    with torch.no_grad():
        dead.threshold[3] = 1e6
    with pytest.raises(UserError, match="fires on none of the 4 prompts"):
        handle(dead).importance(PROMPTS, "1/3")
