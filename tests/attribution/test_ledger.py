"""Source, head, target: each head's contribution by the token that it came from."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.models.place import HOOKS

from ..passes.models import EVERY, HEADS, LAYERS, SHAPES
from ..passes.reference import BIAS, Components, frozen, normed, weights
from ..passes.reference import decompose as direct
from .test_tokens import strict_json, with_sae
from .tiny import TEXT, VOCAB, handle, model

prompts = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=6)
RULES = ("linear", "half")


@given(
    shape=st.sampled_from(EVERY), hook=st.sampled_from(HOOKS), ids=prompts, rule=st.sampled_from(RULES), data=st.data()
)
@settings(max_examples=60)
def test_a_heads_tokens_sum_to_the_head(shape: str, hook: str, ids: list[int], rule: str, data: st.DataObject) -> None:
    pos = data.draw(st.integers(0, len(ids) - 1))
    lm = with_sae(shape, hook, "jumprelu")
    found = lm.attribute_heads(ids, "1/3", pos=pos, rule=rule, by_token=True)
    plain = lm.attribute_heads(ids, "1/3", pos=pos, rule=rule)
    for row, same in zip(found.target.rows, plain.target.rows, strict=True):
        assert torch.equal(row.values, same.values)
        assert same.by_token is None
        assert row.by_token is not None
        assert row.by_token.shape == (HEADS, pos + 1 + 2)
        size = row.by_token.abs().amax().clamp_min(1e-6)
        assert ((row.by_token.sum(-1) - row.values).abs() / size).max() < 1e-5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_tokens_in_groups_that_fit_give_what_all_at_once_give(shape: str, rule: str) -> None:
    lm = with_sae(shape, "resid_post", "jumprelu")
    whole, small = (
        lm.attribute_heads([3, 4, 5, 6, 7], "1/3", pos=4, rule=rule, by_token=True, memory=memory)
        for memory in (None, 2000)
    )
    for one, other in zip(whole.target.rows, small.target.rows, strict=True):
        assert torch.allclose(one.by_token, other.by_token, atol=1e-5)


@torch.no_grad()
def by_hand(lm: ds.LM, ids: list[int], layer: int, rule: str, w: Tensor, pos: int) -> Tensor:
    """[head, token + bias + rest] of ⟨w, resid_post of the last layer⟩, each head and token carried on its own."""
    n, m = len(ids), len(ids) + 2
    prompt = torch.tensor(ids)
    x, _, patterns = frozen(lm.model, prompt)
    present = torch.cat([torch.eye(n, dtype=torch.bool), torch.zeros(n, 2, dtype=torch.bool)], dim=1)
    start = Components(x[0][:, None] * present[..., None], present)
    stream = direct(lm.model, prompt, start, (0, "resid_pre"), rule)[layer, "resid_pre"]
    parts = weights(lm.model, layer)
    inside = normed(stream, x[layer], parts.norms[0])
    values = inside.values @ parts.v
    if parts.b_v is not None:
        values[:, BIAS] += parts.b_v
    values = values.unflatten(-1, (parts.kv_heads, -1)).repeat_interleave(HEADS // parts.kv_heads, dim=2)
    z = torch.einsum("hnk,kmhd->nmhd", patterns[layer], values)
    out = torch.einsum("nmhd,hde->nhme", z, parts.o.unflatten(0, (HEADS, -1))).flatten(1, 2)  # pos, head * comp
    everywhere = torch.ones(n, HEADS * m + 2, dtype=torch.bool)
    none = torch.zeros(n, 2, out.shape[-1]).to(out)  # bias, and the rest that is not asked for
    # resid_mid sums to the model's only with the rest: rules without competition do not mind its absence
    start = Components(torch.cat([out, none], dim=1), everywhere)
    carried = linear_pass(lm, prompt, start, layer, rule)
    return (carried[pos, :-2] @ w).unflatten(0, (HEADS, m))


def linear_pass(lm: ds.LM, prompt: Tensor, start: Components, layer: int, rule: str) -> Tensor:
    """What is behind resid_mid of a layer, on components that lack the rest."""
    _, middles, _ = frozen(lm.model, prompt)
    start.values[:, -1] = middles[layer] - start.values.sum(1)
    return direct(lm.model, prompt, start, (layer, "resid_mid"), rule)[LAYERS - 1, "resid_post"].values


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_carrying_every_heads_every_token_gives(shape: str, rule: str) -> None:
    ids, pos = [5, 90, 17, 33, 90], 3
    lm = ds.load(model(shape, torch.float64))
    w = torch.randn(32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = lm.attribute_heads(ids, direction=w, layer=LAYERS - 1, pos=pos, rule=rule, by_token=True)
    for row in found.target.rows:
        expected = by_hand(lm, ids, row.layer, rule, w, pos)
        assert not expected[:, pos + 1 : len(ids)].any()
        expected = torch.cat([expected[:, : pos + 1], expected[:, -2:]], dim=1)
        assert row.by_token is not None
        assert torch.allclose(row.by_token, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_several_targets_have_each_their_own_tokens(lm: ds.LM) -> None:
    both = lm.attribute_heads(TEXT, direction=torch.ones(32), layer=1, pos="all", by_token=True)
    for target in both.targets[:: max(1, len(both.targets) // 3)]:
        alone = lm.attribute_heads(TEXT, direction=torch.ones(32), layer=1, pos=target.pos, by_token=True).target
        for row, same in zip(target.rows, alone.rows, strict=True):
            assert row.by_token is not None
            assert same.by_token is not None
            n = target.pos + 1
            assert not row.by_token[:, n:-2].any()  # tokens after this target, which other targets have
            expected = torch.cat([same.by_token[:, :n], same.by_token[:, -2:]], dim=1)
            mine = torch.cat([row.by_token[:, :n], row.by_token[:, -2:]], dim=1)
            assert torch.allclose(mine, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_token_that_no_query_sees_any_more_gives_a_head_nothing() -> None:
    ids = list(range(5, 13))
    found = handle(shape="mistral").attribute_heads(ids, logit=9, pos=7, by_token=True)  # windows of three positions
    (last,) = (row for row in found.target.rows if row.layer == LAYERS - 1)
    assert last.by_token is not None
    first = 7 - 2 * LAYERS  # what reaches the last position at all
    assert not last.by_token[:, :first].any()
    assert last.by_token[:, first:8].any()


@pytest.mark.parametrize("rule", ["softmax", "linear-norm", "relu", "max"])
def test_rules_under_which_parts_compete_are_refused(lm: ds.LM, rule: str) -> None:
    with pytest.raises(UserError) as caught:
        lm.attribute_heads(TEXT, "1/3", rule=rule, by_token=True)
    assert str(caught.value) == f"heads are split by token with the rules linear, half and half-qk, not with {rule}"


def test_the_document_lists_every_token_of_every_head(lm: ds.LM) -> None:
    found = lm.attribute_heads(TEXT, "1/3", pos="all", by_token=True)
    document = found.to_dict()
    assert strict_json(document) == document
    for target in document["targets"]:
        assert len(target["heads"]) == 2 * HEADS
        for head in target["heads"]:
            assert [(entry["pos"], entry["token"]) for entry in head["by_token"]][: target["pos"] + 1] == [
                (pos, document["tokens"][pos]) for pos in range(target["pos"] + 1)
            ]
            assert [other["name"] for other in head["other"]] == ["bias", "rest"]
            values = [entry["value"] for entry in (*head["by_token"], *head["other"])]
            assert sum(values) == pytest.approx(head["value"], abs=1e-5 * max(map(abs, values)))


def test_tables_and_pages_say_which_tokens_a_head_carries(lm: ds.LM) -> None:
    found: Any = lm.attribute_heads("a[/bold]<script>alert(1)</script>", "1/3", pos=3, by_token=True)
    assert "by the token that they carry" in str(found)
    assert "[/bold] (2)" in str(found)
    assert "<script" not in found.plot()
    assert "by the token that they carry" not in str(lm.attribute_heads(TEXT, "1/3"))


def test_progress_counts_the_pass_of_the_tokens_and_the_sweep(lm: ds.LM) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    lm.attribute_heads(
        TEXT, "1/3", by_token=True, progress=lambda what, done, of: seen.setdefault(what, []).append((done, of))
    )
    assert len(seen) == 2
    for calls in seen.values():
        assert calls == [(i + 1, len(calls)) for i in range(len(calls))]
