"""The backward engine: what it says is what the forward engine says, and with everything live it is autograd's."""

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from depass_sae.models.adapter import Adapter
from depass_sae.models.place import Place
from depass_sae.passes import backward, support
from depass_sae.passes.backward import Level, sweep
from depass_sae.passes.choices import CONTRIBUTION, EFFECT, Choices
from depass_sae.passes.forward import Allocation
from depass_sae.passes.record import Trace
from depass_sae.passes.running import recording
from depass_sae.passes.sources import Heads, Modules, Neurons, Source, Split, Subspace

from .models import D_MLP, D_MODEL, EVERY, HEADS, LAYERS, PARALLEL, SHAPES, VOCAB, tiny
from .reference import weights
from .test_forward import IDS, POINTS, by_token, points_after, recorded, some_vectors
from .test_forward import propagate as forward

RULES = tuple(CONTRIBUTION)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
Levels = dict[tuple[int, str], Level]

prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7)


def directions(seen: Trace, point: Place, targets: int, seed: int = 0) -> Tensor:
    """Random directions [target, d] to read a point along."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(targets, seen.at(point).shape[-1], generator=generator).to(seen.resid_post)


def seeds_at(seen: Trace, w: Tensor, positions: list[int]) -> Tensor:
    """Target i reads its direction at positions[i]."""
    seeds = torch.zeros(len(w), len(seen.token_ids), w.shape[1]).to(w)
    seeds[torch.arange(len(w)), positions] = w
    return seeds


def levels(seen: Trace, seeds: dict[Place, Tensor], choices: Choices) -> Levels:
    return {(level.layer, level.sublayer): level for level in sweep(seen, seeds, choices)}


def gradient_at(found: Levels, at: Place) -> tuple[Tensor, Tensor]:
    """[target, pos, d_model] at a point of the stream, and what bias vectors add from there on."""
    depth = Place(*at).depth
    if (depth // 2, ("attn", "mlp")[depth % 2]) in found:
        level = found[depth // 2, ("attn", "mlp")[depth % 2]]
        return level.before, level.bias_before
    level = found[(depth - 1) // 2, ("attn", "mlp")[(depth - 1) % 2]]
    return level.after, level.bias


def by_sweep(found: Levels, start: Split) -> Tensor:
    """Contributions [target, comp] of a start's components."""
    gradient, bias = gradient_at(found, start.at)
    values = torch.einsum("tnd,nmd->tm", gradient, start.rows.dense())
    values[:, -2] += bias.sum(1)
    return values


def by_forward(seen: Trace, start: Split, point: Place, w: Tensor, positions: list[int], rule: str) -> Tensor:
    kept = sorted(set(positions))
    parts = forward(seen, start, {point: torch.tensor(kept)}, Allocation(rule))[point].dense()
    return torch.stack([parts[kept.index(pos)] @ w[i] for i, pos in enumerate(positions)])


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


@st.composite
def sources(draw: st.DrawFn) -> Any:
    """Any source at any layer, made once the prompt is recorded."""
    layer, kind = draw(st.integers(0, LAYERS - 1)), draw(st.integers(0, 5))
    hook = draw(st.sampled_from(["resid_pre", "resid_mid", "resid_post"]))
    seed, parts = draw(st.integers(0, 99)), draw(st.integers(1, 3))
    matrices = list(torch.randn(parts, 2, D_MODEL, generator=torch.Generator().manual_seed(seed)))

    def make(seen: Trace, ids: list[int]) -> Source:
        made: list[Source] = [
            by_token(ids, layer),
            Heads(layer),
            Modules(layer, "attn" if seed % 2 else "mlp"),
            Neurons(layer, None if seed % 2 else [[0, 5], [3]]),
            Subspace(matrices, layer, hook),
            some_vectors(seen, (layer, hook), parts, bool(seed % 2), seed),
        ]
        return made[kind]

    return make


# ------------------------------------------------------------------------------------------------- the forward engine


@given(
    shape=st.sampled_from(EVERY), dtype=st.sampled_from(sorted(TOLERANCE, key=str)), rule=st.sampled_from(RULES),
    ids=prompts, source=sources(), data=st.data(),
)  # fmt: skip
@settings(max_examples=200)
def test_one_sweep_gives_what_the_forward_pass_gives(
    shape: str, dtype: torch.dtype, rule: str, ids: list[int], source: Any, data: st.DataObject
) -> None:
    seen = recorded(tiny(shape, dtype), ids)
    start = source(seen, ids).start(seen)
    point = data.draw(st.sampled_from(points_after(start.at)))
    positions = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=3))
    w = directions(seen, point, len(positions))
    found = by_sweep(levels(seen, {point: seeds_at(seen, w, positions)}, CONTRIBUTION[rule]), start)
    expected = by_forward(seen, start, point, w, positions, rule)
    if shape in PARALLEL and start.at.hook == "resid_mid":  # a layer's MLP reads beside it what is in ``rest`` alone
        found, expected = found[:, :-1], expected[:, :-1]
    assert off(found, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", EVERY)
def test_every_level_on_the_way_back_sums_to_the_target_at_every_read_point(shape: str, rule: str) -> None:
    seen = recorded(tiny(shape, torch.float64), IDS)
    for point in POINTS:
        w = directions(seen, point, 2)
        whole = torch.stack([seen.at(point)[pos] @ w[i] for i, pos in enumerate((5, 7))])
        for level in sweep(seen, {point: seeds_at(seen, w, [5, 7])}, CONTRIBUTION[rule]):
            stream = seen.at((level.layer, "resid_pre" if level.sublayer == "attn" else "resid_mid"))
            # Nothing is said of what lies behind, nor in the middle of a parallel block, beside which its MLP reads.
            if level.before.any() and not (shape in PARALLEL and level.sublayer == "mlp"):
                total = (level.before * stream).sum((1, 2)) + level.bias_before.sum(1)
                size = (level.before * stream).abs().amax((1, 2)).maximum(whole.abs())
                assert ((total - whole).abs() / size).max() < 1e-5, (point, level.layer, level.sublayer)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", EVERY)
def test_heads_and_neurons_are_read_inside_their_sublayer(shape: str, rule: str) -> None:
    seen = recorded(tiny(shape, torch.float64), IDS)
    point: Place = (LAYERS - 1, "resid_post")
    w = directions(seen, point, 1)
    found = levels(seen, {point: seeds_at(seen, w, [6])}, CONTRIBUTION[rule])
    for layer in range(LAYERS):
        heads, neurons = (found[layer, name].units() for name in ("attn", "mlp"))
        assert heads.shape == (1, HEADS)
        for values, start in ((heads, Heads(layer).start(seen)), (neurons, Neurons(layer).start(seen))):
            assert off(values, by_forward(seen, start, point, w, [6], rule)[:, :-2]) <= 1e-6


@pytest.mark.parametrize("hook", ["hook_z", "attn_out", "mlp_in", "mlp_out"])
@pytest.mark.parametrize("shape", EVERY)
def test_what_is_read_inside_a_sublayer_does_not_reach_the_stream_after_it(shape: str, hook: str) -> None:
    seen = recorded(tiny(shape), IDS)
    w = directions(seen, (1, hook), 1)
    found = levels(seen, {(1, hook): seeds_at(seen, w, [4])}, CONTRIBUTION["half"])
    here = found[1, "attn" if hook in ("hook_z", "attn_out") else "mlp"]
    assert not here.after.any()
    assert found[1, "attn"].before.any()
    assert here.before.any() == (shape not in PARALLEL or hook in ("hook_z", "attn_out"))
    assert here.output.any() == (hook in ("attn_out", "mlp_out"))
    assert here.inner.any() == (hook != "mlp_in")


def test_a_window_keeps_the_sweep_from_positions_that_it_cannot_reach() -> None:
    seen = recorded(tiny("mistral"), IDS)  # every layer sees three positions
    for choices in (CONTRIBUTION["linear"], EFFECT):
        seeds = seeds_at(seen, directions(seen, (1, "resid_post"), 1), [7])
        found = levels(seen, {(1, "resid_post"): seeds}, choices)
        assert found[1, "attn"].before[0].any(-1).tolist() == [False] * 5 + [True] * 3
        assert found[0, "attn"].before[0].any(-1).tolist() == [False] * 3 + [True] * 5


# ---------------------------------------------------------------------------------------------------- several targets

ALL_CHOICES = {**CONTRIBUTION, "effect": EFFECT}


@pytest.mark.parametrize("choices", ALL_CHOICES.values(), ids=ALL_CHOICES)
@pytest.mark.parametrize("shape", EVERY)
def test_many_targets_in_one_sweep_are_what_each_is_alone(shape: str, choices: Choices) -> None:
    seen = recorded(tiny(shape, torch.float64), IDS)
    w = directions(seen, (2, "mlp_out"), 5)
    positions = [7, 0, 3, 3, 6]
    seeds = seeds_at(seen, w, positions)
    together = levels(seen, {(2, "mlp_out"): seeds}, choices)
    for i in range(len(w)):
        alone = levels(seen, {(2, "mlp_out"): seeds[i : i + 1]}, choices)
        for key, level in together.items():
            for name in ("after", "output", "inner", "before", "bias", "bias_before"):
                mine, its = getattr(level, name)[i], getattr(alone[key], name)[0]
                assert torch.allclose(mine, its, rtol=0, atol=1e-12 * float(its.abs().max() + 1)), (key, name)


@pytest.mark.parametrize("apart", [1, 8, 2**20])
@pytest.mark.parametrize("choices", ALL_CHOICES.values(), ids=ALL_CHOICES)
@pytest.mark.parametrize("shape", EVERY)
def test_gradients_of_which_the_positions_are_known_are_what_all_positions_give(
    shape: str, choices: Choices, apart: int
) -> None:
    seen, positions = recorded(tiny(shape, torch.float64), IDS), [7, 0, 3, 3, 6]
    seeds = {(2, "resid_post"): seeds_at(seen, directions(seen, (2, "resid_post"), 5), positions)}
    everywhere = levels(seen, seeds, choices)
    few = torch.arange(5), torch.tensor(positions)
    with (
        mock.patch.dict(support.APART, cpu=apart),
        mock.patch.object(backward, "_through_parts", wraps=backward._through_parts) as kept_to,
    ):
        at_few = {(level.layer, level.sublayer): level for level in sweep(seen, seeds, choices, few=few)}
    # the MLP that wrote last, before attention sees all earlier positions; then, where that is worth it, the others
    apart_from_others = sum(not level.looks_back for level in everywhere.values())
    assert kept_to.call_count == (1 if apart == 2**20 else apart_from_others)
    assert at_few.keys() == everywhere.keys()
    for key, level in everywhere.items():
        for name in ("after", "output", "inner", "recorded", "past", "before", "bias", "bias_written", "bias_before"):
            assert off(getattr(at_few[key], name), getattr(level, name)) <= 1e-10, (key, name)
        assert off(at_few[key].units(), level.units()) <= 1e-10


@pytest.mark.parametrize("choices", ALL_CHOICES.values(), ids=ALL_CHOICES)
@pytest.mark.parametrize("shape", EVERY)
def test_known_positions_change_nothing_where_something_inside_the_last_mlp_is_read_too(
    shape: str, choices: Choices
) -> None:
    seen, positions = recorded(tiny(shape, torch.float64), IDS), [7, 0, 3, 3, 6]
    seeds = {}
    for point, own in (((2, "resid_post"), slice(3)), ((2, "mlp_in"), slice(3, None))):
        seeds[point] = torch.zeros_like(seeds_at(seen, directions(seen, point, 5), positions))
        seeds[point][own] = seeds_at(seen, directions(seen, point, 5), positions)[own]
    everywhere = levels(seen, seeds, choices)
    few = torch.arange(5), torch.tensor(positions)
    for level in sweep(seen, seeds, choices, few=few):
        expected = everywhere[level.layer, level.sublayer]
        for name in ("inner", "before", "bias_before"):
            assert off(getattr(level, name), getattr(expected, name)) <= 1e-10, (level.layer, level.sublayer, name)


@pytest.mark.parametrize("choices", ALL_CHOICES.values(), ids=ALL_CHOICES)
def test_targets_read_at_several_points_add_up(choices: Choices) -> None:
    seen = recorded(tiny("llama", torch.float64), IDS)
    seeds = {point: seeds_at(seen, directions(seen, point, 1, i), [5]) for i, point in enumerate(POINTS)}
    together = levels(seen, seeds, choices)[0, "attn"]
    alone = [levels(seen, {point: seed}, choices)[0, "attn"] for point, seed in seeds.items()]
    assert off(together.before, torch.stack([level.before for level in alone]).sum(0)) <= 1e-10
    assert off(together.bias_before, torch.stack([level.bias_before for level in alone]).sum(0)) <= 1e-10


@given(shape=st.sampled_from(EVERY), ids=prompts, choices=st.sampled_from(list(ALL_CHOICES.values())), data=st.data())
@settings(max_examples=40)
def test_nothing_depends_on_what_comes_after_the_target(
    shape: str, ids: list[int], choices: Choices, data: st.DataObject
) -> None:
    seen = recorded(tiny(shape, torch.float64), ids)
    pos = data.draw(st.integers(0, len(ids) - 1))
    w = directions(seen, (2, "resid_post"), 1)
    whole = levels(seen, {(2, "resid_post"): seeds_at(seen, w, [pos])}, choices)
    cut = seen.first(pos + 1)
    short = levels(cut, {(2, "resid_post"): seeds_at(cut, w, [pos])}, choices)
    for key, level in whole.items():
        assert not level.before[:, pos + 1 :].any()
        assert off(level.before[:, : pos + 1], short[key].before) <= 1e-10
        if choices is not EFFECT:  # bias vectors are summed for contributions
            assert not level.bias_before[:, pos + 1 :].any()
            assert off(level.bias_before[:, : pos + 1], short[key].bias_before) <= 1e-10


def test_a_sweep_stops_where_it_is_told_to() -> None:
    seen = recorded(tiny("llama"), IDS)
    seeds = {(1, "resid_mid"): seeds_at(seen, directions(seen, (1, "resid_mid"), 1), [4])}
    visited = [(level.layer, level.sublayer) for level in sweep(seen, seeds, EFFECT, down_to=1)]
    assert visited == [(1, "attn"), (0, "mlp")]


# ------------------------------------------------------------------------------------------------ everything left live


def embedded(adapter: Adapter, ids: list[int]) -> Tensor:
    return adapter.model.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()


def autograd_precision(shape: str) -> float:
    return 1e-10 if shape == "gpt2" else 1e-5  # transformers' RMSNorm and rotations round through float32


@pytest.mark.parametrize("shape", EVERY)
def test_with_everything_live_it_is_the_gradient_of_the_untouched_model(shape: str) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, IDS)
    w = directions(seen, (LAYERS - 1, "resid_pre"), 1)
    embeddings = embedded(adapter, IDS)
    with recording(adapter), torch.enable_grad():
        stream = adapter.model(inputs_embeds=embeddings, output_hidden_states=True, use_cache=False).hidden_states
        (expected,) = torch.autograd.grad(stream[LAYERS - 1][0, 6] @ w[0], embeddings)
    found = levels(seen, {(LAYERS - 1, "resid_pre"): seeds_at(seen, w, [6])}, EFFECT)
    assert off(gradient_at(found, (0, "resid_pre"))[0], expected) <= autograd_precision(shape)


@pytest.mark.parametrize("shape", EVERY)
def test_with_everything_live_a_logits_gradient_is_that_of_the_untouched_model(shape: str) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, IDS)
    embeddings = embedded(adapter, IDS)
    with recording(adapter), torch.enable_grad():
        own = adapter.model(inputs_embeds=embeddings, use_cache=False).logits[0, 5, 7]
        (expected,) = torch.autograd.grad(own, embeddings)
    stream = seen.resid_post.clone().requires_grad_()
    logit = adapter.capped(adapter.final_norm(stream)[5] @ adapter.unembed.weight[:, 7])
    (seed,) = torch.autograd.grad(logit, stream)
    found = levels(seen, {(LAYERS - 1, "resid_post"): seed[None]}, EFFECT)
    assert off(gradient_at(found, (0, "resid_pre"))[0], expected) <= autograd_precision(shape)


@pytest.mark.parametrize("shape", EVERY)
def test_with_everything_live_bias_is_what_all_bias_vectors_do_to_first_order(shape: str) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, IDS)
    w = directions(seen, (LAYERS - 1, "resid_pre"), 1)
    biases = [p for name, p in adapter.model.named_parameters() if name.endswith("bias")]
    parts = torch.zeros(1)
    if biases:
        with recording(adapter), torch.enable_grad():
            stream = adapter.model(torch.tensor([IDS]), output_hidden_states=True, use_cache=False).hidden_states
        gradients = torch.autograd.grad(stream[LAYERS - 1][0, 6] @ w[0], biases, allow_unused=True)
        parts = torch.cat([(g * b).flatten() for g, b in zip(gradients, biases, strict=True) if g is not None])
    found = levels(seen, {(LAYERS - 1, "resid_pre"): seeds_at(seen, w, [6])}, EFFECT)
    effect = gradient_at(found, (0, "resid_pre"))[1].sum().item()
    assert abs(effect - parts.sum().item()) <= autograd_precision(shape) * parts.abs().sum().item()
    assert bool(effect) == bool(biases)


# --------------------------------------------------------------------------------- some of it frozen, some of it live


def frozen(x: Tensor, choice: str) -> Tensor:
    return x.detach() if choice == "frozen" else x


def reference(adapter: Adapter, ids: list[int], x: Tensor, choices: Choices) -> Tensor:
    """The model's layers written out on its own weights; what is frozen is detached, and autograd does the rest."""
    model, config = adapter.model, adapter.model.config
    for index in range(LAYERS):
        w = weights(model, index)
        x = x + _attention(model, config, index, w, _normed(x, w.norms[0], choices), choices) @ w.o + zero(w.b_o)
        x_hat = _normed(x, w.norms[1], choices)
        gate = x_hat @ w.gate + zero(w.b_gate)
        up = torch.ones_like(gate) if w.up is None else x_hat @ w.up + zero(w.b_up)
        by_gate = (w.act(gate) / gate).detach() * gate * up.detach()
        by_up = w.act(gate).detach() * up
        if choices.mlp == "live":
            hidden = w.act(gate) * up
        elif choices.mlp == "linear" or w.up is None:
            hidden = by_gate
        else:
            hidden = 0.5 * by_gate + 0.5 * by_up
        x = x + hidden @ w.down + zero(w.b_down)
    return x


def zero(bias: Tensor | None) -> Tensor | float:
    return 0.0 if bias is None else bias


def _normed(x: Tensor, norm: tuple, choices: Choices) -> Tensor:
    gain, beta, eps, centred = norm
    x = x - x.mean(-1, keepdim=True) if centred else x
    return x * frozen((x.square().mean(-1, keepdim=True) + eps).rsqrt(), choices.norm) * gain + zero(beta)


def _attention(model: Any, config: Any, index: int, w: Any, x_hat: Tensor, choices: Choices) -> Tensor:
    if config.model_type == "gpt2":
        fused = model.transformer.h[index].attn.c_attn
        q, k, _ = ((x_hat @ fused.weight + fused.bias).unflatten(-1, (3, HEADS, -1))).unbind(1)
    else:
        attn = model.model.layers[index].self_attn
        q, k = (linear(x_hat).unflatten(-1, (-1, attn.head_dim)) for linear in (attn.q_proj, attn.k_proj))
        if hasattr(attn, "q_norm"):
            q, k = (
                y * (y.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt() * norm.weight
                for y, norm in ((q, attn.q_norm), (k, attn.k_norm))
            )
        angles = torch.arange(len(x_hat))[:, None] * model.model.rotary_emb.inv_freq
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        q, k = (
            torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1) for a, b in (y.chunk(2, dim=-1) for y in (q, k))
        )
    k, v = (
        y.repeat_interleave(HEADS // w.kv_heads, dim=1)
        for y in (k, (x_hat @ w.v + zero(w.b_v)).unflatten(-1, (w.kv_heads, -1)))
    )
    distance = torch.arange(len(x_hat))[:, None] - torch.arange(len(x_hat))
    hidden = (distance < 0) | (distance >= (w.window or len(x_hat)))
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    pattern = frozen(scores.masked_fill(hidden, -torch.inf).softmax(-1), choices.pattern)
    return torch.einsum("hqk,khd->qhd", pattern, v).flatten(1)


MIXES = [Choices(p, n, m) for p in ("frozen", "live") for n in ("frozen", "live") for m in ("linear", "half", "live")]  # type: ignore[arg-type]


@pytest.mark.parametrize("choices", MIXES, ids=lambda c: f"pattern {c.pattern}, norm {c.norm}, mlp {c.mlp}")
@pytest.mark.parametrize("shape", SHAPES)
def test_any_mix_of_frozen_and_live_is_autograd_with_the_frozen_detached(shape: str, choices: Choices) -> None:
    adapter = tiny(shape, torch.float64)
    seen = recorded(adapter, IDS)
    x = seen.resid_pre[0].clone().requires_grad_()
    out = reference(adapter, IDS, x, choices)
    assert off(out.detach(), seen.resid_post) <= 1e-5  # whatever is frozen, forwards it is the model
    w = directions(seen, (LAYERS - 1, "resid_post"), 1)
    (expected,) = torch.autograd.grad(out[6] @ w[0], x)
    found = levels(seen, {(LAYERS - 1, "resid_post"): seeds_at(seen, w, [6])}, choices)
    assert off(gradient_at(found, (0, "resid_pre"))[0][0], expected) <= 1e-5


def test_the_sizes_of_gradients_inside_are_those_of_the_heads_and_the_neurons() -> None:
    seen = recorded(tiny("mistral"), IDS)
    found = levels(seen, {(1, "resid_post"): seeds_at(seen, directions(seen, (1, "resid_post"), 2), [4, 5])}, EFFECT)
    assert found[1, "mlp"].inner.shape == (2, len(IDS), D_MLP)
    assert found[1, "attn"].inner.shape == (2, len(IDS), seen.at((1, "hook_z")).shape[-1])


def test_the_sweep_leaves_no_gradients_behind() -> None:
    adapter = tiny("qwen3")
    seen = recorded(adapter, IDS)
    for level in sweep(seen, {(1, "resid_post"): seeds_at(seen, directions(seen, (1, "resid_post"), 1), [4])}, EFFECT):
        assert not level.before.requires_grad
        assert not level.bias_before.requires_grad
    assert all(parameter.grad is None for parameter in adapter.model.parameters())
