"""What each method says of tokens is what other programs, and the definitions, say on the untouched model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

import depass_sae as ds
from depass_sae.errors import UserError
from depass_sae.evaluation.methods import tokens
from depass_sae.evaluation.sources import SOURCES
from depass_sae.models.place import Place
from depass_sae.passes.intervene import intervene

from ...passes.models import CONFIGS, build
from ...test_documents import InFloat64
from ..asking import IDS, TEXT, firing, handle, hooked, logit_over_mean, model, question, random_sae

LXT = Path(__file__).parents[2] / "data" / "lxt" / "relevances.json"
FEATURE = "a feature"
"""Of layer 1, whichever fires most at position 8."""


def target_of(lm: ds.LM, named: str, prompt: Any = IDS) -> str:
    return firing(lm, prompt) if named == FEATURE else named


def embedded(shape: str = "llama") -> Tensor:
    return model(shape).get_input_embeddings()(torch.tensor([IDS])).detach()


def test_integrated_gradients_are_captums() -> None:
    captum = pytest.importorskip("captum.attr")

    def live(x: Tensor) -> Tensor:
        return logit_over_mean(model()(inputs_embeds=x, use_cache=False).logits[:, -1])

    theirs = captum.IntegratedGradients(live).attribute(embedded(), n_steps=tokens.STEPS, method="gausslegendre")
    assert torch.allclose(tokens.integrated(question()), theirs.sum(-1)[0].detach(), atol=1e-4)


def test_integrated_gradients_of_a_log_probability_are_captums() -> None:
    captum = pytest.importorskip("captum.attr")

    def live(x: Tensor) -> Tensor:
        return model()(inputs_embeds=x, use_cache=False).logits[:, -1].log_softmax(-1)[:, 7]

    theirs = captum.IntegratedGradients(live).attribute(embedded(), n_steps=tokens.STEPS, method="gausslegendre")
    assert torch.allclose(tokens.integrated_logprob(question()), theirs.sum(-1)[0].detach(), atol=1e-4)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize("named", ["logit:7 against mean", "logprob:7", FEATURE])
def test_integrated_gradients_sum_to_what_the_target_is_beyond_no_embedding(shape: str, named: str) -> None:
    lm = handle(random_sae(), shape)
    asked = question(lm, target=target_of(lm, named))
    place, ids = asked.target.place, asked.prompt.ids()[None]
    read = intervene(lm._subject.adapter, ids, {Place(0, "resid_pre"): torch.zeros_like}, {place})[place]
    without = float(asked.target.live(lm._subject, read))
    assert float(tokens.integrated(asked, steps=1000).sum()) == pytest.approx(asked.value - without, rel=0.02, abs=0.02)


def test_effects_are_gradients_times_inputs() -> None:
    x = embedded().requires_grad_()
    value = logit_over_mean(model()(inputs_embeds=x, use_cache=False).logits[0, -1])
    (gradient,) = torch.autograd.grad(value, x)
    assert torch.allclose(tokens.effect(question()), (gradient * x).sum(-1)[0].detach(), atol=1e-4)


def shrunk(x: Tensor, by: float) -> Tensor:
    """x, of whose gradient the ``by``-th part goes on."""
    return x / by + (x - x / by).detach()


def test_attnlrp_is_gradient_times_input_by_hooks_on_the_untouched_model() -> None:
    """As lxt does it: norms are constant factors, an activation is a constant slope, half of the gradient of a product
    goes to each factor; queries and keys, whose product is half of one, have a quarter.
    """
    with InFloat64():
        made = build(CONFIGS["llama"](), torch.float64)
        ours = tokens.attnlrp(question(ds.load(made), (3, 9, 7, 21, 14, 9, 2), "logit:9"))

    def normed(norm: Any, args: Any, _: Any) -> Tensor:
        x = args[0]
        return norm.weight * x * (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt().detach()

    pairs: list[tuple[Any, Any]] = []
    for layer in made.model.layers:
        pairs += [(layer.input_layernorm, normed), (layer.post_attention_layernorm, normed)]
        for part, by in (("q_proj", 4), ("k_proj", 4), ("v_proj", 2)):
            pairs.append((getattr(layer.self_attn, part), lambda _, args, out, by=by: shrunk(out, by)))
        pairs.append((layer.mlp.act_fn, lambda _, args, out: (out / args[0]).detach() * args[0]))
        pairs.append((layer.mlp.down_proj, lambda down, args, _: linear(shrunk(args[0], 2), down.weight, down.bias)))
    pairs.append((made.model.norm, normed))
    with InFloat64(), hooked(*pairs):
        x = made.get_input_embeddings()(torch.tensor([[3, 9, 7, 21, 14, 9, 2]])).detach().requires_grad_()
        logits = made(inputs_embeds=x, use_cache=False).logits[0, -1]
        value = logits[9] - logits.mean()
        (gradient,) = torch.autograd.grad(value, x)
    theirs = (gradient * x).sum(-1)[0].detach()
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9 + 1e-6 * float(theirs.abs().max()))
    assert (
        float((ours - tokens.by_rule(question(ds.load(made), (3, 9, 7, 21, 14, 9, 2), "logit:9"), "half")).abs().max())
        > 1e-3
    )


@pytest.mark.long
@pytest.mark.smollm2
def test_attnlrp_is_what_lxt_itself_computes() -> None:
    """tests/data/lxt: relevances by lxt 2.1, made by make.py beside them."""
    lm = ds.load("smollm2", saes=[], dtype="float64")
    for kept in json.loads(LXT.read_text(encoding="utf-8"))["prompts"]:
        asked = question(lm, tuple(kept["token_ids"]), f"logit:{kept['token']} against mean")
        theirs = torch.tensor(kept["relevance"], dtype=torch.float64)
        assert asked.value == pytest.approx(kept["value"], rel=1e-6)
        assert torch.allclose(tokens.attnlrp(asked).double(), theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


def test_rollout_is_the_sum_over_all_paths() -> None:
    asked = question()
    layers = [record.pattern.double().mean(0) for record in asked.seen.records if record.pattern is not None]
    found = torch.zeros(len(IDS), dtype=torch.float64)
    paths = [((asked.pos,), 1.0)]
    for pattern in reversed(layers):  # backwards: stay with a half, or go where the heads look with the other
        paths = [
            ((*path, k), weight * float(pattern[path[-1], k] / 2 + (0.5 if k == path[-1] else 0)))
            for path, weight in paths
            for k in range(len(IDS))
        ]
    for path, weight in paths:
        found[path[-1]] += weight
    assert torch.allclose(tokens.rollout(asked).double(), found, atol=1e-5)
    assert float(tokens.rollout(asked).sum()) == pytest.approx(1, abs=1e-5)


def test_attention_and_rollout_go_no_higher_than_the_target() -> None:
    lm = handle(random_sae())
    low, high = (question(lm, target=target) for target in (firing(lm, pos=10), "logit:7 against mean"))
    assert torch.allclose(tokens.attention(low), low.seen.records[2].pattern[:, 10].float().mean(0))  # type: ignore[index]
    assert not torch.allclose(tokens.rollout(low), tokens.rollout(high))


def test_leaving_one_out_is_what_the_model_says_of_the_shorter_text() -> None:
    found, asked = tokens.leave_one_out(question()), question()
    with torch.no_grad():
        for pos in range(1, asked.pos):
            ids = torch.tensor([[*IDS[:pos], *IDS[pos + 1 :]]])
            left = logit_over_mean(model()(ids, use_cache=False).logits[0, -1])
            assert float(found[pos]) == pytest.approx(asked.value - float(left), abs=1e-3)
    assert found[0] == found[asked.pos] == 0  # they stay


def test_a_rule_says_what_it_says_elsewhere_at_the_position_that_is_asked_about() -> None:
    lm = handle(random_sae())
    feature = firing(lm, TEXT)
    for rule in ("half", "softmax", "half-qk"):
        said = lm.attribute_tokens(TEXT, feature, rule=rule).contributions
        assert torch.allclose(tokens.by_rule(question(lm, TEXT, feature), rule), said, atol=1e-5)


@pytest.mark.parametrize("target", ["logit:7 against mean", FEATURE])
def test_every_method_scores_every_position_and_noise_is_the_same_again(target: str) -> None:
    lm = handle(random_sae())
    asked = question(lm, target=target_of(lm, target))
    for name, method in SOURCES["tokens"].methods.items():
        if name == "ig-logprob" and target == FEATURE:
            continue
        scores = method(asked)
        assert scores.shape == (asked.pos + 1,), name
        assert scores.isfinite().all(), name
        assert torch.equal(scores, method(asked)), name


def test_what_has_no_log_probability_says_so() -> None:
    lm = handle(random_sae())
    asked = question(lm, target=firing(lm))
    with pytest.raises(UserError, match="leave it out"):
        tokens.integrated_logprob(asked)
