"""The sublayers as functions: live, they are transformers' own; frozen, each is affine at its recorded value."""

import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from depass_sae.models.adapter import Adapter
from depass_sae.models.place import Place
from depass_sae.passes.backward import sweep
from depass_sae.passes.choices import CONTRIBUTION, EFFECT, Choices
from depass_sae.passes.frozen import Frozen
from depass_sae.passes.mixers.attention import reach
from depass_sae.passes.record import Trace
from depass_sae.passes.running import recording

from .models import D_MODEL, DELTA, EVERY, LAYERS, PARALLEL, SHAPES, norms_of, recorded_pattern, tiny
from .test_forward import IDS, recorded

MIXES = [
    Choices(pattern, norm, mlp)  # type: ignore[arg-type]
    for pattern, norm, mlp in product(("frozen", "live"), ("frozen", "live"), ("linear", "half", "live"))
]
Map = Callable[[Tensor], Tensor]
NUMBERS = range(2 * LAYERS)


def adds(frozen: Frozen, choices: Choices) -> Map:
    """What a sublayer adds, as a function of the stream that it reads."""
    return lambda x: frozen.out(frozen.inside(x, choices, recorded=frozen.resid), choices)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def noise(like: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)


# --------------------------------------------------------------------------------------------- at the recorded stream


@pytest.mark.parametrize("choices", [*CONTRIBUTION.values(), EFFECT, *MIXES[1::4]], ids=str)
@pytest.mark.parametrize("shape", EVERY)
def test_at_the_recorded_stream_every_choice_gives_what_the_model_computed(shape: str, choices: Choices) -> None:
    seen = recorded(tiny(shape), IDS)
    for number in NUMBERS:
        frozen = seen.sublayer(number)
        place, inside = frozen.sublayer.place, frozen.inside(frozen.resid, choices, recorded=frozen.resid)
        # The frozen products give a gate's and an up's bias their own shares: the same sum.
        assert close(frozen.out(inside, choices), seen.at(place), 1e-4)
        if not frozen.mixer.looks_back:
            assert close(inside.normed, seen.at((place.layer, "mlp_in")), 1e-5)
            assert close(inside.bare, seen.at((place.layer, "ln2_normalized")), 1e-5)
        else:
            assert close(inside.z, seen.at((place.layer, "hook_z")), 1e-5)


# ---------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [shape for shape in EVERY if shape not in DELTA])
def test_the_pattern_is_that_of_transformers(shape: str, dtype: torch.dtype) -> None:
    adapter = tiny(shape, dtype)
    seen = recorded(adapter, IDS)
    for layer in range(LAYERS):
        frozen, own = seen.sublayer(2 * layer), recorded_pattern(seen, layer)
        found = frozen.mixer.look().attend(frozen.norm(frozen.resid))
        assert torch.allclose(found, own, rtol=0, atol=1e-5)
        assert torch.equal(found > 0, own > 0)  # the same keys are in sight


@torch.no_grad()
def own_scores(adapter: Adapter, ids: list[int]) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Of each layer the queries and keys [head, pos, d_head] and the scores before mask and softmax, as transformers
    computes them: seen where its eager attention is called."""
    model = adapter.model
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
        with recording(adapter, patterns=False):
            model(torch.tensor([ids]), use_cache=False)
    finally:
        module.eager_attention_forward = original  # type: ignore[attr-defined]
        model.set_attn_implementation(implementation)
    return seen


@pytest.mark.parametrize("shape", EVERY)
def test_queries_and_keys_are_those_of_transformers(shape: str) -> None:
    """Rotated, normed per head, with their biases, keys shared by consecutive heads."""
    adapter = tiny(shape, torch.float64)
    seen, own = recorded(adapter, IDS), own_scores(adapter, IDS)
    assert own
    for layer, (their_q, their_k, their_scores) in own.items():
        frozen = seen.sublayer(2 * layer)
        looks = frozen.mixer.look()
        q, k = looks.queries_and_keys(frozen.norm(frozen.resid))
        assert close(q.transpose(0, 1), their_q, 1e-5)
        assert close(k.transpose(0, 1), their_k, 1e-5)
        assert close(torch.einsum("qhd,khd->hqk", q, k) * looks.part.scores.scale, their_scores, 1e-5)


@given(st.integers(1, 12), st.integers(1, 14))
def test_a_query_sees_itself_and_the_positions_of_its_window(n: int, window: int) -> None:
    positions = torch.arange(n)
    assert reach(positions, positions, None).tolist() == [[key <= query for key in range(n)] for query in range(n)]
    expected = [[query - window < key <= query for key in range(n)] for query in range(n)]
    assert reach(positions, positions, window).tolist() == expected


# ----------------------------------------------------------------------------------------------- live and affine maps


def block_of(adapter: Adapter, layer: int) -> Map:
    """transformers' own layer as a function of the stream, called as the model calls it."""
    block, called = adapter.layer(layer).module, {}
    handle = block.register_forward_pre_hook(lambda _m, args, kw: called.update(args=args, kw=kw), with_kwargs=True)
    try:
        with recording(adapter):
            adapter.model(torch.tensor([IDS]), use_cache=False)
    finally:
        handle.remove()

    def call(x: Tensor) -> Tensor:
        out = block(x[None], *called["args"][1:], **called["kw"])
        return (out[0] if isinstance(out, tuple) else out)[0]

    return call


def layer_of(seen: Trace, layer: int, choices: Choices) -> Map:
    """Both sublayers of a layer, one reading what the other leaves, or both the same."""
    first, second = seen.sublayer(2 * layer), seen.sublayer(2 * layer + 1)

    def call(x: Tensor) -> Tensor:
        mid = x + adds(first, choices)(x)
        return mid + adds(second, choices)(x if second.sublayer.reads == first.sublayer.reads else mid)

    return call


@pytest.mark.parametrize("shape", EVERY)
def test_live_a_layer_is_transformers_own_at_any_stream_and_so_is_its_derivative(shape: str) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, IDS)
    for layer in range(LAYERS):
        found, expected = layer_of(seen, layer, EFFECT), block_of(adapter, layer)
        x = seen.resid_pre[layer] + 1e-3 * noise(seen.resid_post, 1)  # so near that experts are chosen as recorded
        g = noise(x, 2)
        with recording(adapter), torch.enable_grad():  # eager attention
            ours, theirs = (f(x.requires_grad_()) for f in (found, expected))
            of_ours, of_theirs = (torch.autograd.grad(y, x, g)[0] for y in (ours, theirs))
        assert close(ours.detach(), theirs.detach(), 1e-5)
        assert close(of_ours, of_theirs, 1e-5)


@pytest.mark.parametrize("rule", CONTRIBUTION)
@pytest.mark.parametrize("shape", EVERY)
def test_frozen_it_is_affine_in_the_stream_and_its_derivative_is_its_linear_part(shape: str, rule: str) -> None:
    seen = recorded(tiny(shape, torch.float64), IDS)
    for number in NUMBERS:
        frozen = seen.sublayer(number)
        f = adds(frozen, CONTRIBUTION[rule])
        x, y = noise(seen.resid_post, 1), noise(seen.resid_post, 2)
        at_zero = f(torch.zeros_like(x))
        assert close(f(2 * x - 3 * y) - at_zero, 2 * (f(x) - at_zero) - 3 * (f(y) - at_zero), 1e-10)
        _, slope = torch.func.jvp(f, (frozen.resid,), (x,))
        assert close(slope, f(x) - at_zero, 1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_at_zero_is_what_the_biases_add(shape: str) -> None:
    seen = recorded(tiny(shape), IDS)
    nothing = torch.zeros_like(seen.resid_post)
    attention, mlp = (seen.sublayer(number) for number in (0, 1))
    norms = norms_of(seen.adapter, 0)
    z, neurons = (frozen.inside(nothing, CONTRIBUTION["half"], recorded=frozen.resid).z for frozen in (attention, mlp))
    assert z.any() == (attention.sublayer.mixer.v.bias is not None or norms[0].bias is not None)  # type: ignore[union-attr]
    assert neurons.any() == (mlp.sublayer.mixer.gate.bias is not None or norms[1].bias is not None)  # type: ignore[union-attr]


def test_linear_and_half_are_one_where_the_mlp_is_not_gated() -> None:
    frozen = recorded(tiny("gpt2"), IDS).sublayer(3)
    x = noise(frozen.resid)
    linear, half = (adds(frozen, CONTRIBUTION[rule])(x) for rule in ("linear", "half"))
    assert torch.equal(linear, half)


@pytest.mark.parametrize("choices", [*CONTRIBUTION.values(), EFFECT, *MIXES[1::4]], ids=str)
@pytest.mark.parametrize("shape", EVERY)
def test_a_step_back_is_the_transpose_of_a_step_forward(shape: str, choices: Choices) -> None:
    """⟨g, J v⟩ = ⟨Jᵀ g, v⟩ for both sublayers of a layer, J by forward mode."""
    seen = recorded(tiny(shape, torch.float64), IDS)
    gradient = torch.stack([noise(seen.resid_post, seed) for seed in range(3)])
    *_, level = sweep(seen, {Place(1, "resid_post"): gradient}, choices, down_to=2)
    v = noise(seen.resid_post, 9)
    # The live maps are taken at the recorded stream, where they are transformers' own.
    _, forward = torch.func.jvp(layer_of(seen, 1, choices), (seen.resid_pre[1],), (v,))
    found, expected = (level.before * v).sum((1, 2)), (gradient * forward).sum((1, 2))
    # A recorded stream between the sublayers differs from one computed anew by what transformers rounds to float32.
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert level.before.shape == (3, len(IDS), D_MODEL)


@pytest.mark.parametrize("shape", PARALLEL)
def test_between_the_sublayers_of_a_parallel_block_stands_a_sum_that_no_module_has(shape: str) -> None:
    seen = recorded(tiny(shape), IDS)
    for layer in range(LAYERS):
        assert torch.equal(seen.resid_mid[layer], seen.resid_pre[layer] + seen.at((layer, "attn_out")))
        assert seen.sublayer(2 * layer + 1).resid is seen.sublayer(2 * layer).resid
