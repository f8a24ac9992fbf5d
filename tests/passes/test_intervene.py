"""Interventions: the unfrozen model with something taken out."""

from __future__ import annotations

import pytest
import torch

from depass_sae.errors import UserError
from depass_sae.passes.intervene import intervene
from depass_sae.passes.record import trace

from .models import EVERY, PARALLEL, SHAPES, attention_of, recorded_heads, tiny

IDS = torch.tensor([1, 5, 9, 3, 7])


@pytest.mark.parametrize("shape", EVERY)
def test_without_edits_the_model_computes_what_it_always_does(shape: str) -> None:
    model = tiny(shape)
    seen = trace(model, IDS)
    found = intervene(model, IDS[None], {}, [(1, "resid_post"), None])
    torch.testing.assert_close(found[1, "resid_post"][0], seen.at((1, "resid_post"))[-1])
    torch.testing.assert_close(found[None][0], seen.logits[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_head_that_writes_nothing_is_missing_from_the_stream(shape: str) -> None:
    model = tiny(shape)
    seen = trace(model, IDS, until=1)
    attention = attention_of(model, 1)
    z = recorded_heads(seen, 1).unflatten(-1, (attention.n_heads, attention.d_head))
    o = attention.o.weight.unflatten(0, (attention.n_heads, attention.d_head))

    def without(x: torch.Tensor) -> torch.Tensor:
        return (
            x.clone()
            .unflatten(-1, (attention.n_heads, attention.d_head))
            .index_fill(2, torch.tensor([2]), 0)
            .flatten(2)
        )

    mid = intervene(model, IDS[None], {(1, "hook_z"): without}, [(1, "resid_mid")])[1, "resid_mid"][0]
    torch.testing.assert_close(mid, seen.resid_mid[1][-1] - z[-1, 2] @ o[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [shape for shape in EVERY if shape not in PARALLEL])
def test_the_stream_between_the_sublayers_is_edited_after_what_came_before(shape: str) -> None:
    model = tiny(shape)
    seen = trace(model, IDS)
    edits = {(0, "resid_post"): lambda x: 2 * x, (1, "resid_mid"): lambda x: x - 3}
    found = intervene(model, IDS[None], edits, [(1, "resid_pre"), (1, "resid_mid"), (1, "resid_post")])
    alone = intervene(model, IDS[None], {(0, "resid_post"): lambda x: 2 * x}, [(1, "resid_mid")])
    torch.testing.assert_close(found[1, "resid_pre"][0], 2 * seen.resid_pre[1][-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1, "resid_mid"], alone[1, "resid_mid"] - 3, rtol=1e-4, atol=1e-4)
    part = model.layer(1).sublayers[1]
    with torch.no_grad():
        added = part.mixer.module(part.norm.module(found[1, "resid_mid"][:, None]))  # type: ignore[misc]
        added = added[0] if isinstance(added, tuple) else added
        added = added if part.post is None else part.post.module(added)  # type: ignore[misc]
    torch.testing.assert_close(found[1, "resid_post"], found[1, "resid_mid"] + added[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", PARALLEL)
def test_nothing_is_edited_where_nothing_passes(shape: str) -> None:
    with pytest.raises(UserError, match=r"1\.resid_mid is in no module's way"):
        intervene(tiny(shape), IDS[None], {(1, "resid_mid"): lambda x: x}, [None])


@pytest.mark.parametrize("hook", ["resid_pre", "hook_z", "attn_out", "mlp_in", "mlp_out", "resid_post"])
@pytest.mark.parametrize("shape", EVERY)
def test_what_is_edited_is_read_as_edited_and_changes_what_comes_after(shape: str, hook: str) -> None:
    model = tiny(shape)
    own, read = trace(model, IDS, outputs=[(1, hook)]), [(1, hook), (1, "resid_post"), None]
    # Not a mere multiple, which a norm behind a sublayer would take back.
    found = intervene(model, IDS[None], {(1, hook): lambda x: 2 * x + 1}, read)
    torch.testing.assert_close(found[1, hook][0], 2 * own.at((1, hook))[-1] + 1, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[1, "resid_post"][0], own.at((1, "resid_post"))[-1], rtol=1e-3)
    assert not torch.allclose(found[None][0], own.logits[-1], rtol=1e-3)


def test_each_prompt_of_a_batch_is_edited_on_its_own() -> None:
    model = tiny("llama")
    keep = torch.tensor([1.0, 0.0])[:, None, None]
    found = intervene(model, IDS.expand(2, -1), {(0, "resid_post"): lambda x: x * keep}, [(0, "resid_post"), None])
    assert found[0, "resid_post"][1].abs().max() == 0
    torch.testing.assert_close(found[None][0], trace(model, IDS).logits[-1], rtol=1e-4, atol=1e-4)


def test_an_intervention_elsewhere_is_refused_and_the_model_is_as_before() -> None:
    model = tiny("llama")
    with pytest.raises(UserError, match="no intervention is made at ln2_normalized"):
        intervene(model, IDS[None], {(0, "resid_post"): lambda x: x * 0, (1, "ln2_normalized"): lambda x: x}, [None])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())
