"""Shares by depth: every depth sums to what the stream has there, and the last is the answer."""

from typing import Any

import pytest
import torch

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.passes.rules import RULES

from ..passes.models import EVERY, LAYERS
from .tiny import TEXT, handle, random_sae

IDS = [2, 5, 9, 4, 7, 3]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("by", ["token", "word"])
def test_every_depth_is_the_decomposition_there_along_the_targets_direction(lm: ds.LM, rule: str, by: Any) -> None:
    w = torch.randn(32, generator=torch.Generator().manual_seed(3))
    (target,) = lm.attribute_tokens(TEXT, direction=w, layer=2, pos=9, by=by, rule=rule, by_depth=True).targets
    assert target.by_depth is not None
    assert [(level.layer, level.place.hook) for level in target.by_depth] == [
        (-1, "resid_pre"), (0, "resid_post"), (1, "resid_post"), (2, "resid_post")
    ]  # fmt: skip
    for level in target.by_depth:
        read = {"layer": max(level.layer, 0), "read": level.place.hook}
        there = lm.decompose(TEXT, {"token": "tokens", "word": "words"}[by], rule=rule, **read)
        parts = (there.parts[9] @ w).double()
        n = len(level.values)
        torch.testing.assert_close(level.values, parts[:n], rtol=1e-5, atol=1e-5)
        aside = RULES[rule].aside
        assert not parts[n : -len(aside)].any()
        assert [level.other[name] for name in aside] == pytest.approx(parts[-len(aside) :].tolist(), abs=1e-5)
        assert level.total == pytest.approx((there.whole[9] @ w).item(), abs=1e-5)


@pytest.mark.parametrize("shape", EVERY)
def test_every_depth_sums_and_the_last_is_the_answer(shape: str) -> None:
    lm = handle(random_sae(), shape=shape)
    for question in ({"feature": "1/3", "pos": "all"}, {"logit": 5}, {"logit_diff": (5, 6), "pos": 3}):
        for target in lm.attribute_tokens(IDS, by_depth=True, **question).targets:
            assert target.by_depth is not None
            last = target.by_depth[-1]
            torch.testing.assert_close(last.values, target.contributions, rtol=1e-4, atol=1e-5)
            assert last.total == pytest.approx(target.pre_activation, rel=1e-4, abs=1e-5)
            size = max(1.0, *(level.values.abs().max().item() for level in target.by_depth))
            for level in target.by_depth:
                summed = level.values.sum().item() + sum(level.other.values()) + target.constant
                assert summed == pytest.approx(level.total, abs=1e-4 * size)


def test_at_the_embeddings_a_source_has_only_where_it_stands(lm: ds.LM) -> None:
    (target,) = lm.attribute_tokens(IDS, logit=5, by_depth=True).targets
    first, last = target.by_depth[0], target.by_depth[-1]
    assert not first.values[:-1].any()
    assert first.values[-1] != 0
    assert len(target.by_depth) == LAYERS + 1
    assert last.values[:-1].any()


def test_several_prompts_are_each_what_they_are_alone(lm: ds.LM) -> None:
    prompts = [IDS, IDS[:4], TEXT]
    together = lm.attribute_tokens_batch(prompts, "1/3", by_depth=True)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = lm.attribute_tokens(prompt, "1/3", by_depth=True)
        for a, b in zip(answer.target.by_depth, alone.target.by_depth, strict=True):
            torch.testing.assert_close(a.values, b.values, rtol=1e-4, atol=1e-5)


def test_the_document_has_a_level_for_every_depth_and_none_where_it_was_not_asked_for(lm: ds.LM) -> None:
    (target,) = lm.attribute_tokens(IDS, "1/3", by_depth=True).to_dict()["targets"]
    assert [level["layer"] for level in target["by_depth"]] == [-1, 0, 1]
    assert all(len(level["values"]) == len(target["contributions"]) for level in target["by_depth"])
    assert "by_depth" not in lm.attribute_tokens(IDS, "1/3").to_dict()["targets"][0]


def test_a_target_that_is_not_on_the_stream_is_refused() -> None:
    lm = handle(random_sae(hook="1.attn_out"))
    with pytest.raises(UserError, match="is read at attn_out, and shares grow by depth on the residual stream alone"):
        lm.attribute_tokens(IDS, "1/3", by_depth=True, progress=lambda *_: pytest.fail("it is said before the work"))
