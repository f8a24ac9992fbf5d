"""The two sublayers as functions: live, they are transformers' own; frozen, each is affine at its recorded value."""

import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from depass_sae.passes.sublayers import (
    CONTRIBUTION,
    EFFECT,
    Choices,
    attend,
    head_outputs,
    neuron_outputs,
    queries_and_keys,
    reach,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from depass_sae.models.adapter import Adapter, Layer
from depass_sae.passes.backward import Level
from depass_sae.passes.record import Trace, recording

from .models import D_MODEL, HEADS, LAYERS, SHAPES, tiny
from .test_propagate import IDS, recorded

MIXES = [
    Choices(pattern, norm, mlp)  # type: ignore[arg-type]
    for pattern, norm, mlp in product(("frozen", "live"), ("frozen", "live"), ("linear", "half", "live"))
]
every_mix = pytest.mark.parametrize("choices", MIXES, ids=lambda c: f"{c.pattern}, {c.norm}, {c.mlp}")
Map = Callable[[Tensor], Tensor]


@torch.no_grad()
def own_scores(model: Any, ids: list[int]) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Of each layer the queries and keys [head, pos, d_head] and the scores before mask and softmax, as transformers
    computes them: seen where its eager attention is called."""
    module, seen = sys.modules[type(model).__module__], {}
    original, implementation = module.eager_attention_forward, model.config._attn_implementation  # type: ignore[attr-defined]

    def spy(attention: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float | None = None, **kw: Any) -> Any:
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        seen[attention.layer_idx] = (q[0], keys[0], (q @ keys.transpose(-1, -2))[0] * scale)
        return original(attention, q, k, v, mask, scaling=scaling, **kw)

    module.eager_attention_forward = spy  # type: ignore[attr-defined]
    model.set_attn_implementation("eager")
    try:
        model(torch.tensor([ids]), use_cache=False)
    finally:
        module.eager_attention_forward = original  # type: ignore[attr-defined]
        model.set_attn_implementation(implementation)
    return seen


def sublayer(seen: Trace, index: int, which: str, choices: Choices) -> Map:
    """hook_z or the neurons as a function of the stream before."""
    layer = seen.adapter.layer(index)
    if which == "attn":
        return lambda x: head_outputs(layer, x, seen.resid_pre[index], seen.pattern[index], choices)
    return lambda x: neuron_outputs(layer, x, seen.resid_mid[index], choices)[0]


def before(seen: Trace, index: int, which: str) -> Tensor:
    return (seen.resid_pre if which == "attn" else seen.resid_mid)[index]


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def noise(like: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


# --------------------------------------------------------------------------------------------- at the recorded stream


@every_mix
@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_recorded_stream_every_choice_gives_what_the_model_computed(shape: str, choices: Choices) -> None:
    seen = recorded(tiny(shape), IDS)
    for index in range(LAYERS):
        layer = seen.adapter.layer(index)
        z = head_outputs(layer, seen.resid_pre[index], seen.resid_pre[index], seen.pattern[index], choices)
        assert close(z, seen.at((index, "hook_z")), 1e-5)
        neurons, mlp_in = neuron_outputs(layer, seen.resid_mid[index], seen.resid_mid[index], choices)
        if choices.mlp == "live":  # the frozen products give a gate's and an up's bias their own shares: the same sum
            assert close(layer.mlp.down(neurons), seen.at((index, "mlp_out")), 1e-5)
        assert close(layer.mlp.down(neurons), seen.at((index, "mlp_out")), 1e-4)
        assert close(mlp_in, seen.at((index, "mlp_in")), 1e-5)


# ---------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_pattern_is_that_of_transformers(shape: str, dtype: torch.dtype) -> None:
    adapter = tiny(shape, dtype)
    seen = recorded(adapter, IDS)
    for index in range(LAYERS):
        layer = adapter.layer(index)
        found = attend(layer.attention, layer.attn_norm(seen.resid_pre[index]))
        assert torch.allclose(found, seen.pattern[index], rtol=0, atol=1e-5)
        assert torch.equal(found > 0, seen.pattern[index] > 0)  # the same keys are in sight


@pytest.mark.parametrize("shape", SHAPES)
def test_queries_and_keys_are_those_of_transformers(shape: str) -> None:
    """Rotated, normed per head (Qwen3), with their biases (Llama, Qwen2, GPT-2), keys shared by consecutive heads."""
    adapter = tiny(shape, torch.float64)
    seen, own = recorded(adapter, IDS), own_scores(adapter.model, IDS)
    for index in range(LAYERS):
        layer = adapter.layer(index)
        q, k = queries_and_keys(layer.attention, layer.attn_norm(seen.resid_pre[index]))
        assert q.shape == k.shape == (len(IDS), HEADS, layer.attention.d_head)
        assert close(q.transpose(0, 1), own[index][0], 1e-5)
        assert close(k.transpose(0, 1), own[index][1], 1e-5)
        scores = torch.einsum("qhd,khd->hqk", q, k) * layer.attention.scores.scale
        assert close(scores, own[index][2], 1e-5)


@given(st.integers(1, 12), st.integers(1, 14))
def test_a_query_sees_itself_and_the_positions_of_its_window(n: int, window: int) -> None:
    positions = torch.arange(n)
    assert reach(positions, positions, None).tolist() == [[key <= query for key in range(n)] for query in range(n)]
    expected = [[query - window < key <= query for key in range(n)] for query in range(n)]
    assert reach(positions, positions, window).tolist() == expected


# ----------------------------------------------------------------------------------------------- live and affine maps


def modules(adapter: Adapter, layer: Layer, seen: Trace, index: int) -> tuple[Map, Map]:
    """What transformers' own norm and sublayer add to a stream, batched as it wants them."""
    model, n = adapter.model, len(seen.token_ids)

    def mlp(x: Tensor) -> Tensor:
        return layer.mlp.module(layer.mlp_norm.module(x[None]))[0]

    visible = reach(torch.arange(n), torch.arange(n), layer.attention.window)
    mask = torch.zeros(n, n, dtype=seen.resid_post.dtype).masked_fill(~visible, -1e30)[None, None]
    rotary = {}
    if model.config.model_type != "gpt2":
        rotary["position_embeddings"] = model.model.rotary_emb(seen.resid_post[None], torch.arange(n)[None])

    def attention(x: Tensor) -> Tensor:
        return layer.attention.module(layer.attn_norm.module(x[None]), attention_mask=mask, **rotary)[0][0]

    return attention, mlp


@pytest.mark.parametrize("which", ["attn", "mlp"])
@pytest.mark.parametrize("shape", SHAPES)
def test_live_at_any_stream_it_is_transformers_own_module_and_so_is_its_derivative(shape: str, which: str) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, IDS)
    for index in range(LAYERS):
        layer = adapter.layer(index)
        out = layer.attention.o if which == "attn" else layer.mlp.down
        found = sublayer(seen, index, which, EFFECT)
        expected = modules(adapter, layer, seen, index)[which == "mlp"]
        x = before(seen, index, which) + noise(seen.resid_post, 1)
        v = noise(x, 2)
        with recording(adapter), torch.enable_grad():  # eager attention, which has a derivative in forward mode
            of_neurons, slope = torch.func.jvp(found, (x,), (v,))
            theirs = torch.func.jvp(expected, (x,), (v,))
        assert close(out(of_neurons), theirs[0].detach(), 1e-5)
        assert close(slope @ out.weight, theirs[1].detach(), 1e-5)


@pytest.mark.parametrize("rule", CONTRIBUTION)
@pytest.mark.parametrize("which", ["attn", "mlp"])
@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_it_is_affine_in_the_stream_and_its_derivative_is_its_linear_part(
    shape: str, which: str, rule: str
) -> None:
    seen = recorded(tiny(shape, torch.float64), IDS)
    for index in range(LAYERS):
        f = sublayer(seen, index, which, CONTRIBUTION[rule])
        x, y = noise(seen.resid_post, 1), noise(seen.resid_post, 2)
        at_zero = f(torch.zeros_like(x))
        assert close(f(2 * x - 3 * y) - at_zero, 2 * (f(x) - at_zero) - 3 * (f(y) - at_zero), 1e-10)
        _, slope = torch.func.jvp(f, (before(seen, index, which),), (x,))
        assert close(slope, f(x) - at_zero, 1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_at_zero_is_what_the_biases_add(shape: str) -> None:
    seen = recorded(tiny(shape), IDS)
    layer = seen.adapter.layer(0)
    z = sublayer(seen, 0, "attn", CONTRIBUTION["half"])(torch.zeros_like(seen.resid_post))
    assert z.any() == (layer.attention.v.bias is not None or layer.attn_norm.bias is not None)
    neurons = sublayer(seen, 0, "mlp", CONTRIBUTION["half"])(torch.zeros_like(seen.resid_post))
    assert neurons.any() == (layer.mlp.gate.bias is not None or layer.mlp_norm.bias is not None)


def test_linear_and_half_are_one_where_the_mlp_is_not_gated() -> None:
    seen = recorded(tiny("gpt2"), IDS)
    x = noise(seen.resid_post)
    linear, half = (sublayer(seen, 1, "mlp", CONTRIBUTION[rule])(x) for rule in ("linear", "half"))
    assert torch.equal(linear, half)


@every_mix
@pytest.mark.parametrize("which", ["attn", "mlp"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_step_back_is_the_transpose_of_one_step_forward(shape: str, which: str, choices: Choices) -> None:
    """⟨g, J v⟩ = ⟨Jᵀ g, v⟩, J by forward mode."""
    seen = recorded(tiny(shape, torch.float64), IDS)
    layer, x = seen.adapter.layer(1), before(seen, 1, which)
    f = sublayer(seen, 1, which, choices)
    out = layer.attention.o if which == "attn" else layer.mlp.down
    gradient = torch.stack([noise(x, seed) for seed in range(3)])
    none: dict[str, Any] = {"output_seed": None, "inner_seeds": [None], "stream_seeds": []}
    level = Level.back(1, which, layer, lambda x, _: [f(x)], x, out, gradient, torch.zeros(3, len(x)).to(x), **none)  # type: ignore[arg-type]
    v = noise(x, 9)
    _, forward = torch.func.jvp(lambda x: x + out(f(x)), (x,), (v,))
    assert torch.allclose((level.before * v).sum((1, 2)), (gradient * forward).sum((1, 2)), rtol=1e-9, atol=1e-9)
    assert level.before.shape == (3, len(IDS), D_MODEL)
